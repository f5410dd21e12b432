//! Calls that the kernel makes only for a process of one thread: unshare(2) of the user
//! namespace, setns(2). The engine's threads stand aside for them.

use ghostmem_os::{clock, futex};

use super::{Done, Touch};
use crate::raw::{Answer, call};
use crate::thread::{self, EngineScope};
use crate::{ghost, signals, threads};

/// How long a thread that has ended may still be counted, before the process is said to have
/// others.
const PATIENCE_NS: u64 = 50_000_000;

const UNSHARE: usize = libc::SYS_unshare as usize;

/// unshare, setns.
pub(super) fn namespaces(number: usize, args: [usize; 6]) -> Touch<Done> {
    let [first, second, ..] = args;
    let make = || call!(number as i64, first, second);
    let answer = make();
    let alike = libc::CLONE_NEWUSER | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let asks_for_others = number == UNSHARE && first & alike as usize == 0;
    if asks_for_others || !is_for_one_thread(answer) || signals::in_vfork_child() {
        return Ok(Done::With(answer));
    }
    // The program has threads of its own: the kernel is right. And a handler may have
    // interrupted libc where it makes or joins a thread.
    if !threads::is_alone() {
        return Ok(Done::With(answer));
    }
    if signals::is_on_signal_stack() || signals::may_be_handling() {
        return Ok(Done::With(answer));
    }
    let Some(heap) = ghost::heap() else {
        return Ok(Done::With(answer));
    };
    let _inside = EngineScope::new(thread::current());
    // One that jumped out would leave the heap without its threads.
    let _blocked = signals::Blocked::new();
    let _not_cancelled = NotCancelled::new();
    Ok(Done::With(heap.without_threads(|| again(make))))
}

/// Makes a call until the kernel sees one thread. It counts those that end until they are
/// gone, which is after they were joined.
fn again(make: impl Fn() -> Answer) -> Answer {
    let from = clock::now_ns();
    let mut tries = 0;
    loop {
        let is_last = threads::in_process() == Some(1) || clock::now_ns() - from > PATIENCE_NS;
        let answer = make();
        if is_last || !is_for_one_thread(answer) {
            return answer;
        }
        futex::pause(tries);
        tries += 1;
    }
}

/// What the kernel says to a process of several threads, and of some other mistakes as well.
/// Nothing has happened then.
fn is_for_one_thread(answer: Answer) -> bool {
    answer == -(libc::EINVAL as Answer) || answer == -(libc::EUSERS as Answer)
}

/// The calling thread is not cancelled while this is there: it could be, where it waits for
/// another.
struct NotCancelled(i32);

unsafe extern "C" {
    fn pthread_setcancelstate(state: i32, before: *mut i32) -> i32;
}

const PTHREAD_CANCEL_DISABLE: i32 = 1;

impl NotCancelled {
    fn new() -> Self {
        let mut before = 0;
        // SAFETY: a place for one number.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut before) };
        Self(before)
    }
}

impl Drop for NotCancelled {
    fn drop(&mut self) {
        let mut disabled = 0;
        // SAFETY: as above, and a state that it gave.
        unsafe { pthread_setcancelstate(self.0, &raw mut disabled) };
    }
}
