//! How the value of an option is written, and read.
//!
//! Invariant: what `read` accepts, the typed `Config` accepts. Sizes become bytes, durations milliseconds. A word that YAML takes for
//! something other than text, such as `n`, is never taken for another one, such as `false`.

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

/// Why a value is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misread {
    /// It is not of the kind.
    Kind,
    /// Text is expected, and YAML has read something else: how it was written is not known any more.
    NotText {
        /// Counted from 1, where it stands in a list.
        entry: Option<usize>,
        /// What it is to YAML.
        to_yaml: ToYaml,
    },
}

/// What YAML reads where no quotes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToYaml {
    /// `n`, `y`, `no`, `on`, `true` and the like.
    Boolean,
    /// `7`, `1e3`, `0x10`.
    Number,
    /// `null`, `~`, or nothing at all.
    Null,
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

    /// Reads a value as YAML gave it.
    pub(crate) fn read(self, value: &Value) -> Result<Value, Misread> {
        match (self, value) {
            (Kind::List, Value::Array(items)) => {
                (1..).zip(items).map(|(entry, item)| entry_text(entry, item)).collect()
            }
            (Kind::Switch, Value::Bool(_)) => Ok(value.clone()),
            (Kind::List | Kind::Text, Value::Bool(_)) => {
                Err(Misread::NotText { entry: None, to_yaml: ToYaml::Boolean })
            }
            (Kind::List, Value::Number(_)) => Err(Misread::NotText { entry: None, to_yaml: ToYaml::Number }),
            (_, Value::Array(_) | Value::Object(_) | Value::Null) => Err(Misread::Kind),
            (_, Value::String(text)) => self.parse(text),
            // As it was written, near enough.
            (_, Value::Number(number)) => self.parse(&number.to_string()),
            (_, Value::Bool(yes)) => self.parse(&yes.to_string()),
        }
    }

    /// Reads a value as an environment variable gives it.
    pub(crate) fn parse(self, text: &str) -> Result<Value, Misread> {
        match self {
            Kind::List => parse_list(text),
            scalar => scalar.parse_scalar(text).ok_or(Misread::Kind),
        }
    }

    /// None: not of this kind, as no text is a list.
    fn parse_scalar(self, text: &str) -> Option<Value> {
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
            Kind::List => None,
        }
    }
}

/// An entry of a list.
fn entry_text(entry: usize, value: &Value) -> Result<Value, Misread> {
    let not_text = |to_yaml| Err(Misread::NotText { entry: Some(entry), to_yaml });
    match value {
        Value::String(_) => Ok(value.clone()),
        Value::Bool(_) => not_text(ToYaml::Boolean),
        Value::Number(_) => not_text(ToYaml::Number),
        Value::Null => not_text(ToYaml::Null),
        Value::Array(_) | Value::Object(_) => Err(Misread::Kind),
    }
}

/// `[a, "b,c"]` as YAML, or `a, b` split at commas.
fn parse_list(text: &str) -> Result<Value, Misread> {
    if text.trim_start().starts_with('[') {
        let list: Value = serde_saphyr::from_str(text).map_err(|_not_yaml| Misread::Kind)?;
        return if list.is_array() { Kind::List.read(&list) } else { Err(Misread::Kind) };
    }
    Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect())
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
        assert_eq!(Kind::List.parse("public.*, !public.audit_*"), Ok(json!(["public.*", "!public.audit_*"])));
        assert_eq!(Kind::List.parse(r#"["a,b", c]"#), Ok(json!(["a,b", "c"])));
        assert_eq!(Kind::List.parse("n, y"), Ok(json!(["n", "y"])));
        assert_eq!(Kind::List.parse("[a"), Err(Misread::Kind));
        assert_eq!(Kind::List.read(&json!([["a"]])), Err(Misread::Kind));
    }

    #[test]
    fn what_is_no_text_to_yaml_is_none_to_us() {
        let not_text = |entry, to_yaml| Err(Misread::NotText { entry, to_yaml });
        for word in ["n", "y", "N", "Y", "no", "No", "yes", "on", "OFF", "true", "False"] {
            assert_eq!(Kind::List.parse(&format!("[a, {word}]")), not_text(Some(2), ToYaml::Boolean), "{word}");
            assert_eq!(Kind::List.parse(&format!("[a, '{word}']")), Ok(json!(["a", word])));
        }
        assert_eq!(Kind::List.parse("[0x10]"), not_text(Some(1), ToYaml::Number));
        assert_eq!(Kind::List.parse("[a, b, ~]"), not_text(Some(3), ToYaml::Null));
        assert_eq!(Kind::List.read(&json!(false)), not_text(None, ToYaml::Boolean));
        assert_eq!(Kind::List.read(&json!(7)), not_text(None, ToYaml::Number));
        assert_eq!(Kind::Text.read(&json!(true)), not_text(None, ToYaml::Boolean));
    }

    #[test]
    fn durations_become_milliseconds() {
        assert_eq!(Kind::Duration.parse("7d"), Ok(json!(604_800_000_u64)));
        assert_eq!(Kind::Duration.parse("soon"), Err(Misread::Kind));
    }

    #[test]
    fn localhost_is_an_address() {
        assert_eq!(Kind::Address.parse("localhost:7171"), Ok(json!("127.0.0.1:7171")));
        assert_eq!(Kind::Address.parse("[::]:7171"), Ok(json!("[::]:7171")));
        assert_eq!(Kind::Address.parse("7171"), Err(Misread::Kind));
    }
}
