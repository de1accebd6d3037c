//! Lists, a page at a time: the token of the next page is the last row's key.

use uuid::Uuid;

/// The most rows of one page.
const SIZE_MAX: i64 = 1_000;
const SIZE_DEFAULT: i64 = 100;

/// Which part of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Zero and less mean 100; more than 1,000 means 1,000.
    pub size: i64,
    /// The token that came with the page before; `None` for the first.
    pub after: Option<String>,
}

/// One page, and the token of the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Paged<T> {
    pub rows: Vec<T>,
    pub next: Option<String>,
}

/// A page token that this list never gave out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the page token {0:?} is none of this list's")]
pub struct BadToken(pub String);

impl Page {
    fn size(&self) -> usize {
        let size = if self.size <= 0 { SIZE_DEFAULT } else { self.size.min(SIZE_MAX) };
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    /// One row more than the page has, which says whether there is a next page.
    pub fn limit(&self) -> u64 {
        u64::try_from(self.size()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The id that the page begins after.
    pub fn after_id(&self) -> Result<Option<Uuid>, BadToken> {
        let parse = |token: &String| token.parse().map_err(|_| BadToken(token.clone()));
        self.after.as_ref().map(parse).transpose()
    }

    /// Cuts off the row that was read in excess.
    pub fn cut<T>(&self, mut rows: Vec<T>, token: impl FnOnce(&T) -> String) -> Paged<T> {
        let more = rows.len() > self.size();
        rows.truncate(self.size());
        let next = if more { rows.last().map(token) } else { None };
        Paged { rows, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_token() {
        let page = Page { size: 2, after: None };
        assert_eq!(page.limit(), 3);
        assert_eq!(page.cut(vec![1, 2, 3], ToString::to_string), Paged { rows: vec![1, 2], next: Some("2".into()) });
        assert_eq!(page.cut(vec![1, 2], ToString::to_string), Paged { rows: vec![1, 2], next: None });
        assert_eq!(Page { size: 5_000, after: None }.limit(), 1_001);
        assert_eq!(Page::default().limit(), 101);
    }

    #[test]
    fn a_token_of_another_list_is_refused() {
        let page = Page { size: 1, after: Some("acme".into()) };
        assert!(matches!(page.after_id(), Err(BadToken(_))));
    }
}
