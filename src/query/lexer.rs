//! Cuts a statement into words, quoted names, literals and symbols, without understanding SQL. Every text is taken, and
//! none makes it fail. Strings are read as with `standard_conforming_strings`; whoever decides by what is found here
//! treats a backslash as a sign that it may be otherwise.

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A key word or an identifier without quotes.
    Word(&'a str),
    /// An identifier in double quotes, with them.
    Quoted(&'a str),
    /// A string or a number, with its quotes.
    Literal(&'a str),
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
            // PostgreSQL's own blanks; others belong to names.
            self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
            if self.rest.starts_with("--") {
                self.cut(self.rest.find(['\n', '\r']).unwrap_or(self.rest.len()));
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
            '\'' => Token::Literal(self.cut(quoted_length(rest, '\'', false))),
            '"' => Token::Quoted(self.cut(quoted_length(rest, '"', false))),
            'e' | 'E' if rest.get(1..2) == Some("'") => {
                Token::Literal(self.cut(1 + quoted_length(&rest[1..], '\'', true)))
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
