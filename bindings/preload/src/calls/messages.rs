//! Sockets: calls with addresses, control data and lists of buffers.
//!
//! A message is one piece however long, so the whole of it gets a stand-in, or
//! the call is refused before anything was taken from the queue. What is longer on a
//! stream goes on piece by piece, where the call would: one that sends, and one that is to
//! wait for all.

use crate::bounce::{Lease, most_bytes};
use crate::ghost;
use crate::guarded::{self, BadAddress, Touch, load, store};
use crate::raw::{self, Answer, call, failed};

use super::buffers::{Kinds, VECTORS_MAX, Vector, Vectors, touches_ghost, writable};
use super::data::{is_stream, next_message_fits};
use super::parts::{Rest, StandIn, Writes, may_have_written};
use super::{Done, error};

/// Addresses are shorter (`sockaddr_storage` has 128 bytes); the kernel refuses
/// longer ones by their length.
const NAME_MAX: usize = 128;
/// More control data than the kernel takes (`optmem_max`), and gives.
const CONTROL_MAX: usize = 1 << 20;

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

const NAME_BYTES_AT: usize = core::mem::offset_of!(Header, name_bytes);
const CONTROL_BYTES_AT: usize = core::mem::offset_of!(Header, control_bytes);
pub(super) const FLAGS_AT: usize = core::mem::offset_of!(Header, flags);

/// Memory for what a call carries: under `MSG_ZEROCOPY` the kernel keeps the
/// pages beyond the call, so nobody uses them again.
fn lease_for(bytes: usize, flags: usize) -> Option<Lease> {
    if flags & libc::MSG_ZEROCOPY as usize != 0 {
        Lease::fresh(bytes)
    } else {
        Lease::new(bytes)
    }
}

/// How many of `bytes` get a stand-in: all of a message, or the call's answer.
fn fitting(fd: usize, bytes: usize, receives: bool, flags: usize) -> Result<usize, Answer> {
    let most = most_bytes();
    if bytes > most && !is_stream(fd) {
        if !receives {
            return Err(-(libc::ENOBUFS as Answer));
        }
        next_message_fits(fd, flags)?;
    }
    Ok(bytes.min(most))
}

/// sendto, recvfrom.
pub(super) fn addressed(number: usize, args: [usize; 6]) -> Touch<Done> {
    let receives = number == 45;
    let [fd, base, bytes, flags, name, name_bytes] = args;
    let lengths_too = receives && ghost::is_ghost(name_bytes);
    let has_data = bytes > 0 && touches_ghost(base, bytes);
    if !(has_data || touches_ghost(name, NAME_MAX) || lengths_too) {
        return Ok(Done::Asis);
    }
    let whole = bytes;
    let bytes = match fitting(fd, bytes, receives, flags) {
        Ok(bytes) => bytes,
        Err(answer) => return Ok(Done::With(answer)),
    };
    let room = if !receives {
        name_bytes
    } else if name_bytes != 0 {
        load::<u32>(name_bytes)? as usize
    } else {
        0
    };
    let room = room.min(NAME_MAX);
    let Some(mut lease) = lease_for(bytes + room + 256, flags) else {
        return Ok(error(libc::ENOMEM));
    };
    let (Some(place), Some(name_place), Some(length_place)) =
        (lease.carve(bytes), lease.carve(room), lease.carve(4))
    else {
        return Ok(error(libc::ENOMEM));
    };
    let good = if receives {
        writable(base, bytes)
    } else {
        guarded::copy_some(place, base, bytes)
    };
    let writes = writes(fd, flags);
    let stand_in = if receives {
        StandIn::to_receive(place, bytes, good, writes, |place| {
            guarded::copy_some(place, base, good);
        })
    } else {
        StandIn::of(place, bytes, good)
    };
    let Ok(stand_in) = stand_in else {
        return Ok(error(libc::ENOMEM));
    };
    let place = stand_in.place;
    let mut passed = [fd, place, bytes, flags, 0, 0];
    if base == 0 {
        passed[1] = 0;
    }
    if name != 0 {
        // What is received is not read before.
        if !receives {
            guarded::copy(name_place, name, room)?;
        }
        passed[4] = name_place;
    }
    let rest = Rest {
        fd,
        flags,
        place,
        most: bytes,
        whole,
    };
    if !receives {
        passed[5] = name_bytes;
        let answer = raw::syscall(number, passed);
        return rest.send_after(answer, |skip, part| {
            guarded::copy_some(place, base.wrapping_add(skip), part)
        });
    }
    if name_bytes != 0 {
        store(length_place, load::<u32>(name_bytes)?)?;
        passed[5] = length_place;
    }
    let answer = raw::syscall(number, passed);
    let give = |skip, place, part| guarded::copy_some(base.wrapping_add(skip), place, part);
    if failed(answer) {
        if may_have_written(answer) {
            stand_in.give(0, give);
        }
        return Ok(Done::With(answer));
    }
    if !stand_in.give_received((answer as usize).min(bytes), writes, give) {
        return Err(BadAddress);
    }
    if name != 0 && name_bytes != 0 {
        let length: u32 = load(length_place)?;
        guarded::copy(name, name_place, (length as usize).min(room))?;
        store(name_bytes, length)?;
    }
    rest.receive_after(
        answer,
        |_, part, flags| call!(libc::SYS_recvfrom, fd, place, part, flags, 0, 0),
        |skip, part| guarded::copy_some(base.wrapping_add(skip), place, part),
    )
}

/// One message with everything in ordinary memory.
struct Copied {
    theirs: usize,
    header: Header,
    lease: Lease,
    stand_in: StandIn,
    /// Where our header is, and our list of buffers.
    ours: usize,
    list: usize,
    data: usize,
    data_bytes: usize,
    /// What the program's buffers have room for.
    whole: usize,
    writes: Writes,
    kinds: Kinds,
}

/// Why there is no copy of a message: the call's answer.
struct Refused(Answer);

impl From<BadAddress> for Refused {
    fn from(_: BadAddress) -> Self {
        Self(-(libc::EFAULT as Answer))
    }
}

/// What a call with these flags writes that receives into one buffer.
fn writes(fd: usize, flags: usize) -> Writes {
    match flags & libc::MSG_TRUNC as usize != 0 && is_stream(fd) {
        true => Writes::AllOrNothing,
        false => Writes::Said,
    }
}

/// The same of a list of buffers.
fn writes_to(fd: usize, flags: usize, kinds: &Kinds) -> Writes {
    match writes(fd, flags) {
        _ if !kinds.has_ghost() => Writes::Said,
        Writes::Said if kinds.is_mixed() => Writes::More,
        writes => writes,
    }
}

/// A message of nothing but a list of buffers.
const fn bare(vectors: usize, count: usize) -> Header {
    Header {
        name: 0,
        name_bytes: 0,
        gap: 0,
        vectors,
        count,
        control: 0,
        control_bytes: 0,
        flags: 0,
        gap_too: 0,
    }
}

/// The kernel's answer to a message with buffers that it refuses.
fn refusal(fd: usize, bad: [Vector; 2], receives: bool, flags: usize) -> Answer {
    let header = bare((&raw const bad) as usize, 2);
    let number = if receives { 47 } else { 46 };
    raw::syscall(number, [fd, (&raw const header) as usize, flags, 0, 0, 0])
}

/// Whether a message has ghost memory anywhere.
pub(super) fn has_ghost(at: usize) -> Touch<bool> {
    if ghost::is_ghost(at) {
        return Ok(true);
    }
    let header: Header = load(at)?;
    let control_bytes = header.control_bytes.clamp(1, CONTROL_MAX);
    if touches_ghost(header.name, NAME_MAX) || touches_ghost(header.control, control_bytes) {
        return Ok(true);
    }
    if header.count > VECTORS_MAX {
        return Ok(false);
    }
    Vectors::new(header.vectors, header.count).any_ghost()
}

/// How many bytes a message has.
pub(super) fn bytes_of(at: usize) -> Touch<usize> {
    let header: Header = load(at)?;
    Vectors::new(header.vectors, header.count).total()
}

impl Copied {
    fn new(fd: usize, theirs: usize, receives: bool, flags: usize) -> Result<Self, Refused> {
        let no_memory = || Refused(-(libc::ENOMEM as Answer));
        let header: Header = load(theirs)?;
        if header.count > VECTORS_MAX {
            return Err(Refused(-(libc::EMSGSIZE as Answer)));
        }
        let vectors = Vectors::new(header.vectors, header.count);
        if let Some(bad) = vectors.refused()? {
            return Err(Refused(refusal(fd, bad, receives, flags)));
        }
        let whole = vectors.total()?;
        let kinds = vectors.kinds()?;
        // Where the kernel is to read, one stand-in is for all; where it is to write, buffers
        // that are not ghost memory are its own affair.
        let is_direct = receives && !kinds.has_ghost();
        let data_bytes = match is_direct {
            true => whole,
            false => fitting(fd, whole, receives, flags).map_err(Refused)?,
        };
        let stand_in_bytes = if is_direct { 0 } else { data_bytes };
        let name_bytes = (header.name_bytes as usize).min(NAME_MAX);
        let control_bytes = header.control_bytes.min(CONTROL_MAX);
        let buffers = if receives { header.count } else { 1 };
        let list_bytes = buffers * size_of::<Vector>();
        let room = stand_in_bytes + name_bytes + control_bytes + list_bytes + 512;
        let mut lease = lease_for(room, flags).ok_or_else(no_memory)?;
        let mut carve = |bytes| lease.carve(bytes).ok_or_else(no_memory);
        let ours = carve(size_of::<Header>())?;
        let list = carve(list_bytes)?;
        let name = carve(name_bytes)?;
        let control = carve(control_bytes)?;
        let data = carve(stand_in_bytes)?;
        // What is received is not read before.
        if header.name != 0 && !receives {
            guarded::copy(name, header.name, name_bytes)?;
        }
        if header.control != 0 && !receives {
            guarded::copy(control, header.control, control_bytes)?;
        }
        let good = if receives {
            vectors.writable(&kinds)?.min(data_bytes)
        } else {
            vectors.copy(0, data, data_bytes, true)
        };
        let writes = writes_to(fd, flags, &kinds);
        let stand_in = if receives {
            StandIn::to_receive(data, data_bytes, good, writes, |place| {
                vectors.copy_of(&kinds, 0, place, good, true);
            })
        } else {
            StandIn::of(data, data_bytes, good)
        };
        let stand_in = stand_in.map_err(|()| no_memory())?;
        let data = stand_in.place;
        let count = if receives {
            vectors.stand_ins(&kinds, (0, data_bytes), data, list)?
        } else {
            let one = Vector {
                base: data,
                bytes: data_bytes,
            };
            store(list, one)?;
            usize::from(header.count > 0)
        };
        let copy = Header {
            name: if header.name == 0 { 0 } else { name },
            control: if header.control == 0 { 0 } else { control },
            control_bytes,
            vectors: list,
            count,
            ..header
        };
        store(ours, copy)?;
        Ok(Self {
            theirs,
            header,
            lease,
            stand_in,
            ours,
            list,
            data,
            data_bytes,
            whole,
            writes,
            kinds,
        })
    }

    const fn vectors(&self) -> Vectors {
        Vectors::new(self.header.vectors, self.header.count)
    }

    const fn rest(&self, fd: usize, flags: usize) -> Rest {
        Rest {
            fd,
            flags,
            place: self.data,
            most: self.data_bytes,
            whole: self.whole,
        }
    }

    /// Copies what is in the stand-in to its buffers; how many of the first came there.
    fn give_part(&self, skip: usize, place: usize, part: usize) -> usize {
        let vectors = self.vectors();
        vectors.copy_of(&self.kinds, skip, place, part, false)
    }

    /// Receives a part of it that comes later.
    fn receive_part(&self, fd: usize, window: (usize, usize), flags: usize) -> Answer {
        let vectors = self.vectors();
        match vectors.stand_ins(&self.kinds, window, self.data, self.list) {
            Ok(count) => {
                let header = bare(self.list, count);
                call!(libc::SYS_recvmsg, fd, &raw const header, flags)
            }
            Err(BadAddress) => -(libc::EFAULT as Answer),
        }
    }

    /// Gives the program what was received: what the kernel writes, no more.
    fn give(&self, bytes: usize) -> Touch<()> {
        let got: Header = load(self.ours)?;
        let bytes = bytes.min(self.data_bytes);
        let give = |skip, place, part| self.give_part(skip, place, part);
        if !self.stand_in.give_received(bytes, self.writes, give) {
            return Err(BadAddress);
        }
        if self.header.name != 0 {
            let most = self.header.name_bytes.min(got.name_bytes) as usize;
            guarded::copy(self.header.name, got.name, most.min(NAME_MAX))?;
            store(self.theirs + NAME_BYTES_AT, got.name_bytes)?;
        }
        if self.header.control != 0 {
            let most = self.header.control_bytes.min(got.control_bytes);
            give_control(self.header.control, got.control, most.min(CONTROL_MAX))?;
        }
        store(self.theirs + CONTROL_BYTES_AT, got.control_bytes)?;
        store(self.theirs + FLAGS_AT, got.flags)
    }
}

/// Copies control data as far as the kernel writes it: what aligns the next message is left as
/// it is (cmsg(3)).
fn give_control(theirs: usize, ours: usize, bytes: usize) -> Touch<()> {
    const HEAD: usize = size_of::<libc::cmsghdr>();
    let mut at = 0;
    while at < bytes {
        let left = bytes - at;
        let length = match left {
            HEAD.. => load(ours + at)?,
            _ => left,
        };
        // No message is shorter than its head.
        let part = if length < HEAD {
            left
        } else {
            length.min(left)
        };
        guarded::copy(theirs + at, ours + at, part)?;
        at += part.next_multiple_of(size_of::<usize>());
    }
    Ok(())
}

/// sendmsg, recvmsg.
pub(super) fn message(number: usize, args: [usize; 6]) -> Touch<Done> {
    let [fd, at, flags, ..] = args;
    if at == 0 || !has_ghost(at)? {
        return Ok(Done::Asis);
    }
    one(fd, at, flags, number == 47)
}

/// Sends or receives one message, by way of a copy.
pub(super) fn one(fd: usize, at: usize, flags: usize, receives: bool) -> Touch<Done> {
    let copied = match Copied::new(fd, at, receives, flags) {
        Ok(copied) => copied,
        Err(Refused(answer)) => return Ok(Done::With(answer)),
    };
    let number = if receives { 47 } else { 46 };
    let answer = raw::syscall(number, [fd, copied.ours, flags, 0, 0, 0]);
    let (rest, vectors, place) = (copied.rest(fd, flags), copied.vectors(), copied.data);
    let done = if !receives {
        rest.send_after(answer, |skip, part| vectors.copy(skip, place, part, true))
    } else if failed(answer) {
        if may_have_written(answer) {
            let give = |skip, place, part| copied.give_part(skip, place, part);
            copied.stand_in.give(0, give);
        }
        Ok(Done::With(answer))
    } else {
        copied.give(answer as usize)?;
        // What comes beside the bytes of a later part would be lost.
        let flags = if copied.header.control == 0 { flags } else { 0 };
        copied.rest(fd, flags).receive_after(
            answer,
            |skip, part, flags| copied.receive_part(fd, (skip, part), flags),
            |skip, part| copied.give_part(skip, place, part),
        )
    };
    drop(copied.lease);
    done
}
