//! Calls that are made for other processes, on this one: advice about its memory
//! (process_madvise), and copies of it (process_vm_readv and its kin, pread and pwrite of
//! `/proc/self/mem`).

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::doorway::is_confined;

use crate::guarded::{self, Touch};
use crate::raw::{self, Answer, call, failed, own};
use crate::{descriptors, ghost};

use super::buffers::{VECTORS_MAX, Vector, Vectors};
use super::data::LONGEST;
use super::{Done, error, memory};

/// process_madvise, pread64 and pwrite64, as far as they are about this process's own ghost
/// memory. `None`: they are not.
pub(super) fn asked(number: usize, args: [usize; 6]) -> Touch<Option<Done>> {
    if number == 440 {
        advised(args)
    } else {
        Ok(by_its_file(number == 17, args))
    }
}

/// pread64, pwrite64 of `/proc/self/mem`: the kernel brings nothing in for it.
fn by_its_file(reading: bool, args: [usize; 6]) -> Option<Done> {
    let [file, base, bytes, address, ..] = args;
    let is_it = bytes > 0
        && ghost::is_ghost(address)
        && !is_confined()
        && descriptors::is_in_proc(file, &[b"/mem"])
        && is_open_for(file, reading);
    if !is_it {
        return None;
    }
    let [ours, theirs] = [base, address].map(|base| Vector { base, bytes });
    let one = |vector: &Vector| Vectors::new(core::ptr::from_ref(vector) as usize, 1);
    // What cannot be had is the kernel's to refuse, or to force.
    walked(reading, one(&ours), one(&theirs)).ok()
}

/// Whether a descriptor can be read, or written to.
fn is_open_for(file: usize, reading: bool) -> bool {
    let flags = own!(libc::SYS_fcntl, file, libc::F_GETFL);
    let mode = flags as i32 & libc::O_ACCMODE;
    flags >= 0 && (mode == libc::O_RDWR || (mode == libc::O_RDONLY) == reading)
}

/// process_madvise of this process's own memory (since 6.13, any advice): one madvise(2)
/// after the other, as the kernel does it. `None`: it is another's, or none of it is ghost
/// memory, or the kernel refuses it.
fn advised(args: [usize; 6]) -> Touch<Option<Done>> {
    let [process, list, count, advice, flags, _] = args;
    let vectors = Vectors::new(list, count);
    let is_one = flags as u32 == 0 && count <= VECTORS_MAX;
    if !is_one || !any_in_region(vectors)? {
        return Ok(None);
    }
    match is_this_process(process) {
        Some(true) => {}
        Some(false) => return Ok(None),
        None => return Ok(Some(error(libc::EPERM))),
    }
    let (mut answer, mut done) = (0, 0);
    for index in 0..count {
        let vector = vectors.get(index)?;
        let part = [vector.base, vector.bytes, advice, 0, 0, 0];
        answer = match memory::advised(28, part) {
            Done::With(answer) => answer,
            Done::Asis => raw::syscall(28, part),
        };
        if failed(answer) {
            break;
        }
        done += vector.bytes;
    }
    let answer = if done > 0 { done as Answer } else { answer };
    Ok(Some(Done::With(answer)))
}

fn any_in_region(vectors: Vectors) -> Touch<bool> {
    for index in 0..vectors.count() {
        let vector = vectors.get(index)?;
        if ghost::region_owner(vector.base, vector.bytes.max(1)).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a pidfd is this process's; `None`: a filter of the program's may forbid to ask.
fn is_this_process(descriptor: usize) -> Option<bool> {
    // PIDFD_SELF_THREAD, and PIDFD_SELF_THREAD_GROUP.
    if matches!(descriptor as i32, -10_000 | -10_001) {
        return Some(true);
    }
    if is_confined() {
        return None;
    }
    // PIDFD_GET_INFO (linux/pidfd.h), since 6.13: its first version has 64 bytes, and the
    // process's number behind the mask, the group's and the thread's.
    const GET_INFO: usize = 0xc040_ff0b;
    const PROCESS_AT: usize = 5;
    let mut info = [0_u32; 16];
    let asked = call!(libc::SYS_ioctl, descriptor, GET_INFO, info.as_mut_ptr());
    Some(!failed(asked) && info[PROCESS_AT] as usize == own!(libc::SYS_getpid) as usize)
}

/// Whether a number is this process's, or that of one of its threads.
fn is_own_thread(number: usize) -> bool {
    let process = own!(libc::SYS_getpid);
    // A filter of the program's may forbid to ask.
    let is_other = || !is_confined() && !failed(call!(libc::SYS_tgkill, process, number, 0));
    process as usize == number || own!(libc::SYS_gettid) as usize == number || is_other()
}

/// process_vm_readv, process_vm_writev of this process's own memory: loads and stores, which
/// end where the kernel's would. `None`: it is another's, or not ghost memory, or refused.
pub(super) fn copied(number: usize, args: [usize; 6]) -> Touch<Option<Done>> {
    let [process, list, count, their_list, their_count, flags] = args;
    if count > VECTORS_MAX || their_count > VECTORS_MAX || flags != 0 {
        return Ok(None);
    }
    let theirs = Vectors::new(their_list, their_count);
    if !theirs.any_ghost()? || !is_own_thread(process) {
        return Ok(None);
    }
    let ours = Vectors::new(list, count);
    if let Some(bad) = ours.refused()? {
        let bad = (&raw const bad) as usize;
        let answer = raw::syscall(number, [process, bad, 2, their_list, their_count, flags]);
        return Ok(Some(Done::With(answer)));
    }
    // Of theirs only a length is refused: where nothing is, the copy ends.
    for index in 0..their_count {
        if theirs.get(index)?.bytes > isize::MAX as usize {
            return Ok(Some(error(libc::EINVAL)));
        }
    }
    walked(number == 310, ours, theirs).map(Some)
}

/// Copies from one list of buffers to another, page by page.
fn walked(reading: bool, ours: Vectors, theirs: Vectors) -> Touch<Done> {
    let (mut ours, mut theirs) = (Walk::of(ours), Walk::of(theirs));
    let mut done = 0;
    while let (Some(our), Some(their)) = (ours.next()?, theirs.next()?) {
        // On one page each: it is there, or it is not.
        let part = our.bytes.min(their.bytes).min(LONGEST - done);
        let part = [our.base, their.base]
            .iter()
            .fold(part, |part, base| part.min(PAGE_SIZE - base % PAGE_SIZE));
        let (to, from) = if reading {
            (our.base, their.base)
        } else {
            (their.base, our.base)
        };
        match guarded::copy(to, from, part) {
            Err(_) if done > 0 => break,
            copied => copied?,
        }
        done += part;
        if done == LONGEST {
            break;
        }
        ours.skip += part;
        theirs.skip += part;
    }
    Ok(Done::With(done as Answer))
}

/// A way through a list of buffers.
struct Walk {
    vectors: Vectors,
    index: usize,
    /// Bytes of the buffer at `index` that are done.
    skip: usize,
}

impl Walk {
    const fn of(vectors: Vectors) -> Self {
        Self {
            vectors,
            index: 0,
            skip: 0,
        }
    }

    /// What is left of the first buffer that has anything left.
    fn next(&mut self) -> Touch<Option<Vector>> {
        while self.index < self.vectors.count() {
            let vector = self.vectors.get(self.index)?;
            if self.skip < vector.bytes {
                return Ok(Some(Vector {
                    base: vector.base.wrapping_add(self.skip),
                    bytes: vector.bytes - self.skip,
                }));
            }
            (self.index, self.skip) = (self.index + 1, 0);
        }
        Ok(None)
    }
}
