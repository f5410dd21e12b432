//! Reads and removals allocate nothing, and neither do writes and cleaning: the
//! program's allocator ends the process when asked in a forbidden moment.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ghostmem_file::{FileTier, Options, WORK_BYTES};
use ghostmem_store::tier::{Packed, TierSlot};

struct Strict;

thread_local! {
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

fn check() {
    if FORBIDDEN.get() {
        FORBIDDEN.set(false);
        eprintln!("the allocator was called in a place where it must not be");
        std::process::abort();
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Strict {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        check();
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Strict = Strict;

fn quietly<T>(what: impl FnOnce() -> T) -> T {
    FORBIDDEN.set(true);
    let result = what();
    FORBIDDEN.set(false);
    result
}

/// Formats into a fixed buffer, as a fault handler does.
struct Fixed([u8; 400], usize);

impl core::fmt::Write for Fixed {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0[self.1..self.1 + text.len()].copy_from_slice(text.as_bytes());
        self.1 += text.len();
        Ok(())
    }
}

#[test]
fn nothing_allocates_after_the_tier_is_open() {
    for options in [
        Options::unnamed(std::env::temp_dir()).nonce_bits(1),
        Options::unnamed(std::env::temp_dir())
            .encrypt(false)
            .direct(false),
    ] {
        let tier = FileTier::open(&options).unwrap();
        let bytes = [7; 1000];
        let pages: Vec<Packed<'_>> = (0..900)
            .map(|owner| Packed {
                owner,
                codec: 1,
                bytes: &bytes,
            })
            .collect();
        let mut slots = vec![None; pages.len()];
        let mut again = vec![None; pages.len()];
        let mut work = vec![0; 8 * WORK_BYTES];
        let mut out = [0; 4096];
        for round in 0..20 {
            quietly(|| tier.write(&pages, &mut again)).unwrap();
            for (owner, (slot, new)) in slots.iter_mut().zip(&mut again).enumerate() {
                let old: Option<TierSlot> = slot.take();
                *slot = if owner % 7 == round % 7 || old.is_none() {
                    quietly(|| old.into_iter().for_each(|old| tier.remove(old)));
                    new.take()
                } else {
                    quietly(|| tier.remove(new.take().unwrap()));
                    old
                };
            }
            quietly(|| {
                tier.clean(u64::MAX, &mut |owner, from, to| {
                    let slot = &mut slots[owner as usize];
                    *slot == Some(from) && slot.replace(to).is_some()
                })
            });
        }
        let wanted: Vec<_> = (0..64)
            .map(|owner| (slots[owner].unwrap(), owner as u64))
            .collect();
        let mut seen = 0;
        quietly(|| {
            for (owner, slot) in slots.iter().enumerate() {
                let read = tier.read(slot.unwrap(), owner as u64, &mut work, &mut out);
                assert!(read == Ok((1, 1000)) && out[..1000] == bytes);
            }
            tier.read_run(&wanted, &mut work, &mut |_, read| {
                seen += usize::from(read.is_ok())
            });
            // Errors and their text are made in handlers, too.
            let error = tier
                .read(slots[0].unwrap(), 1, &mut work, &mut out)
                .unwrap_err();
            let mut line = Fixed([0; 400], 0);
            core::fmt::Write::write_fmt(&mut line, format_args!("{error}")).unwrap();
            assert!(line.1 > 20);
            let error = tier.undecodable(slots[0].unwrap());
            core::fmt::Write::write_fmt(&mut line, format_args!("{error}")).unwrap();
            tier.stats().slots
        });
        assert_eq!(seen, 64);
        assert!(tier.try_before_fork());
        quietly(|| {
            tier.cancel_fork();
            slots
                .iter_mut()
                .for_each(|slot| tier.remove(slot.take().unwrap()));
        });
        assert_eq!(tier.stats().slots, 0);
    }
}
