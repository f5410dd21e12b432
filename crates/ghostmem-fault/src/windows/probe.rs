//! What this machine allows: the facts a report shows, and the choice of a
//! backend.

use ghostmem_os::{OsError, machine, placeholder};

use crate::kind::BackendKind;

/// What was found when everything was tried once.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Placeholders can be reserved.
    pub placeholders: Result<(), OsError>,
    /// The page has the supported size.
    pub page_size_ok: bool,
}

impl Probe {
    /// Tries everything once.
    #[must_use]
    pub fn run() -> Self {
        Self {
            placeholders: placeholder::try_out(),
            page_size_ok: machine::page_size_is_supported(),
        }
    }

    /// Whether a backend can work here.
    #[must_use]
    pub fn allows(&self, kind: BackendKind) -> bool {
        self.page_size_ok && self.placeholders.is_ok() && kind == BackendKind::Veh
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
