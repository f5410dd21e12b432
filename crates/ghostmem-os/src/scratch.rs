//! Working memory of the fault path: buffers made once, leased without a lock.
//!
//! ```text
//!   lease 0                            lease 1
//!   ┌───────┬────────────┬───────────┬───────┬────────────┬─ ─
//!   │ guard │ ◄── stack  │ Scratch   │ guard │ ◄── stack  │
//!   └───────┴────────────┴───────────┴───────┴────────────┴─ ─
//!    faults   of a handler  the buffers, the codec's state last
//! ```
//! Whoever makes the pool says how large a codec's state is: [`Scratch`] ends with
//! so many words.
//!
//! A set is *open* once it was leased: until then no access is possible, and it is part of
//! one mapping with its neighbours. Each open set takes two mappings, which the kernel
//! copies at every fork(2).
//!
//! The stack is no part of [`Scratch`]: while a handler runs on it, a `&mut
//! Scratch` is alive, and the two must not overlap. A handler that needs more
//! stack than there is runs into the guard page and ends the process, rather
//! than into another lease's buffers.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::error::{ENOMEM, OsError};
use crate::map::{Access, PAGE_SIZE, Reservation, ZeroArray};
use crate::shards::{LINE_BYTES, shards};

/// Pages one fault or readahead can restore in one call.
pub const RUN_PAGES: usize = 64;
/// Pages of buffer for what is read from a file: a run of pages that do not
/// shrink, what a file adds to each, and both ends rounded to its blocks.
pub const IO_PAGES: usize = RUN_PAGES + 8;

/// One set of buffers. All-zero bytes are its initial value.
#[repr(C, align(4096))]
pub struct Scratch {
    /// Restored pages on their way to the kernel.
    pub run: [[u8; PAGE_SIZE]; RUN_PAGES],
    /// One page copied out for compression.
    pub page: [u8; PAGE_SIZE],
    /// Compressed bytes, either way.
    pub packed: [u8; PAGE_SIZE],
    /// Bytes of a file, as they are there.
    pub io: PageAligned<[[u8; PAGE_SIZE]; IO_PAGES]>,
    /// The codec's own state: as many words as the pool was made with, on a page
    /// boundary.
    pub codec: [u64],
}

/// Starts on a page boundary, as direct I/O wants it.
#[repr(C, align(4096))]
pub struct PageAligned<T>(pub T);

/// Bytes of a handler's stack: the program's may be tiny.
pub const STACK_BYTES: usize = 64 * 1024;
/// Where the buffers of a lease begin in its part of the pool, and the stack,
/// which grows down, ends.
const SCRATCH_OFFSET: usize = PAGE_SIZE + STACK_BYTES;
/// Bytes of a [`Scratch`] before the codec's state: whole pages all of them.
const FIXED_BYTES: usize = (RUN_PAGES + 2 + IO_PAGES) * PAGE_SIZE;

/// A fixed pool of [`Scratch`], leased and returned with one atomic each.
pub struct ScratchPool {
    memory: Reservation,
    /// Words of the codec's state in each set.
    state_words: usize,
    /// Bytes of a lease's part of the pool.
    stride: usize,
    /// Sets in each group.
    group: usize,
    /// A group for each processor, on a cache line of its own; one bit for each set,
    /// set while it is leased. A thread starts at the lowest set of its processor's
    /// group, so that only about as many sets are ever backed by memory as there are
    /// faulting threads. The second word has one bit for each set that is open, for good.
    leased: ZeroArray<[AtomicU64; LINE_BYTES / 8]>,
}

/// Which word of a group is which.
const LEASED: usize = 0;
const OPEN: usize = 1;

/// Access to sets that nobody leased yet.
#[cfg(not(windows))]
const BEFORE_USE: Access = Access::None;
/// There no mapping is copied, and no guard page is needed.
#[cfg(windows)]
const BEFORE_USE: Access = Access::ReadWrite;

/// With less address space than this left there is one group only, bytes.
const PLENTY_BYTES: u64 = 1 << 30;

/// Sets that are open from the start, the first ones of each processor: as many as there are
/// where address space is limited.
const AT_FIRST: usize = GROUP;

/// Groups where processors are few, or address space is limited, and sets in each.
const GROUPS: usize = 16;
const GROUP: usize = 8;

/// Groups, and sets in each, for so many processors: one for the thread that runs and one
/// for a thread that was interrupted in the middle of a fault. A set takes half a MiB of
/// address space, and two mappings.
const fn groups_for(processors: usize) -> (usize, usize) {
    if processors <= GROUPS {
        return (GROUPS, GROUP);
    }
    let group = (GROUPS * GROUP).div_ceil(processors);
    (processors, if group < 2 { 2 } else { group })
}

impl ScratchPool {
    /// Reserves the pool, with `state_words` words of eight bytes for a codec in
    /// each set; nothing is backed by memory until it is used. Some sets are open: leases
    /// can be had whatever the kernel refuses later.
    ///
    /// # Errors
    /// The kernel's refusal to map it; `ENOMEM` for a state that no address space
    /// has room for.
    pub fn new(state_words: usize) -> Result<Self, OsError> {
        let left = crate::machine::address_space_left();
        let (groups, group) = match left {
            Some(left) if left < PLENTY_BYTES => (1, GROUP),
            Some(_) => (GROUPS, GROUP),
            None => groups_for(shards()),
        };
        Self::with_groups(state_words, groups, group)
    }

    fn with_groups(state_words: usize, groups: usize, group: usize) -> Result<Self, OsError> {
        let sets = groups * group;
        let sizes = || {
            let state = state_words.checked_mul(size_of::<u64>())?;
            let state = state.checked_next_multiple_of(PAGE_SIZE)?;
            let stride = state.checked_add(SCRATCH_OFFSET + FIXED_BYTES)?;
            Some((stride, stride.checked_mul(sets)?))
        };
        let (stride, bytes) = sizes().ok_or(OsError::new("codec state", ENOMEM))?;
        let pool = Self {
            memory: Reservation::new(bytes, PAGE_SIZE, BEFORE_USE)?,
            state_words,
            stride,
            group,
            leased: ZeroArray::new(groups)?,
        };
        let homes = shards().max(AT_FIRST.div_ceil(group)).min(groups);
        for nth in 0..AT_FIRST.min(sets) {
            pool.open(nth % homes, nth / homes)?;
        }
        Ok(pool)
    }

    /// Opens a set, all but its guard page, for whoever leased it. Async-signal-safe.
    ///
    /// # Errors
    /// The kernel's refusal (`ENOMEM`: too many mappings, too much private memory).
    fn open(&self, at: usize, bit: usize) -> Result<(), OsError> {
        let open = &self.leased[at][OPEN];
        if open.load(Ordering::Relaxed) >> bit & 1 == 1 {
            return Ok(());
        }
        #[cfg(not(windows))]
        {
            let guard = (at * self.group + bit) * self.stride;
            let (offset, len) = (guard + PAGE_SIZE, self.stride - PAGE_SIZE);
            self.memory.protect(offset, len, Access::ReadWrite)?;
        }
        // A child that was forked before this opens the set once more.
        open.fetch_or(1 << bit, Ordering::Relaxed);
        Ok(())
    }

    /// Leases that can be out at once; a thread that finds none waits and retries.
    #[must_use]
    pub fn sets(&self) -> usize {
        self.leased.len() * self.group
    }

    /// Words of eight bytes that a codec has in each set.
    #[must_use]
    pub const fn state_words(&self) -> usize {
        self.state_words
    }

    /// Lends one set; waits when all are out. A holder waits for nothing that
    /// takes a lease: at most for a page that another holder is about to finish
    /// with, and for the file. Waiting for a frame is done without one. So this
    /// ends. Lock-free but for that wait, async-signal-safe.
    ///
    /// A thread gets the set it had before whenever that is free: its lines
    /// are in the cache of the processor the thread runs on.
    pub fn lease(&self) -> Lease<'_> {
        let words = self.leased.len();
        let home = crate::thread::shard(words);
        let mut tries = 0;
        loop {
            for step in 0..words {
                let at = (home + step) % words;
                if let Some(index) = self.lease_from(at) {
                    return Lease { pool: self, index };
                }
            }
            crate::futex::pause(tries);
            tries = tries.saturating_add(1);
        }
    }

    /// Lends the first free set of group `at`, if there is one. A set that the kernel does
    /// not open is passed over.
    fn lease_from(&self, at: usize) -> Option<usize> {
        let mut passed_over = !0 << self.group;
        let word = &self.leased[at][LEASED];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let bit = (!(seen | passed_over)).trailing_zeros() as usize;
            if bit >= self.group {
                return None;
            }
            match word.compare_exchange_weak(
                seen,
                seen | (1 << bit),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) if self.open(at, bit).is_ok() => return Some(at * self.group + bit),
                Ok(_) => {
                    passed_over |= 1 << bit;
                    seen = word.fetch_and(!(1 << bit), Ordering::Release) & !(1 << bit);
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Marks every set free: for a forked child, where no lease holder of the
    /// parent exists.
    pub fn reset_after_fork(&self) {
        for group in self.leased.iter() {
            // A page that is not written is not copied for the child.
            if group[LEASED].load(Ordering::Relaxed) != 0 {
                group[LEASED].store(0, Ordering::Release);
            }
        }
    }
}

/// An exclusive loan of one [`Scratch`].
pub struct Lease<'a> {
    pool: &'a ScratchPool,
    index: usize,
}

impl Lease<'_> {
    fn cell(&self) -> *mut Scratch {
        let at = self.pool.memory.base() + self.index * self.pool.stride + SCRATCH_OFFSET;
        // The length of the last field is that of the whole.
        core::ptr::slice_from_raw_parts_mut(at as *mut u64, self.pool.state_words) as *mut Scratch
    }
}

impl Lease<'_> {
    /// Calls `body` with this scratch on the scratch's own stack, so that a
    /// fault can be resolved on an alternate stack of a few kilobytes. On
    /// Windows it runs on the stack of the thread: an exception, also one inside
    /// a handler, is dispatched within the stack that the thread's environment
    /// block names.
    ///
    /// `body` must not unwind; a panic in it ends the process.
    pub fn on_own_stack<C>(&mut self, context: &mut C, body: fn(&mut C, &mut Scratch)) {
        // One actor may be on top of another there: their stack is the thread's.
        #[cfg(feature = "sim")]
        if crate::sim::is_on() {
            return body(context, self);
        }
        struct Call<'a, C> {
            context: &'a mut C,
            scratch: *mut Scratch,
            body: fn(&mut C, &mut Scratch),
        }
        extern "C" fn trampoline<C>(call: *mut Call<'_, C>) {
            // SAFETY: `call` points to the live local below, used by nobody
            // else while we run.
            let call = unsafe { &mut *call };
            // SAFETY: the lease is exclusive, and the stack we run on lies
            // outside the buffers.
            let scratch = unsafe { &mut *call.scratch };
            (call.body)(call.context, scratch);
        }
        let scratch = self.cell();
        let mut call = Call {
            context,
            scratch,
            body,
        };
        #[cfg(not(windows))]
        {
            // Page aligned, as the buffers are that begin there.
            let top = scratch.cast::<u8>() as usize;
            // SAFETY: the end of STACK_BYTES of memory that belong to this lease and
            // that nothing else refers to; a trampoline of the C ABI does not unwind.
            unsafe { crate::stack::call_at(top, &raw mut call, trampoline::<C>) };
        }
        #[cfg(windows)]
        trampoline::<C>(&raw mut call);
    }
}

impl core::ops::Deref for Lease<'_> {
    type Target = Scratch;
    fn deref(&self) -> &Scratch {
        // SAFETY: in bounds and aligned; zero is a valid value of integer
        // arrays; the set bit makes this lease the only access path.
        unsafe { &*self.cell() }
    }
}

impl core::ops::DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        // SAFETY: as in `deref`, and `&mut self` excludes other borrows.
        unsafe { &mut *self.cell() }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let group = self.pool.group;
        let bit = 1_u64 << (self.index % group);
        self.pool.leased[self.index / group][LEASED].fetch_and(!bit, Ordering::Release);
    }
}

#[cfg(all(test, not(windows)))]
mod tests {
    use super::*;

    const STATE_WORDS: usize = 2560;

    fn here() -> usize {
        let local = 0_u8;
        core::hint::black_box(&raw const local) as usize
    }

    #[test]
    fn handlers_run_on_a_stack_outside_the_buffers_and_see_both() {
        let pool = ScratchPool::new(STATE_WORDS).unwrap();
        let mut lease = pool.lease();
        let buffers = lease.cell().cast::<u8>() as usize;
        let mut at = 0;
        lease.on_own_stack(&mut at, |at, scratch| {
            *at = here();
            // All of the buffers, while the stack is in use.
            scratch.run.as_flattened_mut().fill(7);
            scratch.codec.fill(7);
        });
        assert!((buffers - STACK_BYTES..buffers).contains(&at));
        assert_eq!(lease.codec, [7; STATE_WORDS]);
    }

    #[test]
    fn a_set_has_the_state_its_pool_was_made_with_and_ends_before_the_next() {
        for words in [0, 1, 511, 512, 513, STATE_WORDS, 1 << 17] {
            let pool = ScratchPool::new(words).unwrap();
            assert_eq!(pool.state_words(), words);
            let (mut first, mut second) = (pool.lease(), pool.lease());
            assert_eq!((first.codec.len(), second.codec.len()), (words, words));
            assert_eq!(first.codec.as_ptr() as usize % PAGE_SIZE, 0);
            // The compiler's layout is the one the pool was cut by.
            assert_eq!(
                first.codec.as_ptr() as usize - (&raw const first.run) as usize,
                FIXED_BYTES
            );
            let end = first.cell().cast::<u8>() as usize + size_of_val(&*first);
            let next = second.cell().cast::<u8>() as usize - SCRATCH_OFFSET;
            assert!(end <= next, "{words} words: {end:#x} beyond {next:#x}");
            first.codec.fill(u64::MAX);
            second.codec.fill(1);
            assert!(first.codec.iter().all(|&word| word == u64::MAX));
        }
    }

    #[test]
    fn every_set_is_lent_once_whatever_the_groups() {
        for processors in [1, 2, 16, 17, 64, 65, 256] {
            let (groups, group) = groups_for(processors);
            let pool = ScratchPool::with_groups(0, groups, group).unwrap();
            assert!(groups >= processors && pool.sets() >= 128.max(2 * processors));
            let leases: Vec<Lease<'_>> = (0..pool.sets()).map(|_| pool.lease()).collect();
            let mut seen: Vec<usize> = leases.iter().map(|lease| lease.index).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..pool.sets()), "{processors}");
            assert!((0..groups).all(|at| pool.lease_from(at).is_none()));
            drop(leases);
            // Each group's first set is its own processor's.
            assert!((0..groups).all(|at| pool.lease_from(at) == Some(at * group)));
        }
    }

    /// Mappings of the process that lie in the pool.
    fn mappings(pool: &ScratchPool) -> usize {
        let range = pool.memory.base()..pool.memory.base() + pool.memory.len();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let starts = maps.lines().filter_map(|line| {
            let (start, _) = line.split_once('-')?;
            usize::from_str_radix(start, 16).ok()
        });
        starts.filter(|start| range.contains(start)).count()
    }

    #[test]
    fn only_sets_that_were_leased_take_mappings_of_their_own() {
        let pool = ScratchPool::new(STATE_WORDS).unwrap();
        // Each is one, and so is what lies between two of them, and at either end.
        let at_first = mappings(&pool);
        assert!(at_first <= 2 * AT_FIRST + 1, "{at_first}");
        for _ in 0..100 {
            // The same one, unless the thread changes its processor.
            drop(pool.lease());
        }
        let most = 2 * AT_FIRST.max(shards()) + 1;
        assert!(mappings(&pool) <= most, "{} of {most}", mappings(&pool));
        let leases: Vec<Lease<'_>> = (0..pool.sets()).map(|_| pool.lease()).collect();
        assert!(mappings(&pool) >= 2 * leases.len() - 1);
    }

    /// A limit on private memory that is met already: the kernel opens no set any more.
    #[test]
    fn a_set_that_the_kernel_does_not_open_is_passed_over() {
        let code = crate::stack::forked(|| {
            let Ok(pool) = ScratchPool::new(STATE_WORDS) else {
                return 2;
            };
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: a valid limit.
            let set = unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const none) };
            let mut leases = [const { None }; AT_FIRST];
            for place in &mut leases {
                let mut lease = pool.lease();
                lease.page.fill(1);
                *place = Some(lease);
            }
            let none_is_left = (0..pool.leased.len()).all(|at| pool.lease_from(at).is_none());
            // Those that were refused are nobody's.
            let leased = |group: &[AtomicU64; 16]| group[LEASED].load(Ordering::Relaxed);
            let leased: u32 = pool
                .leased
                .iter()
                .map(|group| leased(group).count_ones())
                .sum();
            i32::from(set == 0 && none_is_left && leased as usize == AT_FIRST)
        });
        assert_eq!(code, 1);
    }

    #[test]
    fn a_state_that_fits_nowhere_is_refused() {
        for words in [usize::MAX, usize::MAX / 8, 1 << 57] {
            let refused = ScratchPool::new(words).map(drop).unwrap_err();
            assert_eq!(refused.errno, libc::ENOMEM, "{words} words");
        }
    }

    #[test]
    fn a_handler_that_overflows_its_stack_ends_the_process() {
        // The child of a plain fork has the pool and nobody else.
        let pool = ScratchPool::new(STATE_WORDS).unwrap();
        let _first = pool.lease();
        let mut second = pool.lease();
        // SAFETY: the child does nothing but write to memory and end.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut bottom = 0;
            second.on_own_stack(&mut bottom, |bottom, _| {
                *bottom = here() & !(PAGE_SIZE - 1);
            });
            // Downwards as an overflow would; the first lease lies below.
            for below in (0..STACK_BYTES + PAGE_SIZE).step_by(512) {
                // SAFETY: mapped memory of the pool, until the guard page
                // ends this process as intended.
                unsafe { ((bottom - below) as *mut u8).write_volatile(1) };
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV,
            "status {status}"
        );
    }
}
