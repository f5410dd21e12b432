//! The kernel's side of one page: mapped or not, protected or not, and bytes.
//!
//! Each operation is one indivisible step, as it is under the kernel's page
//! table lock and after its TLB shootdown. It is *not* a synchronisation
//! point: the step counter is relaxed and the state behind it is invisible to
//! loom, so every happens-before edge the protocols need has to come from the
//! page word.

use std::sync::Mutex;

use ghostmem_table::{Claim, DropClaim};
use loom::sync::atomic::{AtomicU64, Ordering};

use super::explore::Steps;

/// Why an access did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No page there.
    Missing,
    /// A store to a write-protected page.
    Protected,
}

/// What allows a mapping to be changed.
pub(crate) trait Witness {}
impl Witness for Claim {}
impl Witness for DropClaim {}

/// The mapping and the bytes behind it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Frame {
    pub(crate) present: bool,
    pub(crate) protected: bool,
    pub(crate) content: u64,
    /// Somebody holds a claim on the page: the model's note, not the kernel's.
    held: bool,
    /// How many held it before.
    holders: u64,
}

#[derive(Debug)]
pub(crate) struct Mapping {
    steps: Steps,
    frame: Mutex<Frame>,
    /// Written by each holder for the next: stands for all that a holder does
    /// in plain memory, and is relaxed, so that only the page word carries it.
    legacy: AtomicU64,
}

impl Mapping {
    pub(crate) fn new() -> Self {
        Self {
            steps: Steps::new(),
            frame: Mutex::new(Frame::default()),
            legacy: AtomicU64::new(0),
        }
    }

    /// Runs `f` as one step that loom may put before or after any other.
    fn step<R>(&self, f: impl FnOnce(&mut Frame) -> R) -> R {
        self.tick();
        self.peek(f)
    }

    /// A point where loom may run any other thread.
    pub(crate) fn tick(&self) {
        self.steps.tick();
    }

    /// Looks without a step: for bookkeeping of the model itself.
    fn peek<R>(&self, f: impl FnOnce(&mut Frame) -> R) -> R {
        // Not `expect`: after a failed assertion the others only add noise.
        f(&mut self
            .frame
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    // What the program does.

    pub(crate) fn load(&self) -> Result<u64, Fault> {
        self.step(|frame| {
            if frame.present {
                Ok(frame.content)
            } else {
                Err(Fault::Missing)
            }
        })
    }

    pub(crate) fn store(&self, value: u64) -> Result<(), Fault> {
        self.step(|frame| match (frame.present, frame.protected) {
            (false, _) => Err(Fault::Missing),
            (true, true) => Err(Fault::Protected),
            (true, false) => {
                frame.content = value;
                Ok(())
            }
        })
    }

    // What the evictor does, holding nothing for sure.

    /// Protects the page if it is there. An evictor may come late, when its
    /// eviction is cancelled already: protecting too much is harmless.
    pub(crate) fn protect(&self) {
        self.step(|frame| frame.protected |= frame.present);
    }

    // What the holder of the page does.

    /// A claim was won.
    pub(crate) fn enter(&self) {
        let holders = self.peek(|frame| {
            assert!(!frame.held, "two holders of one page");
            frame.held = true;
            frame.holders
        });
        let legacy = self.legacy.load(Ordering::Relaxed);
        assert_eq!(legacy, holders, "a holder missed what the last one did");
    }

    /// A claim is about to end.
    pub(crate) fn leave(&self) {
        let holders = self.peek(|frame| {
            assert!(frame.held, "a page was released by no holder");
            frame.held = false;
            frame.holders += 1;
            frame.holders
        });
        self.legacy.store(holders, Ordering::Relaxed);
    }

    /// Copies the page out. A real copy would fault inside the engine if the
    /// page were gone, and tear if it were open.
    pub(crate) fn copy_out(&self) -> u64 {
        self.step(|frame| {
            assert!(frame.present, "copied from an absent page");
            frame.content
        })
    }

    /// Installs a filled page: bytes and mapping in one step.
    pub(crate) fn map(&self, _: &Claim, content: u64, protected: bool) {
        self.step(|frame| {
            assert!(frame.held, "mapped by no holder");
            assert!(!frame.present, "mapped over a present page");
            frame.present = true;
            frame.protected = protected;
            frame.content = content;
        });
    }

    pub(crate) fn unprotect(&self, _: &Claim) {
        self.step(|frame| {
            assert!(frame.held, "unprotected by no holder");
            assert!(frame.present, "unprotected an absent page");
            frame.protected = false;
        });
    }

    pub(crate) fn unmap(&self, _: &impl Witness) {
        self.step(|frame| {
            assert!(frame.held, "unmapped by no holder");
            assert!(frame.present, "unmapped an absent page");
            (frame.present, frame.protected, frame.content) = (false, false, 0);
        });
    }

    /// The mapping when nobody holds the page.
    pub(crate) fn at_rest(&self) -> Frame {
        self.peek(|frame| {
            assert!(!frame.held, "a claim was never released");
            *frame
        })
    }
}
