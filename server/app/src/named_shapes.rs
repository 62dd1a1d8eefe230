//! The named shapes of all sources: what the control database has, and what the configuration declares.
//!
//! ```text
//! control database ──each second: are they the same?──▶ keeper ──▶ known (for each source) ──▶ gateway
//! Define, Delete ────▶ control database, and wakes it ────▲ │ ▲
//!                                       configuration ──────┘ └──▶ file, for a start while the database is down
//! ```
//!
//! Invariant: a name that the configuration declares means what stands there. What is known stays known while the control
//! database does not answer.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prost::Message as _;
use tidegate_control::{Connector, Control, ControlError, ShapeCopy, ShapeLimits, ShapeRecord, StoredShape};
use tidegate_gateway::{FormerShape, KnownShapes, NamedShape, NamedShapeError, NamedShapes, ShapeAnswer};
use tidegate_model::{Retry, ShapeName, SourceName, TableName};
use tidegate_proto::v1;
use tokio::{
    sync::{Notify, OnceCell, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often the control database is asked: after so long at most, every node knows a shape that another one has defined.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two questions at least, however many want to know: clients decide how often a server does.
const PAUSE: Duration = Duration::from_millis(100);
/// The same while the control database does not answer.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
/// Named shapes of one source, besides those that the configuration declares.
const LIMITS: ShapeLimits = ShapeLimits { count_max: 10_000, bytes_max: 16 << 20 };
/// How long a definition that is stored may take to become known.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to ask whether anything has changed.
const ASKED_WITHIN: Duration = Duration::from_secs(2);
/// Until what could not be asked is worth asking again.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the copies.
pub(crate) struct ShapeKeeper {
    store: Arc<Stored>,
    sources: BTreeMap<SourceName, OfSource>,
    file: PathBuf,
}

struct OfSource {
    declared: KnownShapes,
    known: watch::Sender<Arc<KnownShapes>>,
}

/// The control database, and a bell for whoever has changed something in it.
struct Stored {
    connector: Connector,
    control: OnceCell<Control>,
    changed: Notify,
    /// Rounds of asking that have begun.
    begun: AtomicU64,
    /// The last that has ended.
    ended: watch::Sender<Round>,
}

/// A round of asking that has ended.
#[derive(Clone, Copy, Default)]
struct Round {
    number: u64,
    is_answered: bool,
}

impl Stored {
    /// Opens it when it is first wanted.
    async fn control(&self) -> Result<&Control, ControlError> {
        self.control.get_or_try_init(|| Control::open(Arc::clone(&self.connector))).await
    }
}

impl ShapeKeeper {
    /// With what the configuration declares, and what the file remembers.
    pub(crate) fn new(connector: Connector, data_dir: &Path, declared: BTreeMap<SourceName, KnownShapes>) -> Self {
        let (control, changed, begun, ended) = Default::default();
        let store = Stored { connector, control, changed, begun, ended };
        let of_source = |declared| OfSource { declared, known: watch::channel(Arc::default()).0 };
        let sources = declared.into_iter().map(|(name, declared)| (name, of_source(declared))).collect();
        let keeper = ShapeKeeper { store: Arc::new(store), sources, file: data_dir.join("shapes") };
        let remembered = std::fs::read(&keeper.file).ok().and_then(|bytes| remembered(&bytes));
        keeper.publish(remembered.unwrap_or_default());
        keeper
    }

    /// Those of one source, as the gateway wants them.
    pub(crate) fn of(&self, source: &SourceName) -> Arc<dyn NamedShapes> {
        let OfSource { known, declared } = self.sources.get(source).expect("made of the same configuration");
        Arc::new(SourceShapes {
            source: source.clone(),
            store: Arc::clone(&self.store),
            declared: declared.keys().cloned().collect(),
            known: known.subscribe(),
        })
    }

    /// Keeps them current until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut copy = ShapeCopy::default();
        while !stop.is_cancelled() {
            let number = self.store.begun.fetch_add(1, Relaxed) + 1;
            let asked = async { self.store.control().await?.refresh_shapes(&mut copy).await };
            let answer = tokio::select! {
                answer = asked => answer,
                () = stop.cancelled() => return,
            };
            let is_answered = answer.is_ok();
            match answer {
                Ok(true) => {
                    let shapes: Vec<(SourceName, NamedShape)> = copy.shapes().cloned().map(named).collect();
                    if let Err(error) = remember(&self.file, &shapes) {
                        let file = self.file.display();
                        tracing::warn!(%file, %error, "named shapes cannot be remembered; a start needs the control database");
                    }
                    self.publish(shapes);
                }
                Ok(false) => {}
                // Capture meets the same outage, and says so.
                Err(error) => tracing::debug!(%error, "the control database cannot be asked for named shapes"),
            }
            self.store.ended.send_replace(Round { number, is_answered });
            let wanted = async {
                sleep(if is_answered { PAUSE } else { PAUSE_AFTER_ERROR }).await;
                self.store.changed.notified().await;
            };
            tokio::select! {
                () = sleep(INTERVAL) => {}
                () = wanted => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn publish(&self, shapes: Vec<(SourceName, NamedShape)>) {
        let mut known: BTreeMap<SourceName, KnownShapes> = BTreeMap::new();
        for (source, shape) in shapes {
            if let Ok(name) = shape.definition.name.parse() {
                known.entry(source).or_default().insert(name, shape);
            }
        }
        for (source, OfSource { declared, known: sender }) in &self.sources {
            let mut known = known.remove(source).unwrap_or_default();
            known.extend(declared.clone());
            sender.send_if_modified(|before| {
                let differs = **before != known;
                if differs {
                    *before = Arc::new(known);
                }
                differs
            });
        }
    }
}

/// One source's.
struct SourceShapes {
    source: SourceName,
    store: Arc<Stored>,
    declared: Vec<ShapeName>,
    known: watch::Receiver<Arc<KnownShapes>>,
}

impl SourceShapes {
    fn not_declared(&self, name: &ShapeName) -> Result<(), NamedShapeError> {
        if self.declared.contains(name) { Err(NamedShapeError::Declared(name.clone())) } else { Ok(()) }
    }

    /// Waits until what is stored is known.
    async fn until_known(&self, is_known: impl Fn(&KnownShapes) -> bool) -> Result<(), NamedShapeError> {
        self.store.changed.notify_one();
        let mut known = self.known.clone();
        match timeout(KNOWN_WITHIN, known.wait_for(|known| is_known(known))).await {
            Ok(Ok(_known)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let detail = "the change is stored, and is not known here yet; see Shapes.List".to_owned();
                Err(NamedShapeError::Later { detail, retry_in: RETRY })
            }
        }
    }
}

impl NamedShapes for SourceShapes {
    fn known(&self) -> watch::Receiver<Arc<KnownShapes>> {
        self.known.clone()
    }

    fn define(&self, name: ShapeName, definition: v1::ShapeSelection) -> ShapeAnswer<'_, NamedShape> {
        Box::pin(async move {
            self.not_declared(&name)?;
            let record = record(definition)?;
            let control = self.store.control().await.map_err(refusal)?;
            let stored = control.define_shape(&self.source, (&name, &record), LIMITS).await.map_err(refusal)?;
            let (_, shape) = named(stored);
            // Someone may have deleted it meanwhile, and defined it again.
            self.until_known(|known| known.get(&name).is_some_and(|known| known.version >= shape.version)).await?;
            Ok(shape)
        })
    }

    fn refresh(&self) -> ShapeAnswer<'_, ()> {
        Box::pin(async move {
            // One that is under way may have asked before.
            let number = self.store.begun.load(Relaxed) + 1;
            self.store.changed.notify_one();
            let mut ended = self.store.ended.subscribe();
            match timeout(ASKED_WITHIN, ended.wait_for(|ended| ended.number >= number)).await {
                Ok(Ok(ended)) if ended.is_answered => Ok(()),
                Ok(Ok(_) | Err(_)) | Err(_) => {
                    let detail = "what is selected is not what this server knows; another one may have defined it, and the control \
                                  database, which has that, does not answer";
                    Err(NamedShapeError::Later { detail: detail.to_owned(), retry_in: RETRY })
                }
            }
        })
    }

    fn delete(&self, name: ShapeName) -> ShapeAnswer<'_, ()> {
        Box::pin(async move {
            self.not_declared(&name)?;
            let control = self.store.control().await.map_err(refusal)?;
            if !control.delete_shape(&self.source, &name).await.map_err(refusal)? {
                return Err(NamedShapeError::Unknown { name, near: Vec::new() });
            }
            self.until_known(|known| !known.contains_key(&name)).await
        })
    }
}

fn refusal(error: ControlError) -> NamedShapeError {
    let detail = error.to_string();
    match error.retry() {
        Retry::After(retry_in) => NamedShapeError::Later { detail, retry_in },
        Retry::Never | Retry::Reset => NamedShapeError::Refused { detail },
    }
}

fn record(definition: v1::ShapeSelection) -> Result<ShapeRecord, NamedShapeError> {
    let changed_columns = definition.updates() == v1::Updates::ChangedColumns;
    let v1::ShapeSelection { table, r#where, parameters, columns, .. } = definition;
    let table: TableName = table.parse().map_err(|error| NamedShapeError::Refused { detail: format!("{error}") })?;
    let parameter_types = parameters.into_iter().map(|parameter| parameter.r#type).collect();
    Ok(ShapeRecord { table, condition: r#where, parameter_types, columns, changed_columns })
}

fn named(stored: StoredShape) -> (SourceName, NamedShape) {
    let StoredShape { source, name, version, defined_us, definition, former } = stored;
    let former = former
        .into_iter()
        .map(|former| FormerShape { version: former.version, definition: selection(&name, former.definition) });
    let former = former.collect();
    let definition = selection(&name, definition);
    (source, NamedShape { definition, version, defined_us: Some(defined_us), former })
}

fn selection(name: &ShapeName, definition: ShapeRecord) -> v1::ShapeSelection {
    let ShapeRecord { table, condition, parameter_types, columns, changed_columns } = definition;
    let updates = if changed_columns { v1::Updates::ChangedColumns } else { v1::Updates::FullRow };
    let parameter = |r#type| v1::Parameter { r#type, value: None };
    v1::ShapeSelection {
        name: name.to_string(),
        table: table.to_string(),
        r#where: condition,
        parameters: parameter_types.into_iter().map(parameter).collect(),
        columns,
        updates: updates as i32,
    }
}

/// Writes them down, whole or not at all.
fn remember(file: &Path, shapes: &[(SourceName, NamedShape)]) -> io::Result<()> {
    let shown = |(source, shape): &(SourceName, NamedShape)| v1::NamedShape {
        source: source.to_string(),
        definition: Some(shape.definition.clone()),
        version: shape.version,
        declared: false,
        defined: shape.defined_us.map(crate::captured_snapshots::timestamp),
        former: shape.former_to_proto(),
    };
    let shapes = v1::ListShapesResponse { shapes: shapes.iter().map(shown).collect(), more: false };
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, shapes.encode_to_vec())?;
    std::fs::rename(&fresh, file)
}

/// None where it is damaged: the control database will say.
fn remembered(bytes: &[u8]) -> Option<Vec<(SourceName, NamedShape)>> {
    let shapes = v1::ListShapesResponse::decode(bytes).ok()?.shapes;
    let shape = |shape: v1::NamedShape| {
        let time = shape.defined?;
        let defined_us = time.seconds.checked_mul(1_000_000)?.checked_add(i64::from(time.nanos) / 1_000)?;
        let former = |former: v1::FormerShape| {
            former.definition.map(|definition| FormerShape { version: former.version, definition })
        };
        let named = NamedShape {
            definition: shape.definition?,
            version: shape.version,
            defined_us: Some(defined_us),
            former: shape.former.into_iter().filter_map(former).collect(),
        };
        Some((shape.source.parse().ok()?, named))
    };
    shapes.into_iter().map(shape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> SourceName {
        "shop".parse().expect("a name")
    }

    fn stored(name: &str, condition: &str) -> (SourceName, NamedShape) {
        let definition = |condition: &str| ShapeRecord {
            table: TableName::new("public", "orders"),
            condition: condition.to_owned(),
            parameter_types: vec!["int8".to_owned()],
            columns: vec!["total".to_owned()],
            changed_columns: true,
        };
        let former = vec![tidegate_control::FormerShape { version: 2, definition: definition("tenant = 3") }];
        named(StoredShape {
            source: source(),
            name: name.parse().expect("a name"),
            version: 4,
            defined_us: 1_750_000_000_123_456,
            definition: definition(condition),
            former,
        })
    }

    fn keeper(dir: &Path, declared: KnownShapes) -> ShapeKeeper {
        let connector: Connector =
            Arc::new(|| Box::pin(async { Err(ControlError::Connect("there is none".to_owned())) }));
        ShapeKeeper::new(connector, dir, BTreeMap::from([(source(), declared)]))
    }

    #[test]
    fn what_was_known_is_known_after_a_start_without_the_control_database() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let shape = stored("open_orders", "tenant = $1");
        remember(&dir.path().join("shapes"), std::slice::from_ref(&shape)).expect("written");
        let known = keeper(dir.path(), KnownShapes::new()).of(&source()).known();
        assert_eq!(known.borrow().values().collect::<Vec<_>>(), [&shape.1]);
        std::fs::write(dir.path().join("shapes"), b"\xff").expect("written");
        assert!(keeper(dir.path(), KnownShapes::new()).of(&source()).known().borrow().is_empty());
    }

    #[test]
    fn what_the_configuration_declares_wins() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let declared = NamedShape { version: 0, defined_us: None, ..stored("open_orders", "true").1 };
        let name: ShapeName = "open_orders".parse().expect("a name");
        let keeper = keeper(dir.path(), KnownShapes::from([(name.clone(), declared)]));
        keeper.publish(vec![stored("open_orders", "tenant = $1"), stored("others", "true")]);
        let known = Arc::clone(&keeper.of(&source()).known().borrow());
        assert_eq!(known.len(), 2);
        assert!(known[&name].is_declared() && known[&name].definition.r#where == "true");
    }

    #[tokio::test]
    async fn without_a_control_database_it_is_not_known_whether_anything_has_changed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let keeper = keeper(dir.path(), KnownShapes::new());
        let shapes = keeper.of(&source());
        let asked = tokio::select! {
            asked = shapes.refresh() => asked,
            () = keeper.run(CancellationToken::new()) => panic!("it runs until it is stopped"),
        };
        assert!(matches!(asked, Err(NamedShapeError::Later { .. })), "{asked:?}");
    }

    #[tokio::test]
    async fn clients_do_not_set_the_rate_at_which_the_control_database_is_asked() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let keeper = keeper(dir.path(), KnownShapes::new());
        let shapes = keeper.of(&source());
        let begin = tokio::time::Instant::now();
        let asking = async {
            for _ in 0..2 {
                let asked = shapes.refresh().await;
                assert!(matches!(asked, Err(NamedShapeError::Later { .. })), "{asked:?}");
            }
        };
        tokio::select! {
            () = asking => {}
            () = keeper.run(CancellationToken::new()) => panic!("it runs until it is stopped"),
        };
        let round_count = keeper.store.begun.load(Relaxed);
        assert!(begin.elapsed() >= PAUSE_AFTER_ERROR, "{round_count} questions in {:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn what_is_declared_is_not_defined_and_without_a_control_database_nothing_is() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let declared = NamedShape { version: 0, defined_us: None, ..stored("open_orders", "true").1 };
        let name: ShapeName = "open_orders".parse().expect("a name");
        let shapes = keeper(dir.path(), KnownShapes::from([(name.clone(), declared.clone())])).of(&source());
        let refused = shapes.define(name.clone(), declared.definition.clone()).await;
        assert_eq!(refused, Err(NamedShapeError::Declared(name.clone())));
        assert_eq!(shapes.delete(name.clone()).await, Err(NamedShapeError::Declared(name)));
        let later = shapes.define("others".parse().expect("a name"), declared.definition).await;
        assert!(matches!(later, Err(NamedShapeError::Later { .. })), "{later:?}");
    }
}
