//! Why a program is not run: what stands against its heap, in one line.

use ghostmem::{Error, FIRST_LOOK, Heap};
use ghostmem_os::{OsError, machine};

use crate::settings::Settings;
use crate::{raised, report, tree};

/// Why a program cannot run, and with which code the process ends.
pub(crate) struct Refusal {
    pub(crate) why: String,
    pub(crate) code: i32,
}

impl Refusal {
    pub(crate) fn say(&self) {
        let line = format!(
            "ghostmem: cannot run this program on ghost memory: {}\n",
            self.why
        );
        crate::raw::say(line.as_bytes());
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self { why, code: 126 }
    }
}

/// Less is never enough for a process's pages.
const LEAST_BYTES: u64 = 1 << 20;
/// Bounds up to here keep an eighth free.
const SMALL_BOUND_BYTES: u64 = 32 << 20;

/// The first process of a run that takes so much already that its bound can never leave the
/// least: whatever the others of the run gave back would not help it.
pub(crate) fn of_what_cannot_begin(settings: &Settings) -> Result<(), Refusal> {
    let Some(tree) = tree::page().filter(|_| report::is_reporter(settings)) else {
        return Ok(());
    };
    let bound = tree.bound_bytes();
    if bound > SMALL_BOUND_BYTES {
        return Ok(());
    }
    match machine::process_bytes() {
        Some(taken) if taken.saturating_add(LEAST_BYTES) > bound - bound / 8 => {
            Err(too_little_left())
        }
        _ => Ok(()),
    }
}

/// Nobody may run without the bound that was asked for, which is what there is where no other
/// was: the kernel's reports say it, and each is a descriptor.
pub(crate) fn without_bound(settings: &Settings, heap: &Heap) -> Result<(), Refusal> {
    const NONE_BYTES: usize = 1 << 62;
    let other = settings.limit.max(settings.memory_limit);
    let is_without = settings.memory_auto
        && settings.memory_each.max(settings.memory).max(other) == 0
        && heap.stats().process_bound_bytes >= NONE_BYTES;
    match raised::few_files().filter(|_| is_without) {
        Some(files) => Err(Refusal {
            why: format!(
                "the limit on open files (ulimit -n) of {files} leaves none for the kernel's \
                 reports on memory, which its bound follows: allow more, or use --limit"
            ),
            code: 125,
        }),
        None => Ok(()),
    }
}

/// What a bound that others take from, too, leaves is not enough to begin with.
fn too_little_left() -> Refusal {
    Refusal {
        why: "its control group, the machine, or the --memory of this run has less than 1 MiB \
              left for its pages: allow more"
            .to_owned(),
        code: 125,
    }
}

/// The cause of a refusal to make the heap, where a limit of the process's is known to
/// be it.
pub(crate) fn why_not(error: &Error) -> Refusal {
    let why = error.to_string();
    if let Error::MemoryTooSmall { .. } = error {
        return Refusal { why, code: 125 };
    }
    if let Error::Os(OsError { call, .. }) = error
        && *call == FIRST_LOOK
    {
        return too_little_left();
    }
    if let Error::Os(OsError { call, errno }) = error
        && *call == "pthread_create"
        && *errno == libc::EAGAIN
    {
        return Refusal {
            why: "no thread can be made for the engine: the limit on processes (ulimit -u) or a \
                  control group (pids.max) leaves none"
                .to_owned(),
            code: 125,
        };
    }
    if ghostmem_os::guard::size_limit_met() {
        return "the limit on the size of files (ulimit -f) leaves no room for the memory file \
                of the guard backend"
            .to_owned()
            .into();
    }
    let space_left = machine::address_space_left();
    if let (Some(files), None) = (raised::few_files(), space_left) {
        return Refusal {
            why: format!(
                "the limit on open files (ulimit -n) of {files} leaves too few for the engine: \
                 allow more"
            ),
            code: 125,
        };
    }
    match space_left {
        Some(left) => format!(
            "{why} (the limits on address space and data, ulimit -v and -d, leave {left} bytes)"
        ),
        None => why,
    }
    .into()
}
