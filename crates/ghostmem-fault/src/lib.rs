//! Fault backends.
//!
//! A backend answers two questions: how do we learn that the program touched
//! a page that is not there (or wrote one that is protected), and how are
//! pages put in place, protected and taken away. It hands every fault to a
//! [`FaultSink`] and knows nothing of what the sink does with it: *fault never
//! calls the pager*.
//!
//! | backend | learns by | puts pages in place by |
//! |---|---|---|
//! | *inline* | SIGBUS on the faulting thread (`UFFD_FEATURE_SIGBUS`) | `UFFDIO_COPY` |
//! | *monitor* | messages read by engine threads | `UFFDIO_COPY` |
//! | *guard* | SIGSEGV on guarded or inaccessible pages | writing to the memory file behind the mapping |
//! | *veh* (Windows) | access violation on the faulting thread | mapping a section of one page, filled before |
//!
//! Each mechanism is one file that implements [`Backend`]; [`Region`] is the closed list of
//! them.
//!
//! With the feature `sim`, for tests only, there is one more: `sim`, which knows no
//! operating system.
//!
//! # The closed world
//! [`FaultSink::on_fault`] runs inside a signal handler with every signal
//! blocked, on a stack of ours. Code reachable from it allocates nothing,
//! takes no lock and calls only what POSIX lists as async-signal-safe.

#[cfg(all(feature = "sim", windows))]
compile_error!("the feature sim is for tests on Linux");

#[cfg(not(windows))]
mod advise;
mod backend;
#[cfg_attr(windows, path = "windows/batch.rs")]
mod batch;
mod die;
#[cfg(not(windows))]
mod dumped;
#[cfg_attr(windows, path = "windows/fork.rs")]
pub mod fork;
mod gate;
#[cfg(not(windows))]
mod groups;
#[cfg(not(windows))]
mod guard;
mod kind;
#[cfg(not(windows))]
mod monitor;
mod once;
#[cfg(not(windows))]
mod open;
#[cfg_attr(windows, path = "windows/opened.rs")]
mod opened;
#[cfg_attr(windows, path = "windows/probe.rs")]
mod probe;
mod region;
mod registry;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(not(windows))]
mod userfaultfd;
#[cfg(windows)]
#[path = "windows/veh.rs"]
mod veh;

pub use backend::Backend;
pub use batch::Batch;
pub use die::{die, die_of};
pub use fork::{Enrolment, enrol};
pub use gate::{Inside, TransitionGate};
pub use ghostmem_os::ghost::Installed;
pub use ghostmem_os::scratch::{RUN_PAGES, Scratch};
pub use ghostmem_os::signal::AccessKind;
pub use kind::{BackendKind, Home};
pub use opened::Opened;
pub use probe::Probe;
#[cfg(not(windows))]
pub use probe::UserfaultfdProbe;
pub use region::Region;
pub use registry::{
    Fault, FaultSink, Registration, Verdict, Waits, gate, lookup, may_be_ghost, rearm, register,
    scratch, scratch_with, tell_news,
};
