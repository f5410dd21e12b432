//! Messages in parts: data of which only a part can be used, and what a stand-in is too short
//! for.

use crate::bounce::Lease;
use crate::guarded::Touch;
use crate::raw::{self, Answer, call, failed};

use super::Done;
use super::data::is_stream;

/// Where the kernel finds the data of a message: in a stand-in, or right before memory that is
/// not there, where only a part of the program's can be used. Like that it meets the end where
/// it would have met it; what it wrote until then is given whatever the call answers.
pub(super) struct StandIn {
    pub(super) place: usize,
    at_the_end: Option<Lease>,
    /// What such a one was before the call that receives.
    kept: Option<Lease>,
    good: usize,
}

/// So many bytes that are as they were, and the next that is not is given by itself.
const ALIKE: usize = 64;

impl StandIn {
    /// Of `bytes` at `place` only `good` are to be there. An error: no memory.
    pub(super) fn of(place: usize, bytes: usize, good: usize) -> Result<Self, ()> {
        if good >= bytes {
            return Ok(Self {
                place,
                at_the_end: None,
                kept: None,
                good,
            });
        }
        let lease = Lease::before_nothing(good).ok_or(())?;
        raw::copy(lease.address(), place, good);
        Ok(Self {
            place: lease.address(),
            at_the_end: Some(lease),
            kept: None,
            good,
        })
    }

    /// The same, to be received into; `take(place)` copies what the program's buffer has.
    pub(super) fn to_receive(
        place: usize,
        bytes: usize,
        good: usize,
        take: impl FnOnce(usize),
    ) -> Result<Self, ()> {
        if good >= bytes {
            return Self::of(place, bytes, good);
        }
        let lease = Lease::before_nothing(good).ok_or(())?;
        let kept = Lease::new(good).ok_or(())?;
        take(lease.address());
        raw::copy(kept.address(), lease.address(), good);
        Ok(Self {
            place: lease.address(),
            at_the_end: Some(lease),
            kept: Some(kept),
            good,
        })
    }

    pub(super) const fn is_cut(&self) -> bool {
        self.at_the_end.is_some()
    }

    /// Gives what the kernel wrote to a stand-in that is cut, and nothing else, as others may
    /// store to the buffer meanwhile: `sure` bytes, and behind them what is not as it was. (A
    /// call may have written more than it says.) `give(skip, place, part)` copies, and says
    /// how many of the first came to their place.
    pub(super) fn give(&self, sure: usize, give: impl Fn(usize, usize, usize) -> usize) -> usize {
        let Some(kept) = &self.kept else {
            return sure;
        };
        let sure = sure.min(self.good);
        let given = give(0, self.place, sure);
        let mut at = sure;
        while let Some((from, to)) = self.changed(kept.address(), at) {
            give(from, self.place + from, to - from);
            at = to;
        }
        given
    }

    /// The next bytes from `at` on that are not as they were: where they begin and end.
    fn changed(&self, kept: usize, at: usize) -> Option<(usize, usize)> {
        const WORD: usize = size_of::<u64>();
        let differs = |at: usize| raw::load::<u8>(kept + at) != raw::load::<u8>(self.place + at);
        let alike = |at: usize| {
            at + WORD <= self.good
                && raw::load::<u64>(kept + at) == raw::load::<u64>(self.place + at)
        };
        let mut from = at;
        while from < self.good && !differs(from) {
            from += if alike(from) { WORD } else { 1 };
        }
        if from >= self.good {
            return None;
        }
        let (mut end, mut next) = (from + 1, from + 1);
        while next < self.good && next - end < ALIKE {
            if differs(next) {
                end = next + 1;
            }
            next += 1;
        }
        Some((from, end))
    }
}

/// Whether a call that failed may have written some of what it was to read.
pub(super) fn may_have_written(answer: Answer) -> bool {
    answer == -(libc::EFAULT as Answer)
}

/// What a stand-in was too short for, of a transfer on a stream.
pub(super) struct Rest {
    pub(super) fd: usize,
    pub(super) flags: usize,
    /// The stand-in, and its length.
    pub(super) place: usize,
    pub(super) most: usize,
    /// What the call asks for.
    pub(super) whole: usize,
}

impl Rest {
    /// Whether there is one, after a first part with this answer.
    fn is_due(&self, answer: Answer) -> bool {
        self.most < self.whole && answer == self.most as Answer && is_stream(self.fd)
    }

    /// What is left to send: a call that may wait sends all of it. `take(skip, part)` fills
    /// the stand-in, as far as it can.
    pub(super) fn send_after(
        &self,
        answer: Answer,
        take: impl Fn(usize, usize) -> usize,
    ) -> Touch<Done> {
        // Those pages are the kernel's by now; and only one byte is out of band.
        let ends = (libc::MSG_ZEROCOPY | libc::MSG_OOB) as usize;
        if self.flags & ends != 0 || !self.is_due(answer) {
            return Ok(Done::With(answer));
        }
        // A peer that leaves after a part of it is a short count.
        let flags = (self.flags | libc::MSG_NOSIGNAL as usize) & !(libc::MSG_FASTOPEN as usize);
        let mut done = self.most;
        while done < self.whole {
            let part = (self.whole - done).min(self.most);
            let taken = take(done, part);
            let Ok(stand_in) = StandIn::of(self.place, part, taken) else {
                break;
            };
            let place = stand_in.place;
            let answer = call!(libc::SYS_sendto, self.fd, place, part, flags, 0, 0);
            if failed(answer) {
                break;
            }
            done += answer as usize;
            if (answer as usize) < part {
                break;
            }
        }
        Ok(Done::With(done as Answer))
    }

    /// What is left to receive, if the call is to wait for all it asked for.
    /// `give(skip, part)` copies what is in the stand-in to its place, as far as it can.
    pub(super) fn receive_after(
        &self,
        answer: Answer,
        give: impl Fn(usize, usize) -> usize,
    ) -> Touch<Done> {
        // What is only looked at is there the next time, too.
        let ends = libc::MSG_PEEK | libc::MSG_OOB | libc::MSG_ERRQUEUE | libc::MSG_TRUNC;
        let waits = self.flags & libc::MSG_WAITALL as usize != 0;
        if !waits || self.flags & ends as usize != 0 || !self.is_due(answer) {
            return Ok(Done::With(answer));
        }
        let mut done = self.most;
        while done < self.whole {
            let part = (self.whole - done).min(self.most);
            let flags = self.flags;
            let answer = call!(libc::SYS_recvfrom, self.fd, self.place, part, flags, 0, 0);
            if failed(answer) {
                break;
            }
            let got = (answer as usize).min(part);
            let given = give(done, got);
            done += given;
            if given < part {
                break;
            }
        }
        Ok(Done::With(done as Answer))
    }
}
