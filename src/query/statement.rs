//! Looks at a statement's words, without understanding SQL: which statements are refused because the daemon owns the
//! session, and what a statement may leave behind in it.
//!
//! A word that this lexer takes for something else costs a cleaning, or leads to a refusal by PostgreSQL; the tenants'
//! separation does not rest on it. That a name stands for something that runs a tenant's own code only the database
//! can tell: [`super::harmless`].

use super::calls::is_harmless;
use super::error::Error;
use super::lexer::{Token, Tokens};
use super::parameter::PARAMETERS_MAX;
use crate::domain::tenant::IDENTIFIER_BYTES_MAX;
use crate::router::Residue;

/// Transactions are messages here, not statements.
const TRANSACTION: &str = "each statement has a transaction of its own, and Transact begins and ends one by messages";
const PREPARED: &str = "statements are prepared by the daemon; send the statement itself with parameters";
const SESSION: &str = "the session goes back to the pool after the statement; use a direct client";

/// Statements about the session or the transaction, which are the daemon's.
const REFUSED: &[(&str, &str)] = &[
    ("BEGIN", TRANSACTION),
    ("START", TRANSACTION),
    ("COMMIT", TRANSACTION),
    ("END", TRANSACTION),
    ("ROLLBACK", TRANSACTION),
    ("ABORT", TRANSACTION),
    ("SAVEPOINT", TRANSACTION),
    ("RELEASE", TRANSACTION),
    ("PREPARE", PREPARED),
    ("EXECUTE", PREPARED),
    ("DEALLOCATE", PREPARED),
    ("DISCARD", "the session is the daemon's"),
    ("COPY", "its data has no place in this call; use INSERT … SELECT FROM unnest($1, …), or a direct client"),
    ("LISTEN", SESSION),
    ("UNLISTEN", SESSION),
];

/// Statements about cursors, which end with their transaction.
const CURSOR: &[&str] = &["DECLARE", "FETCH", "MOVE", "CLOSE"];

/// Statements that leave at most what the cleaning between leases removes.
const CLEANABLE: &[&str] =
    &["SELECT", "VALUES", "TABLE", "WITH", "INSERT", "UPDATE", "DELETE", "MERGE", "EXPLAIN", "SHOW"];

/// Statements that PostgreSQL's implicit transaction covers as a whole.
const CHANGING: &[&str] = &["INSERT", "UPDATE", "DELETE", "MERGE"];

/// Words that make more of a query than a reader.
const WRITING: &[&str] = &["INSERT", "UPDATE", "DELETE", "MERGE", "INTO", "EXPLAIN"];

/// Statements that read, or that fail in a transaction that is read only.
const READING: &[&str] = &["SELECT", "WITH", "VALUES", "TABLE", "SHOW", "EXPLAIN"];

/// What is known of a statement from its words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Analysis {
    /// What it may leave in the session.
    pub(super) residue: Residue,
    /// It begins by INSERT, UPDATE, DELETE or MERGE.
    pub(super) is_change: bool,
    /// It declares, reads or closes a cursor.
    pub(super) is_cursor: bool,
    /// Every name in it, as the catalog writes them, each once. Only of statements that leave nothing.
    pub(super) names: Vec<String>,
}

/// Refuses everything but a query: a transaction that is read only keeps only tables as they are, and not roles,
/// grants, locks and comments, and it is not read only any more when a statement before its first query says so.
pub(super) fn only_reads(sql: &str) -> Result<(), Error> {
    let word = match Tokens::of(sql).find(is_beginning) {
        Some(Token::Word(first)) if any_of(READING, first) => return Ok(()),
        Some(Token::Word(first)) => first[..first.floor_char_boundary(IDENTIFIER_BYTES_MAX)].to_uppercase(),
        Some(Token::Symbol(symbol)) => symbol.to_string(),
        Some(Token::Quoted(_) | Token::Literal(_) | Token::Parameter(_)) => {
            "a name or a value at the beginning".to_owned()
        }
        None => "a statement without a word".to_owned(),
    };
    Err(Error::NotReading { word })
}

/// Not a parenthesis around a query, and not an empty statement before it.
fn is_beginning(token: &Token<'_>) -> bool {
    !matches!(token, Token::Symbol('(' | ';'))
}

/// Reads the statement's words; an error when it is refused.
pub(super) fn analysis(sql: &str) -> Result<Analysis, Error> {
    if sql.contains('\0') {
        return Err(Error::Nul);
    }
    let tokens: Vec<Token<'_>> = Tokens::of(sql).collect();
    let first = match tokens.iter().find(|token| is_beginning(token)) {
        Some(Token::Word(first)) => *first,
        Some(_) => "",
        None if tokens.contains(&Token::Symbol('(')) => "",
        None => return Err(Error::Empty),
    };
    if tokens.iter().any(|token| matches!(token, Token::Parameter(number) if is_beyond(&number[1..]))) {
        return Err(Error::ParametersMax { max: PARAMETERS_MAX });
    }
    if let Some((word, reason)) = REFUSED.iter().find(|(word, _)| word.eq_ignore_ascii_case(first)) {
        return Err(Error::Refused { word, reason });
    }
    if sets_encoding(first, &tokens) {
        return Err(Error::Refused { word: "client_encoding", reason: "texts travel in UTF-8 in both directions" });
    }
    // Bodies of functions and rules have several statements in one.
    let is_create = first.eq_ignore_ascii_case("CREATE");
    let end = Token::Symbol(';');
    let mut parts = tokens.split(|token| *token == end).filter(|part| !part.is_empty());
    if !is_create && parts.nth(1).is_some() {
        return Err(Error::Several);
    }
    let is_cursor = any_of(CURSOR, first);
    let residue = match () {
        () if is_cursor => Residue::Session,
        () if !any_of(CLEANABLE, first) => Residue::Anything,
        () if is_plain(&tokens) => Residue::Nothing,
        () => Residue::Session,
    };
    let names = if residue == Residue::Nothing { names(&tokens) } else { Vec::new() };
    Ok(Analysis { residue, is_change: any_of(CHANGING, first), is_cursor, names })
}

/// Whether the token is this name, with or without quotes.
fn is(token: &Token<'_>, name: &str) -> bool {
    match token {
        Token::Word(word) => word.eq_ignore_ascii_case(name),
        Token::Quoted(quoted) => quoted.trim_matches('"').eq_ignore_ascii_case(name),
        _other => false,
    }
}

/// Settings that are the daemon's in some places.
const SETTINGS: &[&str] = &["client_encoding", "names", "transaction", "characteristics", "transaction_read_only"];

/// Which of them a SET or RESET is about.
fn set_name(tokens: &[Token<'_>]) -> Option<&'static str> {
    let mut named = tokens.iter().filter(|token| is_beginning(token)).skip(1);
    let named = named.find(|token| !is(token, "session") && !is(token, "local"))?;
    SETTINGS.iter().find(|name| is(named, name)).copied()
}

/// Whether it says by its words what a transaction may do. Behind a transaction's first query, and so in every function,
/// PostgreSQL itself lets nothing that only reads write again.
pub(super) fn sets_access_mode(sql: &str) -> bool {
    let tokens: Vec<Token<'_>> = Tokens::of(sql).collect();
    let is_set =
        tokens.iter().find(|token| is_beginning(token)).is_some_and(|first| is(first, "set") || is(first, "reset"));
    is_set && matches!(set_name(&tokens), Some("transaction" | "characteristics" | "transaction_read_only"))
}

/// Whether it changes the encoding of texts by its words. That a function does it is seen when it has
/// (`postgres/session.rs`).
fn sets_encoding(first: &str, tokens: &[Token<'_>]) -> bool {
    let is_encoding = |text: &str| text.eq_ignore_ascii_case("client_encoding");
    if first.eq_ignore_ascii_case("SET") {
        return matches!(set_name(tokens), Some("client_encoding" | "names"));
    }
    let has = |known: &str| tokens.iter().any(|token| is(token, known));
    tokens.iter().any(|token| matches!(token, Token::Literal(text) if is_encoding(text.trim_matches('\''))))
        && (has("set_config") || (any_of(CHANGING, first) && has("pg_settings")))
}

/// Whether a parameter has a number that the protocol has no room for.
fn is_beyond(number: &str) -> bool {
    let digits = number.trim_start_matches('0');
    !digits.is_empty() && digits.parse().map_or(true, |number: usize| number > PARAMETERS_MAX)
}

fn any_of(words: &[&str], word: &str) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Whether the query only reads, and calls nothing unknown.
fn is_plain(tokens: &[Token<'_>]) -> bool {
    let is_odd = |token: &Token<'_>| match token {
        // Letters beyond ASCII are none in every encoding, and some look like blanks.
        Token::Word(word) => any_of(WRITING, word) || !word.is_ascii() || word.contains('$'),
        Token::Literal(text) => !is_plain_literal(text),
        Token::Symbol(symbol) => *symbol == '$',
        Token::Quoted(_) | Token::Parameter(_) => false,
    };
    let pairs = tokens.windows(2).any(|pair| match pair {
        [Token::Word(word), Token::Symbol('(')] => !is_harmless(word),
        // FOR SHARE and FOR KEY SHARE write their locks into the rows.
        [Token::Word(first), Token::Word(second)] => {
            first.eq_ignore_ascii_case("FOR") && any_of(&["SHARE", "KEY"], second)
        }
        // A call by a quoted name, and a name that is written in escapes.
        [Token::Quoted(_), Token::Symbol('(')] | [Token::Symbol('&'), Token::Quoted(_)] => true,
        _other => false,
    });
    let qualified = tokens
        .windows(3)
        .any(|triple| matches!(triple, [Token::Symbol('.'), Token::Word(_) | Token::Quoted(_), Token::Symbol('(')]));
    !tokens.iter().any(is_odd) && !pairs && !qualified
}

/// Whether its end is the same to whoever reads it. Where a string with backslashes ends depends on a setting; letters
/// behind a number are a word of their own to some versions of PostgreSQL; and tags and prefixes are for those who have
/// something to hide, as far as a cleaning is concerned.
fn is_plain_literal(text: &str) -> bool {
    match text.as_bytes() {
        [b'\'', ..] => !text.contains('\\'),
        [b'0'..=b'9', ..] => text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'_' | b'e' | b'E')),
        _other => false,
    }
}

fn names(tokens: &[Token<'_>]) -> Vec<String> {
    let name = |token: &Token<'_>| match token {
        Token::Word(word) => Some(word.to_ascii_lowercase()),
        Token::Quoted(quoted) => {
            let inside = quoted.strip_prefix('"').unwrap_or(quoted);
            Some(inside.strip_suffix('"').unwrap_or(inside).replace("\"\"", "\""))
        }
        Token::Literal(_) | Token::Parameter(_) | Token::Symbol(_) => None,
    };
    // PostgreSQL cuts longer ones off.
    let cut = |name: String| name[..name.floor_char_boundary(IDENTIFIER_BYTES_MAX)].to_owned();
    let mut names: Vec<String> = tokens.iter().filter_map(name).map(cut).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The statement's words without its values, for the log.
pub(super) fn without_values(sql: &str) -> String {
    const WORDS_MAX: usize = 40;
    let word = |token: Token<'_>| match token {
        Token::Word(word) | Token::Parameter(word) => word.to_owned(),
        Token::Symbol(symbol) => symbol.to_string(),
        Token::Quoted(_) => "\"…\"".to_owned(),
        Token::Literal(_) => "?".to_owned(),
    };
    Tokens::of(sql).take(WORDS_MAX).map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn residue(sql: &str) -> Result<Residue, Error> {
        analysis(sql).map(|analysis| analysis.residue)
    }

    fn refused(sql: &str) -> bool {
        matches!(residue(sql), Err(Error::Refused { .. }))
    }

    #[test]
    fn the_session_is_the_daemons() {
        for sql in [
            "begin",
            " /* a /* nested */ comment */ COMMIT",
            "-- a line\nrollback",
            "copy t from stdin",
            "LISTEN x",
            "prepare transaction 'x'",
            "START TRANSACTION",
            "set client_encoding = 'LATIN1'",
            "SET LOCAL \"client_encoding\" TO latin1",
            "set session names 'latin1'",
            "select set_config('Client_Encoding', 'LATIN1', false)",
            "select pg_catalog.\"set_config\"('client_encoding', 'LATIN1', false)",
            "update pg_settings set setting = 'latin1' where name = 'client_encoding'",
        ] {
            assert!(refused(sql), "{sql}");
        }
        for sql in ["", " -- nothing", ";;", "/* ("] {
            assert!(matches!(residue(sql), Err(Error::Empty)), "{sql}");
        }
        assert!(residue("(").is_ok(), "what is wrong with it PostgreSQL says");
    }

    #[test]
    fn what_a_transaction_may_do_is_said_when_it_begins() {
        for sql in [
            "set transaction read write",
            "; SET LOCAL transaction_read_only = off",
            "set session characteristics as transaction read write",
            "/* a */ set \"transaction_read_only\" to off",
            "reset transaction_read_only",
        ] {
            assert!(sets_access_mode(sql), "{sql}");
        }
        for sql in ["set local a = 1", "select 'set transaction'", "set time zone 'utc'", "set", ""] {
            assert!(!sets_access_mode(sql), "{sql}");
        }
    }

    #[test]
    fn what_the_protocol_cannot_carry_is_refused() {
        for sql in ["select 'a\0b'", "\0", "select 1 \0"] {
            assert!(matches!(residue(sql), Err(Error::Nul)), "{sql:?}");
        }
        for sql in ["select $65536", "select $1, $000070000::int", "select $99999999999999999999999999"] {
            assert!(matches!(residue(sql), Err(Error::ParametersMax { .. })), "{sql}");
        }
        for sql in ["select $65535", "select $0000065535::int", "select '$70000', $$ $70000 $$, 70000 -- $70000"] {
            assert!(residue(sql).is_ok(), "{sql}");
        }
    }

    #[test]
    fn what_reads_is_seen_through_comments_and_parentheses() {
        for sql in [
            "select 1",
            "/* set /* x */ */ -- set\n ((Select 1))",
            "; with a as (select 1) table a",
            "values (1)",
            "table t",
            "show all",
            "explain analyze select 1",
        ] {
            assert!(only_reads(sql).is_ok(), "{sql}");
        }
        for (sql, word) in [
            ("set transaction read write", "SET"),
            ("/* select */ lock table t", "LOCK"),
            ("-- select\n(; notify c", "NOTIFY"),
            ("selec 1", "SELEC"),
            ("\u{a0}select 1", "\u{a0}SELECT"),
            ("?", "?"),
            ("\"select\" 1", "a name or a value at the beginning"),
            ("'select'", "a name or a value at the beginning"),
            ("(/*", "a statement without a word"),
        ] {
            assert!(matches!(only_reads(sql), Err(Error::NotReading { word: named }) if named == word), "{sql}");
        }
    }

    #[test]
    fn queries_without_calls_leave_nothing() {
        for sql in [
            "select 1",
            "SELECT * FROM articles WHERE id = $1",
            "(select count(*) from t where a in (1, 2))",
            "with x as (select 'insert into', \"update\" from t) select max(a) from x",
            "select ' set_config(''a'',''b'',false) ', 'it''s', 'é'",
            "select \"größe\", 1.5e3 from t -- é",
            "select 1;",
            "table articles",
        ] {
            assert_eq!(residue(sql).unwrap(), Residue::Nothing, "{sql}");
        }
    }

    #[test]
    fn what_may_leave_something_is_cleaned_or_dropped() {
        for sql in [
            "select set_config('a', 'b', false)",
            "select pg_advisory_lock (1)",
            "select app.count(1)",
            "select \"Count\"(1)",
            "insert into t values (1)",
            "with x as (delete from t returning *) select * from x",
            "select 1 into temp t",
            "select * from t for share",
            "select * from t for no key update",
            "select * from t For /* a */ Key share of t",
            "explain analyze select 1",
            "select 'a\\', set_config('a', 'b', false) --'",
            "select 1 -- a line ends here too\r, set_config('a', 'b', false)",
            "select u&\"\\0061\"",
            "fetch all from c",
            // What is not plainly understood.
            "select $$ set_config('a','b',false) $$",
            "select $€$ ' $€$::text, set_config('a', 'b', false), $€$ ' $€$::text",
            "select $💩$ ' $💩$::text, set_config('a', 'b', false), $💩$ ' $💩$::text",
            "select 1a$$ ', set_config('a', 'b', false), '$$",
            "select $1a$$ ', set_config('a', 'b', false), '$$",
            "select a$b from t",
            "select e'a'",
            "select U&'a'",
            "select b'1'",
            "select x'1'",
            "select N'a'",
            "select größe from t",
            "select \u{a0}x from t",
            "select 1from t limit 1for share",
            "select $ 1",
        ] {
            assert_eq!(residue(sql).unwrap(), Residue::Session, "{sql}");
        }
        for sql in ["set a = 1", "do $$ begin end $$", "create temp table t (a int)", "load 'x'", "call p()", "?"] {
            assert_eq!(residue(sql).unwrap(), Residue::Anything, "{sql}");
        }
    }

    #[test]
    fn one_statement_is_one() {
        for sql in ["select 1; select 2", "; select 1; x", "select ';'; select 2"] {
            assert!(matches!(residue(sql), Err(Error::Several)), "{sql}");
        }
        for sql in ["select 1;", ";;select ';';;", "create function f() returns int begin atomic; select 1; end"] {
            assert!(residue(sql).is_ok(), "{sql}");
        }
    }

    #[test]
    fn names_are_as_the_catalog_has_them() {
        let of = |sql: &str| analysis(sql).unwrap().names;
        assert_eq!(of("select \"\"\"x\""), ["\"x", "select"]);
        assert_eq!(of("SELECT A.b, \"C\"\"d\" FROM A"), ["C\"d", "a", "b", "from", "select"]);
        assert_eq!(of("select \"\u{a0}x\""), ["select", "\u{a0}x"]);
        assert!(of("insert into t values (1)").is_empty());
    }

    #[test]
    fn logged_statements_have_no_values() {
        let logged = without_values("select * from t where a = 'secret' and b = 42 and c = $1 and d = $x$secret$x$");
        assert!(!logged.contains("secret") && !logged.contains("42"), "{logged}");
    }

    #[test]
    fn no_text_makes_the_lexer_fail() {
        for sql in ["'", "\"", "$", "$$", "$a", "/*", "e'", "E'\\", "é(", "--", "$é$x", "1e'"] {
            let _ = residue(sql);
            let _ = without_values(sql);
        }
    }
}
