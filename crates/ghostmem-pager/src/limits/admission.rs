//! The memory limit: what may still be handed out.
//!
//! An allocation is refused when resident pages, store and tables would exceed the limit
//! once everything handed out has been written, going by the compression seen so far. It
//! is a forecast ([`ghostmem_policy::forecast`]): what is handed out already may later
//! compress worse.
//!
//! What a file tier has room for does not count, as long as it takes pages.
//!
//! All of it comes from counters, so asking costs some hundred nanoseconds and no system
//! call. Without a memory limit it costs one comparison.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_fault::RUN_PAGES;
use ghostmem_os::error::ENOMEM;
use ghostmem_os::message::Line;
use ghostmem_os::{OsError, PAGE_SIZE, clock, futex};

use crate::parts::bound::ProcessBound;
use crate::parts::engine::Engine;

/// Far from a bound on the process a thread is asked about once in so many bytes of small
/// objects.
const FAR_BYTES: usize = 1 << 20;

/// Slots moved to make room before an allocation is refused.
const COMPACT_SLOTS: usize = 4096;

/// Times that the store is compacted before an allocation is refused.
const COMPACT_ROUNDS: u32 = 4;

/// What the limit refuses. Address space that has run out gives another error.
const DENIED: OsError = OsError::new("allocate within the memory limit", ENOMEM);

/// Times that an allocation waits for another thread to end its compacting or its look,
/// and how long each: it may have been interrupted while it had all the free memory in
/// hand.
const COMPACT_WAITS: u32 = 200;
const COMPACT_WAIT: Duration = Duration::from_micros(500);

/// Times that others are asked to give back before an allocation is refused: a second at
/// most.
const BALLOONS: u32 = 10;
/// Times that an allocation waits while another thread asks them.
const BALLOON_WAITS: u32 = 2000;

/// Whether a count of `before` comes to another multiple of `grain` with `bytes` more; a
/// number below zero is wrapped.
const fn crosses(before: usize, bytes: usize, grain: usize) -> bool {
    before / grain != before.wrapping_add(bytes) / grain
}

impl Engine {
    /// Counts `bytes` that the owner of an adopted region hands out.
    ///
    /// The limit is looked at once for each page's worth that a thread asks
    /// for: small objects share pages, and one that fits in a page that exists
    /// takes nothing.
    ///
    /// # Errors
    /// `ENOMEM` when the memory limit does not hold them; nothing is counted
    /// then.
    pub fn count_foreign(&self, bytes: usize) -> Result<(), OsError> {
        let before = self.foreign.mine().fetch_add(bytes, Ordering::Relaxed);
        if !self.has_memory_limit() {
            return Ok(());
        }
        // Far from a bound seldom: the forecast costs more than what it is about.
        let far = self.bound.as_ref().is_some_and(ProcessBound::is_far);
        let grain = if far && !self.has_heap_limit() {
            FAR_BYTES
        } else {
            PAGE_SIZE
        };
        if !crosses(before, bytes, grain) {
            return Ok(());
        }
        // Objects are spread over pages of which nobody else knows how many
        // will be touched, and the first touch of one may bring in a whole
        // run: keep room for that, the touched page and the ones ahead of it.
        let ahead = (self.reach_pages() / 8).clamp(0, RUN_PAGES as i64 - 1);
        let run = 1 + ahead as usize;
        self.admit(run * PAGE_SIZE)
            .inspect_err(|_| self.uncount_foreign(bytes))
    }

    /// Counts `bytes` that the owner of an adopted region handed out, where no
    /// limit is to be asked; a number below zero, wrapped, takes them back.
    #[inline]
    pub fn note_foreign(&self, bytes: usize) {
        self.foreign.mine().fetch_add(bytes, Ordering::Relaxed);
    }

    /// As [`Engine::note_foreign`], of many objects at once; whether each further one has to
    /// be asked for by [`Engine::count_foreign`]: under a memory limit, close to a bound, and
    /// where what is counted does not fit it by the forecast. That is made as seldom as
    /// [`Engine::count_foreign`] makes it far from a bound, and again while they are asked
    /// for: `asked`.
    #[must_use]
    pub fn note_foreign_and_ask(&self, bytes: usize, asked: bool) -> bool {
        let before = self.foreign.mine().fetch_add(bytes, Ordering::Relaxed);
        if self.has_heap_limit() {
            return true;
        }
        let Some(bound) = &self.bound else {
            return false;
        };
        let due = asked || crosses(before, bytes, FAR_BYTES);
        !bound.is_far() || (due && self.missing_bytes(RUN_PAGES * PAGE_SIZE) > 0)
    }

    /// Undoes [`Engine::count_foreign`]: the bytes came back.
    #[inline]
    pub fn uncount_foreign(&self, bytes: usize) {
        self.foreign.mine().fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether the memory limit holds what is counted as handed out, with
    /// `spare_bytes` left. Callers
    /// count first and ask then, so that two of them cannot both get the last
    /// bytes.
    ///
    /// # Errors
    /// `ENOMEM` when not.
    pub(crate) fn admit(&self, spare_bytes: usize) -> Result<(), OsError> {
        // Copies of resident pages make room before anybody is refused, and freed
        // slots may still hold memory.
        let (mut compacted, mut waited) = (0, 0);
        let (mut balloons, mut held) = (0, 0);
        loop {
            // A bound leaves more when memory beside the heap went.
            let missing = self.missing_bytes(spare_bytes);
            if missing == 0 {
                self.note_balloons(balloons, true);
                return Ok(());
            }
            if waited < self.waits_for_room() {
                waited += 1;
                // Nobody wakes it.
                futex::wait(&AtomicU64::new(0), 0, COMPACT_WAIT);
                continue;
            }
            if compacted < COMPACT_ROUNDS {
                compacted += 1;
                self.quietly(missing, |engine, missing, _| {
                    engine.make_room(missing, COMPACT_SLOTS);
                    engine.want_more();
                    engine.look_again(0);
                })?;
            } else if balloons < BALLOONS && self.may_inflate(missing) {
                balloons += 1;
                let came = self.quietly(spare_bytes, |engine, spare, _| engine.inflate(spare))?;
                if let Some(came) = came {
                    // Others gave nothing, or next to nothing.
                    let progress = held + came.missing_bytes / 16;
                    if came.missing_bytes > 0 && came.held_bytes <= progress {
                        balloons = BALLOONS;
                    }
                    held = came.held_bytes;
                }
            } else {
                if let Some(bound) = &self.bound {
                    bound.note_denied(missing);
                }
                self.note_balloons(balloons, false);
                return Err(DENIED);
            }
        }
    }

    /// Whether a bound on the process holds `bytes` more of ordinary memory, which never
    /// leaves, beside what is handed out.
    ///
    /// # Errors
    /// `ENOMEM` when not.
    pub fn admit_ordinary(&self, bytes: usize) -> Result<(), OsError> {
        match self.bound {
            Some(_) => self.admit(bytes),
            None => Ok(()),
        }
    }

    /// How often to wait for another thread that makes room. One that looks may have measured
    /// before memory was given back, and keeps this one from looking.
    fn waits_for_room(&self) -> u32 {
        let bound = self.bound.as_ref();
        if bound.is_some_and(|bound| bound.balloons.is_going_on()) {
            BALLOON_WAITS
        } else if bound.is_some_and(ProcessBound::is_looked_at) || self.store.is_maintained() {
            COMPACT_WAITS
        } else {
            0
        }
    }

    /// Notes whether others gave back what was missing, if they were asked.
    fn note_balloons(&self, balloons: u32, given: bool) {
        if balloons > 0
            && let Some(bound) = &self.bound
        {
            bound.balloons.note(given, clock::now_ns());
        }
    }

    /// Says once for each process, on standard error, that the bound on it refused an
    /// allocation, and what would help. Says nothing where something else refused it, and
    /// where the machine could not hold it either; nor where the caller says it.
    #[cold]
    pub fn say_denied(&self, refused: OsError) {
        let said = refused == DENIED && self.config.report_denied;
        let Some(bound) = self.bound.as_ref().filter(|_| said) else {
            return;
        };
        if let Some(missing) = bound.denied_for_the_first_time() {
            let mut line = Line::new();
            // Cut off where it is too long.
            let _written = write!(
                line,
                "an allocation is refused: it takes about {} MiB more than memory of {} MiB \
                 holds; allow more, or give cold pages a file",
                missing.div_ceil(1 << 20),
                bound.said_bytes() >> 20
            );
            line.print();
        }
    }
}
