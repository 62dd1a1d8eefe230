//! The settings that every connection of ours has, so that a value's text is the same on all of them, and stream and
//! snapshot can be compared byte by byte.
//!
//! Invariant: they are sent with the startup message, which outranks what is set for the role, the database and the
//! server, and read back afterwards: a pooler in between may drop them in silence.

use crate::ConnectError;

/// Name, value. Values without blanks, so that they need no escaping in startup options.
pub(crate) const PINS: [(&str, &str); 13] = [
    ("search_path", "pg_catalog"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("quote_all_identifiers", "off"),
    ("xmloption", "content"),
    // A slot's creation and a long stream must not be cut by a limit that is meant for the application's queries.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_session_timeout", "0"),
];

/// The pins as a startup message's `options`.
pub(crate) fn options() -> String {
    PINS.iter().map(|(name, value)| format!("-c {name}={value}")).collect::<Vec<_>>().join(" ")
}

/// A query of one row: the pins' values in force, in order, then the backend's process id.
pub(crate) fn query() -> String {
    let settings = PINS.iter().map(|(name, _)| format!("pg_catalog.current_setting('{name}')"));
    let columns = settings.chain(["pg_catalog.pg_backend_pid()::text".to_owned()]).collect::<Vec<_>>();
    format!("SELECT {}", columns.join(", "))
}

/// Compares the query's answer with the pins.
///
/// # Errors
/// [`ConnectError::SettingsLost`] for the first that is not in force.
pub(crate) fn check<'a>(values: impl IntoIterator<Item = Option<&'a str>>) -> Result<(), ConnectError> {
    let mut values = values.into_iter();
    for (name, wanted) in PINS {
        let found = values.next().flatten().unwrap_or_default();
        // DateStyle reads back with the order of its input fields: "ISO, MDY".
        let holds = found == wanted || (name == "DateStyle" && found.starts_with("ISO,"));
        if !holds {
            return Err(ConnectError::SettingsLost { name, wanted, found: found.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Vec<Option<&'static str>> {
        PINS.iter().map(|(name, value)| Some(if *name == "DateStyle" { "ISO, DMY" } else { *value })).collect()
    }

    #[test]
    fn pins_in_force_pass() {
        assert!(check(answer()).is_ok());
    }

    #[test]
    fn a_pin_that_was_dropped_is_named() {
        let mut values = answer();
        values[0] = Some("\"$user\", public");
        assert!(matches!(check(values), Err(ConnectError::SettingsLost { name: "search_path", .. })));
    }
}
