//! Tables and records as text: lists without borders, SQL results as psql draws them. Pure.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentLineStyle, LineStyle, Table, TableStyle};

use super::human;

/// Columns two spaces apart, nothing else.
const PLAIN: TableStyle = TableStyle::new();
/// As psql: `a | b` over `---+---`.
const PSQL: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none().junction('|'))
    .header_separator(LineStyle::none().fill('-').junction('+'))
    .content_lines(ContentLineStyle::none().junction('|'));

/// How a column of a list stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Text(&'static str),
    Number(&'static str),
    /// A state's name, coloured on a terminal.
    State(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) | Self::State(title) => title,
        }
    }

    fn cell(self, text: &str) -> Cell {
        let cell = Cell::new(human::printable(if text.is_empty() { "-" } else { text }));
        match self {
            Self::Text(_) => cell,
            Self::Number(_) => cell.set_alignment(CellAlignment::Right),
            Self::State(_) => match color(text) {
                Some(color) => cell.fg(color),
                None => cell,
            },
        }
    }
}

/// Good is green, bad is red, under way is yellow, over is not coloured.
fn color(state: &str) -> Option<Color> {
    match state {
        "ACTIVE" | "SUCCEEDED" | "MIGRATED" | "DONE" => Some(Color::Green),
        "FAILED" | "STUCK" | "HALTED" => Some(Color::Red),
        "PROVISIONING" | "MAINTENANCE" | "SUSPENDED" | "RUNNING" | "PENDING" | "PARTIAL" | "AHEAD" | "UNDOING" => {
            Some(Color::Yellow)
        }
        _ => None,
    }
}

/// A list: one line of titles, then one line for each row.
pub fn list(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(PLAIN);
    table.set_header(columns.iter().map(|column| {
        let cell = Cell::new(column.title()).add_attribute(Attribute::Bold);
        if matches!(column, Column::Number(_)) { cell.set_alignment(CellAlignment::Right) } else { cell }
    }));
    for row in rows {
        table.add_row(columns.iter().zip(&row).map(|(column, text)| column.cell(text)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table)
}

/// One thing: its fields below each other. Those without a value are left out.
pub fn record(fields: &[(&str, String)]) -> String {
    let fields: Vec<_> = fields.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| {
        let value = human::printable(value).replace('\n', &format!("\n  {:width$}  ", ""));
        format!("  {name:width$}  {value}")
    };
    lines(fields.into_iter().map(line))
}

/// A cell of a result of SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SqlCell {
    Null,
    Text(String),
}

/// A result of SQL. Each column has a name, and whether it has numbers.
pub fn psql(columns: &[(String, bool)], rows: Vec<Vec<SqlCell>>) -> String {
    let mut table = Table::new();
    table.load_style(PSQL);
    let title = |name: &str| Cell::new(human::printable(name)).set_alignment(CellAlignment::Center);
    table.set_header(columns.iter().map(|(name, _)| title(name)));
    for row in rows {
        table.add_row(columns.iter().zip(row).map(|((_, is_number), cell)| {
            let cell = match cell {
                SqlCell::Null => Cell::new("NULL").add_attribute(Attribute::Dim),
                // A text that reads NULL is not NULL.
                SqlCell::Text(text) if text == "NULL" => Cell::new("\"NULL\""),
                SqlCell::Text(text) => Cell::new(human::printable(&text)),
            };
            if *is_number { cell.set_alignment(CellAlignment::Right) } else { cell }
        }));
    }
    trimmed(&table)
}

/// Without the blanks that alignment leaves at the ends of lines.
fn trimmed(table: &Table) -> String {
    lines(table.lines().map(|line| line.trim_end().to_owned()))
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.flat_map(|line| [line, "\n".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|&cell| cell.to_owned()).collect()
    }

    #[test]
    fn a_list_is_columns_and_nothing_else() {
        let columns = [Column::Text("CODE"), Column::State("STATE"), Column::Number("VERSION")];
        let text = list(&columns, [row(&["acme", "ACTIVE", "12"]), row(&["globex_corp", "SUSPENDED", ""])]);
        insta::assert_snapshot!(text, @r"
        CODE         STATE      VERSION
        acme         ACTIVE          12
        globex_corp  SUSPENDED        -
        ");
    }

    #[test]
    fn a_record_leaves_out_what_is_not_known() {
        let text =
            record(&[("Tenant", "acme".to_owned()), ("SIRET", String::new()), ("Legal name", "Acme\nSA".to_owned())]);
        insta::assert_snapshot!(text, @r"
          Tenant      acme
          Legal name  Acme
                      SA
        ");
    }

    #[test]
    fn sql_looks_as_in_psql() {
        let columns = [("id".to_owned(), true), ("name".to_owned(), false)];
        let text = |text: &str| SqlCell::Text(text.to_owned());
        let rows =
            vec![vec![text("1"), text("Beam")], vec![text("20"), SqlCell::Null], vec![text("300"), text("NULL")]];
        insta::assert_snapshot!(psql(&columns, rows), @r#"
          id |  name
        -----+--------
           1 | Beam
          20 | NULL
         300 | "NULL"
        "#);
    }
}
