//! How large the parts of an upload are whose length nobody knows beforehand. Pure.

/// S3 takes no larger part.
const PART_BYTES_MAX: u64 = 5 << 30;
/// The sizes double after each of so many equal shares of the parts.
const SHARES: u32 = 8;

/// Parts that grow: small objects need little memory, and the largest still fit into the number of parts that the
/// store allows. With 8 MiB and 10,000 parts, the first 10 GB come in parts of 8 MiB, and 2.4 TiB fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSizes {
    part_bytes_min: u64,
    parts_max: u32,
}

impl PartSizes {
    /// `part_bytes_min`: the first parts' size. `parts_max`: 10,000 at most providers, 1,000 at some.
    pub const fn new(part_bytes_min: u64, parts_max: u32) -> Self {
        Self { part_bytes_min, parts_max }
    }

    /// The size of the part with this number, counted from 1; `None` when the object has no more parts.
    pub fn bytes(&self, number: u32) -> Option<u64> {
        if !(1..=self.parts_max).contains(&number) {
            return None;
        }
        let share = self.parts_max.div_ceil(SHARES).max(1);
        let doublings = (number - 1) / share;
        Some(self.part_bytes_min.saturating_mul(1 << doublings.min(SHARES)).min(PART_BYTES_MAX))
    }

    /// The largest object that fits.
    pub fn object_bytes_max(&self) -> u64 {
        (1..=self.parts_max).filter_map(|number| self.bytes(number)).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_start_small_and_hold_terabytes() {
        let sizes = PartSizes::new(8 << 20, 10_000);
        assert_eq!(sizes.bytes(0), None);
        assert_eq!(sizes.bytes(1), Some(8 << 20));
        assert_eq!(sizes.bytes(1_250), Some(8 << 20));
        assert_eq!(sizes.bytes(1_251), Some(16 << 20));
        assert_eq!(sizes.bytes(10_000), Some(1 << 30));
        assert_eq!(sizes.bytes(10_001), None);
        assert!(sizes.object_bytes_max() > 2 << 40, "{}", sizes.object_bytes_max());
    }

    proptest! {
        #[test]
        fn they_never_shrink_and_never_pass_the_limits(minimum in (5_u64 << 20)..(6 << 30), parts_max in 1_u32..=10_000) {
            let sizes = PartSizes::new(minimum, parts_max);
            let all: Vec<u64> = (1..=parts_max).filter_map(|number| sizes.bytes(number)).collect();
            prop_assert_eq!(all.len(), parts_max as usize);
            prop_assert!(all.is_sorted());
            prop_assert!(all.iter().all(|bytes| (minimum.min(PART_BYTES_MAX)..=PART_BYTES_MAX).contains(bytes)));
        }
    }
}
