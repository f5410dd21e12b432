//! The program's threads: numbers that load and store.

use std::sync::Arc;

use ghostmem_os::signal::AccessKind;
use ghostmem_os::{PAGE_SIZE, clock};

use crate::registry::{Fault, GATE, Verdict, Waits, attempt, resolve};
use crate::sim::kernel::Simulation;
use crate::sim::space::{Space, Trap};

/// Faults of one instruction before its thread lets others run.
const ATTEMPTS: u32 = 16;

/// A thread of the program.
#[derive(Debug, Clone)]
pub struct Thread {
    id: u64,
    /// Which instruction it is at.
    instant: u64,
    waits: Waits,
}

/// What became of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It went through.
    Done,
    /// Others are to run first: the access is to be tried again.
    WouldWait,
    /// The program gets the signal.
    Refused,
}

impl Thread {
    /// The thread of the number `id`, which is not 0.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self {
            id,
            instant: 1,
            waits: Waits {
                count: 0,
                barren: 0,
                since_ns: 0,
            },
        }
    }

    fn next_instruction(&mut self) {
        self.instant += 1;
        self.waits = Waits::default();
    }
}

impl Simulation {
    fn space_at(&self, address: usize) -> Option<(Arc<Space>, usize)> {
        let spaces = self.spaces.borrow();
        let found = |space: &Arc<Space>| Some((space.clone(), space.page_at(address)?));
        spaces.iter().find_map(found)
    }

    /// Loads bytes of one page.
    pub fn load(&self, thread: &mut Thread, address: usize, out: &mut [u8]) -> Outcome {
        self.access(thread, address, AccessKind::Read, |space, page| {
            space.load(page, address % PAGE_SIZE, out)
        })
    }

    /// Stores bytes of one page.
    pub fn store(&self, thread: &mut Thread, address: usize, bytes: &[u8]) -> Outcome {
        self.access(thread, address, AccessKind::Write, |space, page| {
            space.store(page, address % PAGE_SIZE, bytes)
        })
    }

    /// One instruction of `thread`, on an actor's own stack: loads of the pages at
    /// `addresses`, or stores to them, at one moment at which all of them let it through.
    /// `act` gets the bytes of each. It waits as a thread of the program does; `false` when
    /// the program gets the signal instead, for the page that is returned.
    ///
    /// # Errors
    /// The address that the signal is for.
    pub fn touch(
        &self,
        thread: &mut Thread,
        addresses: &[usize],
        write: bool,
        mut act: impl FnMut(usize, &mut [u8; PAGE_SIZE]),
    ) -> Result<(), usize> {
        let access = match write {
            true => AccessKind::Write,
            false => AccessKind::Read,
        };
        loop {
            let trapped = addresses.iter().find_map(|&address| {
                let Some((space, page)) = self.space_at(address) else {
                    return Some((address, Trap { present: false }));
                };
                let trap = space.trap(page, write).err()?;
                Some((address, trap))
            });
            let Some((address, trap)) = trapped else {
                break;
            };
            let verdict = Waits::through(|waits| {
                thread.waits = waits;
                fault(thread, address, access, trap)
            });
            if verdict == Verdict::Refused {
                thread.next_instruction();
                return Err(address);
            }
        }
        for (at, &address) in addresses.iter().enumerate() {
            if let Some((space, page)) = self.space_at(address) {
                space.with_frame(page, |frame| act(at, frame));
            }
        }
        thread.next_instruction();
        Ok(())
    }

    /// Whether an access gets through without a fault.
    #[must_use]
    pub fn is_open(&self, address: usize, write: bool) -> bool {
        self.space_at(address)
            .is_some_and(|(space, page)| space.trap(page, write).is_ok())
    }

    /// Gives the bytes of a page that has a frame to `act`, without an access.
    pub fn look(&self, address: usize, act: impl FnOnce(&[u8; PAGE_SIZE])) {
        if let Some((space, page)) = self.space_at(address)
            && space.has_frame(page)
        {
            space.with_frame(page, |frame| act(frame));
        }
    }

    /// Whether the program locked the page.
    #[must_use]
    pub fn is_locked(&self, address: usize) -> bool {
        self.space_at(address)
            .is_some_and(|(space, page)| space.is_locked(page))
    }

    /// The program takes a page's mapping away, as with `MADV_DONTNEED`.
    pub fn forget(&self, address: usize) {
        if let Some((space, page)) = self.space_at(address) {
            space.forget(page);
        }
    }

    /// The program locks a page (mlock), or unlocks it.
    pub fn set_locked(&self, address: usize, locked: bool) {
        if let Some((space, page)) = self.space_at(address) {
            space.set_locked(page, locked);
        }
    }

    fn access(
        &self,
        thread: &mut Thread,
        address: usize,
        access: AccessKind,
        mut act: impl FnMut(&Space, usize) -> Result<(), Trap>,
    ) -> Outcome {
        let Some((space, page)) = self.space_at(address) else {
            return Outcome::Refused;
        };
        for _ in 0..ATTEMPTS {
            let Err(trap) = act(&space, page) else {
                thread.next_instruction();
                return Outcome::Done;
            };
            match fault(thread, address, access, trap) {
                Verdict::Resolved | Verdict::Retry => {}
                Verdict::Refused => {
                    thread.next_instruction();
                    return Outcome::Refused;
                }
                Verdict::Wait { barren, most } => {
                    if thread.waits.count == 0 {
                        thread.waits.since_ns = clock::now_ns();
                    }
                    self.advance(most.as_nanos() as u64);
                    thread.waits.count = thread.waits.count.saturating_add(1);
                    thread.waits.barren = thread.waits.barren.saturating_add(u32::from(barren));
                    return Outcome::WouldWait;
                }
            }
        }
        Outcome::WouldWait
    }
}

/// Hands a fault to its sink once, as a signal handler does, on the caller's stack.
fn fault(thread: &Thread, address: usize, access: AccessKind, trap: Trap) -> Verdict {
    let _inside = GATE.enter();
    let complete = |fault| {
        Some(Fault {
            access,
            present: trap.present,
            thread: thread.id,
            instant: thread.instant,
            waits: thread.waits,
            ..fault
        })
    };
    attempt(
        address,
        |_, fault| complete(fault),
        |lease, dispatch| resolve(dispatch, lease),
    )
    .unwrap_or(Verdict::Refused)
}
