//! Limits on address space and data (`RLIMIT_AS`, `RLIMIT_DATA`) that the program sets on
//! itself while it runs.
//!
//! To the kernel what the heap reserved counts, used or not, and what blocks take of it does
//! not. So blocks and mappings that are taken over are counted here: together they get as
//! many bytes as the limit says. Small ones go on, as natively, within what the program had
//! when it set the limit, and a little more: that came from memory it had already.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem::Heap;

use crate::calls::{Done, table};
use crate::raw::{self, Answer, failed, own};
use crate::{cache, ghost, signals, thread};

/// The tighter of the two limits; the largest number: none was set.
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// What was in use when it was set.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

/// Blocks from here on are the kernel's affair natively (`M_MMAP_THRESHOLD` of mallopt(3)).
const LARGE_BYTES: usize = 128 << 10;
/// What small blocks get beside (`M_TOP_PAD` and what lies free).
const SPARE_BYTES: usize = 1 << 20;
/// So close to the limit every small block is asked about: a thread tells of its own after
/// 64 KiB.
const CLOSE_BYTES: usize = 8 << 20;

/// Whether a resource is one of the two.
pub(crate) fn is_one(resource: usize) -> bool {
    [libc::RLIMIT_AS, libc::RLIMIT_DATA]
        .iter()
        .any(|&one| one as usize == resource)
}

/// The program has set one of them.
pub(crate) fn look() {
    // A child of vfork has limits of its own, and its parent's memory.
    let Some(heap) = ghost::heap().filter(|_| !signals::in_vfork_child()) else {
        return;
    };
    let soft = |resource: u32| {
        let mut limit = [0_u64; 2];
        let asked = own!(libc::SYS_prlimit64, 0, resource, 0, &raw mut limit);
        let [soft, _hard] = limit;
        // The kernel's own number for none is the largest.
        (!failed(asked) && soft != libc::RLIM_INFINITY).then_some(soft as usize)
    };
    let limits = [libc::RLIMIT_AS, libc::RLIMIT_DATA].into_iter();
    let most = limits.filter_map(soft).min().unwrap_or(usize::MAX);
    BEFORE.store(in_use(heap), Ordering::Relaxed);
    MOST.store(most, Ordering::Relaxed);
    ghost::tell(thread::current());
}

/// Bytes of blocks and of taken mappings, without those that are free and kept.
fn in_use(heap: &Heap) -> usize {
    heap.allocated_bytes().saturating_sub(cache::kept_bytes())
}

/// Whether the program has set a limit.
pub(crate) fn any() -> bool {
    MOST.load(Ordering::Relaxed) != usize::MAX
}

/// Whether the limit has no room for a block, or for so many bytes more of one.
pub(crate) fn refuses(heap: &Heap, bytes: usize) -> bool {
    let most = MOST.load(Ordering::Relaxed);
    if most == usize::MAX {
        return false;
    }
    let had = match bytes {
        0..LARGE_BYTES => BEFORE.load(Ordering::Relaxed).saturating_add(SPARE_BYTES),
        _ => 0,
    };
    let replaced = thread::current().replaced.get();
    let others = in_use(heap).saturating_sub(replaced);
    others.saturating_add(bytes) > most.max(had)
}

/// mmap of libc's own. To the kernel what the heap reserved counts, too: where the limit has
/// room for a stack and the kernel has not, that is said once. The thread, or the program to
/// be started, is refused without a word else.
pub(crate) fn map_for_libc(args: [usize; 6]) -> Done {
    static SAID: AtomicBool = AtomicBool::new(false);
    let [_, bytes, access, flags, ..] = args;
    let is_stack = flags & libc::MAP_STACK as usize != 0;
    let Some(heap) = ghost::heap().filter(|_| is_stack && any()) else {
        return Done::Asis;
    };
    let answer = raw::syscall(table::MMAP, args);
    // A thread's is closed at first, which no limit on data counts.
    let is_refused = if failed(answer) {
        answer == -(libc::ENOMEM as Answer)
    } else {
        access == libc::PROT_NONE as usize && !can_be_opened(answer, bytes)
    };
    if is_refused && !refuses(heap, bytes) && !SAID.swap(true, Ordering::Relaxed) {
        raw::say(
            b"ghostmem: the limit that this program set on its address space or data counts what \
              its heap reserves, too: threads and programs that it starts get no stack\n",
        );
    }
    Done::With(answer)
}

/// Whether the kernel opens a mapping that was made closed just now, and that nobody uses: it
/// is closed again.
fn can_be_opened(start: Answer, bytes: usize) -> bool {
    const OPEN: i32 = libc::PROT_READ | libc::PROT_WRITE;
    let opens = !failed(own!(libc::SYS_mprotect, start, bytes, OPEN));
    let _closed = opens && !failed(own!(libc::SYS_mprotect, start, bytes, libc::PROT_NONE));
    opens
}

/// Makes a block that takes the place of one that this thread has, of so many bytes: as the
/// kernel has it for a mapping that moves, only what it is longer is more.
pub(crate) fn in_place_of<R>(bytes: usize, make: impl FnOnce() -> R) -> R {
    let replaced = &thread::current().replaced;
    let before = replaced.replace(bytes);
    let made = make();
    replaced.set(before);
    made
}

/// Whether every small block is to be asked about.
pub(crate) fn is_close(heap: &Heap) -> bool {
    any() && refuses(heap, CLOSE_BYTES)
}
