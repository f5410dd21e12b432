//! Calls whose structures have one known size: ordinary memory in place of ghost memory.

use crate::bounce::{self, Lease};
use crate::ghost;
use crate::guarded::{self, BadAddress, Touch, load, store};
use crate::raw::{self, Answer, failed};

use super::buffers::{touches_ghost, writable};
use super::table::{self, Length, Pointer};
use super::{Done, error};

/// Makes a call with ordinary memory in place of its ghost pointers. What cannot be read,
/// or is longer than the kernel takes, is the kernel's to refuse.
pub(crate) fn with_copies(
    number: usize,
    mut args: [usize; 6],
    pointers: &[Pointer],
) -> Touch<Done> {
    let mut room = 0_usize;
    let mut lengths = [None; 6];
    for &pointer in pointers {
        let argument = pointer.argument();
        let address = args[argument];
        if !ghost::may_be(address) {
            continue;
        }
        let is_ghost = ghost::is_ghost(address);
        match length_of(pointer, args) {
            Err(BadAddress) if is_ghost => return Ok(Done::Asis),
            // Others' memory may run into ours.
            Ok(bytes) if is_ghost || (bytes > 0 && touches_ghost(address, bytes)) => {
                lengths[argument] = Some(bytes);
                room = room.saturating_add(bytes).saturating_add(64);
            }
            _ => {}
        }
    }
    if room == 0 {
        return Ok(Done::Asis);
    }
    let Some(mut lease) = Lease::new(room) else {
        return Ok(error(libc::ENOMEM));
    };
    // What a call fills may be good in part: the kernel meets its end where it is.
    let mut at_the_end = None;
    let given = args;
    // What is written or not, as it was: one of them at most, in any call.
    let mut before = [0_u64; 2];
    for &pointer in pointers {
        let argument = pointer.argument();
        let Some(bytes) = lengths[argument] else {
            continue;
        };
        let Some(mut stand_in) = lease.carve(bytes) else {
            return Ok(error(libc::ENOMEM));
        };
        match pointer {
            // What is filled as far as the result says needs no look before.
            Pointer::Filled(_, length, _) => {
                let good = writable(given[argument], bytes);
                if good < bytes {
                    let Some(lease) = Lease::before_nothing(good) else {
                        return Ok(error(libc::ENOMEM));
                    };
                    stand_in = at_the_end.insert(lease).address();
                    lengths[argument] = Some(good);
                }
                shorten(&mut args, length);
            }
            // Nor does an address that only the kernel writes.
            Pointer::Both(_, Length::At(_)) => {}
            _ if guarded::copy(stand_in, given[argument], bytes).is_err() => {
                return Ok(Done::Asis);
            }
            Pointer::Always(..) => raw::copy((&raw mut before) as usize, stand_in, bytes.min(16)),
            _ => {}
        }
        args[argument] = stand_in;
    }
    let answer = raw::syscall(number, args);
    for &pointer in pointers {
        let argument = pointer.argument();
        let Some(bytes) = lengths[argument] else {
            continue;
        };
        let (theirs, ours) = (given[argument], args[argument]);
        let written = match pointer {
            Pointer::Text(_) | Pointer::In(..) => 0,
            Pointer::Found(..) if answer <= 0 => 0,
            Pointer::Out(..) | Pointer::Both(..) | Pointer::Found(..) if failed(answer) => 0,
            Pointer::Rest(..) | Pointer::Polled(..) if !is_interrupted(answer) => {
                if !failed(answer) && matches!(pointer, Pointer::Polled(..)) {
                    give_events(theirs, ours, bytes)?;
                }
                0
            }
            Pointer::Polled(..) => {
                give_events(theirs, ours, bytes)?;
                0
            }
            // No more than there was room for, and than there is now.
            Pointer::Both(_, Length::At(length)) => {
                let now: u32 = load(args[length])?;
                bytes.min(now as usize)
            }
            Pointer::Filled(_, _, unit) => usize::try_from(answer).unwrap_or(0) * unit,
            // select's time is left alone where it is none, and a version where it is right.
            Pointer::Always(..)
                if raw::is_same(ours, (&raw const before) as usize, bytes.min(16)) =>
            {
                0
            }
            _ => bytes,
        };
        guarded::copy(theirs, ours, written.min(bytes))?;
    }
    Ok(Done::With(answer))
}

fn is_interrupted(answer: Answer) -> bool {
    answer == -(libc::EINTR as Answer)
}

/// Tells the kernel of no more room than a stand-in has: what is filled may be
/// filled in part.
fn shorten(args: &mut [usize; 6], length: Length) {
    let (argument, unit) = match length {
        Length::Argument(argument) => (argument, 1),
        Length::Times(argument, unit) => (argument, unit),
        Length::Int(argument, unit) if args[argument] as i32 > 0 => (argument, unit),
        _ => return,
    };
    args[argument] = args[argument].min(bounce::most_bytes() / unit);
}

/// Writes what poll(2) writes of its list, and nothing beside it: other threads
/// may set `events` meanwhile.
fn give_events(theirs: usize, ours: usize, bytes: usize) -> Touch<()> {
    const STRIDE: usize = size_of::<libc::pollfd>();
    const EVENTS_AT: usize = core::mem::offset_of!(libc::pollfd, revents);
    for at in (EVENTS_AT..bytes).step_by(STRIDE) {
        guarded::copy(theirs + at, ours + at, size_of::<i16>())?;
    }
    Ok(())
}

/// How many bytes a pointer argument stands for.
pub(super) fn length_of(pointer: Pointer, args: [usize; 6]) -> Touch<usize> {
    let length = match pointer {
        // The kernel refuses longer ones than PATH_MAX; memfd's names and
        // attributes' are shorter.
        Pointer::Text(argument) => return guarded::string_bytes(args[argument], 4097),
        Pointer::In(_, length)
        | Pointer::Out(_, length)
        | Pointer::Both(_, length)
        | Pointer::Always(_, length)
        | Pointer::Found(_, length)
        | Pointer::Rest(_, length)
        | Pointer::Filled(_, length, _)
        | Pointer::Polled(_, length) => length,
    };
    let bytes = match length {
        Length::Bytes(bytes) => bytes,
        Length::Argument(argument) => args[argument],
        Length::Times(argument, bytes) => args[argument].saturating_mul(bytes),
        Length::Int(argument, bytes) => int(args[argument]).saturating_mul(bytes),
        Length::AtMost(argument, most) => args[argument].min(most),
        // What lies before is read in any case; what is negative is not.
        Length::Behind(before, argument) if (args[argument] as isize) < 0 => before,
        Length::Behind(before, argument) => args[argument].saturating_add(before),
        Length::At(argument) if args[argument] == 0 => 0,
        Length::At(argument) => load::<i32>(args[argument])?.clamp(0, ADDRESS_MAX) as usize,
        Length::Set(argument) => int(args[argument]).div_ceil(64) * 8,
        Length::Pages(argument) => args[argument].div_ceil(4096),
        Length::Capabilities(argument) => match load::<u32>(args[argument])? {
            FIRST_CAPABILITIES => 12,
            _ => 24,
        },
    };
    if let Pointer::Filled(..) = pointer {
        return Ok(bytes.min(bounce::most_bytes()));
    }
    // No call takes so much of anything that is not filled.
    if bytes <= bounce::most_bytes() {
        Ok(bytes)
    } else {
        Err(BadAddress)
    }
}

/// The first version of sets of capabilities, which has 32 of them (capget(2)).
const FIRST_CAPABILITIES: u32 = 0x1998_0330;

/// The longest address of a socket.
const ADDRESS_MAX: i32 = table::ADDRESS_BYTES as i32;

/// An argument that is an `int` to the kernel, which refuses what is negative before it
/// looks at anything.
fn int(argument: usize) -> usize {
    usize::try_from(argument as i32).unwrap_or(0)
}

/// Copies a structure in, if there is one.
pub(crate) fn load_if<T: Copy>(address: usize) -> Touch<Option<T>> {
    if address == 0 {
        return Ok(None);
    }
    load(address).map(Some)
}

/// Copies a structure out, if it is wanted.
pub(crate) fn store_if<T: Copy>(address: usize, value: T) -> Touch<()> {
    if address == 0 {
        return Ok(());
    }
    store(address, value)
}
