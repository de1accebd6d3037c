//! The statements that a connection keeps prepared: the most recently used ones, bounded in number and in what their
//! texts take, here and in the backend. Whoever has a longer one prepares it each time, and it is closed behind them.

use std::num::NonZeroUsize;

use lru::LruCache;
use tokio_postgres::Statement;

/// Statements that a connection keeps.
const STATEMENTS_MAX: NonZeroUsize = NonZeroUsize::new(100).unwrap();
/// A longer one is not kept: its parsing costs less than its memory, which a backend has several times of it.
const STATEMENT_BYTES_MAX: usize = 8 << 10;
/// All of them together.
const BYTES_MAX: usize = 256 << 10;

/// By their texts. A statement is closed when its last handle is dropped.
#[derive(Debug)]
pub(super) struct Prepared<S = Statement> {
    kept: LruCache<String, S>,
    /// Of the texts.
    bytes: usize,
}

impl<S: Clone> Prepared<S> {
    pub(super) fn new() -> Self {
        Self { kept: LruCache::new(STATEMENTS_MAX), bytes: 0 }
    }

    pub(super) fn get(&mut self, sql: &str) -> Option<S> {
        self.kept.get(sql).cloned()
    }

    pub(super) fn put(&mut self, sql: &str, statement: &S) {
        if sql.len() > STATEMENT_BYTES_MAX {
            return;
        }
        self.bytes += sql.len();
        // The same one before, or the least recently used of as many as there may be.
        if let Some((before, _)) = self.kept.push(sql.to_owned(), statement.clone()) {
            self.bytes -= before.len();
        }
        while self.bytes > BYTES_MAX
            && let Some((oldest, _)) = self.kept.pop_lru()
        {
            self.bytes -= oldest.len();
        }
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_in_number_and_bytes() {
        let mut prepared = Prepared::new();
        let text = |number: usize, length: usize| format!("{number:0length$}");
        for number in 0..200 {
            prepared.put(&text(number, 10), &number);
            prepared.put(&text(number, 10), &number);
        }
        assert_eq!((prepared.kept.len(), prepared.bytes), (100, 1_000));
        assert_eq!((prepared.get(&text(99, 10)), prepared.get(&text(100, 10))), (None, Some(100)));
        prepared.put(&text(1, STATEMENT_BYTES_MAX + 1), &1);
        assert_eq!(prepared.get(&text(1, STATEMENT_BYTES_MAX + 1)), None);
        for number in 0..200 {
            prepared.put(&text(number, STATEMENT_BYTES_MAX), &number);
        }
        assert_eq!((prepared.kept.len(), prepared.bytes), (32, BYTES_MAX));
        prepared.clear();
        assert_eq!((prepared.get(&text(199, STATEMENT_BYTES_MAX)), prepared.bytes), (None, 0));
    }
}
