//! The demoter's way through all pages: a [`Lap`] comes by each page once.
//!
//! ```text
//!   region    0 ........ 1 .............. 2 ......
//!                         start ──► hand             the first part
//!             ──► hand ─► start                      the second ("wrapped"), up to
//!                                                    where the lap began
//! ```
//! A lap never comes by a page twice: a batch is chosen within one lap, and must
//! not have two copies of one page. What is added behind the hand during a lap is
//! for the next one.

use core::ops::Range;

/// A region and a page in it, in the order of the walk.
type Spot = (usize, usize);

/// A walk through all pages, and where it is.
#[derive(Debug)]
pub(crate) struct Lap {
    /// The next page to look at.
    hand: Spot,
    /// Where the lap began.
    start: Spot,
    /// The hand has begun again at the first page.
    wrapped: bool,
    done: bool,
}

impl Lap {
    /// Before the first lap.
    pub(crate) const NONE: Self = Self {
        hand: (0, 0),
        start: (0, 0),
        wrapped: false,
        done: true,
    };

    /// Whether the hand has been everywhere.
    pub(crate) const fn is_done(&self) -> bool {
        self.done
    }

    /// A new lap, from where the hand is.
    pub(crate) const fn begin(&mut self) {
        self.start = self.hand;
        self.wrapped = false;
        self.done = false;
    }

    /// The next pages to look at, of which region; `None` when the lap is done.
    ///
    /// `group(region, from)` is where in a region the first group of pages is that
    /// reaches beyond page `from`; `None` when there is none. The hand stays until
    /// [`Lap::advance`].
    pub(crate) fn next(
        &mut self,
        regions: usize,
        group: impl Fn(usize, usize) -> Option<Range<usize>>,
    ) -> Option<(usize, Range<usize>)> {
        while !self.done {
            let (region, from) = self.hand;
            if region >= regions {
                if self.wrapped {
                    self.done = true;
                } else {
                    self.wrapped = true;
                    self.move_to((0, 0));
                }
                continue;
            }
            // The second part ends where the lap began, in the middle of a group
            // as well.
            let most = if self.wrapped && region == self.start.0 {
                self.start.1
            } else {
                usize::MAX
            };
            let pages = group(region, from)
                .map(|pages| pages.start.max(from)..pages.end.min(most))
                .filter(|pages| !pages.is_empty());
            match pages {
                Some(pages) => return Some((region, pages)),
                None => self.move_to((region + 1, 0)),
            }
        }
        None
    }

    /// The hand goes on at `page` of the region it is in.
    pub(crate) fn advance(&mut self, page: usize) {
        self.move_to((self.hand.0, page));
    }

    /// The lap's end is asked before anything is looked at there.
    fn move_to(&mut self, spot: Spot) {
        self.hand = spot;
        self.done = self.wrapped && spot >= self.start;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Pages of a group in these tests.
    const GROUP: usize = 8;

    /// The groups of some regions that were ever used; they become more.
    #[derive(Debug, Clone)]
    struct Regions(Vec<Vec<bool>>);

    impl Regions {
        fn group(&self, region: usize, from: usize) -> Option<Range<usize>> {
            let used = &self.0[region];
            let group = (from / GROUP..used.len()).find(|&group| used[group])?;
            Some(group * GROUP..(group + 1) * GROUP)
        }

        fn pages(&self) -> HashSet<Spot> {
            let mut pages = HashSet::new();
            for (region, used) in self.0.iter().enumerate() {
                let groups = (0..used.len()).filter(|&group| used[group]);
                pages.extend(groups.flat_map(|group| {
                    (group * GROUP..(group + 1) * GROUP).map(move |page| (region, page))
                }));
            }
            pages
        }
    }

    /// What is used between two steps of the hand.
    #[derive(Debug, Clone)]
    enum Growth {
        Nothing,
        Group(usize, usize),
        Region(Vec<bool>),
    }

    fn region() -> impl Strategy<Value = Vec<bool>> {
        proptest::collection::vec(any::<bool>(), 0..6)
    }

    fn growth() -> impl Strategy<Value = Growth> {
        prop_oneof![
            4 => Just(Growth::Nothing),
            2 => (any::<usize>(), any::<usize>()).prop_map(|(region, group)| Growth::Group(region, group)),
            1 => region().prop_map(Growth::Region),
        ]
    }

    proptest! {
        /// Wherever the hand is when the lap begins, whatever part of a group each
        /// step takes and whatever is added meanwhile: no page twice, and none that
        /// was there at the beginning left out.
        #[test]
        fn a_lap_comes_by_each_page_once(
            regions in proptest::collection::vec(region(), 0..5),
            steps in proptest::collection::vec((1..=GROUP, growth()), 1..40),
        ) {
            let mut regions = Regions(regions);
            let mut lap = Lap::NONE;
            let mut steps = steps.into_iter().cycle();
            for _ in 0..4 {
                lap.begin();
                let there = regions.pages();
                let mut seen = HashSet::new();
                // Some laps are left half done: the next one begins anywhere.
                let most = steps.next().map_or(1, |(most, _)| most * 12);
                while seen.len() < most
                    && let Some((region, pages)) =
                        lap.next(regions.0.len(), |region, from| regions.group(region, from))
                {
                    let (len, growth) = steps.next().unwrap();
                    let end = pages.end.min(pages.start + len);
                    for page in pages.start..end {
                        prop_assert!(seen.insert((region, page)), "page {page} of region {region} twice");
                    }
                    lap.advance(end);
                    match growth {
                        Growth::Nothing => {}
                        Growth::Group(region, group) => {
                            let region = region % regions.0.len();
                            if let len @ 1.. = regions.0[region].len() {
                                regions.0[region][group % len] = true;
                            }
                        }
                        Growth::Region(used) => regions.0.push(used),
                    }
                }
                if lap.is_done() {
                    prop_assert!(there.is_subset(&seen), "{:?} left out", there.difference(&seen));
                }
            }
        }
    }

    #[test]
    fn the_first_lap_ends_before_its_first_page() {
        let mut lap = Lap::NONE;
        lap.begin();
        let group = |_: usize, from: usize| (from < GROUP).then_some(0..GROUP);
        assert_eq!(lap.next(1, group), Some((0, 0..GROUP)));
        lap.advance(GROUP);
        assert_eq!(lap.next(1, group), None);
        assert!(lap.is_done());
    }

    #[test]
    fn without_a_region_a_lap_is_done_at_once() {
        let mut lap = Lap::NONE;
        lap.begin();
        assert_eq!(lap.next(0, |_, _| None), None);
        assert!(lap.is_done());
    }
}
