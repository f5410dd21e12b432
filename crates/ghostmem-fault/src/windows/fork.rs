//! Sinks, as far as Windows needs them known: it has no fork to tell them of.

use ghostmem_os::OsError;
use ghostmem_os::map::MapArc;

use crate::registry::FaultSink;

/// A handle of a sink, for as long as it takes faults.
pub struct Enrolment<S: FaultSink> {
    sink: MapArc<S>,
}

impl<S: FaultSink> Enrolment<S> {
    /// The sink.
    #[must_use]
    pub fn sink(&self) -> &MapArc<S> {
        &self.sink
    }
}

/// Keeps a handle of `sink`.
///
/// # Errors
/// Never.
pub fn enrol<S: FaultSink>(sink: MapArc<S>) -> Result<Enrolment<S>, OsError> {
    Ok(Enrolment { sink })
}
