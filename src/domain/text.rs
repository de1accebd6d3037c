//! What texts from callers may look like before anything is done with them: none has a NUL, which PostgreSQL keeps
//! nowhere, and each has a bound. Pure; which text is of which kind, the API knows.

/// What a text is, which decides how it may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of something or somebody, in one line.
    Name,
    /// An e-mail address.
    Address,
    /// Said by a person, for others.
    Prose,
    /// A code, an id, a host, a token: whoever takes it looks closer.
    Word,
}

impl Kind {
    fn characters_max(self) -> usize {
        match self {
            Self::Name => 255,
            Self::Address => 254,
            Self::Prose | Self::Word => 1_000,
        }
    }
}

/// What is wrong with the text, if something is. An empty one is nobody's business here.
pub fn problem(text: &str, kind: Kind) -> Option<String> {
    if text.contains('\0') {
        return Some("it has a NUL character in it".to_owned());
    }
    let max = kind.characters_max();
    // Counting characters takes longer than most texts are worth.
    if text.len() > max && text.chars().count() > max {
        return Some(format!("it has {} characters, and {max} is the most", text.chars().count()));
    }
    let is_one_line = matches!(kind, Kind::Name | Kind::Address);
    let steers = |c: char| c.is_control() && (is_one_line || !matches!(c, '\n' | '\t' | '\r'));
    if matches!(kind, Kind::Name | Kind::Address | Kind::Prose) {
        if let Some(character) = text.chars().find(|c| steers(*c)) {
            return Some(format!("it has the control character {character:?} in it"));
        }
        if text.chars().any(is_invisible) && text.chars().all(|c| is_invisible(c) || c.is_whitespace()) {
            return Some("it has no visible character".to_owned());
        }
    }
    None
}

/// Characters that take part in others' look and have none of their own, by Unicode's `Default_Ignorable_Code_Point`.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Somebody at a host with a dot in its name, as mail systems take them; letters of any script.
pub fn is_email(text: &str) -> bool {
    let Some((user, host)) = text.split_once('@') else { return false };
    let of =
        |text: &str, others: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || others.contains(c));
    let label = |text: &str| of(text, "-") && !text.starts_with('-') && !text.ends_with('-');
    let word = |text: &str| of(text, "!#$%&'*+-/=?^_`{|}~");
    user.len() <= 64 && user.split('.').all(word) && host.contains('.') && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_refused_for_what_nobody_can_keep_or_see() {
        let is_good = |text: &str, kind| problem(text, kind).is_none();
        for kind in [Kind::Name, Kind::Address, Kind::Prose, Kind::Word] {
            assert!(is_good("", kind) && is_good("Müller & Söhne", kind) && !is_good("a\0b", kind), "{kind:?}");
        }
        assert!(is_good(&"é".repeat(255), Kind::Name) && !is_good(&"é".repeat(256), Kind::Name));
        assert!(is_good(&"x".repeat(1_000), Kind::Prose) && !is_good(&"x".repeat(1_001), Kind::Prose));
        assert!(is_good("two\nlines", Kind::Prose) && !is_good("two\nlines", Kind::Name));
        assert!(!is_good("\u{1b}[2J", Kind::Prose) && is_good("👩\u{200d}🚀", Kind::Name));
        assert!(!is_good("\u{200b}\u{200b}", Kind::Name) && !is_good(" \u{feff}", Kind::Prose));
    }

    #[test]
    fn an_address_is_somebody_at_a_host() {
        for good in ["olive@acme.example.com", "o.l-i+ve@a.fr", "zoé@société.fr", "o'neil@x.y"] {
            assert!(is_email(good), "{good}");
        }
        for bad in ["", "olive", "olive@acme", "<script>@.", "a@b@c.d", "a b@c.d", ".a@b.c", "a@b..c", "a@-b.c", "@b.c"]
        {
            assert!(!is_email(bad), "{bad}");
        }
    }
}
