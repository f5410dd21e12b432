//! What this machine allows: the facts `ghostmem doctor` reports and the
//! choice of a backend.

use ghostmem_os::uffd::{
    self, FEATURE_MOVE, FEATURE_SIGBUS, FEATURE_WP, FEATURE_WP_ASYNC, Source, Uffd,
};
use ghostmem_os::{OsError, guard, machine, ranges, trial};

use crate::kind::BackendKind;

/// What one way of opening userfaultfd yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserfaultfdProbe {
    /// The kernel's features, or its refusal.
    pub features: Result<u64, OsError>,
}

impl UserfaultfdProbe {
    fn of(source: Source) -> Self {
        Self {
            features: trial::ask("userfaultfd", || Uffd::features(source)),
        }
    }

    /// Whether it opens and has all of `wanted`.
    #[must_use]
    pub fn has(&self, wanted: u64) -> bool {
        self.features
            .is_ok_and(|features| features & wanted == wanted)
    }

    /// Faults can be taken as signals, with write protection.
    #[must_use]
    pub fn serves_inline(&self) -> bool {
        self.has(FEATURE_SIGBUS | FEATURE_WP)
    }

    /// `UFFDIO_MOVE` is there.
    #[must_use]
    pub fn has_move(&self) -> bool {
        self.has(FEATURE_MOVE)
    }

    /// Asynchronous write protection is there.
    #[must_use]
    pub fn has_wp_async(&self) -> bool {
        self.has(FEATURE_WP_ASYNC)
    }
}

/// Whether guard markers work on memory files, and no filter forbids them.
pub(crate) fn guard_pages() -> bool {
    trial::ask("madvise", || Ok(u64::from(guard::guard_pages_work()))) == Ok(1)
}

/// Whether memory files can be had, and no filter forbids what they need.
pub(crate) fn memory_files() -> Result<(), OsError> {
    trial::ask("memfd_create", || guard::memory_files_work().map(|()| 0)).map(drop)
}

/// What was found when everything was tried once.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// `/dev/userfaultfd`.
    pub device: UserfaultfdProbe,
    /// userfaultfd(2), full mode.
    pub syscall: UserfaultfdProbe,
    /// userfaultfd(2), `UFFD_USER_MODE_ONLY`.
    pub user_mode_only: UserfaultfdProbe,
    /// Guard markers work on memory files.
    pub guard_pages: bool,
    /// A memory file can be made at all.
    pub memory_file: Result<(), OsError>,
    /// Filters of system calls that are in force, so that all this was tried in
    /// children; `None` where that cannot be told.
    pub filters: Option<u64>,
    /// No filter ends who calls userfaultfd(2).
    pub calls_userfaultfd: bool,
    /// No filter ends who gives many pages back in one call.
    pub drops_vectored: bool,
    /// The base page has the supported size.
    pub page_size_ok: bool,
}

impl Probe {
    /// Tries everything once.
    #[must_use]
    pub fn run() -> Self {
        uffd::try_call();
        ranges::try_vectored();
        Self {
            calls_userfaultfd: !uffd::avoids_call(),
            filters: machine::filters(),
            drops_vectored: ranges::drops_vectored(),
            device: UserfaultfdProbe::of(Source::Device),
            syscall: UserfaultfdProbe::of(Source::Syscall),
            user_mode_only: UserfaultfdProbe::of(Source::UserModeOnly),
            guard_pages: guard_pages(),
            memory_file: memory_files(),
            page_size_ok: machine::page_size_is_supported(),
        }
    }

    /// Whether a backend can work here.
    #[must_use]
    pub fn allows(&self, kind: BackendKind) -> bool {
        self.page_size_ok
            && match kind {
                BackendKind::Inline => {
                    self.user_mode_only.serves_inline()
                        || self.syscall.serves_inline()
                        || self.device.serves_inline()
                }
                BackendKind::Monitor => self.device.has(FEATURE_WP) || self.syscall.has(FEATURE_WP),
                BackendKind::Guard => self.memory_file.is_ok(),
                BackendKind::Veh => false,
                #[cfg(feature = "sim")]
                BackendKind::Sim => true,
            }
    }

    /// The best backend this machine allows for a library's heap.
    #[must_use]
    pub fn choice(&self) -> Option<BackendKind> {
        BackendKind::PREFERRED
            .iter()
            .copied()
            .find(|&kind| self.allows(kind))
    }
}
