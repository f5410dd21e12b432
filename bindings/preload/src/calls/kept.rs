//! Calls after which the kernel, or a device, goes on using the program's memory: the pages
//! become ordinary memory before, with what they hold and what threads store meanwhile. Those
//! that are held already (locked, protected, stacks) are held for this too, and stay what
//! they are.
//!
//! What is kept is told by the address of a structure, and so by a request's number. That is
//! a hint: where it was another driver's, pages are ordinary memory that need not be, and
//! nothing else has changed.
//!
//! | call | who goes on |
//! |---|---|
//! | `prctl`: `PR_SET_MM`, the arguments and the environment | whoever reads them in /proc |
//! | `ioctl`: `UFFDIO_REGISTER` | the program's own handler of faults, which answers for pages that are not there |
//! | `ioctl`: `KVM_SET_USER_MEMORY_REGION` and `2` | a virtual machine |
//! | `ioctl`: `VFIO_IOMMU_MAP_DMA` | a device |
//! | `setsockopt`: `XDP_UMEM_REG` | a network card |
//! | `io_uring_register`: buffers, others in their place, and rings of them | what is submitted later |
//! | `io_submit`: reads | the disk |
//!
//! Where a disk reads to, pages are held while there is room: each of a program's buffers
//! would be a mapping of its own.
//!
//! The last two are made at all only where the kernel waits for pages.

use ghostmem::Heap;
use ghostmem_os::PAGE_SIZE;

use crate::guarded::load;
use crate::holds::{self, EVERY, Reason};
use crate::mappings::{self, OPEN};
use crate::{foreign, ghost};

use super::{Done, error};

/// A request of ioctl(2) whose structure names memory: offsets of its address and length.
struct Request {
    number: usize,
    address: usize,
    bytes: usize,
}

const REQUESTS: [Request; 4] = [
    // UFFDIO_REGISTER (linux/userfaultfd.h).
    Request {
        number: 0xc020_aa00,
        address: 0,
        bytes: 8,
    },
    // KVM_SET_USER_MEMORY_REGION and KVM_SET_USER_MEMORY_REGION2 (linux/kvm.h).
    Request {
        number: 0x4020_ae46,
        address: 24,
        bytes: 16,
    },
    Request {
        number: 0x40a0_ae49,
        address: 24,
        bytes: 16,
    },
    // VFIO_IOMMU_MAP_DMA (linux/vfio.h).
    Request {
        number: 0x3b71,
        address: 8,
        bytes: 24,
    },
];

/// `SOL_XDP` and `XDP_UMEM_REG` (linux/if_xdp.h).
const SOL_XDP: usize = 283;
const UMEM_REG: usize = 4;
/// `IORING_REGISTER_BUFFERS` and `IORING_REGISTER_BUFFERS2` (linux/io_uring.h).
const BUFFERS: usize = 0;
const BUFFERS2: usize = 15;
/// `IORING_REGISTER_BUFFERS_UPDATE`.
const UPDATE: usize = 16;
/// `IORING_REGISTER_USE_REGISTERED_RING`: the ring's number is not a descriptor's.
const REGISTERED_RING: usize = 1 << 31;
/// `IORING_REGISTER_PBUF_RING`: so many entries of 16 bytes.
const RING: usize = 22;
/// `IOCB_CMD_PREAD` and `IOCB_CMD_PREADV` (linux/aio_abi.h), and where a request says what
/// it is, and where to.
const PREAD: u16 = 0;
const PREADV: u16 = 7;
const COMMAND_AT: usize = 16;
const BUFFER_AT: usize = 24;
const BYTES_AT: usize = 32;

/// Most buffers, or requests, that one call is looked at for (`IORING_MAX_REG_BUFFERS`).
const MOST: usize = 1 << 14;

/// What is done with the pages that are named.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// They become ordinary memory.
    Moved,
    /// They are held, while there is room.
    Held,
}

/// Sees to the memory that a call's taker keeps; `Some`: it cannot be had, and the call is
/// not made. What cannot be read is the kernel's to refuse.
pub(super) fn settle(number: usize, args: [usize; 6]) -> Option<Done> {
    let [_, second, third, fourth, fifth, _] = args;
    // What a ring is told is one number of 32 bits.
    let told = second & 0xffff_ffff & !REGISTERED_RING;
    let is_settled = match number {
        16 => REQUESTS
            .iter()
            .filter(|request| request.number == second & 0xffff_ffff)
            .all(|request| named(third, request.address, request.bytes, Way::Moved)),
        54 if (second, third) == (SOL_XDP, UMEM_REG) && fifth >= 16 => {
            named(fourth, 0, 8, Way::Moved)
        }
        427 if told == BUFFERS => buffers(third, fourth, Way::Moved),
        427 if told == BUFFERS2 => pair::<u32>(third, 16, 0)
            .is_none_or(|(array, count)| buffers(array, count as usize, Way::Moved)),
        427 if told == UPDATE => pair::<u32>(third, 8, 24)
            .is_none_or(|(array, count)| buffers(array, count as usize, Way::Moved)),
        427 if told == RING => pair::<u32>(third, 0, 8)
            .is_none_or(|(address, count)| stays(address, count as usize * 16, Way::Moved)),
        209 => (0..second.min(MOST)).all(|index| submitted(third.wrapping_add(index * 8))),
        _ => true,
    };
    (!is_settled).then_some(error(libc::ENOMEM))
}

/// The memory that a structure names.
fn named(structure: usize, address_at: usize, bytes_at: usize, way: Way) -> bool {
    pair(structure, address_at, bytes_at).is_none_or(|(address, bytes)| stays(address, bytes, way))
}

/// The address and the number that a structure has at these offsets; `None`: it cannot be
/// read.
fn pair<N: Copy>(structure: usize, address_at: usize, number_at: usize) -> Option<(usize, N)> {
    let address = load(structure.wrapping_add(address_at)).ok()?;
    let number = load(structure.wrapping_add(number_at)).ok()?;
    Some((address, number))
}

/// An array of `struct iovec`.
fn buffers(array: usize, count: usize, way: Way) -> bool {
    (0..count.min(MOST)).all(|index| named(array.wrapping_add(index * 16), 0, 8, way))
}

/// A request of io_submit(2), by the place that points to it.
fn submitted(place: usize) -> bool {
    let Ok(request) = load::<usize>(place) else {
        return true;
    };
    match load(request.wrapping_add(COMMAND_AT)) {
        Ok(PREAD) => named(request, BUFFER_AT, BYTES_AT, Way::Held),
        Ok(PREADV) => pair(request, BUFFER_AT, BYTES_AT)
            .is_none_or(|(array, count)| buffers(array, count, Way::Held)),
        _ => true,
    }
}

/// Sees to it that memory stays in the pages that it has, as far as it is ghost memory.
/// Pages of small objects stay the heap's, and are held.
pub(super) fn stays(address: usize, bytes: usize, way: Way) -> bool {
    let start = address & !(PAGE_SIZE - 1);
    let Some(end) = address
        .checked_add(bytes)
        .and_then(|end| end.checked_next_multiple_of(PAGE_SIZE))
    else {
        return true;
    };
    let Some(heap) = ghost::region_owner(start, end - start).filter(|_| bytes > 0) else {
        return true;
    };
    let mut at = start;
    while at < end {
        let (away, alike) = heap.away_run(at, end - at).unwrap_or((true, PAGE_SIZE));
        let until = at + alike.max(PAGE_SIZE);
        // What is no block's, or has no access, is refused by whoever asks for it.
        let pieces = mappings::open_pieces(heap, at, until).filter(|_| !away);
        if !pieces
            .into_iter()
            .all(|piece| piece_stays(heap, piece, way))
        {
            return false;
        }
        at = until;
    }
    true
}

/// As [`stays`], for pages of one kind.
fn piece_stays(heap: &Heap, (start, end): (usize, usize), way: Way) -> bool {
    let hold = |from, to| from == to || holds::hold(heap, Reason::Kernel, from, to - from, 0);
    let mut at = start;
    while at < end {
        let (from, to) = next_held(at, end).unwrap_or((end, end));
        let held = way == Way::Held && hold(at, from);
        if at < from && !held {
            // Both ways can be gone in part.
            foreign::note_more();
            let left = foreign::let_go(heap, at, from - at, OPEN).end;
            if !hold(left, from) {
                return false;
            }
        }
        if !hold(from, to) {
            return false;
        }
        at = to;
    }
    true
}

/// The next pages that are held already, for a reason that may end before this one.
fn next_held(start: usize, end: usize) -> Option<(usize, usize)> {
    EVERY
        .into_iter()
        .filter_map(|reason| holds::next_for(reason, start, end))
        .min()
}
