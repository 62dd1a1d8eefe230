//! What can be wrong with a configuration, each with where and what to do.
//!
//! Invariant: no value is quoted that may be a secret.

use super::value::Kind;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// The file does not read.
    #[error("cannot read {file}: {reason}")]
    Unreadable {
        /// Its path.
        file: String,
        /// The operating system's words.
        reason: String,
    },
    /// Not YAML.
    #[error("{file}:{place}: not valid YAML; a word that begins with * or ! needs quotes, as in \"!public.audit_*\"")]
    Yaml {
        /// The file's path.
        file: String,
        /// Line and column.
        place: String,
    },
    /// A key that is no option.
    #[error("{path}: unknown key; {}", known_keys(nearest.as_deref(), known))]
    UnknownKey {
        /// Dotted path of the key.
        path: String,
        /// What was probably meant.
        nearest: Option<String>,
        /// What may stand there.
        known: Vec<&'static str>,
    },
    /// An environment variable that is no option.
    #[error("environment variable {name}: no such option; {}", nearest.as_ref().map_or_else(
        || "see the reference: tidegate config reference".to_owned(), |name| format!("did you mean {name}?")))]
    UnknownVariable {
        /// Its name.
        name: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A value that cannot be read.
    #[error("{place}: expected {expected}")]
    WrongKind {
        /// Dotted path, or the variable's name.
        place: String,
        /// What may be written.
        expected: String,
    },
    /// A value where options should stand.
    #[error("{}: expected keys and values", if path.is_empty() { "the file" } else { path })]
    NotAMap {
        /// Dotted path.
        path: String,
    },
    /// A value that makes no sense.
    #[error("{path}: {reason}")]
    Invalid {
        /// Dotted path.
        path: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
}

impl Problem {
    pub(crate) fn wrong_kind(place: &str, kind: Kind) -> Self {
        Problem::WrongKind { place: place.to_owned(), expected: kind.expected() }
    }

    pub(crate) fn invalid(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Problem::Invalid { path: path.into(), reason: reason.into() }
    }
}

fn known_keys(nearest: Option<&str>, known: &[&'static str]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean '{nearest}'?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// All that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used:\n{}", problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
pub(crate) struct ConfigError {
    pub(crate) problems: Vec<Problem>,
}
