//! Puts the server together, watches over its tasks, and takes it apart in order.
//!
//! ```text
//!              ┌ capture_task ─▶ feed ─▶ StoreWriter ┐
//! each source ─┤                                     ├─▶ Store ─▶ gateway (gRPC)
//!              ├ known_tables ───────────────────────┤       └──▶ http (metrics, health)
//!              └ mirror_keeper, mirror_definitions ──┘
//! all sources ── named_shapes ──▶ gateway
//! ```
//!
//! What a task's death means: a store that fails takes the process down in order, since a restart recovers it; so does
//! a listener that fails, and any panic. A capture that ends leaves its source stopped and everything else running.
//!
//! Orderly end: subscribers are asked to leave and waited for; capture stops; what it has handed over is stored and
//! fsynced; then the http port closes. Nothing is lost at any point where this is cut short.

use anyhow::{Context, bail};
use std::{fs::File, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tidegate_capture::{CaptureConfig, MirrorLink, SnapshotRequests};
use tidegate_feed::{
    Durable,
    local::{self, Publisher},
};
use tidegate_gateway::{Gateway, GatewayConfig, KnownTable, SourceHandle, SourceStatus};
use tidegate_model::{Clock, Position, SystemClock};
use tidegate_store::{Budgets, MirrorConfig, MirrorReader, Retention, Store, StoreConfig};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    capture_task::{CaptureCounters, CaptureTask, capture_config, resume},
    captured_snapshots::CapturedSnapshots,
    config::{Config, Listen, Source},
    control_connector::ControlConnector,
    http::{self, Observed},
    known_tables,
    metrics::{Metrics, ObservedSource},
    mirror_definitions::{DefinitionWatch, Definitions, Tables},
    mirror_keeper::MirrorKeeper,
    named_shapes::ShapeKeeper,
    tls,
};

/// What a source's keeper of its mirror follows.
type KnownTables = watch::Receiver<Arc<Vec<KnownTable>>>;
type Requests = watch::Receiver<Option<SnapshotRequests>>;

/// Length of an instance's name.
const INSTANCE_DIGITS: usize = 16;

/// The ports, taken before anything else starts, so that a port in use is said at once.
pub(crate) struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
}

impl Listeners {
    /// Takes the ports. `option` is what chooses other ones, for the message.
    ///
    /// # Errors
    /// One is in use, or not allowed.
    pub(crate) async fn bind(listen: &Listen, option: &str) -> anyhow::Result<Self> {
        Ok(Listeners { grpc: bind(listen.grpc, option).await?, http: bind(listen.http, option).await? })
    }

    /// Where gRPC is served.
    ///
    /// # Errors
    /// The operating system does not say.
    pub(crate) fn grpc(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Where metrics and health are served.
    ///
    /// # Errors
    /// The operating system does not say.
    pub(crate) fn http(&self) -> std::io::Result<SocketAddr> {
        self.http.local_addr()
    }
}

async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another address or port with {option}"))
}

/// Serves until `stop`, and then ends in order.
///
/// # Errors
/// It cannot start, or a part without which it is of no use has failed.
pub(crate) async fn run(config: Config, listeners: Listeners, stop: CancellationToken) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let _lock = lock(&config.data_dir)?;
    let instance = instance(&config.data_dir)?;
    let mut server = Server::new(&config, clock, instance);
    for source in &config.sources {
        server.add_source(&config, source).await.with_context(|| format!("source {}", source.name))?;
    }
    server.keep_shapes();
    server.open_ports(&config, listeners)?;
    let failure = tokio::select! {
        () = stop.cancelled() => None,
        failure = server.failure() => Some(failure),
    };
    if let Some(error) = &failure {
        // Said again at the end, before which the stop may be cut short.
        tracing::error!(error = format!("{error:#}"), "stopping, since a part has failed");
    }
    server.end(config.shutdown_deadline).await;
    failure.map_or(Ok(()), Err)
}

/// Two processes must not write the same changelogs. Released when the file is closed.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot make data_dir {}; create it, or set data_dir", data_dir.display()))?;
    let file =
        File::create(data_dir.join("lock")).with_context(|| format!("cannot write in {}", data_dir.display()))?;
    if let Err(error) = file.try_lock() {
        bail!("{} is in use by another process ({error}); stop it, or set data_dir", data_dir.display());
    }
    Ok(file)
}

/// What tells this server's connections from those of another one: random, and kept in the data folder, so that after a
/// crash it knows its own stale walsender.
fn instance(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("instance");
    match std::fs::read_to_string(&path) {
        Ok(known) if known.len() == INSTANCE_DIGITS => return Ok(known),
        Ok(_damaged) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let fresh = format!("{:0INSTANCE_DIGITS$x}", rand::random::<u64>());
    std::fs::write(&path, &fresh).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fresh)
}

/// The running tasks, by what their death means.
struct Server {
    clock: Arc<dyn Clock>,
    /// See [`instance`].
    instance: String,
    control: ControlConnector,
    shapes: Arc<ShapeKeeper>,
    sources: Vec<SourceHandle>,
    observed: Vec<ObservedSource>,
    /// Captures and catalog readers: they end by themselves only when they have said why in their source's status.
    intake: JoinSet<anyhow::Result<()>>,
    stores: JoinSet<anyhow::Result<()>>,
    grpc: JoinSet<anyhow::Result<()>>,
    http: JoinSet<anyhow::Result<()>>,
    stop: Stop,
}

/// Tokens in the order in which they are cancelled.
#[derive(Default)]
struct Stop {
    drain: CancellationToken,
    intake: CancellationToken,
    stores: CancellationToken,
    http: CancellationToken,
}

impl Server {
    fn new(config: &Config, clock: Arc<dyn Clock>, instance: String) -> Self {
        let control = ControlConnector::new(config.control.clone());
        let declared = config.sources.iter().map(|source| (source.name.clone(), source.shapes.clone())).collect();
        Server {
            clock,
            instance,
            shapes: Arc::new(ShapeKeeper::new(control.connector(), &config.data_dir, declared)),
            control,
            sources: Vec::new(),
            observed: Vec::new(),
            intake: JoinSet::new(),
            stores: JoinSet::new(),
            grpc: JoinSet::new(),
            http: JoinSet::new(),
            stop: Stop::default(),
        }
    }

    /// Opens a source's store and starts what fills it.
    async fn add_source(&mut self, config: &Config, source: &Source) -> anyhow::Result<()> {
        let spool_dir = config.data_dir.join(format!("{}.spool", source.name));
        empty_dir(&spool_dir).with_context(|| format!("cannot empty {}", spool_dir.display()))?;
        let (store, mirror, publisher) = self.open_store(config, source).await?;
        let (status, status_seen) = watch::channel(SourceStatus {
            slot: source.slot.clone(),
            publication: source.publication.clone(),
            ..SourceStatus::default()
        });
        let counters = Arc::new(CaptureCounters::default());
        let (requests, requests_seen) = watch::channel(None);
        let (complete, complete_seen) = watch::channel(None);
        let link = MirrorLink { complete: mirror.is_some().then_some(complete_seen), ..MirrorLink::default() };
        let task = CaptureTask {
            config: CaptureConfig { mirror: link.clone(), ..capture_config(source, spool_dir.clone(), &self.instance) },
            connector: self.control.connector(),
            publisher,
            resume: store.recovered().map(|recovered| resume(recovered, &store)),
            status: status.clone(),
            counters: Arc::clone(&counters),
            requests,
            clock: Arc::clone(&self.clock),
        };
        let stop = self.stop.intake.clone();
        self.intake.spawn(Box::pin(async move {
            task.run(stop).await;
            Ok(())
        }));
        let (known, tables) = watch::channel(Arc::default());
        let (published, patterns) = ((source.connect.clone(), source.publication.clone()), source.tables.clone());
        let stop = self.stop.intake.clone();
        self.intake.spawn(async move {
            known_tables::watch(published, patterns, known, stop).await;
            Ok(())
        });
        if let Some(mirror) = mirror.clone() {
            self.keep_mirror(source, mirror, (tables.clone(), requests_seen.clone(), status), (complete, link.altered));
        }
        self.observed.push(ObservedSource {
            name: source.name.clone(),
            status: status_seen.clone(),
            head: store.head(),
            counters,
        });
        let (name, connect, publication) = (source.name.clone(), source.connect.clone(), source.publication.clone());
        let snapshots = Arc::new(CapturedSnapshots { requests: requests_seen, connect, publication });
        let named_shapes = self.shapes.of(&name);
        let status = status_seen;
        self.sources.push(SourceHandle { name, store, status, tables, snapshots, mirror, named_shapes, spool_dir });
        Ok(())
    }

    /// Opens a source's store, and lets it take what is published.
    async fn open_store(
        &mut self,
        config: &Config,
        source: &Source,
    ) -> anyhow::Result<(Store, Option<MirrorReader>, Publisher)> {
        let mut store_config = StoreConfig::new(config.data_dir.join(source.name.as_str()));
        store_config.tail_bytes = source.memory.tail_bytes;
        store_config.retention = Retention { size_bytes: config.retention.size_bytes, age: config.retention.age };
        // Only whole segments are removed, so a small changelog has small ones.
        let eighth = (config.retention.size_bytes / 8).max(1 << 20);
        store_config.segment_bytes = store_config.segment_bytes.min(eighth);
        let (store, mut writer) = Store::open(store_config, Arc::clone(&self.clock)).await?;
        let mirror = match mirror_of(config, source)? {
            Some(mirror) => Some(writer.keep_mirror(mirror)?),
            None => None,
        };
        let recovered = store.recovered();
        let start = Durable {
            position: recovered.as_ref().map_or(Position::ZERO, |recovered| recovered.durable),
            epoch: recovered.as_ref().map(|recovered| recovered.epoch.epoch),
            disk_full: false,
        };
        let (publisher, subscriber) = local::channel(source.memory.feed_bytes, start);
        let stop = self.stop.stores.clone();
        let name = source.name.clone();
        self.stores.spawn(async move {
            writer.run(subscriber, stop).await.with_context(|| format!("the changelog of source {name} has failed"))
        });
        Ok((store, mirror, publisher))
    }

    /// Starts what keeps a source's mirror complete and verified.
    fn keep_mirror(
        &mut self,
        source: &Source,
        mirror: MirrorReader,
        (tables, requests, status): (KnownTables, Requests, watch::Sender<SourceStatus>),
        (complete, altered): (watch::Sender<Option<Tables>>, Arc<Notify>),
    ) {
        let (seen, definitions) = watch::channel(Definitions::default());
        let (watched, watched_tables) = watch::channel(Tables::default());
        let (name, connect, publication) = (source.name.clone(), source.connect.clone(), source.publication.clone());
        let interval = source.mirror_check;
        let watch =
            DefinitionWatch { connect: connect.clone(), publication, tables: watched_tables, altered, interval, seen };
        let keeper =
            MirrorKeeper { source: name, mirror, tables, requests, status, connect, definitions, watched, complete };
        let stop = self.stop.intake.clone();
        self.intake.spawn(async move {
            watch.run(stop).await;
            Ok(())
        });
        let stop = self.stop.intake.clone();
        self.intake.spawn(async move {
            keeper.run(stop).await;
            Ok(())
        });
    }

    /// Keeps the named shapes current.
    fn keep_shapes(&mut self) {
        let (shapes, stop) = (Arc::clone(&self.shapes), self.stop.intake.clone());
        self.intake.spawn(async move {
            shapes.run(stop).await;
            Ok(())
        });
    }

    /// Serves what the stores hold, before any database has been reached.
    fn open_ports(&mut self, config: &Config, listeners: Listeners) -> anyhow::Result<()> {
        let tls = config.tls.as_ref().map(tls::server).transpose()?;
        let gateway_config =
            GatewayConfig { drain_deadline: drain_time(config.shutdown_deadline), ..GatewayConfig::default() };
        let clock = Arc::clone(&self.clock);
        let gateway = Gateway::new(self.sources.clone(), gateway_config, Arc::clone(&clock), self.stop.drain.clone());
        let metrics = Metrics::new(self.observed.clone(), gateway.metrics(), clock)?;
        let (grpc, http) = (listeners.grpc()?, listeners.http()?);
        tracing::info!(%grpc, %http, tls = tls.is_some(), version = env!("CARGO_PKG_VERSION"), "serving");
        self.grpc.spawn(async move { gateway.serve(listeners.grpc, tls).await.context("the gRPC port has failed") });
        let observed =
            Arc::new(Observed { metrics, sources: self.observed.clone(), draining: self.stop.drain.clone() });
        let stop = self.stop.http.clone();
        self.http.spawn(async move {
            http::serve(listeners.http, Arc::clone(&observed), stop).await.context("the http port has failed")?;
            observed.metrics.shutdown().await;
            Ok(())
        });
        Ok(())
    }

    /// Waits until a part has failed without which the process is of no use.
    async fn failure(&mut self) -> anyhow::Error {
        loop {
            let (ended, may_end) = tokio::select! {
                // A store ends when its feed does; a capture that ends has said why in its source's status.
                Some(ended) = self.stores.join_next() => (ended, true),
                Some(ended) = self.intake.join_next() => (ended, true),
                Some(ended) = self.grpc.join_next() => (ended, false),
                Some(ended) = self.http.join_next() => (ended, false),
                else => return anyhow::anyhow!("every task has ended"),
            };
            match ended {
                Ok(Ok(())) if may_end => {}
                Ok(Ok(())) => return anyhow::anyhow!("a port has closed by itself"),
                Ok(Err(error)) => return error,
                Err(panic) => return anyhow::Error::new(panic).context("a task has panicked"),
            }
        }
    }

    /// Ends everything in order, within the deadline.
    async fn end(mut self, deadline: Duration) {
        let started = Instant::now();
        let end = started + deadline;
        tracing::info!(subscribers_have = ?drain_time(deadline), "stopping");
        self.stop.drain.cancel();
        settle("subscribers", &mut self.grpc, started + drain_time(deadline) + GRACE).await;
        self.stop.intake.cancel();
        settle("captures", &mut self.intake, end).await;
        // The feeds are closed now: the stores end when they have stored what was in them.
        settle("stores", &mut self.stores, end).await;
        self.stop.stores.cancel();
        settle("stores", &mut self.stores, end + GRACE).await;
        self.stop.http.cancel();
        settle("http", &mut self.http, end + GRACE).await;
        self.control.close();
        tracing::info!(took = ?started.elapsed(), "stopped");
    }
}

/// What a part may take longer than it was given, before it is cut off.
const GRACE: Duration = Duration::from_secs(1);

/// Subscribers get most of the time; the rest is for making everything durable.
fn drain_time(deadline: Duration) -> Duration {
    deadline * 3 / 5
}

/// Waits until the tasks have ended, at most until the deadline.
async fn settle(what: &str, tasks: &mut JoinSet<anyhow::Result<()>>, deadline: Instant) {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "failed while stopping"),
                Err(error) => tracing::error!(%error, "panicked while stopping"),
            }
        }
    };
    if timeout_at(deadline, all).await.is_err() {
        tracing::warn!(what, "not ended within the shutdown deadline; going on without");
    }
}

/// Where the source's mirror is kept and of what; one that is no longer wanted is removed.
fn mirror_of(config: &Config, source: &Source) -> anyhow::Result<Option<MirrorConfig>> {
    let dir = config.data_dir.join(format!("{}.mirror", source.name));
    let tables = source.mirror.clone();
    if tables.is_empty() && source.mirror_on_demand.is_empty() {
        remove_dir(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        return Ok(None);
    }
    let overlay = source.memory.mirror_bytes / 3;
    let budgets = Budgets { overlay, cache: (source.memory.mirror_bytes - overlay) as u64 };
    Ok(Some(MirrorConfig { dir, tables, on_demand: source.mirror_on_demand.clone(), budgets }))
}

/// Removes what a crash has left.
fn empty_dir(dir: &Path) -> std::io::Result<()> {
    remove_dir(dir)?;
    std::fs::create_dir_all(dir)
}

fn remove_dir(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_dir_has_one_process() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = lock(dir.path()).expect("free");
        let second = lock(dir.path()).expect_err("taken").to_string();
        assert!(second.contains("in use by another process"), "{second}");
        drop(first);
        lock(dir.path()).expect("free again");
    }

    #[test]
    fn what_a_crash_left_in_the_spool_is_removed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let spool = dir.path().join("shop.spool");
        empty_dir(&spool).expect("made");
        std::fs::write(spool.join("17"), b"x").expect("writable");
        empty_dir(&spool).expect("emptied");
        assert_eq!(std::fs::read_dir(&spool).expect("is there").count(), 0);
    }
}
