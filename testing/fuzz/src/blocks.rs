//! The pages of a region against a plain list of who has them.

use ghostmem_pager::space::{BlockSpace, PageRun};

/// A run and how many pages it occupies.
#[derive(Clone, Copy)]
struct Held {
    run: PageRun,
    occupied: usize,
}

struct Model {
    pages: usize,
    held: Vec<Held>,
}

impl Model {
    /// The lowest place, found by trying each.
    fn lowest(&self, pages: usize, align: usize) -> Option<usize> {
        let occupied = pages.max(align).next_power_of_two();
        // A run may round up past the end, but not past the tree.
        if occupied > self.pages.next_power_of_two() {
            return None;
        }
        (0..self.pages)
            .step_by(occupied)
            .filter(|first| first + pages <= self.pages)
            .find(|&first| {
                self.held.iter().all(|held| {
                    first + occupied <= held.run.first || held.run.first + held.occupied <= first
                })
            })
    }

    /// What a run occupies once it is so many pages long: halves behind it are taken while
    /// all of each is free.
    fn room_for(&self, at: usize, length: usize) -> Option<usize> {
        let Held { run, mut occupied } = self.held[at];
        if length == 0 || run.first + length > self.pages {
            return None;
        }
        while length > occupied {
            let behind = run.first + occupied..run.first + 2 * occupied;
            let is_free = self.held.iter().all(|held| {
                held.run.first + held.occupied <= behind.start || behind.end <= held.run.first
            });
            if run.first % (2 * occupied) != 0 || !is_free {
                return None;
            }
            occupied *= 2;
        }
        Some(occupied)
    }

    fn of(&self, page: usize) -> Option<PageRun> {
        let mut runs = self.held.iter().map(|held| held.run);
        runs.find(|run| (run.first..run.first + run.pages).contains(&page))
    }
}

pub(crate) fn run(data: &[u8]) {
    let [size, steps @ ..] = data else { return };
    let pages = usize::from(*size) + 1;
    let space = BlockSpace::new(pages).expect("address space for 256 pages");
    let mut model = Model {
        pages,
        held: Vec::new(),
    };
    for step in steps.chunks_exact(2).take(512) {
        let (kind, argument) = (step[0], usize::from(step[1]));
        let at = model
            .held
            .iter()
            .position(|held| held.run.first == argument);
        match kind % 4 {
            0 => {
                let (wanted, align) = (argument, 1 << (kind / 4 % 8));
                let expected = (wanted > 0).then(|| model.lowest(wanted, align)).flatten();
                let got = space.allocate(wanted, align);
                assert_eq!(got.map(|run| run.first), expected, "the lowest that fits");
                if let Some(run) = got {
                    assert_eq!(run.pages, wanted);
                    let occupied = wanted.max(align).next_power_of_two();
                    model.held.push(Held { run, occupied });
                }
            }
            1 if argument < pages => {
                let freed = space.free(argument);
                assert_eq!(freed.is_ok(), at.is_some(), "{freed:?}");
                if let Some(at) = at {
                    let held = model.held.swap_remove(at);
                    assert_eq!(freed, Ok(held.run.pages));
                }
            }
            2 if argument < pages => {
                let length = usize::from(kind / 4);
                let room = at.and_then(|at| Some((at, model.room_for(at, length)?)));
                assert_eq!(space.resize(argument, length), room.is_some());
                if let Some((at, occupied)) = room {
                    model.held[at].run.pages = length;
                    model.held[at].occupied = occupied;
                }
            }
            _ if argument < pages => {
                // What a run was rounded up to is its owner's, but no part of the block.
                let found = space.block_of(argument);
                assert_eq!(found, model.of(argument));
            }
            _ => {}
        }
        let used: usize = model.held.iter().map(|held| held.run.pages).sum();
        assert_eq!(space.used_pages(), used);
    }
}
