//! Random operations on the store and on a plain map: they must agree.

mod common;

use std::collections::HashMap;

use common::payload;
use ghostmem_store::{MAX_SLOT_BYTES, Owner, SlabStore, Slot};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Insert { owner: u64, len: usize, codec: u8 },
    Remove { pick: usize },
    Read { pick: usize },
    Copy { pick: usize },
    Trim { keep: usize },
    Compact { max: usize, refuse: usize },
    Limit { pages: usize },
}

fn operation() -> impl Strategy<Value = Op> {
    let len = prop_oneof![1..=4096_usize, 1..=80_usize, 4000..=4096_usize];
    prop_oneof![
        12 => (0..1_u64 << 40, len, 0..16_u8)
            .prop_map(|(owner, len, codec)| Op::Insert { owner, len, codec }),
        8 => any::<usize>().prop_map(|pick| Op::Remove { pick }),
        4 => any::<usize>().prop_map(|pick| Op::Read { pick }),
        2 => any::<usize>().prop_map(|pick| Op::Copy { pick }),
        1 => (0..1_usize << 20).prop_map(|keep| Op::Trim { keep }),
        1 => (0..200_usize, 1..9_usize).prop_map(|(max, refuse)| Op::Compact { max, refuse }),
        1 => (0..200_usize).prop_map(|pages| Op::Limit { pages }),
    ]
}

struct Page {
    owner: u64,
    codec: u8,
    data: Vec<u8>,
}

struct Pair {
    store: SlabStore,
    model: HashMap<u64, Page>,
    /// Handles in the order of their making, to pick from.
    slots: Vec<Slot>,
    limit: u64,
    version: u64,
}

impl Pair {
    fn check(&self, slot: Slot) {
        let page = &self.model[&slot.bits()];
        let mut out = [0xEE; MAX_SLOT_BYTES];
        let info = self.store.read(slot, &mut out);
        assert_eq!(info, self.store.info(slot));
        assert_eq!(info.owner, Owner::new(page.owner));
        assert_eq!((info.len, info.codec), (page.data.len(), page.codec));
        assert_eq!(out[..info.len], page.data[..]);
        assert!(out[info.len..].iter().all(|&byte| byte == 0xEE));
    }

    fn apply(&mut self, op: &Op) {
        let held_before = self.store.held_bytes();
        match *op {
            Op::Insert { owner, len, codec } => {
                self.version += 1;
                let data = payload(owner, self.version, len);
                if let Some(slot) = self.store.insert(Owner::new(owner), codec, &data) {
                    let page = Page { owner, codec, data };
                    let before = self.model.insert(slot.bits(), page);
                    assert!(before.is_none(), "a slot in use was given out");
                    self.slots.push(slot);
                } else {
                    assert!(self.limit < u64::MAX, "nothing else can refuse here");
                }
            }
            Op::Remove { pick } if !self.slots.is_empty() => {
                let slot = self.slots.swap_remove(pick % self.slots.len());
                self.check(slot);
                self.model.remove(&slot.bits());
                self.store.remove(slot);
            }
            Op::Read { pick } if !self.slots.is_empty() => {
                self.check(self.slots[pick % self.slots.len()]);
            }
            Op::Copy { pick } if !self.slots.is_empty() => {
                let place = pick % self.slots.len();
                let old = self.slots[place];
                if let Some(new) = self.store.copy(old) {
                    let page = self.model.remove(&old.bits()).expect("in use");
                    self.store.remove(old);
                    assert!(self.model.insert(new.bits(), page).is_none());
                    self.slots[place] = new;
                }
            }
            Op::Trim { keep } => {
                self.store.trim(keep);
                assert!(self.store.stats().spare_bytes <= keep as u64);
            }
            Op::Compact { max, refuse } => {
                let Self {
                    store,
                    model,
                    slots,
                    ..
                } = self;
                let mut calls = 0;
                let mut moved = 0;
                let told = store.compact(max, &mut |owner, slot| {
                    calls += 1;
                    let page = model.get(&slot.bits()).expect("only live slots here");
                    assert_eq!(owner, Owner::new(page.owner));
                    if calls % refuse == 0 {
                        return false;
                    }
                    let Some(new) = store.copy(slot) else {
                        return false;
                    };
                    let page = model.remove(&slot.bits()).expect("checked above");
                    store.remove(slot);
                    assert!(model.insert(new.bits(), page).is_none());
                    let place = slots.iter().position(|&old| old == slot);
                    slots[place.expect("known")] = new;
                    moved += 1;
                    true
                });
                assert_eq!(told, moved);
                assert!(moved <= max);
            }
            Op::Limit { pages } => {
                // Now and then no limit, so that the store can grow again.
                self.limit = if pages < 100 {
                    u64::MAX
                } else {
                    pages as u64 * 4096
                };
                self.store.set_byte_limit(self.limit as usize);
            }
            Op::Remove { .. } | Op::Read { .. } | Op::Copy { .. } => {}
        }
        let held = self.store.held_bytes();
        assert!(held <= self.limit.max(held_before), "the limit was passed");
    }

    fn check_figures(&self) {
        let stats = self.store.stats();
        let data: usize = self.model.values().map(|page| page.data.len()).sum();
        assert_eq!(stats.live_slots, self.model.len() as u64);
        assert_eq!(stats.data_bytes, data as u64);
        assert_eq!(stats.inserts - stats.removes, stats.live_slots);
        assert!(stats.data_bytes <= stats.slot_bytes);
        assert!(stats.slot_bytes + stats.spare_bytes <= stats.held_bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is done in whatever order, every slot gives back what was put
    /// in, no slot is given out twice, the figures add up, the limit holds,
    /// and in the end all memory goes back.
    #[test]
    fn the_store_behaves_like_a_map(ops in prop::collection::vec(operation(), 1..400)) {
        let mut pair = Pair {
            store: SlabStore::new(64 << 20).expect("address space"),
            model: HashMap::new(),
            slots: Vec::new(),
            limit: u64::MAX,
            version: 0,
        };
        for op in &ops {
            pair.apply(op);
            pair.check_figures();
        }
        for &slot in &pair.slots {
            pair.check(slot);
            pair.store.remove(slot);
        }
        pair.store.trim(0);
        let stats = pair.store.stats();
        prop_assert_eq!((stats.live_slots, stats.data_bytes, stats.held_bytes), (0, 0, 0));
    }
}
