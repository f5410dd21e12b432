//! A fault, from the touch to the page in place.

pub(crate) mod frame;
pub(crate) mod install;
pub(crate) mod record;
pub(crate) mod resolve;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod touch;
