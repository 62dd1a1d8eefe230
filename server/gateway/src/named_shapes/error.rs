//! Why a named shape is not to be had, and why what stands beside its name does not go with it.

use std::time::Duration;

use tidegate_model::{Retry, ShapeName};

/// Why a named shape is not defined or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamedShapeError {
    /// It stands in the configuration.
    #[error(
        "shape {0} is declared in the server's configuration, under the source's `shapes`; change it there, or choose another \
         name"
    )]
    Declared(ShapeName),
    /// There is none of that name.
    #[error("there is no shape {name}{}; see Shapes.List, or `tidegate shape list`", meant(near))]
    Unknown {
        /// As it was given.
        name: ShapeName,
        /// The names most like it.
        near: Vec<String>,
    },
    /// Not now.
    #[error("{detail}")]
    Later {
        /// Why, and what to do.
        detail: String,
        /// When to ask again.
        retry_in: Duration,
    },
    /// Not as things are.
    #[error("{detail}")]
    Refused {
        /// Why, and what to do.
        detail: String,
    },
}

impl NamedShapeError {
    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            NamedShapeError::Later { retry_in, .. } => Retry::After(*retry_in),
            NamedShapeError::Declared(_) | NamedShapeError::Unknown { .. } | NamedShapeError::Refused { .. } => {
                Retry::Never
            }
        }
    }
}

fn meant(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (did you mean {}?)", near.join(" or ")) }
}

/// Why a name and what stands beside it do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NamingError {
    #[error("shape {0} has a definition already; leave out table, where, columns and updates, or the name")]
    DefinedTwice(ShapeName),
    #[error("shape {name} has {expected} parameters ({}), and {given} are given; give a value for each", list(types))]
    ParameterCount { name: ShapeName, types: Vec<String>, expected: usize, given: usize },
    #[error("a shape that is defined needs a name; give one, made of a-z, 0-9 and _")]
    Nameless,
    #[error(
        "parameter ${number} has a value, and whoever selects the shape gives it; leave it out, or write it into the \
         condition"
    )]
    Value { number: usize },
    #[error("parameter ${number} has no value, which may decide what is looked up; give one that is typical")]
    NoValue { number: usize },
}

impl NamingError {
    /// The request's field that is wrong.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            NamingError::DefinedTwice(_) | NamingError::Nameless => "shape.name",
            NamingError::ParameterCount { .. } | NamingError::Value { .. } | NamingError::NoValue { .. } => {
                "shape.parameters"
            }
        }
    }
}

fn list(types: &[String]) -> String {
    let shown = |(number, name): (usize, &String)| {
        let name = if name.is_empty() { "its type from its place" } else { name };
        format!("${}: {name}", number + 1)
    };
    if types.is_empty() {
        "none".to_owned()
    } else {
        types.iter().enumerate().map(shown).collect::<Vec<_>>().join(", ")
    }
}
