//! Calls whose structures have no size that is known for sure, or point on:
//! drivers' requests, options, filters, register sets.
//!
//! Their pages are brought in and pinned for the call, in place, so the kernel
//! reads and writes what the program has and nothing else. What a request's
//! number says of its structure is no more than a hint (it names the head of
//! what may be longer), so as much as a block has is held, up to a bound.
//!
//! A structure that may point on is searched: a word of it that is a ghost
//! address is taken for a pointer, and what it points to is held as well. A
//! number that only looks like one costs a few resident pages for the call.

use core::mem::MaybeUninit;

use ghostmem::{Error, Heap, Pinned};
use ghostmem_os::{PAGE_SIZE, doorway};

use crate::ghost;
use crate::guarded::{self, Touch};
use crate::holds::{self, Reason};
use crate::raw::{self, failed, own};
use crate::thread::{self, EngineScope, Undisturbed};

use super::{Done, error};

/// Ranges held for one call. Structures with more pointers are arrays, whose
/// targets lie side by side more often than not.
const RANGES_MAX: usize = 16;
/// How far structures that point on are followed.
const DEPTH: usize = 2;
/// Words of a structure that are searched.
const WORDS: usize = 64;
/// The most of one block that is held at first, and the least. A call that finds it
/// too little (`EFAULT`) is made again with a quarter of the limit.
const MOST_BYTES: usize = 1 << 20;
const LEAST_BYTES: usize = 64 << 10;
/// Small objects are at most this long.
const SMALL_BYTES: usize = 32 << 10;
/// No pointer is below this (`vm.mmap_min_addr`).
const LOWEST: usize = 64 << 10;

/// What is held for one call.
struct Ranges {
    heap: &'static Heap,
    pins: [MaybeUninit<Pinned>; RANGES_MAX],
    bounds: [(usize, usize); RANGES_MAX],
    count: usize,
    /// How much is held of one block; its bytes, 0 before the first one; and
    /// whether a block had more.
    share: Share,
    most: usize,
    cut: bool,
}

/// How much of the limit is held of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Usual,
    /// For a call that the usual one was too little for.
    Large,
}

impl Share {
    fn of(self, limit: usize) -> usize {
        match self {
            Self::Usual => ((limit / 16) & !(PAGE_SIZE - 1)).clamp(LEAST_BYTES, MOST_BYTES),
            Self::Large => ((limit / 4) & !(PAGE_SIZE - 1)).max(LEAST_BYTES),
        }
    }
}

/// The limit has no room for what a call needs.
struct NoRoom;

/// The first words of a structure, as the program gave it: a call that failed half-way may
/// have written to it.
struct Words {
    address: usize,
    words: [usize; WORDS],
    count: usize,
}

impl Words {
    fn at(address: usize) -> Self {
        let mut kept = Self {
            address,
            words: [0; WORDS],
            count: 0,
        };
        for place in &mut kept.words {
            let at = address.wrapping_add(kept.count * size_of::<usize>());
            match guarded::load(at) {
                Ok(word) if address >= LOWEST => *place = word,
                _ => break,
            }
            kept.count += 1;
        }
        kept
    }

    /// Puts back what is not as it was of the first `bytes`: what the call may have written.
    /// Others may write behind that.
    fn restore(&self, bytes: usize) {
        const WORD: usize = size_of::<usize>();
        let bytes = bytes.min(self.count * WORD);
        for (index, &word) in self.words[..bytes.div_ceil(WORD)].iter().enumerate() {
            let at = self.address.wrapping_add(index * WORD);
            let part = (bytes - index * WORD).min(WORD);
            if guarded::load(at) != Ok(word) {
                let _as_far_as_it_goes = guarded::copy(at, (&raw const word) as usize, part);
            }
        }
    }
}

impl Ranges {
    fn new(heap: &'static Heap, share: Share) -> Self {
        Self {
            heap,
            share,
            most: 0,
            cut: false,
            pins: [const { MaybeUninit::uninit() }; RANGES_MAX],
            bounds: [(0, 0); RANGES_MAX],
            count: 0,
        }
    }

    fn has(&self, address: usize) -> bool {
        let bounds = self.bounds.iter().take(self.count);
        bounds
            .clone()
            .any(|&(start, end)| (start..end).contains(&address))
    }

    /// How many words of held memory are at an address, up to [`WORDS`].
    fn words_at(&self, address: usize) -> usize {
        let bounds = self.bounds.iter().take(self.count);
        let end = bounds
            .filter(|&&(start, end)| (start..end).contains(&address))
            .map(|&(_, end)| end)
            .max();
        end.map_or(0, |end| ((end - address) / size_of::<usize>()).min(WORDS))
    }

    /// Holds what the block around an address has from there on.
    fn hold(&mut self, address: usize) -> Result<(), NoRoom> {
        if self.has(address) || self.count == RANGES_MAX {
            return Ok(());
        }
        let start = address & !(PAGE_SIZE - 1);
        if self.most == 0 {
            // Not asked before it is needed: most calls hold nothing.
            self.most = self.share.of(self.heap.stats().resident_limit_bytes);
        }
        let mut bytes = match self.heap.pages_around(address) {
            Some((block, bytes)) => {
                let behind = block + bytes - start;
                self.cut |= behind > self.most;
                behind.min(self.most)
            }
            None => SMALL_BYTES + PAGE_SIZE,
        };
        // What is protected is in memory, and the kernel is to find it protected.
        while bytes > 0 && holds::any_for(Reason::Protected, start, bytes) {
            bytes = (bytes / 2) & !(PAGE_SIZE - 1);
        }
        // A small object's neighbours may not be there, and the limit may have
        // little room: as much as can be had.
        while bytes > 0 {
            let range = core::ptr::slice_from_raw_parts(start as *const u8, bytes);
            match self.heap.pin(range) {
                Ok(pinned) => {
                    self.pins[self.count].write(pinned);
                    self.bounds[self.count] = (start, start + bytes);
                    self.count += 1;
                    return Ok(());
                }
                Err(Error::TooManyPinned) if bytes == PAGE_SIZE => return Err(NoRoom),
                Err(_) if bytes <= SMALL_BYTES + PAGE_SIZE => bytes -= PAGE_SIZE,
                Err(_) => bytes = (bytes / 2) & !(PAGE_SIZE - 1),
            }
        }
        // No page of a block: the kernel says what it thinks of that.
        Ok(())
    }

    /// Holds what the words of a structure point to.
    fn search(&mut self, address: usize, depth: usize) -> Result<(), NoRoom> {
        if address < LOWEST || depth == 0 {
            return Ok(());
        }
        // Of ghost memory, what is held is known to be there; an address that only
        // looks like one may be of no block, which no monitor forgives.
        let words = if ghost::is_ghost(address) {
            self.words_at(address)
        } else {
            WORDS
        };
        for index in 0..words {
            let Ok(word) = guarded::load::<usize>(address.wrapping_add(index * 8)) else {
                return Ok(());
            };
            if ghost::is_ghost(word) && !self.has(word) {
                self.hold(word)?;
                self.search(word, depth - 1)?;
            }
        }
        Ok(())
    }
}

impl Drop for Ranges {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        // The last pin of what was freed meanwhile frees it.
        let _inside = Undisturbed::new(thread::current());
        for pin in &mut self.pins[..self.count] {
            // SAFETY: the first `count` were written, and are dropped once.
            unsafe { pin.assume_init_drop() };
        }
    }
}

/// Makes a call with the pages of these arguments held in place.
pub(super) fn whole(number: usize, args: [usize; 6], arguments: &[usize]) -> Touch<Done> {
    held(number, args, arguments, 0)
}

/// The same, with what their structures point to.
pub(super) fn scanned(number: usize, args: [usize; 6], arguments: &[usize]) -> Touch<Done> {
    held(number, args, arguments, DEPTH)
}

fn held(number: usize, args: [usize; 6], arguments: &[usize], depth: usize) -> Touch<Done> {
    let Some(heap) = ghost::heap() else {
        return Ok(Done::Asis);
    };
    let done = with_held(heap, Share::Usual, number, args, arguments, depth);
    match done {
        // More than was held is used.
        Held {
            done: Done::With(answer),
            cut: Some(given),
        } if answer == -(libc::EFAULT as isize) => {
            given.restore(structure_bytes(number, args));
            Ok(with_held(heap, Share::Large, number, args, arguments, depth).done)
        }
        held => Ok(held.done),
    }
}

/// Bytes of the structure that a call says it is given, and writes to.
const fn structure_bytes(number: usize, args: [usize; 6]) -> usize {
    match number {
        // ioctl: the request says it, if anything does (asm-generic/ioctl.h).
        16 => args[1] >> 16 & 0x3fff,
        // bpf
        321 => args[2],
        _ => 0,
    }
}

/// What became of a call, and what its structure was where a block had more than was held
/// of it.
struct Held {
    done: Done,
    cut: Option<Words>,
}

fn with_held(
    heap: &'static Heap,
    share: Share,
    number: usize,
    args: [usize; 6],
    arguments: &[usize],
    depth: usize,
) -> Held {
    let mut ranges = Ranges::new(heap, share);
    let thread = thread::current();
    for &argument in arguments {
        let address = args[argument];
        let _inside = EngineScope::new(thread);
        let held = if ghost::is_ghost(address) {
            ranges.hold(address)
        } else {
            Ok(())
        };
        if held.and_then(|()| ranges.search(address, depth)).is_err() {
            return Held {
                done: error(libc::ENOMEM),
                cut: None,
            };
        }
    }
    if ranges.count == 0 {
        return Held {
            done: Done::Asis,
            cut: None,
        };
    }
    let is_cut = ranges.cut && ranges.share == Share::Usual;
    let structure = arguments.first().filter(|_| is_cut);
    let cut = structure.map(|&argument| Words::at(args[argument]));
    let answer = raw::syscall(number, args);
    Held {
        done: Done::With(answer),
        cut,
    }
}

/// Sees to it that the kernel finds memory whenever it likes, until it is freed. `false`: the
/// limit has no room.
pub(super) fn stays(address: usize, bytes: usize) -> bool {
    let heap = ghost::owner(address);
    let start = address & !(PAGE_SIZE - 1);
    let end = (address + bytes).next_multiple_of(PAGE_SIZE);
    heap.is_none_or(|heap| holds::hold(heap, Reason::Kernel, start, end - start, 0))
}

/// set_tid_address, set_robust_list, rseq: the kernel uses the memory whenever
/// it likes, from now on.
pub(super) fn for_good(number: usize, args: [usize; 6]) -> Touch<Done> {
    let address = args[0];
    if !ghost::is_ghost(address) {
        return Ok(Done::Asis);
    }
    let bytes = match number {
        RSEQ => args[1].min(PAGE_SIZE),
        273 => 24,
        _ => 4,
    };
    if !stays(address, bytes) {
        return Ok(error(libc::ENOMEM));
    }
    let answer = raw::syscall(number, args);
    if number == RSEQ && !failed(answer) {
        // Not what ends it, which has a flag.
        let told = if args[2] == 0 { args } else { [0; 6] };
        thread::current().rseq.set([told[0], told[1], told[3]]);
    }
    Ok(Done::With(answer))
}

/// rseq(2).
const RSEQ: usize = 334;

/// The kernel writes to a thread's area of rseq(2) by itself, whenever another thread had
/// the processor. Where that is ghost memory it does not, while this is there.
pub(super) struct WithoutRseq([usize; 3]);

impl WithoutRseq {
    pub(super) fn new() -> Self {
        const UNREGISTER: usize = 1;
        let [area, bytes, signature] = thread::current().rseq.get();
        // A filter of the program's may forbid it.
        let ended = area != 0
            && !doorway::is_confined()
            && own!(RSEQ, area, bytes, UNREGISTER, signature) == 0;
        Self(if ended {
            [area, bytes, signature]
        } else {
            [0; 3]
        })
    }
}

impl Drop for WithoutRseq {
    fn drop(&mut self) {
        let [area, bytes, signature] = self.0;
        if area != 0 {
            let _as_before = own!(RSEQ, area, bytes, 0, signature);
        }
    }
}
