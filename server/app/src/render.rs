//! How an event is printed: as a line for people, or as a JSON object for programs.
//!
//! Invariant: nothing that a row holds reaches the terminal as a control character, and a JSON line always has the same
//! keys. Only changes are printed; the marks around them are told by what the lines say of their transaction.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use owo_colors::{OwoColorize, Style};
use serde_json::{Value, json};
use tidegate_client::{Change, Event, LogicalMessage, Move, Op, RowError, Timestamp};

/// Longer values are cut in lines for people, in characters.
const VALUE_CHARS_MAX: usize = 60;
const POSITION_WIDTH: usize = 14;
const OP_WIDTH: usize = 8;
/// Longer table names push the rest of their line to the right.
const TABLE_WIDTH_MAX: usize = 32;

/// What lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object a line.
    Json,
    /// Columns.
    Plain,
    /// Columns, coloured.
    Coloured,
}

impl Format {
    /// For standard output: colours only on a terminal, and not where `NO_COLOR` is set (<https://no-color.org>).
    pub(crate) fn for_stdout(json: bool, no_color: bool) -> Self {
        let refused = no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match (json, refused || !io::stdout().is_terminal()) {
            (true, _) => Format::Json,
            (false, true) => Format::Plain,
            (false, false) => Format::Coloured,
        }
    }
}

/// Why an event was not printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrintError {
    /// The output takes no more.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
    /// The row cannot be read.
    #[error(transparent)]
    Row(#[from] RowError),
}

/// Prints events of one subscription in order.
#[derive(Debug)]
pub(crate) struct Printer<W> {
    out: W,
    format: Format,
    /// None for the rows of a snapshot, and for a message outside of transactions.
    commit_time: Option<Timestamp>,
    xid: u32,
    table_width: usize,
}

impl<W: Write> Printer<W> {
    pub(crate) fn new(out: W, format: Format) -> Self {
        Printer { out, format, commit_time: None, xid: 0, table_width: 0 }
    }

    /// Prints an event, if it is a change. Is it?
    pub(crate) fn print(&mut self, event: &Event) -> Result<bool, PrintError> {
        match event {
            Event::Begin { commit_time, xid, .. } => {
                let known = *commit_time != Timestamp::default();
                (self.commit_time, self.xid) = (known.then_some(*commit_time), *xid);
                Ok(false)
            }
            Event::Change(change) => {
                let line = match self.format {
                    Format::Json => self.json(change)?.to_string(),
                    Format::Plain => self.line(change, Palette::PLAIN)?,
                    Format::Coloured => self.line(change, Palette::for_op(change.op))?,
                };
                writeln!(self.out, "{line}")?;
                Ok(true)
            }
            Event::Opened { .. }
            | Event::Preparing { .. }
            | Event::RowType(_)
            | Event::Commit { .. }
            | Event::SnapshotBegin { .. }
            | Event::SnapshotEnd { .. }
            | Event::SnapshotAbandoned { .. }
            | Event::Abort
            | Event::Progress { .. }
            | Event::Reset { .. }
            | Event::Drain { .. }
            | Event::Interrupted { .. } => Ok(false),
        }
    }

    /// Hands everything printed to the output.
    pub(crate) fn flush(&mut self) -> Result<(), PrintError> {
        Ok(self.out.flush()?)
    }

    fn json(&self, change: &Change) -> Result<Value, RowError> {
        let mut line = json!({
            "position": change.position.to_string(),
            "commit_time": self.commit_time.map(|time| time.to_string()),
            "xid": self.xid,
            "op": change.op.as_str(),
            "table": change.table(),
            "key": change.key_json()?,
            "row": change.row_json()?,
            "old": change.old_json()?,
            "unchanged": change.unchanged_columns().collect::<Vec<_>>(),
        });
        if let Some(LogicalMessage { prefix, content, transactional }) = &change.message {
            let content = match std::str::from_utf8(content) {
                Ok(text) => json!({ "text": text }),
                Err(_) => json!({ "hex": hex(content) }),
            };
            line["message"] = json!({ "prefix": prefix, "content": content, "transactional": transactional });
        }
        if let Some(moved) = moved(change) {
            line["move"] = moved.into();
        }
        if let Some(truncate) = change.truncate {
            line["truncate"] = json!({
                "cascade": truncate.cascade,
                "restart_identity": truncate.restart_identity,
            });
        }
        Ok(line)
    }

    fn line(&mut self, change: &Change, palette: Palette) -> Result<String, RowError> {
        let table = shown(change.table().unwrap_or("-")).into_owned();
        self.table_width = self.table_width.max(table.chars().count()).min(TABLE_WIDTH_MAX);
        let time = self.commit_time.map(|time| time.to_string()).unwrap_or_default();
        let time = time.split_once('T').map_or(time.as_str(), |(_, clock)| clock);
        let position = change.position.to_string();
        let table = format!("{table:<width$}", width = self.table_width);
        let line = format!(
            "{}  {}  {}  {}  {}",
            format!("{position:<POSITION_WIDTH$}").style(palette.quiet),
            format!("{time:<16}").style(palette.quiet),
            format!("{:<OP_WIDTH$}", change.op).style(palette.op),
            table.style(palette.table),
            details(change, palette)?,
        );
        Ok(line.trim_end().to_owned())
    }
}

#[derive(Clone, Copy, Debug)]
struct Palette {
    quiet: Style,
    op: Style,
    table: Style,
    key: Style,
    name: Style,
}

impl Palette {
    const PLAIN: Palette =
        Palette { quiet: Style::new(), op: Style::new(), table: Style::new(), key: Style::new(), name: Style::new() };

    fn for_op(op: Op) -> Self {
        let op = match op {
            Op::Read => Style::new().blue(),
            Op::Insert => Style::new().green(),
            Op::Update => Style::new().yellow(),
            Op::Delete => Style::new().red(),
            Op::Truncate => Style::new().red().bold(),
            Op::Message => Style::new().magenta(),
        };
        let name = Style::new().cyan();
        Palette { quiet: Style::new().dimmed(), op, table: Style::new().bold(), key: Style::new().bold(), name }
    }
}

/// What the change says: `id=7  total=9.50→10.00  note=null`.
fn details(change: &Change, palette: Palette) -> Result<String, RowError> {
    if let Some(message) = &change.message {
        let content = String::from_utf8_lossy(&message.content);
        return Ok(format!("{}  {}", shown(&message.prefix).style(palette.key), cut(&shown(&content))));
    }
    if let Some(truncate) = change.truncate {
        let words = [(truncate.cascade, "cascade"), (truncate.restart_identity, "restart identity")];
        let words: Vec<_> = words.into_iter().filter(|(said, _)| *said).map(|(_, word)| word).collect();
        return Ok(words.join(", "));
    }
    let Some(row_type) = &change.row_type else { return Ok(String::new()) };
    let row = change.row_json()?;
    let old = change.old_json()?.unwrap_or_default();
    let mut parts = Vec::new();
    for column in row_type.columns() {
        let name = &column.name;
        let value = match (&row, old.get(name)) {
            (Some(row), before) => match row.get(name) {
                Some(now) => Some(changed(before, now)),
                None => Some("(unchanged)".style(palette.quiet).to_string()),
            },
            (None, before) => before.map(|before| cut(&value(before))),
        };
        if let Some(value) = value {
            let style = if column.key { palette.key } else { palette.name };
            parts.push(format!("{}={value}", shown(name).style(style)));
        }
    }
    parts.extend(moved(change).map(|way| format!("(moved {way})").style(palette.quiet).to_string()));
    Ok(parts.join("  "))
}

/// Which way an update has moved the row, seen from a shape.
fn moved(change: &Change) -> Option<&'static str> {
    match change.moved {
        Move::Stayed => None,
        Move::In => Some("in"),
        Move::Out => Some("out"),
    }
}

fn changed(before: Option<&Value>, now: &Value) -> String {
    match before {
        Some(before) if before != now => format!("{}→{}", cut(&value(before)), cut(&value(now))),
        Some(_) | None => cut(&value(now)),
    }
}

pub(crate) fn value(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => shown(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => Cow::Owned(value.to_string()),
        Value::Array(_) | Value::Object(_) => Cow::Owned(escaped(&value.to_string())),
    }
}

/// Text as it is where that is unmistakable, else in quotes: single ones around what has double ones, as JSON does.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let harmless = text.chars().all(|c| !is_obeyed(c) && c != '\\' && c != '\'');
    let plain = !text.is_empty() && text != "null" && !text.contains(|c: char| c.is_whitespace() || c == '"');
    match (harmless, plain) {
        (true, true) => Cow::Borrowed(text),
        (true, false) if text.contains('"') => Cow::Owned(format!("'{text}'")),
        (true | false, _) => Cow::Owned(escaped(&Value::from(text).to_string())),
    }
}

/// JSON leaves the control characters from U+007F on as they are.
fn escaped(json: &str) -> String {
    let escape = |c: char| if is_obeyed(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

/// Would a terminal obey it, instead of showing it? Control characters, and those that turn the direction of writing.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use std::sync::Arc;
    use tidegate_client::{OldKind, Position, RowType, Truncate};
    use tidegate_model::TableName;
    use tidegate_schema::{ColumnSpec, RowEncoder, RowTypeSpec, ScalarKind, Value as Text, ValueKind};

    const INT4_ARRAY: ValueKind = ValueKind::Array { element: ScalarKind::Int32, delimiter: b',' };

    fn columns() -> Vec<ColumnSpec> {
        let kinds = [
            ("id", "bigint", ValueKind::Scalar(ScalarKind::Int64)),
            ("Total Price", "numeric", ValueKind::Scalar(ScalarKind::Text)),
            ("at", "timestamp with time zone", ValueKind::Scalar(ScalarKind::Timestamptz)),
            ("tags", "integer[]", INT4_ARRAY),
            ("span", "int4range", ValueKind::Range),
            ("note", "text", ValueKind::Scalar(ScalarKind::Text)),
        ];
        let column = |(at, (name, type_name, codec)): (usize, (&str, &str, ValueKind))| ColumnSpec {
            name: name.into(),
            attnum: at as i32 + 1,
            type_oid: 0,
            type_name: type_name.into(),
            codec,
            key: at == 0,
            field: at as u32 + 1,
        };
        kinds.into_iter().enumerate().map(column).collect()
    }

    fn row(values: [Option<&str>; 6]) -> Bytes {
        let mut out = BytesMut::new();
        let text = |value: Option<&'static str>| value.map_or(Text::Null, |text| Text::Text(text.as_bytes()));
        let values = values.map(|value| value.map(|text| &*text.to_owned().leak())).map(text);
        RowEncoder::new(&columns()).encode(values.into_iter(), &mut out).expect("PostgreSQL's text");
        out.freeze()
    }

    fn change(op: Op) -> Change {
        let spec = RowTypeSpec {
            row_type: 1,
            source: "shop".parse().expect("a name"),
            name: TableName::new("public", "orders"),
            table_oid: 1,
            identity: tidegate_proto::v1::ReplicaIdentity::Key,
            columns: columns(),
        };
        Change {
            position: Position { lsn: 0x16_0000_0000, ordinal: 3 },
            op,
            selection: 0,
            row_type: Some(Arc::new(RowType::from(spec.to_proto()))),
            row: Bytes::new(),
            old: Bytes::new(),
            old_kind: OldKind::None,
            unchanged: Vec::new(),
            moved: Move::default(),
            message: None,
            truncate: None,
        }
    }

    fn printed(change: Change, format: Format) -> String {
        let mut printer = Printer::new(Vec::new(), format);
        let commit_time = Timestamp { seconds: 1_700_000_000, nanos: 5_000 };
        let position = Position { ordinal: 0, ..change.position };
        printer
            .print(&Event::Begin { position, commit_time, xid: 743, origin: String::new(), snapshot: 0 })
            .expect("a Vec takes all");
        assert!(printer.print(&Event::Change(change)).expect("a Vec takes all"));
        String::from_utf8(printer.out).expect("UTF-8").trim_end_matches('\n').to_owned()
    }

    fn insert() -> Change {
        let values = ["7", "9.50", "2024-02-29 12:00:00.5+00", "{{1,NULL},{3,4}}", "[1,5)", "a\u{1b}[31m b"];
        Change { row: row(values.map(Some)), ..change(Op::Insert) }
    }

    #[test]
    fn a_json_line_holds_typed_values_under_the_exact_names() {
        let expected = concat!(
            r#"{"position":"16/0:3","commit_time":"2023-11-14T22:13:20.000005Z","xid":743,"op":"insert","#,
            r#""table":"public.orders","key":{"id":7},"row":{"id":7,"Total Price":"9.50","#,
            r#""at":"2024-02-29T12:00:00.500Z","tags":[[1,null],[3,4]],"#,
            r#""span":{"lower":"1","upper":"5","bounds":"[)"},"note":"a\u001b[31m b"},"old":null,"unchanged":[]}"#,
        );
        assert_eq!(printed(insert(), Format::Json), expected);
    }

    #[test]
    fn a_row_of_a_snapshot_is_read() {
        let read = Change { op: Op::Read, ..insert() };
        let line: Value = serde_json::from_str(&printed(read.clone(), Format::Json)).expect("JSON");
        assert_eq!((&line["op"], &line["row"]["id"]), (&json!("read"), &json!(7)));
        assert!(printed(read, Format::Plain).contains("  read      public.orders  id=7"));
    }

    #[test]
    fn null_and_unchanged_are_told_apart() {
        let row = row([Some("7"), None, None, None, None, None]);
        let update = Change { row, unchanged: vec![6], ..change(Op::Update) };
        let line: Value = serde_json::from_str(&printed(update.clone(), Format::Json)).expect("JSON");
        assert_eq!(line["row"].get("Total Price"), Some(&Value::Null));
        assert_eq!(line["row"].get("note"), None);
        assert_eq!(line["unchanged"], json!(["note"]));
        let line = printed(update, Format::Plain);
        assert!(line.contains("\"Total Price\"=null") && line.ends_with("note=(unchanged)"), "{line}");
    }

    #[test]
    fn a_delete_has_the_key_of_its_old_row_and_no_row() {
        let old = row([Some("7"), None, None, None, None, None]);
        let delete = Change { old, old_kind: OldKind::Key, ..change(Op::Delete) };
        let line: Value = serde_json::from_str(&printed(delete.clone(), Format::Json)).expect("JSON");
        assert_eq!((&line["key"], &line["old"], &line["row"]), (&json!({"id": 7}), &json!({"id": 7}), &Value::Null));
        assert_eq!(printed(delete, Format::Plain), "16/0:3          22:13:20.000005Z  delete    public.orders  id=7");
    }

    #[test]
    fn a_line_shows_what_an_update_changed() {
        let old = row([Some("7"), Some("9.50"), None, None, None, Some("x")]);
        let row = row([Some("7"), Some("10"), None, None, None, Some("x")]);
        let update = Change { row, old, old_kind: OldKind::Full, ..change(Op::Update) };
        let line = printed(update, Format::Plain);
        assert!(line.contains("id=7  \"Total Price\"=9.50→10  at=null"), "{line}");
        assert!(line.ends_with("note=x"), "{line}");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let line = printed(insert(), Format::Plain);
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
        assert_eq!(shown("a\u{9b}31m\u{202e}"), "\"a\\u009b31m\\u202e\"");
    }

    #[test]
    fn text_is_quoted_where_it_could_be_mistaken() {
        let shows = [("a'b", r#""a'b""#), ("", r#""""#), ("null", r#""null""#), ("a b", r#""a b""#), ("äb", "äb")];
        for (text, expected) in shows {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown(r#"{"sugar": 2}"#), r#"'{"sugar": 2}'"#);
    }

    #[test]
    fn plain_lines_have_no_colours_and_coloured_ones_have() {
        assert!(!printed(insert(), Format::Plain).contains('\u{1b}'));
        assert!(printed(insert(), Format::Coloured).contains('\u{1b}'));
    }

    #[test]
    fn truncates_and_messages_say_what_they_hold() {
        let truncate = Truncate { cascade: true, restart_identity: false };
        let line = printed(Change { truncate: Some(truncate), ..change(Op::Truncate) }, Format::Plain);
        assert!(line.ends_with("public.orders  cascade"), "{line}");
        let message = LogicalMessage { prefix: "outbox".into(), content: "hello".into(), transactional: true };
        let emitted = Change { message: Some(message), row_type: None, ..change(Op::Message) };
        assert!(printed(emitted.clone(), Format::Plain).ends_with("outbox  hello"));
        let line: Value = serde_json::from_str(&printed(emitted, Format::Json)).expect("JSON");
        assert_eq!(line["message"], json!({"prefix": "outbox", "content": {"text": "hello"}, "transactional": true}));
        assert_eq!(line["table"], Value::Null);
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(cut(&"ä".repeat(VALUE_CHARS_MAX)).chars().count(), VALUE_CHARS_MAX);
        assert_eq!(cut(&"ä".repeat(100)).chars().count(), VALUE_CHARS_MAX + 1);
    }
}
