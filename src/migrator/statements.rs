//! A migration's text as statements and tokens, so that rules can tell a statement from what merely looks like one
//! inside a string, a comment, a dollar quote or a function's body.
//!
//! The tokens are squawk's, which follow PostgreSQL's scanner; cutting at semicolons is done here, as psql does it:
//! not inside parentheses, and not inside `BEGIN ATOMIC … END`. Never panics, whatever the text.

use squawk_lexer::{LiteralKind, TokenKind, tokenize};

/// What a token is, as far as the rules care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A key word or an unquoted name.
    Word,
    /// A quoted name.
    Name,
    /// A string of any kind, with its quotes.
    Text,
    /// Everything else: numbers, operators, punctuation.
    Symbol,
}

/// A token that is neither blank nor comment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// From 1.
    pub(super) line: usize,
}

impl Token<'_> {
    /// Whether this is the key word or unquoted name `word`.
    pub(super) fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    pub(super) fn is_symbol(&self, symbol: &str) -> bool {
        self.kind == Kind::Symbol && self.text == symbol
    }

    /// Whether this names `name` (in lower case), quoted or not.
    pub(super) fn is_name(&self, name: &str) -> bool {
        match self.kind {
            Kind::Word => self.text.eq_ignore_ascii_case(name),
            Kind::Name => self.text.trim_matches('"') == name,
            Kind::Text | Kind::Symbol => false,
        }
    }
}

/// One statement; never empty, and without its semicolon.
#[derive(Debug, Clone)]
pub(super) struct Statement<'a> {
    pub(super) tokens: Vec<Token<'a>>,
}

impl Statement<'_> {
    /// Where its first token is.
    pub(super) fn line(&self) -> usize {
        self.tokens.first().map_or(1, |token| token.line)
    }

    /// Whether it begins with these key words.
    pub(super) fn begins(&self, words: &[&str]) -> bool {
        self.tokens.len() >= words.len() && words.iter().zip(&self.tokens).all(|(word, token)| token.is_word(word))
    }

    pub(super) fn has_word(&self, word: &str) -> bool {
        self.tokens.iter().any(|token| token.is_word(word))
    }
}

/// What makes a text no sequence of statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The string, quoted name or comment that begins here has no end.
    Unterminated(&'static str),
    /// A backslash outside of strings and comments.
    Backslash,
}

/// A whole text, cut up.
#[derive(Debug, Default)]
pub(super) struct Statements<'a> {
    pub(super) all: Vec<Statement<'a>>,
    /// With their lines.
    pub(super) flaws: Vec<(usize, Flaw)>,
}

/// Cuts a text into statements.
pub(super) fn split(sql: &str) -> Statements<'_> {
    let mut cutter = Cutter::default();
    let mut offset = 0;
    let mut line = 1;
    let mut tokens = tokenize(sql);
    while let Some(token) = tokens.next() {
        let mut end = (offset + token.len as usize).min(sql.len());
        if matches!(token.kind, TokenKind::Literal { kind: LiteralKind::EscStr { terminated: true } }) {
            let more = continuation(sql.get(end..).unwrap_or_default());
            if more > 0 {
                end += more;
                tokens = tokenize(sql.get(end..).unwrap_or_default());
            }
        }
        let text = sql.get(offset..end).unwrap_or_default();
        if let Some(flaw) = flaw(token.kind, text) {
            cutter.found.flaws.push((line, flaw));
        }
        if let Some(kind) = significant(token.kind) {
            cutter.take(Token { kind, text, line });
        }
        line += text.bytes().filter(|byte| *byte == b'\n').count();
        offset = end;
    }
    cutter.finish()
}

/// How much of the text goes on with the `E'…'` that has just ended: after a line break (and comments) the next quoted
/// part belongs to it, and backslashes escape there as well. squawk's scanner takes that part for a plain string.
fn continuation(text: &str) -> usize {
    let mut end = 0;
    while let Some(part) = text.get(end..).and_then(continued) {
        end += part;
    }
    end
}

/// The length of one such part, with what is before it.
fn continued(text: &str) -> Option<usize> {
    let mut rest = text;
    let mut is_on_a_new_line = false;
    loop {
        let blank = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
        is_on_a_new_line |= rest.get(..rest.len() - blank.len())?.contains(['\n', '\r']);
        if let Some(comment) = blank.strip_prefix("--") {
            rest = comment.get(comment.find('\n')?..)?;
        } else {
            rest = blank.strip_prefix('\'').filter(|_| is_on_a_new_line)?;
            break;
        }
    }
    let mut characters = rest.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '\'' if rest.get(at + 1..)?.starts_with('\'') => drop(characters.next()),
            '\'' => return Some(text.len() - rest.len() + at + 1),
            _ => {}
        }
    }
    // No end: everything is part of it.
    Some(text.len())
}

/// The line, from 1, of the character (from 1) that PostgreSQL's error names.
pub(super) fn line_of_character(sql: &str, position: usize) -> usize {
    1 + sql.chars().take(position.saturating_sub(1)).filter(|character| *character == '\n').count()
}

/// What is between the quotes of `$tag$…$tag$`, or `None` if the token is no such string.
pub(super) fn dollar_quoted(text: &str) -> Option<&str> {
    let tag_end = text.strip_prefix('$')?.find('$')? + 2;
    let (tag, rest) = text.split_at_checked(tag_end)?;
    rest.strip_suffix(tag)
}

fn significant(kind: TokenKind) -> Option<Kind> {
    match kind {
        TokenKind::Whitespace | TokenKind::LineComment | TokenKind::BlockComment { .. } | TokenKind::Eof => None,
        TokenKind::Ident => Some(Kind::Word),
        TokenKind::QuotedIdent { .. } => Some(Kind::Name),
        TokenKind::Literal { kind: LiteralKind::Int { .. } | LiteralKind::Numeric { .. } } => Some(Kind::Symbol),
        TokenKind::Literal { .. } => Some(Kind::Text),
        _ => Some(Kind::Symbol),
    }
}

fn flaw(kind: TokenKind, text: &str) -> Option<Flaw> {
    let open = match kind {
        TokenKind::Unknown if text == "\\" => return Some(Flaw::Backslash),
        TokenKind::BlockComment { terminated: false } => "comment",
        TokenKind::QuotedIdent { terminated: false, .. } => "quoted name",
        TokenKind::Literal {
            kind:
                LiteralKind::Str { terminated: false }
                | LiteralKind::EscStr { terminated: false }
                | LiteralKind::NationalStr { terminated: false }
                | LiteralKind::ByteStr { terminated: false }
                | LiteralKind::BitStr { terminated: false }
                | LiteralKind::UnicodeEscStr { terminated: false },
        } => "string",
        TokenKind::Literal { kind: LiteralKind::DollarQuotedString { terminated: false } } => "dollar-quoted string",
        _ => return None,
    };
    Some(Flaw::Unterminated(open))
}

/// Gathers tokens into statements.
#[derive(Default)]
struct Cutter<'a> {
    found: Statements<'a>,
    tokens: Vec<Token<'a>>,
    /// Lines of the parentheses that are open.
    parentheses: Vec<usize>,
    /// Lines of the `BEGIN ATOMIC`, and of the `CASE`s within, that are open.
    bodies: Vec<usize>,
}

impl<'a> Cutter<'a> {
    fn take(&mut self, token: Token<'a>) {
        if token.is_symbol(";") && self.parentheses.is_empty() && self.bodies.is_empty() {
            self.cut();
            return;
        }
        match token.text {
            "(" => self.parentheses.push(token.line),
            ")" => {
                self.parentheses.pop();
            }
            _ => self.nest(token),
        }
        self.tokens.push(token);
    }

    /// Follows `BEGIN ATOMIC … END` and the `CASE … END` inside it. `x.end` and `AS end` are names.
    fn nest(&mut self, token: Token<'a>) {
        let previous = self.tokens.last();
        let after = |word: &str| previous.is_some_and(|previous| previous.is_word(word));
        if previous.is_some_and(|previous| previous.is_symbol(".")) || after("AS") {
            return;
        }
        let opens_body = token.is_word("ATOMIC") && after("BEGIN") && self.in_routine();
        if opens_body || (!self.bodies.is_empty() && token.is_word("CASE")) {
            self.bodies.push(token.line);
        } else if token.is_word("END") {
            self.bodies.pop();
        }
    }

    fn in_routine(&self) -> bool {
        let mut words = self.tokens.iter();
        words.next().is_some_and(|first| first.is_word("CREATE"))
            && words.take(3).any(|word| word.is_word("FUNCTION") || word.is_word("PROCEDURE"))
    }

    fn cut(&mut self) {
        if !self.tokens.is_empty() {
            self.found.all.push(Statement { tokens: std::mem::take(&mut self.tokens) });
        }
    }

    fn finish(mut self) -> Statements<'a> {
        self.cut();
        // What is still open would hide the statements after it from every rule.
        if let Some(line) = self.parentheses.first() {
            self.found.flaws.push((*line, Flaw::Unterminated("parenthesis")));
        }
        if let Some(line) = self.bodies.first() {
            self.found.flaws.push((*line, Flaw::Unterminated("BEGIN ATOMIC")));
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first two tokens of each statement, with its line.
    fn heads(sql: &str) -> Vec<String> {
        let split = split(sql);
        assert!(split.flaws.is_empty(), "{:?}", split.flaws);
        let head = |statement: &Statement| {
            let words: Vec<_> = statement.tokens.iter().take(2).map(|token| token.text).collect();
            format!("{} {}", statement.line(), words.join(" "))
        };
        split.all.iter().map(head).collect()
    }

    #[test]
    fn semicolons_end_statements_only_where_postgresql_sees_them() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            (" ; ;\n-- only a comment;\n;", &[]),
            ("SELECT 1; SELECT 2", &["1 SELECT 1", "1 SELECT 2"]),
            ("/* a; /* nested; */ b; */\nCOMMIT", &["2 COMMIT"]),
            ("SELECT 'it''s; fine'; BEGIN", &["1 SELECT 'it''s; fine'", "1 BEGIN"]),
            (r"SELECT E'a\';b'; END", &["1 SELECT E'a\\';b'", "1 END"]),
            ("SELECT E'a'\n'b\\'; END; c'; COMMIT", &["1 SELECT E'a'\n'b\\'; END; c'", "2 COMMIT"]),
            (
                "SELECT E'a' -- it's\n  'b''\\'; END' \n '; ' || 'c\\'; COMMIT",
                &["1 SELECT E'a' -- it's\n  'b''\\'; END' \n '; '", "3 COMMIT"],
            ),
            ("SELECT E'a' 'b\\'; COMMIT", &["1 SELECT E'a'", "1 COMMIT"]),
            ("SELECT 'a'\n'b\\'; COMMIT", &["1 SELECT 'a'", "2 COMMIT"]),
            (r"SELECT 'a\'; COMMIT", &["1 SELECT 'a\\'", "1 COMMIT"]),
            ("SELECT U&'d\\0061;t'; END", &["1 SELECT U&'d\\0061;t'", "1 END"]),
            ("SELECT $$;$a$;$$;\nEND", &["1 SELECT $$;$a$;$$", "2 END"]),
            ("DO $a$ BEGIN $b$;$b$; END $a$; ROLLBACK", &["1 DO $a$ BEGIN $b$;$b$; END $a$", "1 ROLLBACK"]),
            ("SELECT \"a;b\", \"c\"\";\"; END", &["1 SELECT \"a;b\"", "1 END"]),
            ("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); END", &["1 CREATE RULE", "1 END"]),
            ("SELECT a$1;$2;", &["1 SELECT a$1", "1 $2"]),
        ];
        for (sql, expected) in cases {
            assert_eq!(heads(sql), *expected, "{sql}");
        }
    }

    #[test]
    fn a_routine_of_standard_sql_is_one_statement() {
        let sql = "CREATE OR REPLACE FUNCTION f(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC\n\
                   SELECT CASE WHEN a > 1 THEN CASE WHEN a > 2 THEN 1 END ELSE 2 END AS end;\nSELECT 3;\nEND;\nCOMMIT;";
        assert_eq!(heads(sql), ["1 CREATE OR", "5 COMMIT"]);
        let plain = "BEGIN ATOMIC; SELECT 1; END";
        assert_eq!(heads(plain), ["1 BEGIN ATOMIC", "1 SELECT 1", "1 END"]);
    }

    #[test]
    fn what_has_no_end_and_what_only_psql_knows_is_named_with_its_line() {
        let cases = [
            ("SELECT 1;\n/* open", 2, Flaw::Unterminated("comment")),
            ("\n\nSELECT 'open", 3, Flaw::Unterminated("string")),
            ("SELECT \"open", 1, Flaw::Unterminated("quoted name")),
            ("DO $x$ begin end $$;", 1, Flaw::Unterminated("dollar-quoted string")),
            ("SELECT (1;\nCOMMIT;", 1, Flaw::Unterminated("parenthesis")),
            ("CREATE FUNCTION f() RETURNS int\nBEGIN ATOMIC SELECT 1; ", 2, Flaw::Unterminated("BEGIN ATOMIC")),
            ("SELECT 1;\n\\connect x", 2, Flaw::Backslash),
            ("SELECT 1 \\gexec", 1, Flaw::Backslash),
        ];
        for (sql, line, flaw) in cases {
            assert_eq!(split(sql).flaws, [(line, flaw)], "{sql}");
        }
        assert!(split("SELECT 'a\n\\b', '\\'; -- \\c\n/* \\d */").flaws.is_empty());
    }

    #[test]
    fn positions_become_lines_by_characters_and_not_by_bytes() {
        assert_eq!(line_of_character("é\né\nx", 1), 1);
        assert_eq!(line_of_character("é\né\nx", 5), 3);
        assert_eq!(line_of_character("", 9), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_cut_without_a_panic_and_no_token_is_lost(
            sql in "(\\PC|\n|;|\\(|\\)|'|\"|\\$|\\\\|--|/\\*|\\*/|BEGIN ATOMIC|CASE|END|CREATE FUNCTION ){0,60}"
        ) {
            let split = split(&sql);
            let lines = sql.matches('\n').count() + 1;
            for statement in &split.all {
                prop_assert!(!statement.tokens.is_empty());
                prop_assert!(statement.tokens.iter().all(|token| token.line <= lines && sql.contains(token.text)));
            }
            for token in split.all.iter().flat_map(|statement| &statement.tokens) {
                let _ = dollar_quoted(token.text);
            }
        }
    }
}
