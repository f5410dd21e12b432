//! A touch of memory that the processor refused, as a handler sees it on the
//! thread that made it.

/// What kind of access faulted, as far as the processor tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// A load (or an instruction fetch).
    Read,
    /// A store, or a read-modify-write.
    Write,
    /// The platform does not say.
    Unknown,
}

/// How the system reported a touch. Each kind of ghost memory is reported in
/// its own way; any other report is about something that no page could mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// SIGBUS, `BUS_ADRERR`: a userfaultfd's page is missing or protected.
    Bus,
    /// SIGSEGV, `SEGV_MAPERR`: no mapping, or a guard marker.
    Unmapped,
    /// SIGSEGV, `SEGV_ACCERR`, or an access violation on Windows: the mapping
    /// forbids the load or store.
    Forbidden,
}

/// A memory fault taken on the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct SignalFault {
    /// The address touched.
    pub address: usize,
    /// Load or store.
    pub access: AccessKind,
    /// How the system reported the touch.
    pub sign: Sign,
    /// The page was mapped but did not allow the access.
    pub present: bool,
    /// A digest of the program counter and general registers: equal for a
    /// retry of the same instruction, different (but for chance) otherwise.
    pub instant: u64,
}

/// Looks at a fault; `true` when it was ours and the instruction is to be
/// retried.
pub type FaultHook = fn(&SignalFault) -> bool;
