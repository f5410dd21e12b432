//! Where stored pages are and go: the store kept dense, the way to the file and back, and
//! the copies that clean pages keep.

pub(crate) mod choose;
pub(crate) mod compact;
pub(crate) mod copies;
pub(crate) mod demote;
pub(crate) mod fetch;
pub(crate) mod lap;
pub(crate) mod needed;
pub(crate) mod peak;
pub(crate) mod share;
pub(crate) mod split;
