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

use super::buffers::{Vector, touches_ghost, writable};
use super::copied::{Asked, Copied, HEADER_BYTES, NO_MEMORY, Refused, has_ghost};
use super::parts::{Rest, StandIn, Writes, may_have_written};
use super::socket::{is_stream, room_for_next};
use super::{Done, error};

/// Addresses are shorter (`sockaddr_storage` has 128 bytes); the kernel refuses
/// longer ones by their length.
pub(super) const NAME_MAX: usize = 128;

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
pub(super) fn fitting(
    fd: usize,
    bytes: usize,
    receives: bool,
    flags: usize,
) -> Result<usize, Answer> {
    let most = most_bytes();
    if bytes > most && !is_stream(fd) {
        if !receives {
            return Err(-(libc::ENOBUFS as Answer));
        }
        return room_for_next(fd, bytes, flags);
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
        let answer = rest.send_after(answer, |skip, part| {
            guarded::copy_some(place, base.wrapping_add(skip), part)
        });
        return answer.map(Done::With);
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
    let answer = rest.receive_after(
        answer,
        |_, part, flags| call!(libc::SYS_recvfrom, fd, place, part, flags, 0, 0),
        |skip, part| guarded::copy_some(base.wrapping_add(skip), place, part),
        (1, |_, bytes, at| {
            let base = place;
            store(at, Vector { base, bytes }).map(|()| 1)
        }),
    );
    answer.map(Done::With)
}

/// What a call with these flags writes that receives into one buffer.
pub(super) fn writes(fd: usize, flags: usize) -> Writes {
    match flags & libc::MSG_TRUNC as usize != 0 && is_stream(fd) {
        true => Writes::AllOrNothing,
        false => Writes::Said,
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
    if !receives {
        return Ok(Done::With(sent(fd, at, flags)?.0));
    }
    let (copied, _lease) = match alone(fd, at, flags, true) {
        Ok(copied) => copied,
        Err(Refused(answer)) => return Ok(Done::With(answer)),
    };
    let answer = raw::syscall(47, [fd, copied.ours, flags, 0, 0, 0]);
    Ok(Done::With(copied.received(fd, flags, answer)?))
}

/// Sends one message: the answer, and how many bytes it has.
pub(super) fn sent(fd: usize, at: usize, flags: usize) -> Touch<(Answer, usize)> {
    let (copied, _lease) = match alone(fd, at, flags, false) {
        Ok(copied) => copied,
        Err(Refused(answer)) => return Ok((answer, 0)),
    };
    let answer = raw::syscall(46, [fd, copied.ours, flags, 0, 0, 0]);
    Ok((copied.sent(fd, flags, answer)?, copied.whole()))
}

/// A copy of one message, in a lease of its own.
fn alone(fd: usize, at: usize, flags: usize, receives: bool) -> Result<(Copied, Lease), Refused> {
    let mut asked = Asked::of(fd, at, receives, flags)?;
    asked.fit()?;
    let mut lease = lease_for(asked.room(), flags).ok_or(NO_MEMORY)?;
    let ours = lease.carve(HEADER_BYTES).ok_or(NO_MEMORY)?;
    Ok((asked.copied(ours, &mut lease)?, lease))
}
