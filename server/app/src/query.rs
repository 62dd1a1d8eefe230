//! `tidegate shape query`: the rows of a shape once, as a table, or as JSON lines.
//!
//! Invariant: a table's columns are as wide as the first rows ask for, so that any number of rows is printed as it comes.

use std::io::{self, BufWriter, Write};

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use tidegate_client::{OrderBy, Query, QueryRows, ShapeRow};

use crate::{
    remote::ServerArgs,
    render::{cut, shown, value},
    shape_args::{DefinitionArgs, ValueArgs},
};

/// Rows by which the widths of a table are chosen.
const ROWS_MEASURED: usize = 200;

/// What to print.
#[derive(clap::Args)]
pub(crate) struct QueryArgs {
    /// A named shape; else --table and --where.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    definition: DefinitionArgs,
    #[command(flatten)]
    values: ValueArgs,
    /// As in ORDER BY: a column or an expression, ASC or DESC, NULLS FIRST or LAST. Repeatable; needs --limit.
    #[arg(long = "order", value_name = "EXPRESSION", value_parser = order, requires = "limit")]
    orders: Vec<OrderBy>,
    /// So many rows at most.
    #[arg(long, value_name = "N")]
    limit: Option<std::num::NonZeroU64>,
    /// One JSON object a line, with position, table, key and row.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Prints the rows, and on standard error where to go on.
///
/// # Errors
/// The server refuses or cannot be reached.
pub(crate) async fn run(args: QueryArgs) -> anyhow::Result<()> {
    let shape = args.values.of(args.definition.or_named(args.name)?);
    let query = Query::of(shape).limit(args.limit.map_or(0, std::num::NonZeroU64::get));
    let query = args.orders.into_iter().fold(query, Query::order_by);
    let mut rows = args.server.remote.connect().await?.query(&args.server.source, query).await?;
    let out = BufWriter::new(io::stdout());
    let printed = if args.json { print_json(&mut rows, out).await } else { print_table(&mut rows, out).await };
    match printed {
        Ok(count) => {
            let token = rows.token().context("the answer has no end")?;
            eprintln!("{count} rows; what changes them: tidegate tail with the same shape and --from {token}");
            Ok(())
        }
        // Whoever read it has enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn print_json(rows: &mut QueryRows, mut out: impl Write) -> anyhow::Result<u64> {
    let (mut count, position) = (0, rows.position().to_string());
    while let Some(row) = rows.next().await? {
        let values = row.json()?;
        let is_key = |name: &str| row.row_type().column(name).is_some_and(|column| column.key);
        let key: Map<String, Value> =
            values.iter().filter(|(name, _)| is_key(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
        let line = json!({ "position": position, "table": row.row_type().table_name(), "key": key, "row": values });
        writeln!(out, "{line}")?;
        count += 1;
    }
    out.flush()?;
    Ok(count)
}

async fn print_table(rows: &mut QueryRows, mut out: impl Write) -> anyhow::Result<u64> {
    let (mut table, mut count) = (Table::default(), 0);
    while let Some(row) = rows.next().await? {
        table.push(&row, &mut out)?;
        count += 1;
    }
    table.finish(&mut out)?;
    out.flush()?;
    Ok(count)
}

/// Rows on their way into a table.
#[derive(Default)]
struct Table {
    header: Vec<String>,
    /// Known when enough rows have come.
    widths: Option<Vec<usize>>,
    waiting: Vec<Vec<String>>,
}

impl Table {
    fn push(&mut self, row: &ShapeRow, out: &mut impl Write) -> anyhow::Result<()> {
        let header: Vec<String> =
            row.row_type().columns().iter().map(|column| shown(&column.name).into_owned()).collect();
        if header != self.header {
            // Rows from before a schema change have another header.
            self.finish(out)?;
            *self = Table { header, ..Table::default() };
        }
        let values = row.json()?;
        let cell = |name: &str| values.get(name).map_or_else(String::new, |found| cut(&value(found)));
        self.line(row.row_type().columns().iter().map(|column| cell(&column.name)).collect(), out)?;
        Ok(())
    }

    fn line(&mut self, cells: Vec<String>, out: &mut impl Write) -> io::Result<()> {
        if let Some(widths) = &self.widths {
            return write_line(&cells, widths, out);
        }
        self.waiting.push(cells);
        if self.waiting.len() == ROWS_MEASURED { self.finish(out) } else { Ok(()) }
    }

    /// Prints what waits.
    fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.widths.is_some() || self.header.is_empty() {
            return Ok(());
        }
        let mut widths: Vec<usize> = self.header.iter().map(|name| name.chars().count()).collect();
        for cells in &self.waiting {
            widths.iter_mut().zip(cells).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
        }
        write_line(&self.header, &widths, out)?;
        self.waiting.drain(..).try_for_each(|cells| write_line(&cells, &widths, out))?;
        self.widths = Some(widths);
        Ok(())
    }
}

fn write_line(cells: &[String], widths: &[usize], out: &mut impl Write) -> io::Result<()> {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
    writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())
}

/// `total`, `name collate "C" desc nulls last`.
fn order(text: &str) -> Result<OrderBy, String> {
    let mut expression = text.trim();
    let mut take = |words: &[&str]| {
        let found = without(expression, words);
        expression = found.unwrap_or(expression);
        found.is_some()
    };
    let (first, last) = (take(&["nulls", "first"]), take(&["nulls", "last"]));
    let (descending, _ascending) = (take(&["desc"]), take(&["asc"]));
    if expression.is_empty() {
        return Err("name a column or an expression".to_owned());
    }
    let by = if descending { OrderBy::descending(expression) } else { OrderBy::ascending(expression) };
    Ok(match (first, last) {
        (true, _) => by.nulls_first(),
        (_, true) => by.nulls_last(),
        (false, false) => by,
    })
}

/// What stands before these words, where it ends with them.
fn without<'t>(text: &'t str, words: &[&str]) -> Option<&'t str> {
    words.iter().rev().try_fold(text, |text, word| {
        let before = text.len().checked_sub(word.len()).filter(|at| text.is_char_boundary(*at))?;
        let (rest, last) = text.split_at(before);
        let is_word = rest.is_empty() || rest.ends_with([' ', '\t', '\n', ')', '"']);
        (is_word && last.eq_ignore_ascii_case(word)).then(|| rest.trim_end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_written_as_in_sql() {
        let read = |text| order(text).expect("an order");
        assert_eq!(read("total"), OrderBy::ascending("total"));
        assert_eq!(read(" total ASC nulls first"), OrderBy::ascending("total").nulls_first());
        assert_eq!(read("name collate \"C\" desc"), OrderBy::descending("name collate \"C\""));
        assert_eq!(read("(a + b)desc  NULLS  LAST"), OrderBy::descending("(a + b)").nulls_last());
        assert_eq!(read("mydesc"), OrderBy::ascending("mydesc"));
        assert!(order(" desc ").is_err());
    }

    #[test]
    fn a_table_is_as_wide_as_its_first_rows() {
        let (mut table, mut out) = (Table { header: vec!["id".into(), "name".into()], ..Table::default() }, Vec::new());
        for (id, name) in [("1", "a"), ("1000", "é")] {
            table.line(vec![id.into(), name.into()], &mut out).expect("a Vec takes all");
        }
        table.finish(&mut out).expect("a Vec takes all");
        table.line(vec!["10000".into(), "b".into()], &mut out).expect("a Vec takes all");
        assert_eq!(String::from_utf8(out).expect("UTF-8"), "id    name\n1     a\n1000  é\n10000  b\n");
    }
}
