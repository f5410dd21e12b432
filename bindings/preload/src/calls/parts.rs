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
}

impl StandIn {
    /// Of `bytes` at `place` only `good` are to be there. An error: no memory.
    pub(super) fn of(place: usize, bytes: usize, good: usize) -> Result<Self, ()> {
        if good >= bytes {
            return Ok(Self {
                place,
                at_the_end: None,
            });
        }
        let lease = Lease::before_nothing(good).ok_or(())?;
        raw::copy(lease.address(), place, good);
        Ok(Self {
            place: lease.address(),
            at_the_end: Some(lease),
        })
    }

    pub(super) const fn is_cut(&self) -> bool {
        self.at_the_end.is_some()
    }
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
    /// `give(skip, part)` copies what is in the stand-in to its place.
    pub(super) fn receive_after(
        &self,
        answer: Answer,
        give: impl Fn(usize, usize) -> Touch<()>,
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
            give(done, got)?;
            done += got;
            if got < part {
                break;
            }
        }
        Ok(Done::With(done as Answer))
    }
}
