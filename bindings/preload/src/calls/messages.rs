//! Sockets: calls with addresses, control data and lists of buffers.
//!
//! A datagram is one piece however long, so the whole of it gets a stand-in.

use crate::bounce::Lease;
use crate::ghost;
use crate::raw::{self, Answer, failed, load, store};

use super::data::{VECTORS_MAX, Vector, Vectors};
use super::{Done, error};

/// The most bytes of one message that get a stand-in. No datagram is as long,
/// and streams may end early.
const MESSAGE_MAX: usize = 64 << 20;

/// `struct msghdr`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Header {
    name: usize,
    name_bytes: u32,
    gap: u32,
    vectors: usize,
    count: usize,
    control: usize,
    control_bytes: usize,
    flags: i32,
    gap_too: u32,
}

/// sendto, recvfrom.
pub(super) fn addressed(number: usize, args: [usize; 6]) -> Done {
    let receives = number == 45;
    let [fd, base, bytes, flags, name, name_bytes] = args;
    let bytes = bytes.min(MESSAGE_MAX);
    let lengths_too = receives && ghost::is_ghost(name_bytes);
    if !(ghost::is_ghost(base) || ghost::is_ghost(name) || lengths_too) {
        return Done::Asis;
    }
    let room = if !receives {
        name_bytes
    } else if name_bytes != 0 {
        load::<u32>(name_bytes) as usize
    } else {
        0
    };
    let room = room.min(4096);
    let Some(mut lease) = Lease::new(bytes + room + 256) else {
        return error(libc::ENOMEM);
    };
    let (Some(place), Some(name_place), Some(length_place)) =
        (lease.carve(bytes), lease.carve(room), lease.carve(4))
    else {
        return error(libc::ENOMEM);
    };
    let mut passed = [fd, place, bytes, flags, 0, 0];
    if base == 0 {
        passed[1] = 0;
    }
    if name != 0 {
        raw::copy(name_place, name, room);
        passed[4] = name_place;
    }
    if !receives {
        raw::copy(place, base, bytes);
        passed[5] = name_bytes;
        return Done::With(raw::syscall(number, passed));
    }
    if name_bytes != 0 {
        store(length_place, load::<u32>(name_bytes));
        passed[5] = length_place;
    }
    let answer = raw::syscall(number, passed);
    if !failed(answer) {
        raw::copy(base, place, (answer as usize).min(bytes));
        if name != 0 && name_bytes != 0 {
            let length: u32 = load(length_place);
            raw::copy(name, name_place, (length as usize).min(room));
            store(name_bytes, length);
        }
    }
    Done::With(answer)
}

/// One message with everything in ordinary memory.
struct Copied {
    theirs: usize,
    header: Header,
    lease: Lease,
    /// Where our header is.
    ours: usize,
    data: usize,
    data_bytes: usize,
}

/// Whether a message has ghost memory anywhere.
fn has_ghost(at: usize) -> bool {
    let header: Header = load(at);
    ghost::is_ghost(at)
        || (header.name != 0 && ghost::is_ghost(header.name))
        || (header.control != 0 && ghost::is_ghost(header.control))
        || (header.count <= VECTORS_MAX && Vectors::new(header.vectors, header.count).any_ghost())
}

impl Copied {
    /// `None`: no memory.
    fn new(theirs: usize, receives: bool) -> Option<Self> {
        let header: Header = load(theirs);
        let vectors = Vectors::new(header.vectors, header.count);
        let data_bytes = vectors.total().min(MESSAGE_MAX);
        let name_bytes = (header.name_bytes as usize).min(4096);
        let control_bytes = header.control_bytes.min(1 << 20);
        let room = data_bytes + name_bytes + control_bytes + 512;
        let mut lease = Lease::new(room)?;
        let ours = lease.carve(size_of::<Header>())?;
        let vector = lease.carve(size_of::<Vector>())?;
        let name = lease.carve(name_bytes)?;
        let control = lease.carve(control_bytes)?;
        let data = lease.carve(data_bytes)?;
        if header.name != 0 {
            raw::copy(name, header.name, name_bytes);
        }
        if header.control != 0 {
            raw::copy(control, header.control, control_bytes);
        }
        if !receives {
            vectors.copy(0, data, data_bytes, true);
        }
        let one = Vector {
            base: data,
            bytes: data_bytes,
        };
        store(vector, one);
        let copy = Header {
            name: if header.name == 0 { 0 } else { name },
            control: if header.control == 0 { 0 } else { control },
            control_bytes,
            vectors: vector,
            count: usize::from(header.count > 0),
            ..header
        };
        store(ours, copy);
        Some(Self {
            theirs,
            header,
            lease,
            ours,
            data,
            data_bytes,
        })
    }

    /// Gives the program what was received.
    fn give(&self, bytes: usize) {
        let got: Header = load(self.ours);
        let vectors = Vectors::new(self.header.vectors, self.header.count);
        vectors.copy(0, self.data, bytes.min(self.data_bytes), false);
        if self.header.name != 0 {
            let most = self.header.name_bytes.min(got.name_bytes) as usize;
            raw::copy(self.header.name, got.name, most.min(4096));
        }
        if self.header.control != 0 {
            let most = self.header.control_bytes.min(got.control_bytes);
            raw::copy(self.header.control, got.control, most);
        }
        let header = Header {
            name_bytes: got.name_bytes,
            control_bytes: got.control_bytes,
            flags: got.flags,
            ..self.header
        };
        store(self.theirs, header);
    }
}

/// sendmsg, recvmsg.
pub(super) fn message(number: usize, args: [usize; 6]) -> Done {
    let [fd, at, flags, ..] = args;
    if at == 0 || !has_ghost(at) {
        return Done::Asis;
    }
    let receives = number == 47;
    let Some(copied) = Copied::new(at, receives) else {
        return error(libc::ENOMEM);
    };
    let answer = raw::syscall(number, [fd, copied.ours, flags, 0, 0, 0]);
    if receives && !failed(answer) {
        copied.give(answer as usize);
    }
    drop(copied.lease);
    Done::With(answer)
}

/// The distance between messages in a list, and where a message's length is.
const MANY_STRIDE: usize = 64;
const MANY_LENGTH: usize = 56;

/// recvmmsg, sendmmsg: one message at a time, as the kernel does, but only the
/// first may wait.
pub(super) fn many(number: usize, args: [usize; 6]) -> Done {
    let [fd, list, count, flags, timeout, _] = args;
    let count = count.min(VECTORS_MAX);
    let receives = number == 299;
    let ghost_timeout = receives && ghost::is_ghost(timeout);
    let any = (0..count).any(|index| has_ghost(list + index * MANY_STRIDE));
    if count == 0 || !(any || ghost_timeout) {
        return Done::Asis;
    }
    if receives && timeout != 0 {
        // Keeps the time limit: one message in one call with the time given.
        return one_of_many(number, fd, list, flags, timeout);
    }
    const MSG_WAITFORONE: usize = 0x10000;
    let mut done = 0;
    while done < count {
        let at = list + done * MANY_STRIDE;
        let Some(copied) = Copied::new(at, receives) else {
            return partly(done, -(libc::ENOMEM as Answer));
        };
        let nowait = if done > 0 && receives && flags & MSG_WAITFORONE != 0 {
            libc::MSG_DONTWAIT as usize
        } else {
            0
        };
        let single = if receives { 47 } else { 46 };
        let flags = (flags & !MSG_WAITFORONE) | nowait;
        let answer = raw::syscall(single, [fd, copied.ours, flags, 0, 0, 0]);
        if failed(answer) {
            return partly(done, answer);
        }
        if receives {
            copied.give(answer as usize);
        }
        store(at + MANY_LENGTH, answer as u32);
        done += 1;
    }
    Done::With(done as Answer)
}

fn one_of_many(number: usize, fd: usize, list: usize, flags: usize, timeout: usize) -> Done {
    let Some(copied) = Copied::new(list, true) else {
        return error(libc::ENOMEM);
    };
    let mut single = [0_u8; MANY_STRIDE];
    let place = (&raw mut single) as usize;
    raw::copy(place, copied.ours, size_of::<Header>());
    let mut time: [u64; 2] = load(timeout);
    let time_place = (&raw mut time) as usize;
    let answer = raw::syscall(number, [fd, place, 1, flags, time_place, 0]);
    if !failed(answer) {
        store(timeout, time);
        raw::copy(copied.ours, place, size_of::<Header>());
        if answer > 0 {
            let length: u32 = load(place + MANY_LENGTH);
            copied.give(length as usize);
            store(list + MANY_LENGTH, length);
        }
    }
    Done::With(answer)
}

fn partly(done: usize, answer: Answer) -> Done {
    Done::With(if done > 0 { done as Answer } else { answer })
}
