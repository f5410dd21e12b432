//! A page's whole story.
//!
//! ```text
//!   calls       what a program may ask for: blocks, advice, pins
//!   lifecycle   start, end, fork; what backends tell the engine
//!   watch       figures for those who look on
//!   fault       from the touch to the page in place
//!   limits      what a program may have
//!   evict       reclaim: from a cold page to a slot
//!   tiers       the store kept dense, the file, copies of clean pages
//!   parts       what a heap is made of
//! ```
//! A folder uses those below it and none above, and no file is part of a circle
//! (`scripts/check-layers`). Read `parts::engine` first, then `fault::resolve` and
//! `fault::restore`, then `evict`, then what you came for.
//!
//! # Rules kept here
//! * Whoever changes a page's mapping holds its claim, and is inside the
//!   gate.
//! * A thread that holds claims waits for nobody: it takes what it can get.
//! * Frames are taken before claims, and given back after mappings are gone.
//! * Nothing allocates, nothing locks on the way of a fault.
#![forbid(unsafe_code)]

mod calls;
mod evict;
mod fault;
mod lifecycle;
mod limits;
mod parts;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod sim;
mod tiers;
mod watch;

pub use ghostmem_store::tier::{TierCause, TierError};
pub use ghostmem_table::PageState;
pub use parts::blocks as space;
pub use parts::cold::{Cold, ColdSettings, UnusableTier};
pub use parts::config::{Config, LIMIT_PAGES_MIN};
pub use parts::engine::{Engine, REGION_ALIGN};
pub use parts::figures::{Figure, FigureKind, FigureUnit, Stats};
pub use parts::holes::Hole;
pub use parts::latency::LatencyHistogram;
pub use parts::lost::{LostDecision, LostHandler, LostPage};
pub use parts::ring::{Recorder, Recording, SeenTouch};
pub use tiers::split::FIRST_LOOK;
