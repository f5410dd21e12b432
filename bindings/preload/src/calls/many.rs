//! Many messages in one call: recvmmsg(2), sendmmsg(2).

use crate::ghost;
use crate::guarded::{BadAddress, Touch, load, store};
use crate::raw::{Answer, failed, own};

use super::buffers::VECTORS_MAX;
use super::messages::{FLAGS_AT, bytes_of, has_ghost, one};
use super::{Done, error};

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
        let answer = match one(fd, at, flags & !MSG_WAITFORONE, receives) {
            Ok(Done::With(answer)) => answer,
            Ok(Done::Asis) => break,
            // Those before it were received.
            Err(BadAddress) => -(libc::EFAULT as Answer),
        };
        if failed(answer) {
            if done == 0 {
                return Ok(Done::With(answer));
            }
            break;
        }
        store(at + MANY_LENGTH, answer as u32)?;
        done += 1;
        if receives && flags & MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT as usize;
        }
        if limit.is_over() {
            break;
        }
        // A stream that took a part ends the list: what comes next would be in its midst.
        if !receives && (answer as usize) < bytes_of(at)? {
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
