//! Which statements a migration may not have. The daemon opens and commits one transaction per file, keeps the
//! history itself, and sends the next file on the same session: whatever would break one of these is refused.
//!
//! Pure: a text in, findings out. This is no security boundary, which the tenant's roles are; it keeps honest files
//! from leaving a tenant half-migrated.

use super::statements::{Flaw, Kind, Statement, Token, dollar_quoted, split};

/// Something that a migration may not have, at its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) line: usize,
    pub(super) what: String,
    pub(super) advice: &'static str,
}

const TRANSACTION_ADVICE: &str = "leave it out: each file is one transaction, which the daemon opens and commits";
const SESSION_ADVICE: &str =
    "write SET LOCAL, which ends with this file's transaction, or set it on the function that needs it";
const ROLE_ADVICE: &str =
    "leave it out: everything must belong to the tenant's owner role, which the session acts as already";
const OUTSIDE_ADVICE: &str = "write it without CONCURRENTLY, or run it by hand before and say IF NOT EXISTS or IF EXISTS here: each file is one transaction";
const MAINTENANCE_ADVICE: &str = "run it outside of migrations: each file is one transaction";
const DAEMON_ADVICE: &str =
    "leave it out: databases and servers are the daemon's to change, and a tenant's role may not";
const COPY_ADVICE: &str = "write INSERT statements: no data follows a migration on its session";
const HISTORY_ADVICE: &str = "leave it out: the daemon keeps this table itself";
const LOCK_ADVICE: &str = "leave it out: it gives up the lock that keeps a second runner off this tenant";
const PSQL_ADVICE: &str = "write plain SQL: commands of psql do not exist on the server";
const END_ADVICE: &str = "close it: everything after it would be part of it";

/// The history table's name; only the daemon writes it.
pub(super) const HISTORY_TABLE: &str = "refinery_schema_history";

/// Everything in the text that the gate refuses, in order of lines.
pub(super) fn findings(sql: &str) -> Vec<Finding> {
    let split = split(sql);
    let mut found: Vec<_> = split.flaws.iter().map(|(line, flaw)| flaw_finding(*line, *flaw)).collect();
    if split.all.is_empty() && found.is_empty() {
        let advice = "write one, or remove the file";
        found.push(Finding { line: 1, what: "there is no statement in it".to_owned(), advice });
    }
    for statement in &split.all {
        if let Some((what, advice)) = forbidden(statement) {
            found.push(Finding { line: statement.line(), what, advice });
        }
        found.extend(calls(statement));
        found.extend(block(statement));
    }
    found.sort_by_key(|finding| finding.line);
    found
}

fn flaw_finding(line: usize, flaw: Flaw) -> Finding {
    match flaw {
        Flaw::Backslash => {
            let what = "a backslash outside of strings begins a command of psql".to_owned();
            Finding { line, what, advice: PSQL_ADVICE }
        }
        Flaw::Unterminated(what) => {
            let what = format!("the {what} that begins here has no end");
            Finding { line, what, advice: END_ADVICE }
        }
    }
}

/// Whether the statement as a whole may not be there: what it is, and what to do.
fn forbidden(statement: &Statement) -> Option<(String, &'static str)> {
    transaction(statement).or_else(|| session(statement)).or_else(|| outside(statement))
}

fn transaction(statement: &Statement) -> Option<(String, &'static str)> {
    let controls: &[&[&str]] = &[
        &["PREPARE", "TRANSACTION"],
        &["START", "TRANSACTION"],
        &["SET", "TRANSACTION"],
        &["SET", "LOCAL", "TRANSACTION"],
        &["BEGIN"],
        &["COMMIT"],
        &["END"],
        &["ROLLBACK"],
        &["ABORT"],
        &["SAVEPOINT"],
        &["RELEASE"],
    ];
    let words = controls.iter().find(|words| statement.begins(words))?;
    Some((format!("{} controls the transaction", words.join(" ")), TRANSACTION_ADVICE))
}

fn session(statement: &Statement) -> Option<(String, &'static str)> {
    let roles: &[&[&str]] = &[
        &["SET", "ROLE"],
        &["SET", "LOCAL", "ROLE"],
        &["SET", "SESSION", "ROLE"],
        &["RESET", "ROLE"],
        &["SET", "SESSION", "AUTHORIZATION"],
        &["SET", "LOCAL", "SESSION", "AUTHORIZATION"],
        &["RESET", "SESSION", "AUTHORIZATION"],
    ];
    if let Some(words) = roles.iter().find(|words| statement.begins(words)) {
        return Some((format!("{} changes the role", words.join(" ")), ROLE_ADVICE));
    }
    let lasting = statement.begins(&["SET"])
        && !statement.begins(&["SET", "LOCAL"])
        && !statement.begins(&["SET", "CONSTRAINTS"]);
    if lasting || statement.begins(&["RESET"]) || statement.begins(&["DISCARD"]) {
        let head: Vec<_> = statement.tokens.iter().take(2).map(|token| token.text).collect();
        return Some((format!("{} outlives this file", head.join(" ")), SESSION_ADVICE));
    }
    None
}

/// What PostgreSQL refuses inside a transaction, or a tenant's role may not do, or needs more than a message.
fn outside(statement: &Statement) -> Option<(String, &'static str)> {
    let says = |what: &str, advice| Some((format!("{what} cannot run in a migration"), advice));
    let concurrently = statement.has_word("CONCURRENTLY");
    if concurrently && statement.begins(&["REINDEX"]) {
        return says("REINDEX CONCURRENTLY", OUTSIDE_ADVICE);
    }
    if concurrently && (statement.begins(&["CREATE", "INDEX"]) || statement.begins(&["CREATE", "UNIQUE", "INDEX"])) {
        return says("CREATE INDEX CONCURRENTLY", OUTSIDE_ADVICE);
    }
    if concurrently && statement.begins(&["DROP", "INDEX"]) {
        return says("DROP INDEX CONCURRENTLY", OUTSIDE_ADVICE);
    }
    if concurrently && statement.begins(&["ALTER", "TABLE"]) && statement.has_word("DETACH") {
        return says("DETACH PARTITION CONCURRENTLY", OUTSIDE_ADVICE);
    }
    let whole_schema = ["SCHEMA", "DATABASE", "SYSTEM"].iter().any(|word| statement.has_word(word));
    if statement.begins(&["REINDEX"]) && whole_schema {
        return says("REINDEX of more than a table", MAINTENANCE_ADVICE);
    }
    if statement.begins(&["CLUSTER"]) && statement.tokens.len() == 1 {
        return says("CLUSTER of every table", MAINTENANCE_ADVICE);
    }
    if statement.begins(&["VACUUM"]) {
        return says("VACUUM", MAINTENANCE_ADVICE);
    }
    if statement.begins(&["COPY"]) && (statement.has_word("STDIN") || statement.has_word("STDOUT")) {
        return says("COPY with data that follows", COPY_ADVICE);
    }
    let objects = ["DATABASE", "TABLESPACE", "SUBSCRIPTION", "SYSTEM"];
    let verb = ["CREATE", "ALTER", "DROP"].into_iter().find(|verb| statement.begins(&[verb]))?;
    let object = objects.into_iter().find(|object| statement.begins(&[verb, object]))?;
    says(&format!("{verb} {object}"), DAEMON_ADVICE)
}

/// Calls and names that may not be there, wherever they stand in the statement.
fn calls(statement: &Statement) -> Vec<Finding> {
    let mut found = Vec::new();
    let makes_routine =
        statement.begins(&["CREATE"]) && (statement.has_word("FUNCTION") || statement.has_word("PROCEDURE"));
    let mut tokens = statement.tokens.as_slice();
    while let Some((token, rest)) = tokens.split_first() {
        // A routine's body runs later, when it is called.
        if !makes_routine && lasting_set_config(token, rest) {
            let what = "set_config(…) whose third argument is not true outlives this file".to_owned();
            found.push(Finding { line: token.line, what, advice: "give it true as third argument" });
        }
        if token.is_name("pg_advisory_unlock_all") {
            let what = "pg_advisory_unlock_all() cannot run in a migration".to_owned();
            found.push(Finding { line: token.line, what, advice: LOCK_ADVICE });
        }
        if token.is_name(HISTORY_TABLE) {
            let what = format!("{HISTORY_TABLE} is not a migration's to touch");
            found.push(Finding { line: token.line, what, advice: HISTORY_ADVICE });
        }
        tokens = rest;
    }
    found
}

/// Whether this is a call of `set_config` whose third argument is anything but the word `true`.
fn lasting_set_config(token: &Token, rest: &[Token]) -> bool {
    if !token.is_name("set_config") || !rest.first().is_some_and(|next| next.is_symbol("(")) {
        return false;
    }
    let mut depth = 0_usize;
    let mut arguments: Vec<Vec<&Token>> = vec![Vec::new()];
    for token in rest {
        let nested = depth > 1;
        match token.text {
            "(" | "[" if token.kind == Kind::Symbol => depth += 1,
            ")" | "]" if token.kind == Kind::Symbol => depth -= 1,
            "," if token.kind == Kind::Symbol && !nested => {
                arguments.push(Vec::new());
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if let Some(argument) = arguments.last_mut() {
            argument.push(token);
        }
    }
    !matches!(arguments.get(2).map(Vec::as_slice), Some([only]) if only.is_word("true"))
}

/// A DO block runs at once, so what its statements begin with counts too.
fn block(statement: &Statement) -> Vec<Finding> {
    if !statement.begins(&["DO"]) {
        return Vec::new();
    }
    let Some(body) = statement.tokens.iter().find(|token| token.kind == Kind::Text) else { return Vec::new() };
    let Some(text) = dollar_quoted(body.text) else { return Vec::new() };
    let split = split(text);
    let mut found = Vec::new();
    for inner in &split.all {
        found.extend(calls(inner));
        let mut at_start = true;
        for (index, token) in inner.tokens.iter().enumerate() {
            if at_start && let Some((what, advice)) = block_statement(inner.tokens.get(index..).unwrap_or_default()) {
                found.push(Finding { line: token.line, what, advice });
            }
            at_start = ["BEGIN", "THEN", "ELSE", "LOOP"].iter().any(|word| token.is_word(word));
        }
    }
    for finding in &mut found {
        finding.line += body.line - 1;
    }
    found
}

fn block_statement(tokens: &[Token]) -> Option<(String, &'static str)> {
    let first = tokens.first()?;
    if let Some(word) = ["COMMIT", "ROLLBACK"].into_iter().find(|word| first.is_word(word)) {
        return Some((format!("{word} in a DO block controls the transaction"), TRANSACTION_ADVICE));
    }
    session(&Statement { tokens: tokens.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines and texts of what is refused.
    fn refused(sql: &str) -> Vec<(usize, String)> {
        findings(sql).into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn what_would_break_the_transaction_or_outlive_the_file_is_refused() {
        let cases = [
            ("BEGIN", "BEGIN controls the transaction"),
            ("begin transaction isolation level serializable", "BEGIN controls the transaction"),
            ("START TRANSACTION", "START TRANSACTION controls the transaction"),
            ("COMMIT", "COMMIT controls the transaction"),
            ("commit and chain", "COMMIT controls the transaction"),
            ("END", "END controls the transaction"),
            ("/* x */ rollback", "ROLLBACK controls the transaction"),
            ("ROLLBACK TO SAVEPOINT a", "ROLLBACK controls the transaction"),
            ("ABORT", "ABORT controls the transaction"),
            ("SAVEPOINT a", "SAVEPOINT controls the transaction"),
            ("RELEASE a", "RELEASE controls the transaction"),
            ("PREPARE TRANSACTION 'a'", "PREPARE TRANSACTION controls the transaction"),
            ("SET TRANSACTION READ ONLY", "SET TRANSACTION controls the transaction"),
            ("SET search_path = a", "SET search_path outlives this file"),
            ("SET SESSION lock_timeout = 0", "SET SESSION outlives this file"),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET SESSION outlives this file"),
            ("SET TIME ZONE 'UTC'", "SET TIME outlives this file"),
            ("RESET ALL", "RESET ALL outlives this file"),
            ("DISCARD ALL", "DISCARD ALL outlives this file"),
            ("SET ROLE a", "SET ROLE changes the role"),
            ("SET LOCAL ROLE NONE", "SET LOCAL ROLE changes the role"),
            ("RESET ROLE", "RESET ROLE changes the role"),
            ("SET SESSION AUTHORIZATION a", "SET SESSION AUTHORIZATION changes the role"),
            ("CREATE INDEX CONCURRENTLY a ON b (c)", "CREATE INDEX CONCURRENTLY cannot run in a migration"),
            ("CREATE UNIQUE INDEX CONCURRENTLY a ON b (c)", "CREATE INDEX CONCURRENTLY cannot run in a migration"),
            ("DROP INDEX CONCURRENTLY IF EXISTS a", "DROP INDEX CONCURRENTLY cannot run in a migration"),
            ("REINDEX (CONCURRENTLY) TABLE a", "REINDEX CONCURRENTLY cannot run in a migration"),
            ("REINDEX TABLE CONCURRENTLY a", "REINDEX CONCURRENTLY cannot run in a migration"),
            ("REINDEX SCHEMA a", "REINDEX of more than a table cannot run in a migration"),
            (
                "ALTER TABLE a DETACH PARTITION b CONCURRENTLY",
                "DETACH PARTITION CONCURRENTLY cannot run in a migration",
            ),
            ("VACUUM (ANALYZE) a", "VACUUM cannot run in a migration"),
            ("CLUSTER", "CLUSTER of every table cannot run in a migration"),
            ("CREATE DATABASE a", "CREATE DATABASE cannot run in a migration"),
            ("ALTER DATABASE a SET b = c", "ALTER DATABASE cannot run in a migration"),
            ("ALTER SYSTEM SET a = 1", "ALTER SYSTEM cannot run in a migration"),
            ("DROP TABLESPACE a", "DROP TABLESPACE cannot run in a migration"),
            ("COPY a FROM STDIN", "COPY with data that follows cannot run in a migration"),
            (
                "SELECT pg_catalog.set_config('search_path', '', false)",
                "set_config(…) whose third argument is not true outlives this file",
            ),
            (
                "SELECT set_config('a.b', f(1, true), $1)",
                "set_config(…) whose third argument is not true outlives this file",
            ),
            ("SELECT pg_advisory_unlock_all()", "pg_advisory_unlock_all() cannot run in a migration"),
            ("DELETE FROM public.\"refinery_schema_history\"", "refinery_schema_history is not a migration's to touch"),
            ("-- nothing", "there is no statement in it"),
        ];
        for (sql, what) in cases {
            assert_eq!(refused(sql), [(1, what.to_owned())], "{sql}");
            if sql != "-- nothing" {
                let within = format!("CREATE TABLE t (a int);\n\n{sql};\nDROP TABLE t;");
                assert_eq!(refused(&within), [(3, what.to_owned())], "{within}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_it_is_accepted() {
        let accepted = [
            "CREATE TABLE \"commit\" (\"begin\" int, rollback text DEFAULT 'COMMIT;')",
            "SET LOCAL lock_timeout = '2s'; SET CONSTRAINTS ALL DEFERRED; UPDATE t SET a = 1",
            "SELECT set_config('tenant.id', f(1, 2), true)",
            "SELECT pg_catalog.set_config('a', 'b', TRUE), set_config_of(1)",
            "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$",
            "CREATE FUNCTION f() RETURNS void LANGUAGE sql SET search_path = a AS 'SELECT set_config(''a'', ''b'', false)'",
            "CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT set_config('a', 'b', false); END",
            "DO $$ BEGIN IF true THEN UPDATE t SET a = 1; END IF; PERFORM set_config('a', 'b', true); END $$",
            "DO $$ DECLARE committed int; BEGIN SET LOCAL a.b = 1; END $$",
            "-- COMMIT;\n/* ROLLBACK; */ SELECT $x$ BEGIN; $x$",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY v; CLUSTER t USING i; REINDEX TABLE t; PREPARE p AS SELECT 1",
            "CREATE INDEX concurrently_made ON t (a)",
            "ALTER TABLE t DETACH PARTITION p; ALTER ROLE r SET a = 'b'",
        ];
        for sql in accepted {
            assert_eq!(refused(sql), [], "{sql}");
        }
    }

    #[test]
    fn a_do_block_is_looked_into() {
        let sql = "SELECT 1;\nDO LANGUAGE plpgsql $body$\nBEGIN\n  IF true THEN\n    COMMIT;\n  END IF;\n  SET role = 'x';\n  \
                   PERFORM set_config('a', 'b', false);\nEND $body$;";
        let found: Vec<_> = findings(sql).into_iter().map(|finding| (finding.line, finding.what)).collect();
        let expected = [
            (5, "COMMIT in a DO block controls the transaction"),
            (7, "SET ROLE changes the role"),
            (8, "set_config(…) whose third argument is not true outlives this file"),
        ];
        assert_eq!(found, expected.map(|(line, what)| (line, what.to_owned())));
    }
}
