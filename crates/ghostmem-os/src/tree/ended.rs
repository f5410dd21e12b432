//! What a process that ended had shared: it is its kin's now, and they do not know it yet.
//!
//! A process counts its part of what a fork shares by the kernel's figure, which it reads
//! now and then. When one of those that share ends, the parts of the others grow, without
//! a fault that anybody could count. So what the ended one passes on stays charged, in its
//! slot, until each that relies on it has read its part again, or has ended as well, 2 s at
//! most:
//!
//! ```text
//!   begun ───── kin reads its part: smaller ───── end ────── kin reads again: all counted
//!     the one that ends shares pages               └ charged ┘
//! ```
//! Who read while the ended one lived relies on it. So does a forked child that has not read
//! at all: it counts nothing of what it shares, as its parent counts all. Of two such
//! children neither relies on the other.

/// What a process says of the pages that it shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinship {
    /// Bytes that become others' when it ends, at most.
    pub passes_bytes: u64,
    /// Since when it shares, nanoseconds; 0: it shares nothing.
    pub begun_ns: u64,
    /// When it read its part last, nanoseconds; 0: never, or it shares nothing any more.
    pub read_ns: u64,
    /// It was forked, and has not read its part since.
    pub unread: bool,
}

impl Kinship {
    /// Whether this process relies on one of kinship `ended` that was there until `end_ns`.
    #[must_use]
    pub fn relies_on(&self, ended: &Self, end_ns: u64) -> bool {
        if self.begun_ns == 0 || ended.begun_ns == 0 || ended.passes_bytes == 0 {
            return false;
        }
        let lived = |ns: u64| ended.begun_ns <= ns && ns <= end_ns;
        if self.unread {
            lived(self.begun_ns) && !ended.unread
        } else {
            self.read_ns != 0 && lived(self.read_ns)
        }
    }
}

/// Of a process that the kernel charges for `whole` bytes, and of these with others for its
/// part: what becomes theirs when it ends, at most. A page that two share adds as much to
/// the part as it takes from the whole, one that more share less.
#[must_use]
pub fn passed_of(whole: u64, part: u64) -> u64 {
    part.min(whole.saturating_sub(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn read_at(read_ns: u64) -> Kinship {
        Kinship {
            passes_bytes: 4096,
            begun_ns: 5,
            read_ns,
            unread: false,
        }
    }

    const fn forked_at(begun_ns: u64) -> Kinship {
        Kinship {
            passes_bytes: 4096,
            begun_ns,
            read_ns: 0,
            unread: true,
        }
    }

    #[test]
    fn who_read_its_part_while_the_ended_one_shared_relies_on_it() {
        let ended = Kinship {
            begun_ns: 10,
            ..read_at(15)
        };
        let relies = |kin: Kinship| kin.relies_on(&ended, 20);
        assert!(relies(read_at(10)) && relies(read_at(20)));
        assert!(!relies(read_at(9)), "its part is from before the fork");
        assert!(!relies(read_at(21)), "it read again");
        assert!(!relies(read_at(0)), "it never read, or shares nothing");
    }

    #[test]
    fn a_child_that_has_not_read_relies_on_those_that_count_what_it_shares() {
        let parent = read_at(0);
        assert!(forked_at(10).relies_on(&parent, 20));
        assert!(!forked_at(21).relies_on(&parent, 20), "forked from another");
        assert!(!forked_at(10).relies_on(&forked_at(9), 20), "its sibling");
        assert!(read_at(12).relies_on(&forked_at(9), 20), "their parent");
    }

    #[test]
    fn no_more_is_passed_on_than_is_shared_or_was_its_part() {
        // Two share 60; of 100 that four share each has 25.
        assert_eq!(passed_of(60, 30), 30);
        assert_eq!(passed_of(100, 25), 25);
        assert_eq!(passed_of(100, 90), 10);
        assert_eq!(passed_of(100, 100), 0);
        assert_eq!(passed_of(90, 100), 0);
    }

    #[test]
    fn nobody_relies_on_what_shared_nothing() {
        assert!(!read_at(12).relies_on(&Kinship::default(), 20));
        let nothing = Kinship {
            passes_bytes: 0,
            ..read_at(6)
        };
        assert!(!read_at(12).relies_on(&nothing, 20));
        // Nor does one that shares nothing itself.
        let stranger = Kinship {
            begun_ns: 0,
            ..read_at(12)
        };
        assert!(!stranger.relies_on(&read_at(15), 20));
    }
}
