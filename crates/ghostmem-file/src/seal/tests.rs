//! No nonce is ever used twice with one key: counted, over every call to the
//! cipher, with a counter so narrow that keys change all the time.

use std::cell::RefCell;

use ghostmem_store::tier::{Packed, TierSlot, WriteError};

use crate::{FileTier, Options};

/// A key and a nonce.
type Used = (u64, [u8; 12]);

thread_local! {
    /// Key and nonce of every seal of this thread, while somebody counts.
    static USED: RefCell<Option<Vec<Used>>> = const { RefCell::new(None) };
}

pub(super) fn note(key: u64, nonce: [u8; 12]) {
    USED.with_borrow_mut(|used| {
        if let Some(used) = used {
            used.push((key, nonce));
        }
    });
}

/// Rewrites random ones of `pages` pages, in batches, cleaning as it goes; then looks
/// at every nonce that was used.
fn rewrite(writes: usize, pages: usize, nonce_bits: u32) {
    let options = Options::unnamed(std::env::temp_dir()).nonce_bits(nonce_bits);
    let tier = FileTier::open(&options).unwrap();
    let mut slots: Vec<Option<TierSlot>> = vec![None; pages];
    let mut state = 1_u64;
    let bytes = [0x5A; 40];
    USED.set(Some(Vec::with_capacity(writes * 3 / 2)));
    let mut written = 0;
    while written < writes {
        let mut owners = [0_u64; 1000];
        for owner in &mut owners {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            *owner = (state >> 33) % pages as u64;
        }
        let batch = owners.map(|owner| Packed {
            owner,
            codec: 1,
            bytes: &bytes,
        });
        let mut given = [None; 1000];
        match tier.write(&batch, &mut given) {
            Ok(()) => written += batch.len(),
            // Every place for keys is taken: cleaning frees one.
            Err(error) => assert_eq!(error, WriteError::NoKey),
        }
        for (owner, slot) in owners.into_iter().zip(given) {
            if slot.is_some()
                && let Some(old) = core::mem::replace(&mut slots[owner as usize], slot)
            {
                tier.remove(old);
            }
        }
        tier.clean(1 << 20, &mut |owner, from, to| {
            let slot = &mut slots[owner as usize];
            let is_there = *slot == Some(from);
            if is_there {
                *slot = Some(to);
            }
            is_there
        });
    }
    let mut used = USED.take().unwrap();
    assert!(
        used.len() >= writes,
        "{} seals of {writes} writes",
        used.len()
    );
    let count = used.len();
    used.sort_unstable();
    let repeated = used.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(repeated, None);
    used.dedup_by_key(|(key, _)| *key);
    let keys = tier.stats().keys;
    assert_eq!(used.len() as u64, keys, "each key is another");
    let fillings = 1 << nonce_bits;
    assert!(
        keys as usize >= count / (fillings * 1024),
        "{keys} keys of {fillings} fillings for {count} records"
    );
    println!("{count} records sealed with {keys} keys, no nonce twice");
    let (mut work, mut out) = (vec![0; crate::WORK_BYTES], [0; 4096]);
    for (owner, slot) in slots.iter().enumerate() {
        if let Some(slot) = slot {
            let read = tier.read(*slot, owner as u64, &mut work, &mut out).unwrap();
            assert_eq!((read, &out[..40]), ((1, 40), &bytes[..]));
        }
    }
}

#[test]
fn no_nonce_twice_with_a_narrow_counter() {
    rewrite(200_000, 20_000, 2);
}

/// Ten million writes: `cargo test --release -p ghostmem-file --lib ten_million --
/// --ignored --nocapture`. Twelve seconds of processor, as many more of disk as it
/// needs for 3 GiB, and 600 MiB of memory.
#[test]
#[ignore = "writes gigabytes"]
fn no_nonce_twice_in_ten_million_writes() {
    rewrite(10_000_000, 200_000, 4);
}

#[test]
fn the_nonce_counts_on_when_a_write_fails() {
    #[derive(Debug)]
    struct Every(core::sync::atomic::AtomicUsize);
    impl crate::Faults for Every {
        fn read(&self, _: u64, _: usize) -> crate::Injected {
            crate::Injected::Nothing
        }
        fn write(&self, _: u64, _: usize) -> crate::Injected {
            let count = self.0.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            if count.is_multiple_of(2) {
                crate::Injected::Errno(libc::EIO)
            } else {
                crate::Injected::Nothing
            }
        }
        fn punch(&self, _: u64, _: u64) -> crate::Injected {
            crate::Injected::Nothing
        }
    }
    static FAULTS: Every = Every(core::sync::atomic::AtomicUsize::new(0));
    let options = Options::unnamed(std::env::temp_dir()).faults(&FAULTS);
    let tier = FileTier::open(&options).unwrap();
    USED.set(Some(Vec::new()));
    let page = Packed {
        owner: 7,
        codec: 1,
        bytes: &[1; 900],
    };
    for _ in 0..500 {
        let mut slots = [None; 3];
        // The second place takes it.
        tier.write(&[page; 3], &mut slots).unwrap();
        slots.iter().flatten().for_each(|&slot| tier.remove(slot));
    }
    let mut used = USED.take().unwrap();
    assert_eq!(used.len(), 500 * 3 * 2);
    used.sort_unstable();
    assert!(used.windows(2).all(|pair| pair[0] != pair[1]));
}
