//! Two databases in one server: each captured on its own, one session subscribed to both, and the outage of one is not
//! the other's.

use anyhow::{Context, Result, ensure};
use tidegate_client::SourceState;
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Ended, Recorder, Server, ServerConfig, Stop};
use tidegate_proto::v1::{
    Selection, SessionRequest, Start, Subscribe, TableSelection, changes_client::ChangesClient, event, selection::What,
    session_request::Request, session_response::Event, start,
};
use tokio_stream::StreamExt;

const BOTH: [&str; 2] = ["shop", "stock"];

/// A server with the sources `shop`, on the shared PostgreSQL, and `stock`, on one of its own, whose control database is
/// a third.
async fn served(name: &str) -> Result<(Server, Database, Cluster, Database)> {
    let shared = Cluster::shared().await?;
    let shop = shared.database(&format!("{name}_shop")).await?;
    let control = shared.database(&format!("{name}_control")).await?;
    let cluster = Cluster::start(&[]).await?;
    let stock = cluster.database("stock").await?;
    for database in [&shop, &stock] {
        database.create_marker().await?;
    }
    let mut config = ServerConfig::of(shop.url());
    config.more_sources.push(("stock".to_owned(), stock.url().to_owned()));
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    let server = Server::start(config).await?;
    server.until("stock", "streaming", |status| status.state() == SourceState::Streaming).await?;
    Ok((server, shop, cluster, stock))
}

fn subscribe(subscription: u32, source: &str) -> SessionRequest {
    let marker = TableSelection { names: vec!["marker".to_owned()], ..TableSelection::default() };
    let subscribe = Subscribe {
        subscription,
        source: source.to_owned(),
        selections: vec![Selection { what: Some(What::Tables(marker)) }],
        start: Some(Start { from: Some(start::From::At(start::Point::Earliest.into())) }),
        credit_bytes: 1 << 20,
        ..Subscribe::default()
    };
    SessionRequest { request: Some(Request::Subscribe(subscribe)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_subscribes_to_both() -> Result<()> {
    let (server, shop, _cluster, stock) = served("both").await?;
    shop.mark("of the shop").await?;
    stock.mark("of the stock").await?;
    let mut client = ChangesClient::connect(server.endpoint()).await?;
    let requests = [subscribe(1, BOTH[0]), subscribe(2, BOTH[1])];
    let mut responses = client.session(tokio_stream::iter(requests).chain(tokio_stream::pending())).await?.into_inner();
    let receiving = async {
        let mut rows: [Option<String>; 2] = [None, None];
        while rows.iter().any(Option::is_none) {
            let response = responses.message().await?.context("the session ended")?;
            match response.event {
                Some(Event::Changes(batch)) => {
                    for event in batch.events {
                        if let Some(event::What::Change(change)) = event.what {
                            let row = String::from_utf8_lossy(&change.row).into_owned();
                            rows[response.subscription as usize - 1] = Some(row);
                        }
                    }
                }
                Some(Event::Error(status)) => anyhow::bail!("{status:?}"),
                _ => {}
            }
        }
        Ok(rows)
    };
    let [of_shop, of_stock] = tokio::time::timeout(DEADLINE, receiving).await.context("changes of both")??;
    ensure!(of_shop.is_some_and(|row| row.contains("of the shop")), "subscription 1 got another source's row");
    ensure!(of_stock.is_some_and(|row| row.contains("of the stock")), "subscription 2 got another source's row");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outage_of_one_does_not_touch_the_other() -> Result<()> {
    let (server, shop, mut cluster, stock) = served("outage").await?;
    let mut of_shop = Recorder::new(server.endpoint()).of_source("shop");
    let mut of_stock = Recorder::new(server.endpoint()).of_source("stock");
    stock.mark("before").await?;
    ensure!(of_stock.until_marker("before").await? == Ended::Arrived);

    cluster.stop(Stop::Immediate).await?;
    server.until("stock", "not streaming", |status| status.state() == SourceState::Connecting).await?;
    shop.mark("meanwhile").await?;
    ensure!(of_shop.until_marker("meanwhile").await? == Ended::Arrived);
    ensure!(server.status().await?.state() == SourceState::Streaming, "the shop must go on");
    // What is stored of the one that is down is still served.
    let mut another = Recorder::new(server.endpoint()).of_source("stock");
    ensure!(another.until_marker("before").await? == Ended::Arrived);

    cluster.launch().await?;
    let stock = Database::connect(stock.url()).await?;
    stock.mark("after").await?;
    ensure!(of_stock.until_marker("after").await? == Ended::Arrived);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sources_without_a_control_database_are_refused() -> Result<()> {
    let mut config = ServerConfig::of("postgres://nobody@127.0.0.1:1/nothing");
    config.more_sources.push(("stock".to_owned(), "postgres://nobody@127.0.0.1:1/other".to_owned()));
    let printed = Server::stopped(config)?.launch_in_vain().await?;
    ensure!(printed.contains("control.url") && printed.contains("several sources"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_names_none_of_several_sources_is_told_which_there_are() -> Result<()> {
    let (server, ..) = served("unnamed").await?;
    let mut recorder = Recorder::new(server.endpoint());
    let error = recorder.until_marker("never").await.err().context("no source was named")?.to_string();
    ensure!(BOTH.iter().all(|name| error.contains(name)), "{error}");
    Ok(())
}
