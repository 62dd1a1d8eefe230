//! `tidegate shape`: named shapes of a running server, and what a definition means there.

use std::io::{self, Write};

use clap::Subcommand;
use serde_json::{Value, json};
use tidegate_client::{
    DescribedShape, ExplainedShape, NamedShape, Parameter, Shape, ShapeColumn, ShapeLookup, ShapeLookupKind,
};
use tidegate_proto::v1::{ShapeSelection, Updates};

use crate::{
    query::{self, QueryArgs},
    remote::ServerArgs,
    shape_args::{DefinitionArgs, ValueArgs},
};

/// Define shapes: rows of a table that meet a condition.
#[derive(Subcommand)]
pub(crate) enum ShapeCommand {
    /// Print the named shapes.
    List {
        /// One JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Print a named shape with its columns, and whether it still fits its table.
    Show {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// One JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Give a definition a name, or define the name anew: whoever has it open reads it anew then.
    Define {
        /// a-z, 0-9 and _, beginning with a letter.
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        definition: DefinitionArgs,
        /// The type of $1, the next of $2 and so on; '' for that of its place. Subscribers give the values.
        #[arg(long = "param-type", value_name = "TYPE")]
        types: Vec<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Take a name away; whoever has the shape open receives an error.
    Delete {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Print the rows of a shape, once, as they are at one position of the server's mirror.
    Query(Box<QueryArgs>),
    /// Print how the rows that concern a shape are found, and what is evaluated for them.
    Explain {
        /// A named shape; else --table and --where.
        #[arg(value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        definition: DefinitionArgs,
        #[command(flatten)]
        values: ValueArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Is a definition right? Prints it in its normal form, with its columns.
    Validate {
        #[command(flatten)]
        definition: DefinitionArgs,
        /// The type of $1, the next of $2 and so on, where values are given later.
        #[arg(long = "param-type", value_name = "TYPE", conflicts_with = "values")]
        types: Vec<String>,
        #[command(flatten)]
        values: ValueArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Runs the command.
///
/// # Errors
/// The server refuses or cannot be reached.
pub(crate) async fn run(command: ShapeCommand) -> anyhow::Result<()> {
    let text = match command {
        ShapeCommand::Query(args) => return Box::pin(query::run(*args)).await,
        ShapeCommand::List { json, server } => {
            let shapes = server.remote.connect().await?.shapes(&server.source).await?;
            if json {
                document(&json!({ "shapes": shapes.iter().map(shape_json).collect::<Vec<_>>() }))
            } else {
                list(&shapes)
            }
        }
        ShapeCommand::Show { name, json, server } => {
            let described = server.remote.connect().await?.describe_shape(&server.source, &name).await?;
            if json { document(&described_json(&described)) } else { described_text(&described) }
        }
        ShapeCommand::Define { name, definition, types, server } => {
            let query = typed(definition.or_named(None)?, types);
            let shape = server.remote.connect().await?.define_shape(&server.source, &name, query).await?;
            format!("shape {name} is defined (version {})\n", shape.version)
        }
        ShapeCommand::Delete { name, server } => {
            server.remote.connect().await?.delete_shape(&server.source, &name).await?;
            format!("shape {name} is deleted\n")
        }
        ShapeCommand::Explain { name, definition, values, server } => {
            let query = values.of(definition.or_named(name)?);
            let explained = server.remote.connect().await?.explain_shape(&server.source, &query).await?;
            explained_text(&explained)
        }
        ShapeCommand::Validate { definition, types, values, server } => {
            let query = values.of(typed(definition.or_named(None)?, types));
            let valid = server.remote.connect().await?.validate_shape(&server.source, &query).await?;
            let condition =
                if valid.condition.is_empty() { String::new() } else { format!("where {}\n", valid.condition) };
            format!("{condition}{}", columns(&valid.columns))
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn typed(shape: Shape, types: Vec<String>) -> Shape {
    types.into_iter().map(Parameter::of_type).fold(shape, Shape::parameter)
}

/// Each shape on a line, with its definition below it.
fn list(shapes: &[NamedShape]) -> String {
    if shapes.is_empty() {
        return "no shapes\n".to_owned();
    }
    shapes.iter().map(shape_text).collect()
}

fn shape_text(shape: &NamedShape) -> String {
    let definition = shape.definition.clone().unwrap_or_default();
    let ShapeSelection { name, table, r#where: condition, parameters, columns, .. } = &definition;
    let whence = match shape.declared {
        true => "declared in the server's configuration".to_owned(),
        false => format!("version {}", shape.version),
    };
    let mut text = format!("{}  {name}  {whence}\n    {}", shape.source, shown(table));
    if !condition.is_empty() {
        text.push_str(&format!(" where {}", shown(condition)));
    }
    for (number, parameter) in (1..).zip(parameters) {
        let type_name = if parameter.r#type.is_empty() { "as in its place" } else { &parameter.r#type };
        text.push_str(&format!(", ${number}: {type_name}"));
    }
    if !columns.is_empty() {
        text.push_str(&format!(", columns {}", shown(&columns.join(", "))));
    }
    if definition.updates() == Updates::ChangedColumns {
        text.push_str(", changed columns only");
    }
    text.push('\n');
    text
}

fn described_text(described: &DescribedShape) -> String {
    let shape = described.shape.as_ref().map(shape_text).unwrap_or_default();
    let problem = match described.problem.as_str() {
        "" => String::new(),
        problem => format!("    it cannot be selected any more: {}\n", shown(problem)),
    };
    format!("{shape}{problem}{}", columns(&described.columns))
}

fn columns(columns: &[ShapeColumn]) -> String {
    let line = |column: &ShapeColumn| {
        let key = if column.key { ", key" } else { "" };
        format!("    {}  {}{key}\n", shown(&column.name), column.r#type)
    };
    columns.iter().map(line).collect()
}

fn explained_text(explained: &ExplainedShape) -> String {
    let mut text = format!("where {}\n{}\n", shown(&explained.condition), explained.summary);
    for ShapeLookup { column, as_type, kind, count } in &explained.lookups {
        let as_type = if as_type.is_empty() { String::new() } else { format!(" as {as_type}") };
        let kind = match ShapeLookupKind::try_from(*kind).unwrap_or_default() {
            ShapeLookupKind::Unknown => "looked up",
            ShapeLookupKind::Value => "by value, hash",
            ShapeLookupKind::Range => "by range, interval tree",
            ShapeLookupKind::IsNull => "NULL",
            ShapeLookupKind::Element => "by element",
        };
        text.push_str(&format!("    found by {}{as_type}  {kind}, {count}\n", shown(column)));
    }
    for residual in &explained.residuals {
        text.push_str(&format!("    evaluated, reads {}\n", shown(&residual.columns.join(", "))));
    }
    text
}

/// On one line, and nothing that a terminal obeys.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn document(value: &Value) -> String {
    format!("{value:#}\n")
}

fn described_json(described: &DescribedShape) -> Value {
    let mut shape = described.shape.as_ref().map_or(Value::Null, shape_json);
    let column = |column: &ShapeColumn| json!({ "name": column.name, "type": column.r#type, "key": column.key });
    shape["delivered"] = described.columns.iter().map(column).collect();
    shape["problem"] = described.problem.as_str().into();
    shape
}

fn shape_json(shape: &NamedShape) -> Value {
    let definition = shape.definition.clone().unwrap_or_default();
    let updates = definition.updates().as_str_name().to_ascii_lowercase();
    json!({
        "source": shape.source,
        "name": definition.name,
        "version": shape.version,
        "declared": shape.declared,
        "defined": shape.defined.map(|time| time.to_string()),
        "table": definition.table,
        "where": definition.r#where,
        "parameters": definition.parameters.iter().map(|parameter| parameter.r#type.as_str()).collect::<Vec<_>>(),
        "columns": definition.columns,
        "updates": updates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> NamedShape {
        let shape = Shape::of("public.orders").matching("tenant = $1\n and total > 5").columns(["total"]);
        let shape = typed(shape, vec!["bigint".to_owned()]).updates(tidegate_client::Updates::ChangedColumns);
        let definition = ShapeSelection { name: "open_orders".into(), ..shape.into_proto() };
        NamedShape { source: "shop".into(), definition: Some(definition), version: 3, ..NamedShape::default() }
    }

    #[test]
    fn a_list_has_each_definition_on_a_line() {
        assert_eq!(
            list(&[shape()]),
            "shop  open_orders  version 3\n    public.orders where tenant = $1  and total > 5, $1: bigint, columns total, changed \
             columns only\n"
        );
        assert_eq!(list(&[]), "no shapes\n");
    }

    #[test]
    fn what_does_not_fit_any_more_is_said() {
        let described = DescribedShape { shape: Some(shape()), problem: "no column".into(), ..Default::default() };
        assert!(described_text(&described).contains("it cannot be selected any more: no column"));
        assert_eq!(described_json(&described)["problem"], json!("no column"));
        assert_eq!(described_json(&described)["updates"], json!("changed_columns"));
    }

    #[test]
    fn an_explanation_names_what_is_found_and_what_is_evaluated() {
        let lookup = ShapeLookup {
            column: "tenant".into(),
            kind: ShapeLookupKind::Value as i32,
            count: 2,
            ..Default::default()
        };
        let explained = ExplainedShape { summary: "Rows.".into(), lookups: vec![lookup], ..Default::default() };
        assert_eq!(explained_text(&explained), "where \nRows.\n    found by tenant  by value, hash, 2\n");
    }
}
