//! Messages in parts: data of which only a part can be used, and what a stand-in is too short
//! for.

use crate::bounce::Lease;
use crate::guarded::{Touch, store};
use crate::raw::{self, Answer, call, failed, own};

use super::buffers::{VECTORS_MAX, Vector};
use super::copied::bare;
use super::socket::{has_peek_offset, is_stream};

/// Where the kernel finds the data of a message: in a stand-in, or right before memory that is
/// not there, where only a part of the program's can be used. Like that it meets the end where
/// it would have met it; what it wrote until then is given whatever the call answers.
pub(super) struct StandIn {
    pub(super) place: usize,
    _at_the_end: Option<Lease>,
    /// What it was before a call that may write less than it says, or more.
    kept: Option<Lease>,
    good: usize,
}

/// So many bytes that are as they were, and the next that is not is given by itself.
const ALIKE: usize = 64;

/// How sure it is what a call that receives writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// As much as it says.
    Said,
    /// It may end within a buffer that is the kernel's to write, and have written more than it
    /// says, or some of it and fail.
    More,
    /// All that it says, or nothing: with `MSG_TRUNC`, TCP throws away what it received, and
    /// says how much (tcp(7)).
    AllOrNothing,
}

impl StandIn {
    /// Of `bytes` at `place` only `good` are to be there. An error: no memory.
    pub(super) fn of(place: usize, bytes: usize, good: usize) -> Result<Self, ()> {
        let made = Self::with_end(place, bytes, good)?;
        if made.place != place {
            raw::copy(made.place, place, good);
        }
        Ok(made)
    }

    /// The same, before anything is in it.
    fn with_end(place: usize, bytes: usize, good: usize) -> Result<Self, ()> {
        let at_the_end = match good < bytes {
            true => Some(Lease::before_nothing(good).ok_or(())?),
            false => None,
        };
        Ok(Self {
            place: at_the_end.as_ref().map_or(place, Lease::address),
            _at_the_end: at_the_end,
            kept: None,
            good: good.min(bytes),
        })
    }

    /// The same, to be received into; `take(place)` copies what the program's buffer has, where
    /// that is to be known.
    pub(super) fn to_receive(
        place: usize,
        bytes: usize,
        good: usize,
        writes: Writes,
        take: impl FnOnce(usize),
    ) -> Result<Self, ()> {
        let mut made = Self::with_end(place, bytes, good)?;
        if good < bytes || writes != Writes::Said {
            let kept = Lease::new(made.good).ok_or(())?;
            take(made.place);
            raw::copy(kept.address(), made.place, made.good);
            made.kept = Some(kept);
        }
        Ok(made)
    }

    /// Gives what a call wrote that says `sure` bytes, and nothing else, as others may store to
    /// the buffer meanwhile. `false`: not all of what it says came to its place.
    /// `give(skip, place, part)` copies, and says how many of the first came there.
    pub(super) fn give_received(
        &self,
        sure: usize,
        writes: Writes,
        give: impl Fn(usize, usize, usize) -> usize,
    ) -> bool {
        let has_nothing = || {
            let kept = self.kept.as_ref();
            let changed = kept.and_then(|kept| self.changed(kept.address(), 0));
            changed.is_none_or(|(from, _)| from >= sure)
        };
        if writes == Writes::AllOrNothing && has_nothing() {
            return true;
        }
        self.give(sure, give) == sure
    }

    /// Gives `sure` bytes, and behind them what is not as it was, where that is known. (A call
    /// may have written more than it says.) How many of the first came to their place.
    pub(super) fn give(&self, sure: usize, give: impl Fn(usize, usize, usize) -> usize) -> usize {
        let sure = sure.min(self.good);
        let given = give(0, self.place, sure);
        let Some(kept) = &self.kept else {
            return given;
        };
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
    ) -> Touch<Answer> {
        // Those pages are the kernel's by now; and only one byte is out of band.
        let ends = (libc::MSG_ZEROCOPY | libc::MSG_OOB) as usize;
        if self.flags & ends != 0 || !self.is_due(answer) {
            return Ok(answer);
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
        Ok(done as Answer)
    }

    /// What is left to receive, if the call is to wait for all it asked for, or looks at what
    /// is there. `receive(skip, part, flags)` makes a call for a part of it,
    /// `give(skip, part)` copies what is in the stand-in to its place, as far as it can, and
    /// `list(skip, part, at)` makes the list of `buffers` buffers at most, for a look.
    pub(super) fn receive_after(
        &self,
        answer: Answer,
        receive: impl Fn(usize, usize, usize) -> Answer,
        give: impl Fn(usize, usize) -> usize,
        (buffers, list): (usize, impl Fn(usize, usize, usize) -> Touch<usize>),
    ) -> Touch<Answer> {
        let ends = libc::MSG_OOB | libc::MSG_ERRQUEUE | libc::MSG_TRUNC;
        let waits = self.flags & libc::MSG_WAITALL as usize != 0;
        let looks = self.flags & libc::MSG_PEEK as usize != 0;
        if !(waits || looks) || self.flags & ends as usize != 0 || !self.is_due(answer) {
            return Ok(answer);
        }
        // What is only looked at is there the next time, too: the look has to go on behind it.
        // Where the program has looks that go on, it does.
        let is_again = looks && !has_peek_offset(self.fd);
        // As much is there as was looked at, so there is nothing to wait for.
        let flags = match looks {
            true => self.flags | libc::MSG_DONTWAIT as usize,
            false => self.flags,
        };
        let mut done = self.most;
        while done < self.whole {
            let part = (self.whole - done).min(self.most);
            let answer = match is_again {
                true => self.look_behind(done, (part, buffers), flags, &list),
                false => receive(done, part, flags),
            };
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
        Ok(done as Answer)
    }

    /// Looks at a part of what is behind the first `done` bytes, which are read once more, each
    /// piece to the place that the next one takes: the socket's own place for that
    /// (`SO_PEEK_OFF`) is other threads', too.
    fn look_behind(
        &self,
        done: usize,
        (part, buffers): (usize, usize),
        flags: usize,
        list: &impl Fn(usize, usize, usize) -> Touch<usize>,
    ) -> Answer {
        const STRIDE: usize = size_of::<Vector>();
        const NOTHING: Answer = 0;
        let before = done.div_ceil(self.most);
        if before + buffers > VECTORS_MAX {
            return NOTHING;
        }
        let Some(lease) = Lease::new((before + buffers) * STRIDE) else {
            return NOTHING;
        };
        let vectors = lease.address();
        for index in 0..before {
            let vector = Vector {
                base: self.place,
                bytes: self.most.min(done - index * self.most),
            };
            if store(vectors + index * STRIDE, vector).is_err() {
                return NOTHING;
            }
        }
        let Ok(count) = list(done, part, vectors + before * STRIDE) else {
            return NOTHING;
        };
        let header = bare(vectors, before + count);
        let answer = own!(libc::SYS_recvmsg, self.fd, &raw const header, flags);
        match failed(answer) {
            true => answer,
            false => (answer as usize).saturating_sub(done) as Answer,
        }
    }
}
