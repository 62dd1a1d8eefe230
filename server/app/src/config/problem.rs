//! What can be wrong with a configuration, each with where and what to do.
//!
//! Invariant: no value is quoted that may be a secret.

use super::value::{Kind, Misread, ToYaml};

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
    /// A word that YAML takes for something other than the text that is expected.
    #[error("{place}: {}", not_text(*entry, *to_yaml))]
    NotText {
        /// Dotted path, or the variable's name.
        place: String,
        /// Counted from 1, where it stands in a list.
        entry: Option<usize>,
        /// What it is to YAML.
        to_yaml: ToYaml,
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
    pub(crate) fn misread(place: &str, misread: Misread, kind: Kind) -> Self {
        let place = place.to_owned();
        match misread {
            Misread::Kind => Problem::WrongKind { place, expected: kind.expected() },
            Misread::NotText { entry, to_yaml } => Problem::NotText { place, entry, to_yaml },
        }
    }

    pub(crate) fn invalid(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Problem::Invalid { path: path.into(), reason: reason.into() }
    }
}

fn not_text(entry: Option<usize>, to_yaml: ToYaml) -> String {
    let entry = entry.map_or_else(|| "it".to_owned(), |entry| format!("entry {entry}"));
    let (read_as, hint) = match to_yaml {
        ToYaml::Boolean => ("a boolean", "words such as n, y, no, on and true need quotes, as in \"n\""),
        ToYaml::Number => ("a number", "a name of digits needs quotes, as in '\"7\"'"),
        ToYaml::Null => ("null", "a name such as null needs quotes, as in \"null\""),
    };
    format!("YAML reads {entry} as {read_as}, where text is expected; {hint}")
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
