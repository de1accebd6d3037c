//! The digest of a table's rows as `COPY … TO STDOUT` writes them: the sum of each line's SHA-256, cut to 128 bits.
//!
//! Neither the order of the rows matters nor in which of a table's partitions they lie, and equal rows do not cancel
//! each other. Knows nothing of sessions; [`crate::domain::backup::MANIFEST_FORMAT`] stands for how it is made.

use sha2::{Digest as _, Sha256};

/// Ends a row, and stands nowhere else: COPY's text format writes those of values as `\n`.
const ROW_END: u8 = b'\n';

/// The rows so far.
#[derive(Debug, Default)]
pub(super) struct RowSum {
    rows: i64,
    sum: u128,
    line: Sha256,
    is_within_line: bool,
}

impl RowSum {
    /// Takes the next bytes, wherever they are cut.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == ROW_END) {
            self.line.update(piece);
            self.is_within_line = piece.last() != Some(&ROW_END);
            if !self.is_within_line {
                let mut cut = [0; 16];
                cut.copy_from_slice(&self.line.finalize_reset()[..16]);
                self.sum = self.sum.wrapping_add(u128::from_be_bytes(cut));
                self.rows += 1;
            }
        }
    }

    /// The number of rows and their digest in hexadecimal; nothing if the last row has no end.
    pub(super) fn finish(&self) -> Option<(i64, String)> {
        (!self.is_within_line).then(|| (self.rows, format!("{:032x}", self.sum)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(pieces: &[&[u8]]) -> Option<(i64, String)> {
        let mut sum = RowSum::default();
        for piece in pieces {
            sum.add(piece);
        }
        sum.finish()
    }

    #[test]
    fn the_sum_is_that_of_the_lines_hashes() {
        assert_eq!(sum(&[]), Some((0, "0".repeat(32))));
        // As `printf '1\tx\n' | sha256sum` has it.
        assert_eq!(sum(&[b"1\tx\n"]), Some((1, "d3cdb1a1b229fa2b85d212cadb763cb4".to_owned())));
        assert_eq!(sum(&[b"\n", b"\n"]).map(|(rows, _)| rows), Some(2), "rows without columns");
    }

    #[test]
    fn equal_rows_add_up_and_a_row_that_is_cut_is_no_row() {
        let sums = [sum(&[]), sum(&[b"a\n"]), sum(&[b"a\na\n"]), sum(&[b"a\na\na\n"])];
        let digests: std::collections::BTreeSet<_> = sums.into_iter().flatten().map(|(_, digest)| digest).collect();
        assert_eq!(digests.len(), 4);
        assert_eq!(sum(&[b"a\nb"]), None);
    }

    proptest! {
        #[test]
        fn neither_the_rows_order_nor_where_they_are_cut_matters(
            lines in prop::collection::vec("[a-z\t\\\\]{0,9}", 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let text = |lines: &[String]| lines.iter().fold(String::new(), |text, line| text + line + "\n");
            let (forward, backward) = (text(&lines), text(&lines.iter().rev().cloned().collect::<Vec<_>>()));
            let (left, right) = forward.as_bytes().split_at(cut.index(forward.len() + 1));
            prop_assert_eq!(sum(&[left, right]), sum(&[backward.as_bytes()]));
            prop_assert_eq!(sum(&[left, right]).map(|(rows, _)| rows), i64::try_from(lines.len()).ok());
        }
    }
}
