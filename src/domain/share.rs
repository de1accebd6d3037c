//! How several daemons divide one server's budget: equal shares, of which each has only what the others have given up.
//! What a daemon holds never grows by more than what is free, so that all of them together never hold more than there
//! is, whoever comes and goes, in whatever order they look.

use std::fmt;
use std::str::FromStr;

/// Connections that a daemon needs before it has a share, and beside what it opens within it: the session that stands
/// for it, and one to read and write what everybody has.
pub const DOOR: u32 = 2;
/// Kept out of all shares, for two daemons that come or go at the same moment.
pub const KEPT: u32 = 2 * DOOR;
/// What a share has to have beside the reserve: the door, and a connection for tenants.
pub const BESIDE_RESERVE: u32 = DOOR + 1;

/// What a daemon is called among those that share budgets: `[a-z0-9][a-z0-9-]*`, at most 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceName(String);

/// A text that is no name of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name for a daemon: 1 to 16 small letters, digits and hyphens are, the first no hyphen")]
pub struct InvalidInstanceName(String);

impl InstanceName {
    const BYTES_MAX: usize = 16;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceName {
    type Err = InvalidInstanceName;

    fn from_str(name: &str) -> Result<Self, InvalidInstanceName> {
        let is_good = (1..=Self::BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !name.starts_with('-');
        if is_good { Ok(Self(name.to_owned())) } else { Err(InvalidInstanceName(name.to_owned())) }
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One daemon's part in one server's budget, in connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The whole budget, as this daemon's configuration has it.
    pub connections_max: u32,
    /// Of its share, what is kept from tenants.
    pub connections_reserved: u32,
    /// What it may have on the server at this moment.
    pub held: u32,
}

/// Everybody's equal share is too small for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSmall {
    pub daemons: usize,
    pub share: u32,
    pub needed: u32,
    /// A budget that would do.
    pub connections_max: u32,
}

/// What there is to share: where configurations differ, the smallest budget counts.
pub fn whole(parts: &[Part]) -> u32 {
    parts.iter().map(|part| part.connections_max).min().unwrap_or_default().saturating_sub(KEPT)
}

/// The equal share of the daemon at `index`; the first few have one more when it does not come out even.
pub fn equal(parts: &[Part], index: usize) -> u32 {
    let daemons = u32::try_from(parts.len()).unwrap_or(u32::MAX).max(1);
    let (each, rest) = (whole(parts) / daemons, whole(parts) % daemons);
    each + u32::from(u32::try_from(index).is_ok_and(|index| index < rest))
}

/// What the daemon at `index` holds from now on, having `in_use` and opening none beyond its equal share: less when it
/// has more than that, and more when some is free.
pub fn next(parts: &[Part], index: usize, in_use: u32) -> u32 {
    let Some(own) = parts.get(index) else { return 0 };
    let equal = equal(parts, index);
    if own.held > equal {
        return in_use.clamp(equal, own.held);
    }
    let held: u32 = parts.iter().map(|part| part.held).sum();
    own.held + whole(parts).saturating_sub(held).min(equal - own.held)
}

/// The first whom its equal share does not leave room for its reserve.
pub fn too_small(parts: &[Part]) -> Option<TooSmall> {
    let needed = parts.iter().map(|part| part.connections_reserved + BESIDE_RESERVE).max()?;
    // The last has the smallest.
    let share = equal(parts, parts.len() - 1);
    let connections_max = needed * u32::try_from(parts.len()).unwrap_or(u32::MAX) + KEPT;
    (share < needed).then_some(TooSmall { daemons: parts.len(), share, needed, connections_max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(held: u32) -> Part {
        Part { connections_max: 44, connections_reserved: 5, held }
    }

    #[test]
    fn one_daemon_has_all_but_what_is_kept_for_those_who_come() {
        assert_eq!(next(&[part(DOOR)], 0, DOOR), 40);
    }

    #[test]
    fn a_second_gets_what_the_first_has_given_up_and_no_more() {
        assert_eq!(next(&[part(40), part(DOOR)], 1, DOOR), DOOR);
        // It gives up what it does not use, and the rest later.
        assert_eq!(next(&[part(40), part(DOOR)], 0, 33), 33);
        assert_eq!(next(&[part(33), part(DOOR)], 1, DOOR), 7);
        assert_eq!(next(&[part(33), part(7)], 0, 3), 20);
        assert_eq!(next(&[part(20), part(7)], 1, 7), 20);
    }

    #[test]
    fn what_does_not_come_out_even_goes_to_the_first() {
        let three = [part(0); 3];
        assert_eq!([0, 1, 2].map(|index| equal(&three, index)), [14, 13, 13]);
    }

    #[test]
    fn the_smallest_configuration_counts() {
        let smaller = Part { connections_max: 24, ..part(0) };
        assert_eq!(next(&[part(40), smaller], 0, 15), 15);
        assert_eq!(equal(&[part(40), smaller], 1), 10);
    }

    #[test]
    fn a_share_without_room_beside_the_reserve_is_told_with_what_would_do() {
        assert_eq!(too_small(&[part(0); 5]), None);
        let told = TooSmall { daemons: 6, share: 6, needed: 8, connections_max: 52 };
        assert_eq!(too_small(&[part(0); 6]), Some(told));
        let enough = Part { connections_max: told.connections_max, ..part(0) };
        assert_eq!(too_small(&[enough; 6]), None);
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "0", "db-node-12", "abcdefghijklmnop"] {
            assert_eq!(good.parse::<InstanceName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "a b", "a@b", "abcdefghijklmnopq", "é"] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
    }

    /// What happens to one of four daemons.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Comes(usize),
        /// It looks, and uses so much of what it may.
        Looks(usize, u32),
        Goes(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..4_usize).prop_map(Event::Comes),
            (0..4_usize, 0..=100_u32).prop_map(|(who, percent)| Event::Looks(who, percent)),
            (0..4_usize, 0..=100_u32).prop_map(|(who, percent)| Event::Looks(who, percent)),
            (0..4_usize).prop_map(Event::Goes),
        ]
    }

    proptest! {
        #[test]
        fn all_together_never_hold_more_than_there_is_and_end_up_equal(
            events in prop::collection::vec(event(), 0..60),
            connections_max in 40..200_u32,
        ) {
            let mut daemons: [Option<u32>; 4] = [None; 4];
            let view = |daemons: &[Option<u32>; 4], who: usize| {
                let parts: Vec<Part> = daemons.iter().flatten().map(|&held| Part { connections_max, connections_reserved: 5, held }).collect();
                (parts, daemons[..who].iter().flatten().count())
            };
            let check = |daemons: &[Option<u32>; 4], doors: u32| {
                let held: u32 = daemons.iter().flatten().sum();
                prop_assert!(held <= connections_max - KEPT + doors, "{daemons:?}");
                Ok(())
            };
            for event in events {
                match event {
                    Event::Comes(who) => { daemons[who].get_or_insert(DOOR); }
                    Event::Goes(who) => daemons[who] = None,
                    Event::Looks(who, percent) => if let Some(held) = daemons[who] {
                        let (parts, index) = view(&daemons, who);
                        daemons[who] = Some(next(&parts, index, held * percent / 100));
                    }
                }
                // Those who come bring their door along, until the others have made room.
                check(&daemons, 4 * DOOR)?;
            }
            for _round in 0..2 {
                for who in 0..4 {
                    if daemons[who].is_some() {
                        let (parts, index) = view(&daemons, who);
                        daemons[who] = Some(next(&parts, index, 0));
                    }
                }
            }
            check(&daemons, 0)?;
            for who in 0..4 {
                let (parts, index) = view(&daemons, who);
                prop_assert!(daemons[who].is_none_or(|held| held == equal(&parts, index)));
            }
        }
    }
}
