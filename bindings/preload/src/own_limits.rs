//! Limits on address space and data (`RLIMIT_AS`, `RLIMIT_DATA`) that the program sets on
//! itself while it runs.
//!
//! To the kernel what the heap reserved counts, used or not, and what blocks take of it does
//! not. So the kernel has a limit that is higher by that ([`crate::lifted`]), and blocks and
//! mappings that are taken over are counted here: together they get as many bytes as the limit
//! says. With a limit on address space all that is mapped counts beside them, less what the
//! engine reserved, and the program's own mappings are asked about as well. Small blocks go on,
//! as natively, within what the program had when it set the limit, and a little more: that came
//! from memory it had already.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem::Heap;
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::doorway;
use ghostmem_os::kept::KeptFile;
use ghostmem_os::map::reserved_bytes;

use crate::alone::Alone;
use crate::calls::{Done, error, table};
use crate::raw::{self, Answer, failed, own};
use crate::signals::Blocked;
use crate::{attached, cache, ghost, lifted, mappings, objects, signals, thread, threads};

/// The tighter of the two limits; the largest number: none was set.
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The limit on address space, likewise.
static MOST_SPACE: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Address space that the program has beside blocks and taken mappings, as seen last, bytes.
static BESIDE: AtomicUsize = AtomicUsize::new(0);
/// What was in use when a limit was set.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

/// What the process has mapped, in its first number (proc_pid_statm(5)).
static MAPPED: KeptFile = KeptFile::new();
static OPENS: Alone = Alone::new();

/// Blocks from here on are the kernel's affair natively (`M_MMAP_THRESHOLD` of mallopt(3)).
const LARGE_BYTES: usize = 128 << 10;
/// What small blocks get beside (`M_TOP_PAD` and what lies free).
const SPARE_BYTES: usize = 1 << 20;
/// So close to the limit every small block is asked about: a thread tells of its own after
/// 64 KiB.
const CLOSE_BYTES: usize = 8 << 20;
/// What libc reserves for the blocks of a thread of the engine's (`HEAP_MAX_SIZE` of glibc's
/// malloc).
static EACH_THREADS_BYTES: AtomicUsize = AtomicUsize::new(64 << 20);
/// What the engine has mapped beside that, at most: what mimalloc keeps, stacks of the engine's
/// threads. Rather too much than too little: natively nothing of it is there.
const OURS_BYTES: usize = 12 << 20;

/// libc reserves nothing for single threads.
pub(crate) fn threads_have_no_arenas() {
    EACH_THREADS_BYTES.store(0, Ordering::Relaxed);
}

/// The program has set one of them.
pub(crate) fn look() {
    // A child of vfork has limits of its own, and its parent's memory.
    let Some(heap) = ghost::heap().filter(|_| !signals::in_vfork_child()) else {
        return;
    };
    let soft = |resource| lifted::programs(resource).map_or(usize::MAX, |soft| soft as usize);
    // What is not lifted the kernel counts.
    let space = match lifted::is_any() {
        true => soft(libc::RLIMIT_AS),
        false => usize::MAX,
    };
    if space != usize::MAX {
        open_mapped();
        look_beside();
    }
    BEFORE.store(in_use(heap), Ordering::Relaxed);
    MOST_SPACE.store(space, Ordering::Relaxed);
    let most = soft(libc::RLIMIT_AS).min(soft(libc::RLIMIT_DATA));
    MOST.store(most, Ordering::Relaxed);
    ghost::tell(thread::current());
}

/// Opens the kernel's report of what is mapped, if it is not open.
fn open_mapped() {
    let _blocked = Blocked::new();
    let _alone = OPENS.take();
    if !MAPPED.is_there() {
        let _counts_if = MAPPED.open(c"/proc/self/statm");
    }
}

/// In a forked child: the report is the parent's, and who opened it is not here.
pub(crate) fn forget_others() {
    OPENS.forget_others();
    MAPPED.close();
    if MOST_SPACE.load(Ordering::Relaxed) != usize::MAX && !doorway::is_confined() {
        open_mapped();
    }
}

/// Looks at what is mapped beside blocks. Where nothing can be read it stays as it was.
fn look_beside() {
    let mut room = [0; 32];
    let text = MAPPED.read(&mut room).unwrap_or(&[]);
    let digits = text.iter().take_while(|digit| digit.is_ascii_digit());
    let pages = digits.fold(0_usize, |pages, digit| {
        pages.saturating_mul(10) + usize::from(digit - b'0')
    });
    if pages > 0 {
        let arenas = threads::most_of_engine() * EACH_THREADS_BYTES.load(Ordering::Relaxed);
        let ours = reserved_bytes() + objects::our_bytes() + arenas + OURS_BYTES;
        let beside = pages.saturating_mul(PAGE_SIZE).saturating_sub(ours);
        BESIDE.store(beside, Ordering::Relaxed);
    }
}

/// Address space that the program has beside what [`in_use`] counts, bytes.
fn beside(heap: &Heap) -> usize {
    heap.closed_bytes() + BESIDE.load(Ordering::Relaxed)
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
    let space = MOST_SPACE.load(Ordering::Relaxed);
    let had = match bytes {
        0..LARGE_BYTES => BEFORE.load(Ordering::Relaxed).saturating_add(SPARE_BYTES),
        _ => {
            if space != usize::MAX {
                look_beside();
            }
            0
        }
    };
    let left = space.saturating_sub(beside(heap));
    let replaced = thread::current().replaced.get();
    let others = in_use(heap).saturating_sub(replaced);
    others.saturating_add(bytes) > most.min(left).max(had)
}

/// Whether the limit on address space has no room for so many bytes of a mapping that is not
/// taken over.
fn has_no_space(bytes: usize) -> bool {
    let space = MOST_SPACE.load(Ordering::Relaxed);
    let Some(heap) = ghost::heap().filter(|_| space != usize::MAX) else {
        return false;
    };
    look_beside();
    let taken = beside(heap).saturating_add(in_use(heap));
    let bytes = bytes.checked_next_multiple_of(PAGE_SIZE);
    bytes.is_none_or(|bytes| taken.saturating_add(bytes) > space)
}

/// mmap, mremap, shmat or brk of the program's or of libc's that a limit has no room for: the
/// answer. The kernel has a higher one. What is mapped over something else is left to that.
pub(crate) fn refused(number: usize, args: [usize; 6], is_from_libc: bool) -> Option<Done> {
    match number {
        9 => mapping_refused(args, is_from_libc),
        _ if MOST_SPACE.load(Ordering::Relaxed) == usize::MAX => None,
        25 => {
            let [address, old, new, ..] = args;
            let grows = new.checked_sub(old).filter(|&more| more > 0)?;
            (raw::is_mapped(address) && has_no_space(grows)).then_some(error(libc::ENOMEM))
        }
        30 => {
            let [segment, address, ..] = args;
            let bytes = attached::length_of(segment).ok()?;
            (address == 0 && has_no_space(bytes)).then_some(error(libc::ENOMEM))
        }
        table::BRK => {
            let now = raw::syscall(table::BRK, [0; 6]);
            let more = args[0].checked_sub(now as usize).filter(|&more| more > 0)?;
            has_no_space(more).then_some(Done::With(now))
        }
        _ => None,
    }
}

fn mapping_refused(args: [usize; 6], is_from_libc: bool) -> Option<Done> {
    let [place, bytes, _, flags, ..] = args;
    let replaces = mappings::has(flags, libc::MAP_FIXED) && raw::is_mapped(place);
    // With a limit on data a stack is refused that is longer than what is left.
    let is_stack = is_from_libc && mappings::has(flags, libc::MAP_STACK);
    let is_data_full = is_stack && ghost::heap().is_some_and(|heap| refuses(heap, bytes));
    if replaces || bytes == 0 || !is_data_full && !has_no_space(bytes) {
        return None;
    }
    if mappings::has(flags, libc::MAP_ANONYMOUS) || mappings::has(flags, libc::MAP_FIXED) {
        return Some(error(libc::ENOMEM));
    }
    // What is wrong with a file the kernel says first.
    let answer = raw::syscall(table::MMAP, args);
    if failed(answer) {
        return Some(Done::With(answer));
    }
    let _gone = own!(libc::SYS_munmap, answer, bytes);
    Some(error(libc::ENOMEM))
}

/// mmap of libc's own where the kernel has the program's limit, as it could not get a higher one:
/// to it what the heap reserved counts, too. Where the limit has room for a stack and the kernel
/// has not, that is said once. The thread, or the program to be started, is refused without a
/// word else.
pub(crate) fn map_for_libc(args: [usize; 6]) -> Done {
    static SAID: AtomicBool = AtomicBool::new(false);
    let [_, bytes, access, flags, ..] = args;
    let is_stack = mappings::has(flags, libc::MAP_STACK);
    let Some(heap) = ghost::heap().filter(|_| is_stack && any() && !lifted::is_any()) else {
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
