//! Shapes that have a name: a seam, behind which the application keeps them; and what a name in a selection means.
//!
//! Invariant: selecting one that is known asks nobody. What is known is what this node has heard last, also while the control database
//! is down.

mod error;
mod in_use;

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use tidegate_model::{ShapeName, near};
use tidegate_proto::v1::{self, selection::What};
use tokio::sync::watch;

use crate::status::GatewayError;
pub use error::NamedShapeError;
pub(crate) use error::NamingError;
pub(crate) use in_use::NamedInUse;
use in_use::NamedVersion;

/// What the keeper of named shapes answers when it can.
pub type ShapeAnswer<'a, T> = Pin<Box<dyn Future<Output = Result<T, NamedShapeError>> + Send + 'a>>;
/// A source's shapes, by name.
pub type KnownShapes = BTreeMap<ShapeName, NamedShape>;

/// Keeps the named shapes of one source.
pub trait NamedShapes: Send + Sync {
    /// All of them, and again whenever one changes.
    fn known(&self) -> watch::Receiver<Arc<KnownShapes>>;

    /// Defines one, or defines it anew. It is known before this answers. The definition has been checked.
    fn define(&self, name: ShapeName, definition: v1::ShapeSelection) -> ShapeAnswer<'_, NamedShape>;

    /// Asks whether they are what is known. What another server has defined before this was called is known when it answers; where nobody
    /// can be asked, it says so soon.
    fn refresh(&self) -> ShapeAnswer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Takes a name away. It is known no more before this answers.
    fn delete(&self, name: ShapeName) -> ShapeAnswer<'_, ()>;
}

/// A shape that has a name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedShape {
    /// With its name; its parameters have no values.
    pub definition: v1::ShapeSelection,
    /// Another one after each change of the definition; 0 of one that is declared.
    pub version: u64,
    /// When it was defined, in microseconds since 1970; None of one that is declared.
    pub defined_us: Option<i64>,
    /// What it was before, newest first, as far as that is remembered.
    pub former: Vec<FormerShape>,
}

/// A definition that a name had.
#[derive(Clone, Debug, PartialEq)]
pub struct FormerShape {
    /// As of a [`NamedShape`].
    pub version: u64,
    /// What it was.
    pub definition: v1::ShapeSelection,
}

impl NamedShape {
    /// What it was before, for those who ask, or keep it.
    #[must_use]
    pub fn former_to_proto(&self) -> Vec<v1::FormerShape> {
        let shown = |former: &FormerShape| v1::FormerShape {
            definition: Some(former.definition.clone()),
            version: former.version,
        };
        self.former.iter().map(shown).collect()
    }

    /// What it was when the source's shapes had this version, and since which.
    fn at(&self, version: u64) -> Option<(&v1::ShapeSelection, u64)> {
        self.versions().find(|(_, of)| *of <= version)
    }

    /// Newest first.
    fn versions(&self) -> impl Iterator<Item = (&v1::ShapeSelection, u64)> {
        let former = self.former.iter().map(|former| (&former.definition, former.version));
        std::iter::once((&self.definition, self.version)).chain(former)
    }

    /// Does the configuration declare it?
    #[must_use]
    pub fn is_declared(&self) -> bool {
        self.defined_us.is_none()
    }
}

/// A source that has no named shapes.
#[derive(Clone, Debug)]
pub struct NoNamedShapes(watch::Receiver<Arc<KnownShapes>>);

impl NoNamedShapes {
    /// As a source's handle wants it.
    #[must_use]
    pub fn shared() -> Arc<dyn NamedShapes> {
        Arc::new(NoNamedShapes(watch::channel(Arc::default()).1))
    }
}

impl NamedShapes for NoNamedShapes {
    fn known(&self) -> watch::Receiver<Arc<KnownShapes>> {
        self.0.clone()
    }

    fn define(&self, _: ShapeName, _: v1::ShapeSelection) -> ShapeAnswer<'_, NamedShape> {
        let detail = "named shapes are not available on this source".to_owned();
        Box::pin(std::future::ready(Err(NamedShapeError::Refused { detail })))
    }

    fn delete(&self, name: ShapeName) -> ShapeAnswer<'_, ()> {
        Box::pin(std::future::ready(Err(NamedShapeError::Unknown { name, near: Vec::new() })))
    }
}

/// The shape of that name.
pub(crate) fn known(name: &str, shapes: &KnownShapes) -> Result<(ShapeName, NamedShape), GatewayError> {
    let name: ShapeName = name.parse()?;
    match shapes.get(&name) {
        Some(found) => Ok((name, found.clone())),
        None => {
            let near = near(name.as_str(), shapes.keys().map(ShapeName::to_string));
            Err(NamedShapeError::Unknown { name, near }.into())
        }
    }
}

/// Is a shape selected by its name alone?
pub(crate) fn is_by_name(selection: &v1::ShapeSelection) -> bool {
    !selection.name.is_empty() && selection.table.is_empty()
}

/// In place of a version: whatever is known.
pub(crate) const NOW: u64 = u64::MAX;

/// What a selection by name means, or meant at an earlier version: the definition, with the subscriber's values.
pub(crate) fn resolved(
    selection: v1::ShapeSelection,
    shapes: &KnownShapes,
    at: u64,
) -> Result<(v1::ShapeSelection, ShapeName, u64), GatewayError> {
    let (name, shape) = known(&selection.name, shapes)?;
    let Some((definition, version)) = shape.at(at) else {
        return Err(NamedShapeError::Unknown { name, near: Vec::new() }.into());
    };
    let mut definition = definition.clone();
    let v1::ShapeSelection { name: _, table, r#where, parameters, columns, updates } = selection;
    let refused = |error| Err(GatewayError::Naming(error));
    if !(table.is_empty() && r#where.is_empty() && columns.is_empty() && updates == 0) {
        return refused(NamingError::DefinedTwice(name));
    }
    let (expected, given) = (definition.parameters.len(), parameters.len());
    if expected != given {
        let types = definition.parameters.into_iter().map(|parameter| parameter.r#type).collect();
        return refused(NamingError::ParameterCount { name, types, expected, given });
    }
    for (parameter, given) in definition.parameters.iter_mut().zip(parameters) {
        parameter.value = given.value;
    }
    definition.name.clear();
    Ok((definition, name, version))
}

/// The selections with what their names mean, and the names that they have. Another server may have defined a moment ago what is not known
/// here, or has other parameters: that is asked, once.
pub(crate) async fn looked_up_now(
    selections: &[What],
    shapes: &dyn NamedShapes,
) -> Result<(Vec<What>, NamedInUse), GatewayError> {
    let known = shapes.known();
    match looked_up(selections.to_vec(), known.clone(), NOW) {
        Err(error) if may_be_outdated(&error, &known.borrow()) => {}
        found => return found,
    }
    shapes.refresh().await?;
    looked_up(selections.to_vec(), known, NOW)
}

/// May it fit what another server has defined?
fn may_be_outdated(error: &GatewayError, known: &KnownShapes) -> bool {
    let (GatewayError::NamedShape(NamedShapeError::Unknown { name, .. })
    | GatewayError::Naming(NamingError::ParameterCount { name, .. })) = error
    else {
        return false;
    };
    !known.get(name).is_some_and(NamedShape::is_declared)
}

/// The selections with what their names mean, or meant at an earlier version, and the names that they have.
pub(crate) fn looked_up(
    selections: Vec<What>,
    shapes: watch::Receiver<Arc<KnownShapes>>,
    at: u64,
) -> Result<(Vec<What>, NamedInUse), GatewayError> {
    let mut shapes = shapes;
    let known = Arc::clone(&shapes.borrow_and_update());
    let mut versions = Vec::new();
    let look_up = |(place, selection)| match selection {
        What::Shape(shape) if !shape.name.is_empty() => {
            let (meant, name, version) = resolved(shape, &known, at)?;
            versions.push(NamedVersion { selection: place, name, version });
            Ok(What::Shape(meant))
        }
        What::Shape(_) | What::Tables(_) => Ok(selection),
    };
    let selections = selections.into_iter().enumerate().map(look_up).collect::<Result<_, GatewayError>>()?;
    Ok((selections, NamedInUse::new(shapes, versions)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> KnownShapes {
        let parameters = vec![v1::Parameter { r#type: "int8".to_owned(), value: None }];
        let definition = v1::ShapeSelection {
            name: "open_orders".to_owned(),
            table: "orders".to_owned(),
            r#where: "tenant = $1".to_owned(),
            parameters,
            ..v1::ShapeSelection::default()
        };
        let former = [2, 1].map(|version| {
            let r#where = format!("tenant = $1 and total > {version}");
            FormerShape { version, definition: v1::ShapeSelection { r#where, ..definition.clone() } }
        });
        let (name, former) = ("open_orders".parse().expect("a name"), former.to_vec());
        KnownShapes::from([(name, NamedShape { definition, version: 3, defined_us: Some(1), former })])
    }

    fn selection(name: &str, values: &[&str]) -> v1::ShapeSelection {
        let parameter = |value: &&str| v1::Parameter { r#type: String::new(), value: Some((*value).to_owned()) };
        let parameters = values.iter().map(parameter).collect();
        v1::ShapeSelection { name: name.to_owned(), parameters, ..v1::ShapeSelection::default() }
    }

    fn refused(selection: v1::ShapeSelection) -> String {
        resolved(selection, &shapes(), NOW).expect_err("refused").to_string()
    }

    #[test]
    fn a_name_means_its_definition_with_the_subscribers_values() {
        let (meant, name, version) = resolved(selection("open_orders", &["7"]), &shapes(), NOW).expect("known");
        assert_eq!((meant.table.as_str(), meant.r#where.as_str(), version), ("orders", "tenant = $1", 3));
        assert_eq!(meant.parameters, [v1::Parameter { r#type: "int8".to_owned(), value: Some("7".to_owned()) }]);
        assert_eq!(name.as_str(), "open_orders");
    }

    #[test]
    fn a_name_meant_what_it_was_at_an_earlier_version() {
        let at = |version| resolved(selection("open_orders", &["7"]), &shapes(), version).map(|(_, _, of)| of);
        assert_eq!([1, 2, 3, 9].map(|version| at(version).expect("known")), [1, 2, 3, 3]);
        assert!(at(0).is_err());
    }

    #[test]
    fn what_does_not_go_with_a_name_is_refused() {
        assert_eq!(
            refused(selection("open_order", &["7"])),
            "there is no shape open_order (did you mean open_orders?); see Shapes.List, or `tidegate shape list`"
        );
        assert_eq!(
            refused(selection("open_orders", &[])),
            "shape open_orders has 1 parameters ($1: int8), and 0 are given; give a value for each"
        );
        let twice = v1::ShapeSelection { r#where: "true".to_owned(), ..selection("open_orders", &["7"]) };
        assert!(refused(twice).contains("has a definition already"));
    }

    #[test]
    fn a_shape_in_use_is_seen_to_be_defined_anew_and_deleted() {
        let (sender, known) = watch::channel(Arc::new(shapes()));
        let selections = vec![What::Shape(selection("open_orders", &["7"]))];
        let (_, mut in_use) = looked_up(selections.clone(), known.clone(), NOW).expect("known");
        in_use.look();
        assert!(!in_use.take_due() && in_use.gone().is_none());
        sender.send_replace(Arc::new(shapes()));
        in_use.look();
        assert!(!in_use.take_due());
        let mut anew = shapes();
        anew.values_mut().for_each(|shape| shape.version += 1);
        sender.send_replace(Arc::new(anew));
        in_use.look();
        assert!(in_use.take_due() && !in_use.take_due());
        in_use.remind();
        assert!(in_use.take_due());
        assert_eq!(in_use.ahead(), [4]);
        let (_, mut former) = looked_up(selections, known, 1).expect("known then");
        assert!(former.take_due(), "it is due from the start");
        assert_eq!(former.ahead(), [4, 2]);
        sender.send_replace(Arc::default());
        in_use.look();
        assert!(in_use.gone().is_some());
    }
}
