//! Stacks of a simulation's actors, of which one runs at a time.
//!
//! An actor runs one turn after the other, each from a call of [`Fibre::resume`] on, and
//! gives way wherever it calls [`give_way`]: deep inside the engine, with whatever it
//! owns at that moment. Who resumes it is the scheduler, on the thread's own stack.

use core::cell::Cell;
use core::ptr;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

/// Bytes of a stack: a batch of evictions and one of the demoter, unoptimised.
const STACK_BYTES: usize = 1 << 20;

/// Why an actor gave way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Its turn is over.
    Over,
    /// It goes on with the turn when it is resumed.
    Within,
}

std::thread_local! {
    /// The one that runs; null on the thread's own stack.
    static YIELDER: Cell<*const Yielder<(), Stop>> = const { Cell::new(ptr::null()) };
}

/// A stack, and what runs on it.
pub struct Fibre(Coroutine<(), Stop, ()>);

impl Fibre {
    /// An actor that calls `turn` each time it is resumed after a turn was over.
    ///
    /// # Panics
    /// Without memory for its stack.
    pub fn new(mut turn: impl FnMut() + 'static) -> Self {
        let stack = DefaultStack::new(STACK_BYTES).expect("memory for a simulated thread's stack");
        Self(Coroutine::with_stack(stack, move |yielder, ()| {
            let here = ptr::from_ref(yielder);
            loop {
                YIELDER.set(here);
                turn();
                yielder.suspend(Stop::Over);
            }
        }))
    }

    /// Lets it run until it gives way.
    pub fn resume(&mut self) -> Stop {
        let stop = self.0.resume(());
        YIELDER.set(ptr::null());
        match stop {
            CoroutineResult::Yield(stop) => stop,
            CoroutineResult::Return(()) => Stop::Over,
        }
    }
}

/// Returns when the calling actor is resumed. Does nothing on the thread's own stack.
pub fn give_way() {
    let here = YIELDER.get();
    // SAFETY: set by the fibre that runs, whose yielder lives as long as its stack.
    let Some(yielder) = (unsafe { here.as_ref() }) else {
        return;
    };
    yielder.suspend(Stop::Within);
    YIELDER.set(here);
}
