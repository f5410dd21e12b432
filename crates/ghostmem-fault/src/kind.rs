//! What a region is made from: a mechanism, and address space.

use ghostmem_os::map::Reservation;

/// Which mechanism brings faults to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// userfaultfd, resolved on the faulting thread.
    Inline,
    /// userfaultfd, resolved by engine threads: system calls see the memory.
    Monitor,
    /// Guard pages and a second mapping: works without userfaultfd.
    Guard,
    /// Windows: access violations, resolved by a vectored exception handler on
    /// the faulting thread.
    Veh,
    /// Tests: no operating system.
    #[cfg(feature = "sim")]
    Sim,
}

impl BackendKind {
    /// Those to try for a library's heap on this system, best first.
    pub const PREFERRED: &[Self] = if cfg!(windows) {
        &[Self::Veh]
    } else {
        &[Self::Inline, Self::Guard]
    };
}

impl core::fmt::Display for BackendKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Inline => "inline",
            Self::Monitor => "monitor",
            Self::Guard => "guard",
            Self::Veh => "veh",
            #[cfg(feature = "sim")]
            Self::Sim => "sim",
        })
    }
}

/// Whose address space a region lies in.
#[derive(Debug)]
pub enum Home {
    /// The region's own, gone with it.
    Own(Reservation),
    /// `len` bytes at `offset` of a reservation that lives for ever; ordinary
    /// zero memory again when the region is gone.
    Adopted {
        /// The reservation.
        reservation: &'static Reservation,
        /// Where the region begins in it, bytes.
        offset: usize,
        /// How long it is, bytes.
        len: usize,
    },
}
