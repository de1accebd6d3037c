//! `tenantd sql`: one statement in a tenant's database or one of the daemon's own, its result as psql would draw it.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use tonic_types::StatusExt as _;

use super::connection::request;
use super::error::Error;
use super::table::{SqlCell, psql};
use super::{Context, human};
use crate::proto::v1::value::Kind;
use crate::proto::v1::{Column, ExecuteRequest, ExecuteResponse, Target, Value};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A tenant's id or code; the shared and the auth database as a whole are no tenant's.
    #[arg(required_unless_present = "target")]
    tenant: Option<String>,
    /// Another database than the tenant's own.
    #[arg(long, value_enum)]
    target: Option<Where>,
    /// On whose behalf: a user's id, which the statement sees as current_setting('app.current_user_id').
    #[arg(long, value_name = "UUID")]
    user: Option<String>,
    /// The statement; it is read from standard input when neither -c nor -f is given.
    #[arg(long, short, value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// A file with the statement.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A value for $1, and then for $2 and so on, in PostgreSQL's text form.
    #[arg(long = "parameter", short, value_name = "TEXT", allow_hyphen_values = true)]
    parameters: Vec<String>,
    /// A result with more rows is an error; at most 10000.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    max_rows: i32,
}

/// The daemon's own databases.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Where {
    /// The shared database as the tenant sees it.
    TenantShared,
    /// The whole shared database, read only; for administrators.
    Shared,
    /// The whole auth database, read only; for administrators.
    Auth,
}

impl From<Where> for Target {
    fn from(target: Where) -> Self {
        match target {
            Where::TenantShared => Self::TenantShared,
            Where::Shared => Self::Shared,
            Where::Auth => Self::Auth,
        }
    }
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let connection = context.connect().await?;
    let sql = match (arguments.command, arguments.file) {
        (Some(sql), _) => sql,
        (None, Some(path)) => std::fs::read_to_string(&path).map_err(|source| Error::Input { path, source })?,
        (None, None) => standard_input(context)?,
    };
    let parameter = |text: String| Value { kind: Some(Kind::TextValue(text)) };
    let message = ExecuteRequest {
        tenant: arguments.tenant.unwrap_or_default(),
        sql: sql.clone(),
        parameters: arguments.parameters.into_iter().map(parameter).collect(),
        max_rows: arguments.max_rows,
        target: arguments.target.map_or(Target::Unspecified, Target::from).into(),
        user_id: arguments.user.unwrap_or_default(),
    };
    let answer = match connection.queries().execute(request(message)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let details = status.get_error_details();
            let position = details.error_info().and_then(|info| info.metadata.get("position")?.parse().ok());
            let place = position.and_then(|position| place(&sql, position));
            return Err(Error::Refused { status: Box::new(status), place });
        }
    };
    context.output.answer(&answer, || text(&answer))
}

fn standard_input(context: &Context) -> Result<String, Error> {
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        context.output.note("Type one statement and end with Ctrl-D.");
    }
    let mut sql = String::new();
    let input = |source| Error::Input { path: PathBuf::from("standard input"), source };
    stdin.read_to_string(&mut sql).map_err(input)?;
    Ok(sql)
}

/// The line of the statement that PostgreSQL did not like, with a caret under the place. `position` counts characters
/// from 1, as PostgreSQL does.
fn place(sql: &str, position: usize) -> Option<String> {
    let before: String = sql.chars().take(position.checked_sub(1)?).collect();
    let number = before.matches('\n').count();
    let column = before.rsplit('\n').next()?.chars().count();
    let label = format!("line {}: ", number + 1);
    let blanks = " ".repeat(label.chars().count() + column);
    // Tabs would move the caret away.
    let line = sql.lines().nth(number)?.replace('\t', " ");
    Some(format!("{label}{}\n{blanks}^", human::printable(&line)))
}

fn text(answer: &ExecuteResponse) -> String {
    if answer.columns.is_empty() {
        return format!("{}\n", human::plural(answer.row_count, "row"));
    }
    let columns: Vec<_> = answer.columns.iter().map(|column| (column.name.clone(), is_number(column))).collect();
    let rows = answer.rows.iter().map(|row| row.values.iter().map(cell).collect()).collect();
    format!("{}({})\n", psql(&columns, rows), human::plural(answer.row_count, "row"))
}

fn is_number(column: &Column) -> bool {
    matches!(column.type_name.as_str(), "int2" | "int4" | "int8" | "oid" | "float4" | "float8" | "numeric" | "money")
}

fn cell(value: &Value) -> SqlCell {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => SqlCell::Null,
        Some(kind) => SqlCell::Text(kind_text(kind)),
    }
}

/// As psql shows it.
fn kind_text(kind: &Kind) -> String {
    match kind {
        Kind::NullValue(_) => "NULL".to_owned(),
        Kind::BoolValue(yes) => if *yes { "t" } else { "f" }.to_owned(),
        Kind::Int64Value(number) => number.to_string(),
        Kind::DoubleValue(number) => number.to_string(),
        Kind::TextValue(text) => text.clone(),
        Kind::BytesValue(bytes) => format!("\\x{}", hex::encode(bytes)),
        Kind::ArrayValue(array) => {
            let elements =
                array.elements.iter().map(|element| element.kind.as_ref().map_or("NULL".to_owned(), element_text));
            format!("{{{}}}", elements.collect::<Vec<_>>().join(","))
        }
    }
}

/// An array's element, quoted where PostgreSQL would.
fn element_text(kind: &Kind) -> String {
    let text = kind_text(kind);
    let quoted = matches!(kind, Kind::TextValue(_) | Kind::BytesValue(_))
        && (text.is_empty()
            || text.eq_ignore_ascii_case("null")
            || text.contains(|c: char| c.is_whitespace() || matches!(c, '{' | '}' | ',' | '"' | '\\')));
    if quoted { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{ArrayValue, Row};

    fn value(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    #[test]
    fn the_caret_points_at_the_place() {
        assert_eq!(place("select\n  é, nme from t", 13).unwrap(), "line 2:   é, nme from t\n             ^");
        assert_eq!(place("select 1", 1).unwrap(), "line 1: select 1\n        ^");
        assert_eq!(place("select 1", 0), None);
    }

    #[test]
    fn values_are_as_in_psql() {
        let column =
            |name: &str, type_name: &str| Column { name: name.into(), type_name: type_name.into(), type_oid: 0 };
        let array = ArrayValue {
            elements: vec![value(Kind::TextValue("a b".into())), Value { kind: None }, value(Kind::Int64Value(3))],
        };
        let answer = ExecuteResponse {
            columns: vec![
                column("count", "int8"),
                column("ok", "bool"),
                column("tags", "_text"),
                column("raw", "bytea"),
            ],
            rows: vec![Row {
                values: vec![
                    value(Kind::Int64Value(12_000)),
                    value(Kind::BoolValue(true)),
                    value(Kind::ArrayValue(array)),
                    value(Kind::BytesValue(vec![0xde, 0xad])),
                ],
            }],
            row_count: 1,
        };
        insta::assert_snapshot!(text(&answer), @r#"
         count | ok |      tags      |   raw
        -------+----+----------------+--------
         12000 | t  | {"a b",NULL,3} | \xdead
        (1 row)
        "#);
    }

    #[test]
    fn a_statement_without_a_result_says_how_many_rows() {
        let answer = ExecuteResponse { row_count: 12_345, ..ExecuteResponse::default() };
        assert_eq!(text(&answer), "12,345 rows\n");
    }
}
