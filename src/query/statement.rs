//! Looks at a statement's words, without understanding SQL: which statements are refused because the daemon owns the
//! session, and what a statement may leave behind in it. PostgreSQL itself refuses more than one statement.
//!
//! A word that this lexer takes for something else costs a cleaning, or leads to a refusal by PostgreSQL; the tenants'
//! separation does not rest on it.

use super::error::Error;
use crate::router::Residue;

/// Statements about the session or the transaction, which are the daemon's.
const REFUSED: &[(&str, &str)] = &[
    ("BEGIN", "each statement has a transaction of its own"),
    ("START", "each statement has a transaction of its own"),
    ("COMMIT", "each statement has a transaction of its own"),
    ("END", "each statement has a transaction of its own"),
    ("ROLLBACK", "each statement has a transaction of its own"),
    ("ABORT", "each statement has a transaction of its own"),
    ("SAVEPOINT", "each statement has a transaction of its own"),
    ("RELEASE", "each statement has a transaction of its own"),
    ("PREPARE", "statements are prepared by the daemon; send the statement itself with parameters"),
    ("EXECUTE", "statements are prepared by the daemon; send the statement itself with parameters"),
    ("DEALLOCATE", "statements are prepared by the daemon"),
    ("DISCARD", "the session is the daemon's"),
    ("DECLARE", "a cursor ends with its statement; bound the result by LIMIT instead"),
    ("FETCH", "a cursor ends with its statement; bound the result by LIMIT instead"),
    ("MOVE", "a cursor ends with its statement; bound the result by LIMIT instead"),
    ("CLOSE", "a cursor ends with its statement"),
    ("COPY", "its data has no place in this call; use INSERT … SELECT FROM unnest($1, …), or a direct client"),
    ("LISTEN", "the session goes back to the pool after the statement; use a direct client"),
    ("UNLISTEN", "the session goes back to the pool after the statement; use a direct client"),
];

/// Statements that leave at most what the cleaning between leases removes.
const CLEANABLE: &[&str] =
    &["SELECT", "VALUES", "TABLE", "WITH", "INSERT", "UPDATE", "DELETE", "MERGE", "EXPLAIN", "SHOW"];

/// Words that make more of a query than a reader.
const WRITING: &[&str] = &["INSERT", "UPDATE", "DELETE", "MERGE", "INTO", "EXPLAIN"];

/// Words that stand before a parenthesis in queries that leave nothing in the session: SQL's own, and functions of
/// PostgreSQL's without side effects.
const HARMLESS_CALLS: &[&str] = &[
    "ABS",
    "ALL",
    "AND",
    "ANY",
    "ARRAY_AGG",
    "ARRAY_LENGTH",
    "AS",
    "AVG",
    "BETWEEN",
    "BOOL_AND",
    "BOOL_OR",
    "BY",
    "CAST",
    "CEIL",
    "CHAR",
    "COALESCE",
    "CONCAT",
    "COUNT",
    "DATE",
    "DATE_TRUNC",
    "DISTINCT",
    "ELSE",
    "EXCEPT",
    "EXISTS",
    "EXTRACT",
    "FILTER",
    "FLOOR",
    "FROM",
    "GENERATE_SERIES",
    "GREATEST",
    "IN",
    "INTERSECT",
    "INTERVAL",
    "JOIN",
    "JSONB_AGG",
    "JSONB_BUILD_OBJECT",
    "LATERAL",
    "LEAST",
    "LEFT",
    "LENGTH",
    "LIKE",
    "LIMIT",
    "LOWER",
    "MATERIALIZED",
    "MAX",
    "MIN",
    "NOT",
    "NOW",
    "NULLIF",
    "NUMERIC",
    "OFFSET",
    "ON",
    "OR",
    "OVER",
    "PARTITION",
    "POSITION",
    "RIGHT",
    "ROUND",
    "ROW",
    "ROW_NUMBER",
    "SELECT",
    "SOME",
    "STRING_AGG",
    "SUBSTRING",
    "SUM",
    "THEN",
    "TO_CHAR",
    "TRIM",
    "UNION",
    "UNNEST",
    "UPPER",
    "USING",
    "VALUES",
    "VARCHAR",
    "WHEN",
    "WHERE",
];

/// What the statement may leave in the session; an error when it is refused.
pub(super) fn residue(sql: &str) -> Result<Residue, Error> {
    let tokens: Vec<Token<'_>> = Tokens { rest: sql }.collect();
    let first = tokens.iter().find(|token| !matches!(token, Token::Symbol('(')));
    let Some(Token::Word(first)) = first else {
        return if first.is_none() { Err(Error::Empty) } else { Ok(Residue::Anything) };
    };
    if let Some((word, reason)) = REFUSED.iter().find(|(word, _)| word.eq_ignore_ascii_case(first)) {
        return Err(Error::Refused { word, reason });
    }
    let any_of = |words: &[&str], word: &str| words.iter().any(|known| known.eq_ignore_ascii_case(word));
    if !any_of(CLEANABLE, first) {
        return Ok(Residue::Anything);
    }
    let writes = tokens.iter().any(|token| matches!(token, Token::Word(word) if any_of(WRITING, word)));
    let calls = tokens.windows(2).any(|pair| match pair {
        [Token::Word(word), Token::Symbol('(')] => !any_of(HARMLESS_CALLS, word),
        [Token::Quoted, Token::Symbol('(')] => true,
        _other => false,
    });
    let qualified = tokens
        .windows(3)
        .any(|triple| matches!(triple, [Token::Symbol('.'), Token::Word(_) | Token::Quoted, Token::Symbol('(')]));
    Ok(if writes || calls || qualified { Residue::Session } else { Residue::Nothing })
}

/// The statement's words without its values, for the log.
pub(super) fn without_values(sql: &str) -> String {
    const WORDS_MAX: usize = 40;
    let word = |token: Token<'_>| match token {
        Token::Word(word) => word.to_owned(),
        Token::Symbol(symbol) => symbol.to_string(),
        Token::Quoted => "\"…\"".to_owned(),
        Token::Literal => "?".to_owned(),
    };
    Tokens { rest: sql }.take(WORDS_MAX).map(word).collect::<Vec<_>>().join(" ")
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A key word or an identifier without quotes.
    Word(&'a str),
    /// An identifier in double quotes.
    Quoted,
    /// A string or a number.
    Literal,
    Symbol(char),
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    /// Cuts off `length` bytes.
    fn cut(&mut self, length: usize) -> &'a str {
        let (cut, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, ""));
        self.rest = rest;
        cut
    }

    fn skip_blanks(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.starts_with("--") {
                self.cut(self.rest.find('\n').unwrap_or(self.rest.len()));
            } else if self.rest.starts_with("/*") {
                self.cut(comment_length(self.rest));
            } else {
                return;
            }
        }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_blanks();
        let first = self.rest.chars().next()?;
        let rest = self.rest;
        Some(match first {
            '\'' => {
                self.cut(quoted_length(rest, '\'', false));
                Token::Literal
            }
            '"' => {
                self.cut(quoted_length(rest, '"', false));
                Token::Quoted
            }
            'e' | 'E' if rest.get(1..2) == Some("'") => {
                self.cut(1 + quoted_length(&rest[1..], '\'', true));
                Token::Literal
            }
            '$' => {
                let quoted = dollar_quoted_length(rest);
                self.cut(quoted.unwrap_or(1));
                if quoted.is_some() { Token::Literal } else { Token::Symbol('$') }
            }
            c if c.is_ascii_digit() => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'));
                self.cut(end.unwrap_or(rest.len()));
                Token::Literal
            }
            c if c.is_alphabetic() || c == '_' || !c.is_ascii() => {
                let end = rest.find(|c: char| c.is_ascii() && !(c.is_ascii_alphanumeric() || c == '_' || c == '$'));
                Token::Word(self.cut(end.unwrap_or(rest.len())))
            }
            symbol => {
                self.cut(symbol.len_utf8());
                Token::Symbol(symbol)
            }
        })
    }
}

/// Comments nest.
fn comment_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0_usize);
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => {
                depth += 1;
                at += 2;
            }
            Some(b"*/") => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _other => at += 1,
        }
    }
    text.len()
}

/// With both quotes; a doubled quote is inside, and so is one behind a backslash where those count.
fn quoted_length(text: &str, quote: char, backslashes: bool) -> usize {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if c == '\\' && backslashes {
            characters.next();
        } else if c == quote {
            if characters.peek().is_some_and(|(_, next)| *next == quote) {
                characters.next();
            } else {
                return at + 1;
            }
        }
    }
    text.len()
}

/// `$$…$$` or `$tag$…$tag$`; `None` when it is a parameter.
fn dollar_quoted_length(text: &str) -> Option<usize> {
    let tag_end = text.get(1..)?.find('$')? + 2;
    let tag = text.get(..tag_end)?;
    let name = tag.trim_matches('$');
    let is_tag =
        name.chars().all(|c| c.is_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    if !is_tag {
        return None;
    }
    let body = text.get(tag_end..)?;
    Some(body.find(tag).map_or(text.len(), |end| tag_end + end + tag.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert!(refused(sql), "{sql}");
        }
        assert!(matches!(residue(" -- nothing"), Err(Error::Empty)));
    }

    #[test]
    fn queries_without_calls_leave_nothing() {
        for sql in [
            "select 1",
            "SELECT * FROM articles WHERE id = $1",
            "(select count(*) from t where a in (1, 2))",
            "with x as (select 'insert into', \"update\" from t) select max(a) from x",
            "select $$ set_config('a','b',false) $$, e'it\\'s'",
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
            "explain analyze select 1",
        ] {
            assert_eq!(residue(sql).unwrap(), Residue::Session, "{sql}");
        }
        for sql in ["set a = 1", "do $$ begin end $$", "create temp table t (a int)", "load 'x'", "call p()", "?"] {
            assert_eq!(residue(sql).unwrap(), Residue::Anything, "{sql}");
        }
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
