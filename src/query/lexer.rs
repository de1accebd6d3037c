//! Cuts a statement into words, quoted names, literals and symbols as PostgreSQL's own scanner does (`scan.l`), without
//! understanding SQL. Every text is taken, and none makes it fail. Strings are read as with
//! `standard_conforming_strings`; whoever decides by what is found here treats a backslash as a sign that it may be
//! otherwise, and takes for plain only what every version of PostgreSQL reads in the same way.

/// PostgreSQL's own blanks; others belong to names.
const BLANKS: [char; 6] = [' ', '\t', '\n', '\r', '\x0b', '\x0c'];
const LINE_ENDS: [char; 2] = ['\n', '\r'];

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A key word or an identifier without quotes.
    Word(&'a str),
    /// An identifier in double quotes, with them.
    Quoted(&'a str),
    /// A string or a number, with its quotes and what stands before them.
    Literal(&'a str),
    /// `$1`.
    Parameter(&'a str),
    Symbol(char),
}

pub(super) struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    pub(super) fn of(sql: &'a str) -> Self {
        Self { rest: sql }
    }

    /// Cuts off `length` bytes.
    fn cut(&mut self, length: usize) -> &'a str {
        let (cut, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, ""));
        self.rest = rest;
        cut
    }

    fn skip_blanks(&mut self) {
        loop {
            self.rest = self.rest.trim_start_matches(BLANKS);
            if self.rest.starts_with("--") {
                self.cut(self.rest.find(LINE_ENDS).unwrap_or(self.rest.len()));
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
            '\'' => Token::Literal(self.cut(string_length(rest, 0, false))),
            '"' => Token::Quoted(self.cut(quoted_length(rest, '"', false))),
            'e' | 'E' if rest[1..].starts_with('\'') => Token::Literal(self.cut(string_length(rest, 1, true))),
            'b' | 'B' | 'n' | 'N' | 'x' | 'X' if rest[1..].starts_with('\'') => {
                Token::Literal(self.cut(string_length(rest, 1, false)))
            }
            'u' | 'U' if rest[1..].starts_with("&'") => Token::Literal(self.cut(string_length(rest, 2, false))),
            '$' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let end = rest[1..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| end + 1);
                Token::Parameter(self.cut(end))
            }
            '$' => {
                let quoted = dollar_quoted_length(rest);
                let text = self.cut(quoted.unwrap_or(1));
                if quoted.is_some() { Token::Literal(text) } else { Token::Symbol('$') }
            }
            c if c.is_ascii_digit() => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'));
                Token::Literal(self.cut(end.unwrap_or(rest.len())))
            }
            c if is_letter(c) => {
                let end = rest.find(|c: char| !(is_letter(c) || c.is_ascii_digit() || c == '$'));
                Token::Word(self.cut(end.unwrap_or(rest.len())))
            }
            symbol => {
                self.cut(symbol.len_utf8());
                Token::Symbol(symbol)
            }
        })
    }
}

/// What names and tags begin with: whatever is not ASCII is a letter to PostgreSQL.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
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

/// A string behind so many bytes that say how it is read, and those that continue it: only blanks and `--` comments
/// stand between, and one of them ends a line.
fn string_length(text: &str, prefix: usize, backslashes: bool) -> usize {
    let mut end = prefix;
    loop {
        end += quoted_length(&text[end..], '\'', backslashes);
        match continued(&text[end..]) {
            Some(blanks) => end += blanks,
            None => return end,
        }
    }
}

/// How far away the quote is that continues a string.
fn continued(text: &str) -> Option<usize> {
    let (mut rest, mut has_line_end) = (text, false);
    loop {
        let blanks = rest.len() - rest.trim_start_matches(BLANKS).len();
        has_line_end |= rest[..blanks].contains(LINE_ENDS);
        rest = &rest[blanks..];
        if !rest.starts_with("--") {
            return (has_line_end && rest.starts_with('\'')).then_some(text.len() - rest.len());
        }
        rest = &rest[rest.find(LINE_ENDS).unwrap_or(rest.len())..];
    }
}

/// `$$…$$` or `$tag$…$tag$`.
fn dollar_quoted_length(text: &str) -> Option<usize> {
    let name = text.strip_prefix('$')?;
    let name = &name[..name.find(|c: char| !(is_letter(c) || c.is_ascii_digit()))?];
    let tag = text.get(..name.len() + 2).filter(|tag| tag.ends_with('$'))?;
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let body = text.get(tag.len()..)?;
    Some(body.find(tag).map_or(text.len(), |end| tag.len() + end + tag.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The literals of a text, each with what tells it from the others.
    fn literals(sql: &str) -> Vec<&str> {
        let literal = |token| if let Token::Literal(text) = token { Some(text) } else { None };
        Tokens::of(sql).filter_map(literal).collect()
    }

    /// As PostgreSQL reads them; that nothing hides behind them is seen in `tests/it/query/quoted.rs`.
    #[test]
    fn strings_end_where_postgresql_says() {
        for (sql, found) in [
            ("$€$ ' $€$, x, $€$ ' $€$", vec!["$€$ ' $€$", "$€$ ' $€$"]),
            ("$💩1$ $$ $💩1$", vec!["$💩1$ $$ $💩1$"]),
            ("$\u{a0}$ ' $\u{a0}$", vec!["$\u{a0}$ ' $\u{a0}$"]),
            ("$_$ $a$ $_$", vec!["$_$ $a$ $_$"]),
            ("$a$ $b$a$ 'x'", vec!["$a$ $b$a$", "'x'"]),
            ("$$ $a$$ 'x'", vec!["$$ $a$$", "'x'"]),
            ("a$b$ 'x' $b$", vec!["'x'", "$b$"]),
            ("é$$ 'x' $$", vec!["'x'", "$$"]),
            ("$1$$ ' $$", vec!["$$ ' $$"]),
            ("$a-$ 'x' $a-$", vec!["'x'"]),
            ("e'\\' ' e'''' 'x'", vec!["e'\\' '", "e''''", "'x'"]),
            ("E'a'\n'\\'' 'x'", vec!["E'a'\n'\\''", "'x'"]),
            ("E'a' -- b'\n -- c'\r\t'\\'' 'x'", vec!["E'a' -- b'\n -- c'\r\t'\\''", "'x'"]),
            ("E'a' '\\' 'x'", vec!["E'a'", "'\\'", "'x'"]),
            ("E'a' /* \n */ '\\' 'x'", vec!["E'a'", "'\\'", "'x'"]),
            ("'a'\n'\\' 'x'", vec!["'a'\n'\\'", "'x'"]),
            ("u&'\\' U&'!' uescape '!'", vec!["u&'\\'", "U&'!'", "'!'"]),
            ("b'1'\n'0' X'f' n'a' B'0'", vec!["b'1'\n'0'", "X'f'", "n'a'", "B'0'"]),
            ("xe'a\\' 'x'", vec!["'a\\'", "'x'"]),
            ("'it''s' \"'\" 'x'", vec!["'it''s'", "'x'"]),
            ("1 +-- 'a'\n*/* 'b' /* */ 'c' */ 'x'", vec!["1", "'x'"]),
            ("/*/ 'a' /*/ 'b' **/ */ 'x'", vec!["'x'"]),
        ] {
            // Each must be seen, and nothing of what they hold.
            assert_eq!(literals(sql), found, "{sql}");
        }
    }
}
