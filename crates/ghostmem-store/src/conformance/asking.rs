//! A tier in memory that can only be asked: a thread of its own has the answers.
//!
//! ```text
//!   asker                        the tier's thread
//!   ask    question ───────────► asleep on `asked`
//!   asleep on `news` ◄────────── answer
//!   ask    takes the answer
//! ```
//! It stands for a tier across a network. It allocates, and holds a lock while it looks
//! something up, so it is for threads that are in no fault handler.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread::JoinHandle;
use std::time::Duration;

use ghostmem_os::futex;
use ghostmem_os::lock::Lock;

use crate::MAX_SLOT_BYTES;
use crate::tier::{
    Access, ColdTier, EachRead, Moved, Packed, Read, Tended, TierCause, TierError, TierSlot,
    TierStats, WriteError, ask_and_wait,
};

/// A tier with [`Access::Ask`].
#[derive(Debug)]
pub struct Asking {
    shared: Arc<Shared>,
    thread: Lock<Option<JoinHandle<()>>>,
    limit_bytes: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Lock<SlabState>,
    /// Raised for each question.
    asked: AtomicU64,
    /// Raised for each answer.
    news: AtomicU64,
    closed: AtomicBool,
    live_bytes: AtomicU64,
    slots: AtomicU64,
    pages_written: AtomicU64,
    pages_moved: AtomicU64,
    pages_read: AtomicU64,
    read_errors: AtomicU64,
    write_errors: AtomicU64,
}

#[derive(Debug, Clone)]
struct Kept {
    owner: u64,
    codec: u8,
    bytes: Vec<u8>,
}

type Answer = Result<(u8, Vec<u8>), TierCause>;

#[derive(Debug, Default)]
struct SlabState {
    pages: HashMap<u32, Kept>,
    free: VecDeque<u32>,
    next: u32,
    /// Slots somebody asked for, with the owner, that the thread has not looked at.
    queue: VecDeque<(u32, u64)>,
    /// What was asked and not taken: the answer, once there is one.
    questions: HashMap<u32, Option<Answer>>,
}

impl SlabState {
    fn keep(&mut self, page: Kept) -> TierSlot {
        let number = self.free.pop_front().unwrap_or(self.next);
        if number == self.next {
            self.next += 1;
        }
        self.pages.insert(number, page);
        TierSlot::from_number(number)
    }

    fn let_go(&mut self, slot: TierSlot) -> Kept {
        let number = slot.number();
        self.questions.remove(&number);
        self.free.push_back(number);
        self.pages
            .remove(&number)
            .expect("a slot is removed once, by who has it")
    }
}

impl Default for Asking {
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl Asking {
    const TITLE: &'static str = "a tier that is asked";

    /// A tier of at most so many packed bytes.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        let shared = Arc::<Shared>::default();
        let thread = Lock::new(Some(Self::start(&shared)));
        Self {
            shared,
            thread,
            limit_bytes,
        }
    }

    fn start(shared: &Arc<Shared>) -> JoinHandle<()> {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || shared.answer())
    }

    fn error(cause: TierCause) -> TierError {
        TierError::of(Self::TITLE, cause)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.shared.closed.store(true, Release);
        self.shared.asked.fetch_add(1, Release);
        futex::wake_all(&self.shared.asked);
        if let Some(thread) = self.thread.lock().take() {
            let _ended = thread.join();
        }
    }
}

impl Shared {
    /// The tier's thread.
    fn answer(&self) {
        while !self.closed.load(Acquire) {
            let seen = self.asked.load(Acquire);
            let next = self.state.lock().queue.pop_front();
            let Some((number, owner)) = next else {
                futex::wait(&self.asked, seen as u32, Duration::from_millis(50));
                continue;
            };
            // Answers come in no hurry, and the lock is not held meanwhile.
            std::thread::yield_now();
            let mut state = self.state.lock();
            let answer = match state.pages.get(&number) {
                None => Err(TierCause::NoRecord),
                Some(page) if page.owner != owner => Err(TierCause::WrongOwner),
                Some(page) => Ok((page.codec, page.bytes.clone())),
            };
            // Taken back meanwhile, or asked anew for another page: no answer to that.
            let is_asked_again = state.queue.iter().any(|&(other, _)| other == number);
            if let Some(place) = state.questions.get_mut(&number)
                && !is_asked_again
            {
                *place = Some(answer);
            }
            drop(state);
            self.news.fetch_add(1, Release);
            futex::wake_all(&self.news);
        }
    }

    fn count_read(&self, read: bool) {
        let counter = if read {
            &self.pages_read
        } else {
            &self.read_errors
        };
        counter.fetch_add(1, Relaxed);
    }

    /// The question's answer, if there is one; asks it, if nobody did.
    fn take(&self, slot: TierSlot, owner: u64) -> Option<Answer> {
        let number = slot.number();
        let mut state = self.state.lock();
        match state.questions.get(&number) {
            Some(Some(_)) => {
                let answer = state.questions.remove(&number).flatten();
                drop(state);
                self.count_read(answer.as_ref().is_some_and(Result::is_ok));
                answer
            }
            Some(None) => None,
            None => {
                state.questions.insert(number, None);
                state.queue.push_back((number, owner));
                drop(state);
                self.asked.fetch_add(1, Release);
                futex::wake_all(&self.asked);
                None
            }
        }
    }
}

impl ColdTier for Asking {
    fn title(&self) -> &'static str {
        Self::TITLE
    }

    fn access(&self) -> Access {
        Access::Ask
    }

    fn work_bytes(&self) -> usize {
        0
    }

    fn read(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Read {
        ask_and_wait(self, slot, owner, work, out)
    }

    fn ask(
        &self,
        slot: TierSlot,
        owner: u64,
        _work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Option<Read> {
        Some(match self.shared.take(slot, owner)? {
            Ok((codec, bytes)) => {
                out[..bytes.len()].copy_from_slice(&bytes);
                Ok((codec, bytes.len()))
            }
            Err(cause) => Err(Self::error(cause)),
        })
    }

    fn news(&self) -> Option<&AtomicU64> {
        Some(&self.shared.news)
    }

    /// All are asked for before any is waited for.
    fn read_run(&self, pages: &[(TierSlot, u64)], _work: &mut [u8], each: &mut EachRead<'_>) {
        let mut left: Vec<usize> = (0..pages.len()).collect();
        while !left.is_empty() {
            let seen = self.shared.news.load(Acquire);
            let before = left.len();
            left.retain(|&index| {
                let (slot, owner) = pages[index];
                let answer = self.shared.take(slot, owner);
                match &answer {
                    Some(Ok((codec, bytes))) => each(index, Ok((*codec, bytes))),
                    Some(Err(cause)) => each(index, Err(Self::error(*cause))),
                    None => {}
                }
                answer.is_none()
            });
            if left.len() == before {
                futex::wait(&self.shared.news, seen as u32, Duration::from_millis(20));
            }
        }
    }

    fn undecodable(&self, _slot: TierSlot) -> TierError {
        self.shared.count_read(false);
        Self::error(TierCause::Undecodable)
    }

    fn remove(&self, slot: TierSlot) {
        let page = self.shared.state.lock().let_go(slot);
        let len = page.bytes.len() as u64;
        self.shared.live_bytes.fetch_sub(len, Relaxed);
        self.shared.slots.fetch_sub(1, Relaxed);
    }

    fn write(
        &self,
        pages: &[Packed<'_>],
        slots: &mut [Option<TierSlot>],
    ) -> Result<(), WriteError> {
        let fits = |page: &Packed<'_>| (1..=MAX_SLOT_BYTES).contains(&page.bytes.len());
        if slots.len() < pages.len() || !pages.iter().all(fits) {
            return Err(WriteError::BadPage);
        }
        let more: u64 = pages.iter().map(|page| page.bytes.len() as u64).sum();
        if self.shared.live_bytes.load(Relaxed).saturating_add(more) > self.limit_bytes {
            self.shared.write_errors.fetch_add(1, Relaxed);
            return Err(WriteError::LimitReached);
        }
        let mut state = self.shared.state.lock();
        for (page, slot) in pages.iter().zip(slots) {
            *slot = Some(state.keep(Kept {
                owner: page.owner,
                codec: page.codec,
                bytes: page.bytes.to_vec(),
            }));
        }
        drop(state);
        let count = pages.len() as u64;
        self.shared.live_bytes.fetch_add(more, Relaxed);
        self.shared.slots.fetch_add(count, Relaxed);
        self.shared.pages_written.fetch_add(count, Relaxed);
        Ok(())
    }

    /// Moves the pages with the highest numbers to lower ones that are free.
    fn tend(&self, budget_bytes: u64, moved: &mut Moved<'_>) -> Tended {
        let mut tended = Tended::default();
        let mut state = self.shared.state.lock();
        let thin = state.free.len().min(state.pages.len());
        let mut numbers: Vec<u32> = state.pages.keys().copied().collect();
        numbers.sort_unstable();
        let mut pairs = Vec::new();
        for &number in numbers.iter().rev().take(thin) {
            let page = state.pages[&number].clone();
            tended.written_bytes += page.bytes.len() as u64;
            let (owner, len) = (page.owner, page.bytes.len() as u64);
            let to = state.keep(page);
            self.shared.live_bytes.fetch_add(len, Relaxed);
            self.shared.slots.fetch_add(1, Relaxed);
            pairs.push((owner, TierSlot::from_number(number), to, len));
            if tended.written_bytes >= budget_bytes.min(1 << 20) {
                break;
            }
        }
        drop(state);
        for (owner, from, to, len) in pairs {
            if moved(owner, from, to) {
                tended.moved_pages += 1;
                tended.moved_bytes += len;
                self.shared.pages_moved.fetch_add(1, Relaxed);
                self.remove(from);
            } else {
                self.remove(to);
            }
        }
        tended
    }

    fn stats(&self) -> TierStats {
        let shared = &*self.shared;
        let live_bytes = shared.live_bytes.load(Relaxed);
        TierStats {
            live_bytes,
            slots: shared.slots.load(Relaxed),
            file_bytes: live_bytes,
            limit_bytes: self.limit_bytes,
            pages_written: shared.pages_written.load(Relaxed),
            bytes_written: 0,
            pages_moved: shared.pages_moved.load(Relaxed),
            pages_read: shared.pages_read.load(Relaxed),
            read_errors: shared.read_errors.load(Relaxed),
            write_errors: shared.write_errors.load(Relaxed),
            ..TierStats::default()
        }
    }

    fn try_before_fork(&self) -> bool {
        let Some(state) = self.shared.state.try_lock() else {
            return false;
        };
        state.keep_for_fork();
        true
    }

    fn cancel_fork(&self) {
        self.after_fork_in_parent();
    }

    fn after_fork_in_parent(&self) {
        self.shared.state.release_after_fork();
    }

    /// The thread is not there: what was asked is asked again of a new one.
    fn after_fork_in_child(&self) {
        self.shared.state.release_after_fork();
        let lost = self.thread.lock().replace(Self::start(&self.shared));
        // Nobody runs it here: there is nobody to wait for.
        core::mem::forget(lost);
    }
}
