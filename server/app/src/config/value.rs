//! How the value of an option is written, and read.
//!
//! Invariant: what `read` accepts, the typed `Config` accepts. Sizes become bytes, durations milliseconds.

use serde_json::Value;
use std::net::SocketAddr;

/// What may be written for an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// Text that is never shown.
    Secret,
    /// Path of a file or folder.
    Path,
    /// `address:port`.
    Address,
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Count,
    /// Bytes: `64MiB`, `50GB`, `1024`.
    Size,
    /// `7d`, `12h 30m`, `500ms`.
    Duration,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    List,
}

impl Kind {
    /// What is expected, for error messages and the reference.
    pub(crate) fn expected(self) -> String {
        match self {
            Kind::Text => "text".to_owned(),
            Kind::Secret => "a URL".to_owned(),
            Kind::Path => "a path".to_owned(),
            Kind::Address => "an address and port such as 127.0.0.1:7171 or [::1]:7171".to_owned(),
            Kind::Switch => "true or false".to_owned(),
            Kind::Count => "a whole number".to_owned(),
            Kind::Size => "a size such as 512MiB, 50GiB or 1GB".to_owned(),
            Kind::Duration => "a duration such as 500ms, 25s, 12h or 7d".to_owned(),
            Kind::Choice(words) => words.join(" or "),
            Kind::List => "a list such as [orders, shop.*]".to_owned(),
        }
    }

    /// One word for the reference.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Secret => "URL (secret)",
            Kind::Path => "path",
            Kind::Address => "address",
            Kind::Switch => "true, false",
            Kind::Count => "number",
            Kind::Size => "size",
            Kind::Duration => "duration",
            Kind::Choice(_) => "choice",
            Kind::List => "list",
        }
    }

    /// Reads a value as YAML gave it. None: not of this kind.
    pub(crate) fn read(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Kind::List, Value::Array(items)) => {
                items.iter().map(scalar_text).map(|text| text.map(Value::from)).collect()
            }
            (Kind::Switch, Value::Bool(_)) => Some(value.clone()),
            (_, Value::Array(_) | Value::Object(_) | Value::Null) => None,
            (_, scalar) => self.parse(&scalar_text(scalar)?),
        }
    }

    /// Reads a value as an environment variable gives it. None: not of this kind.
    pub(crate) fn parse(self, text: &str) -> Option<Value> {
        match self {
            Kind::Secret | Kind::Text | Kind::Path => (!text.is_empty()).then(|| Value::from(text)),
            Kind::Address => {
                text.replace("localhost:", "127.0.0.1:").parse::<SocketAddr>().ok().map(|a| a.to_string().into())
            }
            Kind::Switch => match text {
                "true" => Some(true.into()),
                "false" => Some(false.into()),
                _ => None,
            },
            Kind::Count => text.parse::<u64>().ok().map(Value::from),
            Kind::Size => parse_size(text).map(Value::from),
            Kind::Duration => {
                let duration = humantime::parse_duration(text).ok()?;
                u64::try_from(duration.as_millis()).ok().map(Value::from)
            }
            Kind::Choice(words) => words.contains(&text).then(|| Value::from(text)),
            Kind::List => parse_list(text),
        }
    }
}

/// A scalar as it was written, near enough: YAML has read `123` as a number.
fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// `[a, "b,c"]` as YAML, or `a, b` split at commas.
fn parse_list(text: &str) -> Option<Value> {
    if text.trim_start().starts_with('[') {
        let list: Value = serde_saphyr::from_str(text).ok()?;
        return if list.is_array() { Kind::List.read(&list) } else { None };
    }
    Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect())
}

/// Bytes of `512MiB`, `50GB`, `1024`.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(parse_size("50GiB"), Some(50 << 30));
        assert_eq!(parse_size("2 MB"), Some(2_000_000));
        assert_eq!(parse_size("1024"), Some(1024));
        for wrong in ["", "GiB", "1.5GiB", "-1", "5 gigs", "99999999TiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lists_are_yaml_or_split_at_commas() {
        assert_eq!(Kind::List.parse("public.*, !public.audit_*"), Some(json!(["public.*", "!public.audit_*"])));
        assert_eq!(Kind::List.parse(r#"["a,b", c]"#), Some(json!(["a,b", "c"])));
        assert_eq!(Kind::List.parse("[a"), None);
        assert_eq!(Kind::List.read(&json!(["a", 1])), Some(json!(["a", "1"])));
        assert_eq!(Kind::List.read(&json!([["a"]])), None);
    }

    #[test]
    fn durations_become_milliseconds() {
        assert_eq!(Kind::Duration.parse("7d"), Some(json!(604_800_000_u64)));
        assert_eq!(Kind::Duration.parse("soon"), None);
    }

    #[test]
    fn localhost_is_an_address() {
        assert_eq!(Kind::Address.parse("localhost:7171"), Some(json!("127.0.0.1:7171")));
        assert_eq!(Kind::Address.parse("[::]:7171"), Some(json!("[::]:7171")));
        assert_eq!(Kind::Address.parse("7171"), None);
    }
}
