//! The engine's file descriptors, which the program must not close.
//!
//! Daemons close everything they did not open, and so does every careful
//! child between fork and exec. To the program ours look as if they were not
//! open: closing, asking about, using, waiting for, sending or duplicating one fails with
//! EBADF, poll(2) says so (`POLLNVAL`), closing a range goes around them, and /proc/self/fd
//! does not list them.

use std::io::Write;

use ghostmem::Heap;
use ghostmem_os::descriptor;

use crate::bounce::{self, Lease};
use crate::calls::{Done, VECTORS_MAX, error, table, with_copies};
use crate::guarded::{self, Touch, load, store};
use crate::raw::{self, Answer, call, failed, own};
use crate::{report, threads};

/// Numbers looked after; ours are below it, too.
pub(crate) const NUMBERS: usize = table::OUR_FILES.end as usize;

/// Whether a descriptor is the engine's.
pub(crate) fn is_ours(fd: usize) -> bool {
    i32::try_from(fd).is_ok_and(|number| {
        report::owns(number) || Heap::owns_descriptor(number) && !is_seen_as_programs(fd)
    })
}

/// Whether a descriptor is the program's, by what it is. On a table of descriptors that is, or
/// was, another process's, too (clone(2) with `CLONE_FILES` alone), that process's engine may have
/// any of our numbers, and only what is open there can tell.
fn is_seen_as_programs(fd: usize) -> bool {
    if !table::OUR_FILES.contains(&(fd as u32)) || !descriptor::is_shared() {
        return false;
    }
    // SAFETY: all zero is a valid stat structure.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // A number at which nothing is open is free to take.
    if failed(own!(libc::SYS_fstat, fd, &raw mut stat)) {
        return true;
    }
    match stat.st_mode & libc::S_IFMT {
        // The engine watches for children's ends by one, which waits for nothing and is closed
        // by programs that are executed.
        libc::S_IFIFO => {
            let [close, waits] =
                [libc::F_GETFD, libc::F_GETFL].map(|ask| own!(libc::SYS_fcntl, fd, ask));
            close & libc::FD_CLOEXEC as Answer == 0 || waits & libc::O_NONBLOCK as Answer == 0
        }
        libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFDIR => true,
        _ => {
            let mut name = [0_u8; 256];
            // What has no name that can be read may be anything.
            name_of(fd, &mut name).is_some_and(|name| !is_named_as_ours(name))
        }
    }
}

/// Whether the engine has files of such a name: userfaultfds, memory files, files without a
/// name, and what tells of the machine.
fn is_named_as_ours(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 4] = [
        b"anon_inode:[userfaultfd]",
        b"/memfd:ghostmem",
        b"/proc/",
        b"/sys/",
    ];
    NAMES.iter().any(|start| name.starts_with(start)) || name.ends_with(b" (deleted)")
}

/// What /proc says that is open at a number, if it has room.
fn name_of(fd: usize, room: &mut [u8]) -> Option<&[u8]> {
    // Room for any number, and a zero after it.
    let mut path = [0_u8; 40];
    let _fits = write!(&mut path[..], "/proc/self/fd/{fd}");
    let (place, most) = (room.as_mut_ptr(), room.len());
    let answer = own!(libc::SYS_readlink, path.as_ptr(), place, most);
    usize::try_from(answer)
        .ok()
        .filter(|&bytes| bytes < most)
        .and_then(|bytes| room.get(..bytes))
}

/// A call about descriptors by their numbers; `None` for any other, and for one of a number
/// that is the program's.
pub(crate) fn by_number(number: usize, args: [usize; 6]) -> Option<Done> {
    let done = match number {
        3 => close(args),
        33 | 292 => replace(args),
        436 => close_range(args),
        // mmap of a file
        9 if args[3] & libc::MAP_ANONYMOUS as usize == 0 && is_ours(args[4]) => error(libc::EBADF),
        46 if is_ours(args[0]) || sends_ours(args[1]) => error(libc::EBADF),
        _ if table::files(number).iter().any(|&file| is_ours(args[file])) => error(libc::EBADF),
        _ => Done::Asis,
    };
    (done != Done::Asis).then_some(done)
}

/// Whether a message is to carry one of ours to another process (`SCM_RIGHTS`, unix(7)). What
/// cannot be read is the kernel's to refuse.
fn sends_ours(header: usize) -> bool {
    carries_ours(header) == Ok(true)
}

fn carries_ours(header: usize) -> Touch<bool> {
    const CONTROL_AT: usize = core::mem::offset_of!(libc::msghdr, msg_control);
    const HEAD: usize = size_of::<libc::cmsghdr>();
    /// The kernel takes no more of them (`SCM_MAX_FD`).
    const FILES_MAX: usize = 253;
    if header == 0 {
        return Ok(false);
    }
    let [control, bytes]: [usize; 2] = load(header.wrapping_add(CONTROL_AT))?;
    if control == 0 || bytes > bounce::most_bytes() {
        return Ok(false);
    }
    let mut at = 0_usize;
    while at + HEAD <= bytes {
        let start = control.wrapping_add(at);
        let [length, kind]: [usize; 2] = load(start)?;
        if length < HEAD || length > bytes - at {
            break;
        }
        let (level, kind) = (kind as i32, (kind >> 32) as i32);
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            let files = (length - HEAD) / size_of::<i32>();
            for index in 0..files.min(FILES_MAX) {
                let file = load::<i32>(start.wrapping_add(HEAD + index * size_of::<i32>()))?;
                if is_ours(file as usize) {
                    return Ok(true);
                }
            }
        }
        at += length.next_multiple_of(size_of::<usize>());
    }
    Ok(false)
}

/// sendmmsg: how many messages there are before the first that is to carry one of ours.
pub(crate) fn sent_before_ours(list: usize, count: usize) -> usize {
    const STRIDE: usize = size_of::<libc::mmsghdr>();
    let first = (0..count.min(VECTORS_MAX)).find(|index| sends_ours(list + index * STRIDE));
    first.unwrap_or(count)
}

/// close.
fn close(args: [usize; 6]) -> Done {
    if is_ours(args[0]) {
        error(libc::EBADF)
    } else {
        Done::Asis
    }
}

/// dup2, dup3: of one of ours, or onto one, unless that is only kept in reserve.
fn replace(args: [usize; 6]) -> Done {
    if is_ours(args[0]) {
        return error(libc::EBADF);
    }
    let ceded = i32::try_from(args[1]).is_ok_and(Heap::cede_descriptor);
    if !ceded && is_ours(args[1]) {
        error(libc::EBADF)
    } else {
        Done::Asis
    }
}

/// poll or ppoll of a list in which ours are named: it is made on a copy, where no number has
/// their place. `None`: there are none.
pub(crate) fn polled(
    list: usize,
    count: usize,
    make: impl FnOnce(usize) -> Answer,
) -> Touch<Option<Done>> {
    const STRIDE: usize = size_of::<libc::pollfd>();
    const EVENTS_AT: usize = core::mem::offset_of!(libc::pollfd, revents);
    /// No process may have so many.
    const NOBODYS: i32 = i32::MAX;
    // An `unsigned int` to the kernel.
    let count = count as u32 as usize;
    let bytes = count.saturating_mul(STRIDE);
    let place_of = |index: usize| list.wrapping_add(index * STRIDE);
    // What cannot be read, or is longer, is the kernel's to refuse.
    let ours_at = |index: usize| load::<i32>(place_of(index)).map(|fd| is_ours(fd as usize));
    let mut found = false;
    for index in 0..count.min(bounce::most_bytes() / STRIDE) {
        match ours_at(index) {
            Ok(is_ours) => found |= is_ours,
            Err(_) => return Ok(None),
        }
    }
    if !found || bytes > bounce::most_bytes() {
        return Ok(None);
    }
    let Some(lease) = Lease::new(bytes) else {
        return Ok(Some(error(libc::ENOMEM)));
    };
    guarded::copy(lease.address(), list, bytes)?;
    for index in 0..count {
        let at = lease.address() + index * STRIDE;
        if is_ours(load::<i32>(at)? as usize) {
            store(at, NOBODYS)?;
        }
    }
    let answer = make(lease.address());
    if !failed(answer) || answer == -(libc::EINTR as Answer) {
        for at in (EVENTS_AT..bytes).step_by(STRIDE) {
            guarded::copy(list + at, lease.address() + at, size_of::<i16>())?;
        }
    }
    Ok(Some(Done::With(answer)))
}

/// close_range: the pieces between ours.
fn close_range(args: [usize; 6]) -> Done {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    let [first, last, mut flags, ..] = args;
    let (first, last) = (first & 0xffff_ffff, last & 0xffff_ffff);
    if first > last || !(first..=last.min(NUMBERS - 1)).any(is_ours) {
        return Done::Asis;
    }
    let mut answer: Answer = 0;
    let mut start = first;
    while start <= last && !failed(answer) {
        if is_ours(start) {
            start += 1;
            continue;
        }
        let mut end = start;
        while end < last && end + 1 < NUMBERS && !is_ours(end + 1) {
            end += 1;
        }
        if end + 1 >= NUMBERS {
            end = last;
        }
        answer = raw::syscall(436, [start, end, flags, 0, 0, 0]);
        flags &= !CLOSE_RANGE_UNSHARE;
        start = end + 1;
    }
    Done::With(answer)
}

/// Whether a number that /proc lists is that of something of ours.
type IsOurs = fn(usize) -> bool;

/// Longest entry of a directory, bytes: 19 before a name of 255 and its NUL,
/// rounded up.
const ENTRY_BYTES: usize = 280;

/// getdents, getdents64: leaves ours out of a list of this process's descriptors, and of its
/// threads.
pub(crate) fn list(number: usize, args: [usize; 6]) -> Touch<Done> {
    loop {
        let pointers = table::plain(number).unwrap_or(&[]);
        let done = if crate::start::kernel_is_blind() {
            with_copies(number, args, pointers)?
        } else {
            Done::Asis
        };
        let answer = match done {
            Done::Asis => raw::syscall(number, args),
            Done::With(answer) => answer,
        };
        let Some(bytes) = usize::try_from(answer).ok().filter(|&bytes| bytes > 0) else {
            return Ok(Done::With(answer));
        };
        // Where the name begins; linux_dirent64 has a type before it.
        let name_at = if number == 217 { 19 } else { 18 };
        let entries = Entries {
            start: args[1],
            bytes,
            name_at,
        };
        let lists: [(IsOurs, &[&[u8]]); 2] = [
            (is_ours, &[b"/fd", b"/fdinfo"]),
            (threads::is_engines, &[b"/task"]),
        ];
        let mut kept = bytes;
        for (is_ours, names) in lists {
            if entries.any(is_ours)? && is_in_proc(args[0], names) {
                kept = entries.without(is_ours)?;
                break;
            }
        }
        // Nothing left is not the end of the list.
        if kept > 0 {
            return Ok(Done::With(kept as Answer));
        }
    }
}

/// Directory entries as the kernel packs them (getdents(2)).
struct Entries {
    start: usize,
    bytes: usize,
    name_at: usize,
}

impl Entries {
    /// Offset of the entry after the one at `offset`; the end if it is damaged.
    fn next(&self, offset: usize) -> Touch<usize> {
        let length = usize::from(load::<u16>(self.start + offset + 16)?);
        let is_one = length > self.name_at && length <= self.bytes - offset;
        Ok(if is_one { offset + length } else { self.bytes })
    }

    /// The number that is the entry's name.
    fn number(&self, offset: usize) -> Touch<Option<usize>> {
        /// Of the highest descriptor, and of the highest thread (`pid_max`).
        const DIGITS_MOST: usize = 10;
        let name = self.start + offset + self.name_at;
        let mut number = 0;
        for digits in 0..=DIGITS_MOST {
            match load::<u8>(name + digits)? {
                digit @ b'0'..=b'9' => number = number * 10 + usize::from(digit - b'0'),
                0 => return Ok((digits > 0).then_some(number)),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether a number that is the name of one is ours.
    fn any(&self, is_ours: IsOurs) -> Touch<bool> {
        let mut offset = 0;
        while offset < self.bytes {
            if self.number(offset)?.is_some_and(is_ours) {
                return Ok(true);
            }
            offset = self.next(offset)?;
        }
        Ok(false)
    }

    /// Takes ours out; how many bytes are left.
    fn without(&self, is_ours: IsOurs) -> Touch<usize> {
        let mut moved = [0_u8; ENTRY_BYTES];
        let moved = moved.as_mut_ptr() as usize;
        let (mut offset, mut kept) = (0, 0);
        while offset < self.bytes {
            let next = self.next(offset)?;
            let length = next - offset;
            if !self.number(offset)?.is_some_and(is_ours) {
                if kept < offset && length <= ENTRY_BYTES {
                    // By way of our own memory: the two may overlap.
                    guarded::copy(moved, self.start + offset, length)?;
                    guarded::copy(self.start + kept, moved, length)?;
                }
                kept += length;
            }
            offset = next;
        }
        Ok(kept)
    }
}

/// Whether a descriptor is of one of these, in this process's folder of /proc.
pub(crate) fn is_in_proc(file: usize, names: &[&[u8]]) -> bool {
    // Room for any number, and zeros after it.
    let mut path = [0_u8; 40];
    let _fits = write!(&mut path[..], "/proc/self/fd/{file}");
    let mut target = [0_u8; 64];
    let answer = call!(
        libc::SYS_readlink,
        path.as_ptr(),
        target.as_mut_ptr(),
        target.len()
    );
    let Some(target) = usize::try_from(answer).ok().and_then(|n| target.get(..n)) else {
        return false;
    };
    let process = own!(libc::SYS_getpid);
    let mut own = [0_u8; 40];
    let mut rest = &mut own[..];
    let _fits = write!(rest, "/proc/{process}/");
    let length = 40 - rest.len();
    target.starts_with(&own[..length]) && names.iter().any(|name| target.ends_with(name))
}
