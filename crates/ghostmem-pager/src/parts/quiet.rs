//! Owning pages on a thread of the program's, outside fault handlers.
//!
//! Three things must not happen while such a thread owns a page:
//!
//! * A signal handler runs and touches the page: it would wait for the thread it
//!   interrupted. Every signal is blocked.
//! * The thread touches ghost memory: its own fault, with signals blocked, ends
//!   the process. The caller's *stack* may be ghost memory (a coroutine's, that
//!   came from malloc). So the body runs on the stack of a lease, and is given
//!   everything by value: a plain function, and arguments that borrow nothing.
//! * The stack ends: the caller's may have 16 KiB, and a batch of evictions takes
//!   twice that. The lease's has room.
//!
//! ```text
//!   stack is ordinary memory                stack may be ghost memory
//!   block all signals                       block all signals but those of faults
//!   enter the gate                          lease buffers and a stack ── switch to it
//!   lease buffers and a stack ── switch     copy function and arguments here
//!   run                                     block all signals
//!   give all back                           enter the gate, unless it is frozen
//!                                           run
//!                                           leave the gate, let faults through
//!                                           copy the result to the caller
//!                                           switch back, give the lease back
//! ```
//! On the right nothing of the caller's is touched inside the gate: its fault
//! handler would wait for a gate that is being frozen, and who freezes it for the
//! thread. Nor does the thread wait for a frozen gate with a lease: the thread that
//! forks may need one.

use core::hint::black_box;

use ghostmem_fault::Scratch;
use ghostmem_os::OsError;
use ghostmem_os::error::EINVAL;
use ghostmem_os::thread::SignalsBlocked;

use crate::parts::engine::Engine;
use crate::parts::region::Region;

/// What runs quietly, and what came of it. Lies on the caller's stack.
struct Call<'a, A, R> {
    engine: &'a Engine,
    arguments: A,
    body: fn(&Engine, A, &mut Scratch) -> R,
    result: Option<R>,
}

impl<A: Copy, R> Call<'_, A, R> {
    /// Everything is blocked already, and the caller's stack is never absent.
    fn run(&mut self, scratch: &mut Scratch) {
        self.result = Some((self.body)(self.engine, self.arguments, scratch));
    }

    /// Runs with a copy of all it needs; no result when the gate is frozen.
    fn run_apart(&mut self, scratch: &mut Scratch) {
        // Opaque, so that no load or store of the caller's stack moves to where
        // signals are blocked.
        let (engine, arguments, body) = black_box((self.engine, self.arguments, self.body));
        let blocked = SignalsBlocked::new();
        let result = ghostmem_fault::gate().try_enter().map(|inside| {
            let result = body(engine, arguments, scratch);
            drop(inside);
            result
        });
        drop(blocked);
        self.result = black_box(result);
    }
}

impl Engine {
    /// Runs `body` inside the gate, with every signal blocked, with buffers, and on
    /// the stack that belongs to them. What it is given borrows nothing from the
    /// caller, whose stack may be absent.
    ///
    /// `body` must not panic, and must not enter the gate.
    ///
    /// # Errors
    /// When no working memory can be had.
    pub(crate) fn quietly<A, R>(
        &self,
        arguments: A,
        body: fn(&Self, A, &mut Scratch) -> R,
    ) -> Result<R, OsError>
    where
        A: Copy + 'static,
        R: 'static,
    {
        let pool = ghostmem_fault::scratch()?;
        let gate = ghostmem_fault::gate();
        let mut call = Call {
            engine: self,
            arguments,
            body,
            result: None,
        };
        if ghostmem_fault::may_be_ghost((&raw const call).addr()) {
            loop {
                let blocked = SignalsBlocked::all_but_faults();
                let mut lease = pool.lease();
                lease.on_own_stack(&mut call, Call::run_apart);
                drop(lease);
                drop(blocked);
                if call.result.is_some() {
                    break;
                }
                gate.wait_while_frozen();
            }
        } else {
            let blocked = SignalsBlocked::new();
            let inside = gate.enter();
            let mut lease = pool.lease();
            lease.on_own_stack(&mut call, Call::run);
            drop(lease);
            drop(inside);
            drop(blocked);
        }
        // It always ran.
        call.result
            .ok_or(OsError::new("a call on another stack", EINVAL))
    }

    /// As [`Engine::quietly`], for pages of one region of this engine's.
    pub(crate) fn quietly_in<A, R>(
        &self,
        region: &Region,
        arguments: A,
        body: fn(&Self, &Region, A, &mut Scratch) -> R,
    ) -> Result<R, OsError>
    where
        A: Copy + 'static,
        R: 'static,
    {
        let all = (region.index as usize, arguments, body);
        self.quietly(all, |engine, (index, arguments, body), scratch| {
            let region = engine.region(index)?;
            Some(body(engine, region, arguments, scratch))
        })?
        .ok_or(OsError::new("a region", EINVAL))
    }
}
