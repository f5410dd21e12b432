//! A page's whole story.
//!
//! Read in this order: [`engine`](Engine) (what a heap is made of), `resolve`
//! (a fault, from the touch to the page in place), `evict` (reclaim: from a
//! cold page to a slot), `copies` (the slots that clean pages keep), `worker` (what
//! runs in the background), `tidy` (keeping the store dense), `lap`, `gather` and
//! `spill` (from the store to the file), `spilled` (and back), `advice` and `pins`
//! (what a program may ask for) on top of `quiet` (how its threads own pages),
//! `admission` (what the memory limit lets it have), `record` (which pages it
//! touches). `budget`, `resident`, `protecting`,
//! `threads` and `metrics` are what these stand on; `space` hands out address
//! space.
//!
//! # Rules kept here
//! * Whoever changes a page's mapping holds its claim, and is inside the
//!   gate.
//! * A thread that holds claims waits for nobody: it takes what it can get.
//! * Frames are taken before claims, and given back after mappings are gone.
//! * Nothing allocates, nothing locks on the way of a fault.
#![forbid(unsafe_code)]

mod admission;
mod advice;
mod budget;
mod copies;
mod engine;
mod evict;
mod gather;
mod lap;
mod mappings;
mod metrics;
mod overdraft;
mod pins;
mod protecting;
mod quiet;
mod record;
mod region;
mod resident;
mod resize;
mod resolve;
pub mod space;
mod spill;
mod spilled;
mod stats;
mod threads;
mod tidy;
mod worker;

pub use engine::{Config, Engine, LIMIT_PAGES_MIN, REGION_ALIGN};
pub use ghostmem_table::State;
pub use metrics::{Counts, LatencyHistogram};
pub use record::{Recorder, Recording, SeenTouch};
pub use spill::SpillSettings;
pub use spilled::{LostDecision, LostHandler, LostPage};
pub use stats::EngineStats;
