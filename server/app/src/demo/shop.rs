//! The demo's shop: its schema, and a writer that keeps it busy as customers would.
//!
//! Each of the writer's steps is one transaction. The SQL chooses its rows by chance; which step comes next is the
//! generator's decision, so that the same seed gives the same kinds of changes.

use rand::{Rng, RngExt};
use std::time::Duration;
use tidegate_postgres::{ConnectConfig, Session};
use tokio_util::sync::CancellationToken;

const SCHEMA: &str = include_str!("shop.sql");
/// Between two transactions: slow enough to be read.
const PAUSE: Duration = Duration::from_millis(300);

/// What happens in the shop, with how often it happens in relation to the others.
const STEPS: [(u32, &str); 6] =
    [(6, PLACE_ORDER), (6, ADVANCE_ORDER), (2, JOIN), (2, CHANGE_PRICE), (2, PREFER), (2, REMOVE_ORDER)];

const PLACE_ORDER: &str = "
    INSERT INTO public.orders (customer_id, note)
    SELECT id, CASE WHEN random() < 0.3 THEN 'Please ring twice' END FROM public.customers ORDER BY random() LIMIT 1;
    INSERT INTO public.order_lines (order_id, line, product_id, quantity, unit_price)
    SELECT currval('public.orders_id_seq'), row_number() OVER (), id, 1 + (id % 3)::int, price
    FROM (SELECT * FROM public.products ORDER BY random() LIMIT 1 + (random() * 2)::int) AS chosen;
    UPDATE public.orders SET total = (SELECT sum(quantity * unit_price) FROM public.order_lines WHERE order_id = orders.id)
    WHERE id = currval('public.orders_id_seq');";

const ADVANCE_ORDER: &str = "
    UPDATE public.orders SET status = (CASE status WHEN 'pending' THEN 'paid' WHEN 'paid' THEN 'shipped' ELSE 'delivered' END)::public.order_status
    WHERE id = (SELECT id FROM public.orders WHERE status IN ('pending', 'paid', 'shipped') ORDER BY id LIMIT 1);";

const JOIN: &str = "
    INSERT INTO public.customers (email, name, tags, preferences)
    SELECT 'guest-' || n || '@example.com', 'Guest ' || n, ARRAY['new', 'guest'], jsonb_build_object('newsletter', n % 2 = 0)
    FROM (SELECT 1 + max(id) AS n FROM public.customers) AS next;";

const CHANGE_PRICE: &str = "
    UPDATE public.products SET price = round(price * (0.9 + random() * 0.25)::numeric, 2), stock = stock + 1
    WHERE id = (SELECT id FROM public.products ORDER BY random() LIMIT 1);";

const PREFER: &str = "
    UPDATE public.customers SET preferences = preferences || jsonb_build_object('sugar', round(random() * 3)),
           tags = array_append(array_remove(tags, 'new'), NULL)
    WHERE id = (SELECT id FROM public.customers WHERE cardinality(tags) < 6 ORDER BY random() LIMIT 1);";

const REMOVE_ORDER: &str = "
    DELETE FROM public.orders WHERE id = (SELECT min(id) FROM public.orders WHERE status = 'delivered');";

/// Creates the tables and what is in them before the demo starts.
///
/// # Errors
/// The database refuses it.
pub(super) async fn create(database: &ConnectConfig) -> anyhow::Result<()> {
    Session::connect(database).await?.client().batch_execute(SCHEMA).await?;
    Ok(())
}

/// Writes until `stop`.
///
/// # Errors
/// The database refuses a step, or is gone.
pub(super) async fn write(
    database: ConnectConfig,
    mut random: impl Rng + Send,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let session = Session::connect(&database).await?;
    let mut pause = tokio::time::interval(PAUSE);
    // Something to see at once, whatever the generator says.
    let mut step = PLACE_ORDER;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = pause.tick() => session.client().batch_execute(step).await?,
        }
        step = choose(&mut random);
    }
}

fn choose(random: &mut impl Rng) -> &'static str {
    let total: u32 = STEPS.iter().map(|(weight, _)| weight).sum();
    let mut drawn = random.random_range(0..total);
    for (weight, step) in STEPS {
        if drawn < weight {
            return step;
        }
        drawn -= weight;
    }
    PLACE_ORDER
}
