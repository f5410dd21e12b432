//! Many messages in one call: recvmmsg(2), sendmmsg(2).

use crate::bounce::{Lease, most_bytes};
use crate::ghost;
use crate::guarded::{BadAddress, Touch, load, store};
use crate::raw::{self, Answer, failed};

use super::Done;
use super::buffers::{VECTORS_MAX, Vector};
use super::copied::{Asked, Copied, FLAGS_AT, HEADER_BYTES, Refused, has_ghost, store_refused};
use super::messages::sent;

/// The distance between messages in a list, and where a message's length is.
const MANY_STRIDE: usize = 64;
const MANY_LENGTH: usize = 56;
const _: () = assert!(HEADER_BYTES == MANY_LENGTH);
/// recvmmsg(2): only the first message may be waited for.
const MSG_WAITFORONE: usize = 0x10000;

/// recvmmsg, sendmmsg.
pub(super) fn many(number: usize, args: [usize; 6]) -> Touch<Done> {
    let [fd, list, count, flags, timeout, _] = args;
    let count = count.min(VECTORS_MAX);
    let receives = number == 299;
    let mut any = receives && ghost::is_ghost(timeout);
    for index in 0..count {
        // The kernel comes no further than to one that cannot be read.
        match has_ghost(list.wrapping_add(index * MANY_STRIDE)) {
            Ok(has_ghost) => any |= has_ghost,
            Err(BadAddress) => break,
        }
        if any {
            break;
        }
    }
    if count == 0 || !any {
        Ok(Done::Asis)
    } else if receives {
        receive(fd, list, count, flags, timeout)
    } else {
        send(fd, list, count, flags)
    }
}

/// sendmmsg: one message at a time, as the kernel does it.
fn send(fd: usize, list: usize, count: usize, flags: usize) -> Touch<Done> {
    let mut done = 0;
    while done < count {
        let at = list + done * MANY_STRIDE;
        // Those before one that cannot be had were sent.
        let (answer, whole) = sent(fd, at, flags).unwrap_or((-(libc::EFAULT as Answer), 0));
        if failed(answer) {
            if done == 0 {
                return Ok(Done::With(answer));
            }
            break;
        }
        store(at + MANY_LENGTH, answer as u32)?;
        done += 1;
        // A stream that took a part ends the list: what comes next would be in its midst.
        if (answer as usize) < whole {
            break;
        }
    }
    Ok(Done::With(done as Answer))
}

/// recvmmsg: in as few calls as there are stand-ins for, mostly in one. So it is the kernel that
/// keeps an error which comes behind the first message, for the next call on the socket.
fn receive(fd: usize, list: usize, count: usize, mut flags: usize, timeout: usize) -> Touch<Done> {
    let mut time = [0_i64; 2];
    if timeout != 0 {
        time = load(timeout)?;
    }
    let time_place = if timeout == 0 {
        0
    } else {
        (&raw mut time) as usize
    };
    let mut done = 0;
    while done < count {
        let from = list + done * MANY_STRIDE;
        let batch = match Batch::of(fd, from, count - done, flags) {
            Ok(batch) => batch,
            Err(Refused(answer)) if done == 0 => return Ok(Done::With(answer)),
            Err(_) => break,
        };
        let answer = batch.received(fd, flags, time_place);
        let is_whole = answer == batch.count as Answer;
        if failed(answer) && done == 0 {
            return Ok(Done::With(answer));
        }
        done += usize::try_from(answer).unwrap_or(0);
        // What ends a call of the kernel's ends this one.
        let is_over = timeout != 0 && raw::load::<[i64; 2]>(time_place) == [0, 0];
        if !is_whole || is_over || batch.ends_out_of_band() {
            break;
        }
        if flags & MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT as usize;
        }
    }
    if timeout != 0 && done > 0 {
        store(timeout, raw::load::<[i64; 2]>(time_place))?;
    }
    Ok(Done::With(done as Answer))
}

/// Messages that are received by one call of the kernel's.
struct Batch {
    /// The program's list of them, and ours.
    theirs: usize,
    ours: usize,
    /// How many there are, with one behind them that the kernel refuses, perhaps.
    count: usize,
    messages: Messages,
    _lease: Lease,
}

impl Batch {
    /// The first of a list: one at least, and as many as there are stand-ins for.
    fn of(fd: usize, theirs: usize, most: usize, flags: usize) -> Result<Self, Refused> {
        let mut first = Asked::of(fd, theirs, true, flags);
        // Of one by itself there may be no stand-in for all.
        if let Ok(asked) = &mut first {
            asked.fit()?;
        }
        let (mut count, mut room) = (1, first.as_ref().map_or(0, Asked::room));
        // One of which nothing can be told ends a call of the kernel's, and so a batch.
        let goes_on_behind =
            |asked: &Result<Asked, Refused>| asked.as_ref().is_ok_and(Asked::can_be_told);
        let mut goes_on = goes_on_behind(&first);
        while goes_on && count < most {
            let asked = Asked::of(fd, theirs + count * MANY_STRIDE, true, flags);
            let all = room.saturating_add(asked.as_ref().map_or(0, Asked::room));
            if all > most_bytes() {
                break;
            }
            (count, room, goes_on) = (count + 1, all, goes_on_behind(&asked));
        }
        let bytes = count * (MANY_STRIDE + size_of::<Copied>()) + 2 * size_of::<Vector>() + 256;
        let none = || Refused(-(libc::ENOMEM as Answer));
        let mut lease = Lease::new(room.saturating_add(bytes)).ok_or_else(none)?;
        let mut carve = |bytes| lease.carve(bytes).ok_or_else(none);
        let ours = carve(count * MANY_STRIDE)?;
        let refused = carve(2 * size_of::<Vector>())?;
        let mut messages = Messages {
            place: carve(count * size_of::<Copied>())?,
            count: 0,
        };
        let mut first = Some(first);
        for index in 0..count {
            let at = ours + index * MANY_STRIDE;
            // Others may change their list meanwhile: what counts is what was seen here.
            let asked = match first.take() {
                Some(first) => first,
                None => Asked::of(fd, theirs + index * MANY_STRIDE, true, flags),
            };
            match asked.and_then(|asked| asked.copied(at, &mut lease)) {
                Ok(copied) => messages.push(copied),
                Err(Refused(answer)) if answer == -(libc::ENOMEM as Answer) => {
                    // What there is memory for.
                    count = index;
                    break;
                }
                Err(Refused(answer)) => {
                    store_refused(at, refused, answer)?;
                    count = index + 1;
                    break;
                }
            }
        }
        if count == 0 {
            return Err(none());
        }
        Ok(Self {
            theirs,
            ours,
            count,
            messages,
            _lease: lease,
        })
    }

    /// Receives them, and gives the program what came. The call's answer.
    fn received(&self, fd: usize, flags: usize, time: usize) -> Answer {
        let answer = raw::syscall(299, [fd, self.ours, self.count, flags, time, 0]);
        let came = usize::try_from(answer).unwrap_or(0);
        for index in 0..came.min(self.messages.count) {
            if self.give(fd, flags, index).is_err() {
                return match index {
                    0 => -(libc::EFAULT as Answer),
                    _ => index as Answer,
                };
            }
        }
        // The one behind them may have failed in its midst.
        if came < self.messages.count {
            self.messages.get(came).failed();
        }
        answer
    }

    fn give(&self, fd: usize, flags: usize, index: usize) -> Touch<()> {
        let at = index * MANY_STRIDE + MANY_LENGTH;
        let bytes = raw::load::<u32>(self.ours + at);
        let message = self.messages.get(index);
        let bytes = message.received(fd, flags & !MSG_WAITFORONE, bytes as Answer)?;
        store(self.theirs + at, bytes as u32)
    }

    /// Whether the last one came out of band: that ends a list.
    fn ends_out_of_band(&self) -> bool {
        let last = self.ours + (self.count - 1) * MANY_STRIDE;
        raw::load::<i32>(last + FLAGS_AT) & libc::MSG_OOB != 0
    }
}

/// Copies of messages, in memory of a lease.
struct Messages {
    place: usize,
    count: usize,
}

impl Messages {
    fn at(&self, index: usize) -> *mut Copied {
        (self.place as *mut Copied).wrapping_add(index)
    }

    /// There is room for it, by the word of who carved the place.
    fn push(&mut self, copied: Copied) {
        // SAFETY: ordinary memory of a lease that has room for it, aligned to 64, that nothing
        // else is in.
        unsafe { self.at(self.count).write(copied) };
        self.count += 1;
    }

    fn get(&self, index: usize) -> &Copied {
        assert!(index < self.count, "messages are counted");
        // SAFETY: `push` put one there, and it stays until this is dropped.
        unsafe { &*self.at(index) }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        for index in 0..self.count {
            // SAFETY: `push` put one there, and nobody has it any more.
            unsafe { self.at(index).drop_in_place() };
        }
    }
}
