//! Which pages keep the copy they came from.
//!
//! A page that comes back for reading may stay write-protected beside its copy: it is
//! *clean*, and evicting it again costs no compression. Its first store then faults
//! once more. A page that was stored to while it was clean is *write hot*: its next
//! copy would be for nothing too.

/// Whether a page that comes back keeps its copy. `write`: it comes back for a store,
/// or for an access that may be one.
#[must_use]
#[inline]
pub const fn keeps_copy(write: bool, write_hot: bool) -> bool {
    !write && !write_hot
}

/// Whether a page is write hot still, once it came back in epoch `now`.
///
/// Being hot for writing wears off with reads: half of them find the page's copy kept
/// again, and cost one more fault should a store follow after all.
#[must_use]
#[inline]
pub const fn stays_write_hot(write: bool, write_hot: bool, now: u16) -> bool {
    write_hot && (write || now & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_read_and_not_hot_keeps_its_copy() {
        assert!(keeps_copy(false, false));
        assert!(!keeps_copy(true, false));
        assert!(!keeps_copy(false, true));
    }

    #[test]
    fn reads_cool_a_page_in_every_other_epoch_and_stores_never() {
        let after_read: Vec<bool> = (0..4)
            .map(|now| stays_write_hot(false, true, now))
            .collect();
        assert_eq!(after_read, [false, true, false, true]);
        assert!((0..4).all(|now| stays_write_hot(true, true, now)));
        // Coming back makes no page hot: a store to a clean page does.
        assert!((0..4).all(|now| !stays_write_hot(true, false, now)));
    }
}
