//! A machine small enough to check whole: one page, its mapping, two stores with
//! a handful of slots each, a futex, and the pager's protocols on the real
//! [`PageTable`](ghostmem_table::PageTable).
#![allow(dead_code, unused_imports, reason = "several tests share the model")]

mod demote;
mod explore;
mod futex;
mod kept;
mod mapping;
mod protocol;
mod store;

pub(crate) use demote::Demoted;
pub(crate) use explore::explore;
pub(crate) use kept::Rule;
pub(crate) use protocol::{Evicted, World};

/// What the program does to the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Contents below this stand for pages of one repeated value: they are kept in
/// the page word (`Filled`) and take no slot.
pub(crate) const SAME_FILLED_END: u64 = 16;
