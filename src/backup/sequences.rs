//! Where the sequences of a database stand. They follow no snapshot, so each is read before a dump and after it.

use tokio_postgres::{Client, Row};

use super::Error;
use crate::domain::backup::SequenceRange;

/// A sequence that was never used stands at its start. Identity and serial columns have sequences, too. Who reads one
/// holds a lock on it until the transaction ends: nobody drops or renames it meanwhile.
const SEQUENCES: &str = "
SELECT n.nspname, c.relname, coalesce(pg_sequence_last_value(c.oid), s.seqstart),
       CASE WHEN s.seqcycle THEN s.seqmin END, CASE WHEN s.seqcycle THEN s.seqmax END
FROM pg_sequence s
JOIN pg_class c ON c.oid = s.seqrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'tenantd')
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"";

/// One sequence at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequence {
    schema: String,
    name: String,
    last: i64,
    /// Its ends, if it begins anew when it has reached one.
    cycle: Option<(i64, i64)>,
}

impl Sequence {
    /// As it stands.
    pub(super) fn at(self) -> SequenceRange {
        SequenceRange { schema: self.schema, name: self.name, low: Some(self.last), high: Some(self.last) }
    }
}

/// Every sequence as it stands now.
pub(super) async fn sequences(client: &Client) -> Result<Vec<Sequence>, Error> {
    let rows = client.query(SEQUENCES, &[]).await?;
    let sequence = |row: &Row| {
        let cycle = row.try_get::<_, Option<i64>>(3)?.zip(row.try_get(4)?);
        Ok(Sequence { schema: row.try_get(0)?, name: row.try_get(1)?, last: row.try_get(2)?, cycle })
    };
    rows.iter().map(sequence).collect()
}

/// Joins what was read before a dump with what was read after it. A sequence that is in only one of the two was made
/// or dropped meanwhile; the snapshot, and with it the dump, has those of the first reading. One that begins anew at
/// its end may have done so between the two, and may stand anywhere.
pub(super) fn sequence_ranges(before: Vec<Sequence>, after: &[Sequence]) -> Vec<SequenceRange> {
    let range = |sequence: Sequence| {
        let same = |other: &&Sequence| other.schema == sequence.schema && other.name == sequence.name;
        let then = after.iter().find(same).map_or(sequence.last, |other| other.last);
        let (low, high) = sequence.cycle.unwrap_or((sequence.last, then));
        SequenceRange { schema: sequence.schema, name: sequence.name, low: Some(low), high: Some(high) }
    };
    before.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequences_range_spans_both_readings() {
        let at = |name: &str, last| Sequence { schema: "public".to_owned(), name: name.to_owned(), last, cycle: None };
        let round = |last| Sequence { cycle: Some((1, 50)), ..at("round", last) };
        let before = vec![at("a", 1), at("b", 5), round(43)];
        let ranges = sequence_ranges(before, &[at("a", 9), at("new", 1), round(38)]);
        let spans: Vec<_> = ranges.iter().map(|range| (range.name.as_str(), range.low, range.high)).collect();
        assert_eq!(spans, [("a", Some(1), Some(9)), ("b", Some(5), Some(5)), ("round", Some(1), Some(50))]);
    }
}
