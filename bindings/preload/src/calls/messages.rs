//! Sockets: calls with addresses, control data and lists of buffers.
//!
//! A message is one piece however long, so the whole of it gets a stand-in, or
//! the call is refused before anything was taken from the queue. What is longer on a
//! stream goes on piece by piece, where the call would: one that sends, and one that is to
//! wait for all.

use crate::bounce::{Lease, most_bytes};
use crate::ghost;
use crate::guarded::{self, BadAddress, Touch, load, store};
use crate::raw::{self, Answer, failed, own};

use super::buffers::{VECTORS_MAX, Vector, Vectors, touches_ghost, writable};
use super::data::{is_stream, next_message_fits};
use super::parts::{Rest, StandIn, may_have_written};
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
const FLAGS_AT: usize = core::mem::offset_of!(Header, flags);

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
    let stand_in = if receives {
        StandIn::to_receive(place, bytes, good, |place| {
            guarded::copy_some(place, base, good);
        })
    } else {
        StandIn::of(place, bytes, good)
    };
    let Ok(stand_in) = stand_in else {
        return Ok(error(libc::ENOMEM));
    };
    let place = stand_in.place;
    if receives && !stand_in.is_cut() && may_write_nothing(flags) {
        let _as_far_as_it_goes = guarded::copy_some(place, base, good);
    }
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
    let got = (answer as usize).min(good);
    if stand_in.is_cut() {
        stand_in.give(got, give);
    } else {
        guarded::copy(base, place, got)?;
    }
    if name != 0 && name_bytes != 0 {
        let length: u32 = load(length_place)?;
        guarded::copy(name, name_place, (length as usize).min(room))?;
        store(name_bytes, length)?;
    }
    rest.receive_after(answer, |skip, part| {
        guarded::copy_some(base.wrapping_add(skip), place, part)
    })
}

/// One message with everything in ordinary memory.
struct Copied {
    theirs: usize,
    header: Header,
    lease: Lease,
    stand_in: StandIn,
    /// Where our header is.
    ours: usize,
    data: usize,
    data_bytes: usize,
    /// What the program's buffers have room for.
    whole: usize,
}

/// Why there is no copy of a message: the call's answer.
struct Refused(Answer);

impl From<BadAddress> for Refused {
    fn from(_: BadAddress) -> Self {
        Self(-(libc::EFAULT as Answer))
    }
}

/// Whether an answer may count bytes that were written nowhere: with `MSG_TRUNC`, TCP throws
/// away what it received (tcp(7)). The buffer keeps what it has then.
const fn may_write_nothing(flags: usize) -> bool {
    flags & libc::MSG_TRUNC as usize != 0
}

/// The kernel's answer to a message with buffers that it refuses.
fn refusal(fd: usize, bad: [Vector; 2], receives: bool, flags: usize) -> Answer {
    let header = Header {
        name: 0,
        name_bytes: 0,
        gap: 0,
        vectors: (&raw const bad) as usize,
        count: 2,
        control: 0,
        control_bytes: 0,
        flags: 0,
        gap_too: 0,
    };
    let number = if receives { 47 } else { 46 };
    raw::syscall(number, [fd, (&raw const header) as usize, flags, 0, 0, 0])
}

/// Whether a message has ghost memory anywhere.
fn has_ghost(at: usize) -> Touch<bool> {
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
        let data_bytes = fitting(fd, whole, receives, flags).map_err(Refused)?;
        let name_bytes = (header.name_bytes as usize).min(NAME_MAX);
        let control_bytes = header.control_bytes.min(CONTROL_MAX);
        let room = data_bytes + name_bytes + control_bytes + 512;
        let mut lease = lease_for(room, flags).ok_or_else(no_memory)?;
        let mut carve = |bytes| lease.carve(bytes).ok_or_else(no_memory);
        let ours = carve(size_of::<Header>())?;
        let vector = carve(size_of::<Vector>())?;
        let name = carve(name_bytes)?;
        let control = carve(control_bytes)?;
        let data = carve(data_bytes)?;
        // What is received is not read before.
        if header.name != 0 && !receives {
            guarded::copy(name, header.name, name_bytes)?;
        }
        if header.control != 0 && !receives {
            guarded::copy(control, header.control, control_bytes)?;
        }
        let good = if receives {
            vectors.writable()?.min(data_bytes)
        } else {
            vectors.copy(0, data, data_bytes, true)
        };
        let stand_in = if receives {
            StandIn::to_receive(data, data_bytes, good, |place| {
                vectors.copy(0, place, good, true);
            })
        } else {
            StandIn::of(data, data_bytes, good)
        };
        let stand_in = stand_in.map_err(|()| no_memory())?;
        let data = stand_in.place;
        if receives && !stand_in.is_cut() && may_write_nothing(flags) {
            vectors.copy(0, data, good, true);
        }
        let one = Vector {
            base: data,
            bytes: data_bytes,
        };
        store(vector, one)?;
        let copy = Header {
            name: if header.name == 0 { 0 } else { name },
            control: if header.control == 0 { 0 } else { control },
            control_bytes,
            vectors: vector,
            count: usize::from(header.count > 0),
            ..header
        };
        store(ours, copy)?;
        Ok(Self {
            theirs,
            header,
            lease,
            stand_in,
            ours,
            data,
            data_bytes,
            whole,
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

    /// Where a buffer is good in part: what the call wrote, beside `sure` bytes too.
    fn give_what_was_written(&self, sure: usize) {
        let vectors = self.vectors();
        self.stand_in.give(sure, |skip, place, part| {
            vectors.copy(skip, place, part, false)
        });
    }

    /// Gives the program what was received: what the kernel writes, no more.
    fn give(&self, bytes: usize) -> Touch<()> {
        let got: Header = load(self.ours)?;
        let bytes = bytes.min(self.data_bytes);
        if self.vectors().copy(0, self.data, bytes, false) < bytes {
            return Err(BadAddress);
        }
        if self.header.name != 0 {
            let most = self.header.name_bytes.min(got.name_bytes) as usize;
            guarded::copy(self.header.name, got.name, most.min(NAME_MAX))?;
            store(self.theirs + NAME_BYTES_AT, got.name_bytes)?;
        }
        if self.header.control != 0 {
            let most = self.header.control_bytes.min(got.control_bytes);
            guarded::copy(self.header.control, got.control, most.min(CONTROL_MAX))?;
        }
        store(self.theirs + CONTROL_BYTES_AT, got.control_bytes)?;
        store(self.theirs + FLAGS_AT, got.flags)
    }
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
fn one(fd: usize, at: usize, flags: usize, receives: bool) -> Touch<Done> {
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
            copied.give_what_was_written(0);
        }
        Ok(Done::With(answer))
    } else {
        copied.give_what_was_written(answer as usize);
        copied.give(answer as usize)?;
        // What comes beside the bytes of a later part would be lost.
        let flags = if copied.header.control == 0 { flags } else { 0 };
        copied
            .rest(fd, flags)
            .receive_after(answer, |skip, part| vectors.copy(skip, place, part, false))
    };
    drop(copied.lease);
    done
}

/// The distance between messages in a list, and where a message's length is.
const MANY_STRIDE: usize = 64;
const MANY_LENGTH: usize = 56;
/// recvmmsg(2): only the first message may be waited for.
const MSG_WAITFORONE: usize = 0x10000;

/// recvmmsg, sendmmsg: one message at a time, as the kernel does it. The time
/// limit is looked at after each, which is all the kernel does.
pub(super) fn many(number: usize, args: [usize; 6]) -> Touch<Done> {
    let [fd, list, count, flags, timeout, _] = args;
    let count = count.min(VECTORS_MAX);
    let receives = number == 299;
    let timeout = if receives { timeout } else { 0 };
    let mut any = ghost::is_ghost(timeout);
    for index in 0..count {
        any = any || has_ghost(list.wrapping_add(index * MANY_STRIDE))?;
    }
    if count == 0 || !any {
        return Ok(Done::Asis);
    }
    let Some(limit) = TimeLimit::new(timeout)? else {
        return Ok(error(libc::EINVAL));
    };
    let mut done = 0;
    let mut flags = flags;
    while done < count {
        let at = list + done * MANY_STRIDE;
        let Done::With(answer) = one(fd, at, flags & !MSG_WAITFORONE, receives)? else {
            break;
        };
        if failed(answer) {
            limit.store_rest()?;
            return Ok(Done::With(if done > 0 { done as Answer } else { answer }));
        }
        store(at + MANY_LENGTH, answer as u32)?;
        done += 1;
        if receives && flags & MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT as usize;
        }
        if limit.is_over() {
            break;
        }
        // Data out of band ends the list.
        if receives && load::<i32>(at + FLAGS_AT)? & libc::MSG_OOB != 0 {
            break;
        }
    }
    limit.store_rest()?;
    Ok(Done::With(done as Answer))
}

/// recvmmsg's time limit: where it is, and when it is over.
struct TimeLimit {
    place: usize,
    end_ns: i128,
}

fn now_ns() -> i128 {
    let mut now = [0_i64; 2];
    let _cannot_fail = own!(
        libc::SYS_clock_gettime,
        libc::CLOCK_MONOTONIC,
        now.as_mut_ptr()
    );
    i128::from(now[0]) * 1_000_000_000 + i128::from(now[1])
}

impl TimeLimit {
    /// `None`: it is none.
    fn new(place: usize) -> Touch<Option<Self>> {
        let mut end_ns = i128::MAX;
        if place != 0 {
            let time: [i64; 2] = load(place)?;
            if time[0] < 0 || !(0..1_000_000_000).contains(&time[1]) {
                return Ok(None);
            }
            end_ns = now_ns() + i128::from(time[0]) * 1_000_000_000 + i128::from(time[1]);
        }
        Ok(Some(Self { place, end_ns }))
    }

    fn is_over(&self) -> bool {
        self.place != 0 && now_ns() >= self.end_ns
    }

    fn store_rest(&self) -> Touch<()> {
        if self.place == 0 {
            return Ok(());
        }
        let rest = (self.end_ns - now_ns()).max(0);
        let time = [rest / 1_000_000_000, rest % 1_000_000_000];
        store(self.place, time.map(|part| part as i64))
    }
}
