//! A node of the tree over a region's pages: which pages it stands for, and what its byte
//! says of the runs in it. The picture is with [`BlockSpace`]'s file.
//!
//! Plain numbers: nothing here reads or changes the tree.

use super::BlockSpace;

/// A node filled by one run. Above every other value: those end at the
/// tree's height plus one.
pub(super) const TAKEN: u8 = u8::MAX;

/// A node filled by a run that was given back; its pages are still in use.
pub(super) const FREEING: u8 = TAKEN - 1;

/// A node filled by a run that one thread is making free.
pub(super) const FINISHING: u8 = TAKEN - 2;

/// The root; the children of `n` are `2n` and `2n + 1`.
pub(super) const ROOT: usize = 1;

/// The order of the longest free run below a node of order `order`.
pub(super) fn free_order(value: u8, order: u32) -> Option<u32> {
    // TAKEN and what follows it, and `order + 1`, all are more than the order:
    // none.
    order.checked_sub(u32::from(value))
}

/// The value of a node of order `order` whose halves have these runs.
pub(super) fn node_value(left: Option<u32>, right: Option<u32>, order: u32) -> u8 {
    let half = Some(order - 1);
    let deficit = if left == half && right == half {
        0
    } else {
        // None is less than every Some.
        left.max(right).map_or(order + 1, |longest| order - longest)
    };
    // At most 32: the root's order is at most 31.
    deficit as u8
}

/// A node and the pages it stands for.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) node: usize,
    pub(super) order: u32,
    pub(super) first: usize,
}

impl Position {
    pub(super) const fn root(space: &BlockSpace) -> Self {
        Self {
            node: ROOT,
            order: space.height,
            first: 0,
        }
    }

    /// The lower half. Only for orders above 0.
    pub(super) const fn left(self) -> Self {
        Self {
            node: 2 * self.node,
            order: self.order - 1,
            first: self.first,
        }
    }

    /// The upper half. Only for orders above 0.
    pub(super) const fn right(self) -> Self {
        Self {
            node: 2 * self.node + 1,
            order: self.order - 1,
            first: self.first + (1 << (self.order - 1)),
        }
    }

    /// The half that has the page. Only for orders above 0.
    pub(super) const fn child_with(self, page: usize) -> Self {
        if page < self.right().first {
            self.left()
        } else {
            self.right()
        }
    }
}
