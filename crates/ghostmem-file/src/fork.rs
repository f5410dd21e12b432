//! What becomes of a tier when the process forks.
//!
//! ```text
//!            before                    after the fork
//!  parent    writes its file           goes on writing it, but neither uses again nor
//!                                      gives back what was in use at the fork ...
//!  child                               ... reads it there, writes to a file of its own,
//!                                      with a key of its own
//!            a pipe                    the child holds one end; when the last holder
//!                                      is gone, the parent has its segments back
//! ```
//! A child that ends, calls execve(2) or has no page left in the parent's file lets
//! go of it by closing its ends. Nothing is ever written to a file by two processes,
//! nor with one key: no nonce can be used twice, and no process sees another's new
//! bytes.

use ghostmem_os::file::{File, Tether};

use crate::segments::List;
use crate::table::SegmentState;
use crate::tier::FileTier;
use crate::write::Writer;

impl FileTier {
    /// Before fork(2): keeps the background thread's half still. `false` when it is
    /// at work right now; try again later.
    #[must_use]
    pub fn try_before_fork(&self) -> bool {
        let Some(mut held) = self.writer.try_lock() else {
            return false;
        };
        let w = &mut *held;
        self.collect(w);
        w.forks += 1;
        let in_use = w.own.is_some_and(|own| w.file_users[own] > 0);
        if in_use && let Some(place) = w.watches.iter_mut().find(|watch| watch.is_none()) {
            // Without a pipe nobody tells when the child is done: never, then.
            let watch = match Tether::new() {
                Ok(tether) => {
                    w.fork_held = Some(tether.held);
                    tether.watch
                }
                Err(_) => File::from_number(-1),
            };
            *place = Some((w.forks, watch));
        } else if in_use {
            // So many children: the newest watch stands for this one too.
            let newest = w.watches.iter_mut().flatten().max_by_key(|(fork, _)| *fork);
            if let Some((fork, watch)) = newest {
                *fork = w.forks;
                match Tether::again(*watch) {
                    Ok(end) => w.fork_held = Some(end),
                    Err(_) => {
                        watch.close();
                        *watch = File::from_number(-1);
                    }
                }
            }
        }
        held.keep_for_fork();
        true
    }

    /// The fork does not take place.
    pub fn cancel_fork(&self) {
        self.after_fork_in_parent();
    }

    /// After the fork, in the parent; also when it failed.
    pub fn after_fork_in_parent(&self) {
        self.writer.release_after_fork();
        let w = &mut *self.writer.lock();
        if let Some(held) = w.fork_held.take() {
            held.close();
        }
    }

    /// After the fork, in the child: before anything else is done with the tier.
    pub fn after_fork_in_child(&self) {
        self.writer.release_after_fork();
        let w = &mut *self.writer.lock();
        self.seals.after_fork_in_child();
        // The parent goes on filling its segments; here nobody does.
        self.finish_all(w);
        w.close_watches();
        let parents = w.own;
        w.become_child();
        // Two processes must not seal with one key.
        self.retire_key(w);
        self.counters.file_bytes.set(0);
        self.counters.frozen_bytes.set(0);
        // The parent's blocks are no room of ours.
        for segment in 1..w.unused {
            self.table.set_blocks(segment, 0);
        }
        if let Some(spare) = w.spare.take() {
            self.retire_segment(&mut w.unbacked, spare);
        }
        let lists: [fn(&mut Writer) -> &mut List; 2] = [|w| &mut w.warm, |w| &mut w.frozen];
        for list in lists {
            let mut next = Self::take_list(list(w));
            while next != 0 {
                let segment = next;
                next = self.table.next(segment);
                self.table.set_state(segment, SegmentState::Free);
                self.retire_segment(&mut w.unbacked, segment);
            }
        }
        if let Some(place) = parents {
            w.tethers[place] = w.fork_held.take();
            self.let_go_of_file(w, place);
        }
    }

    /// Closes an ancestor's file that no page lies in any more.
    pub(crate) fn let_go_of_file(&self, w: &mut Writer, place: usize) {
        if w.file_users[place] > 0 || w.own == Some(place) {
            return;
        }
        self.files.close(place);
        if let Some(tether) = w.tethers[place].take() {
            tether.close();
        }
    }

    /// Closes everything, at the end.
    pub(crate) fn close_files(&self) {
        let w = &mut *self.writer.lock();
        w.own = None;
        w.file_users = [0; crate::files::FILES_MAX];
        for place in 0..crate::files::FILES_MAX {
            if self.files.has(place) {
                self.let_go_of_file(w, place);
            }
        }
    }
}

impl Writer {
    /// Gives up what tells of this process's children.
    pub(crate) fn close_watches(&mut self) {
        for (_, watch) in self.watches.iter_mut().filter_map(Option::take) {
            watch.close();
        }
    }
}
