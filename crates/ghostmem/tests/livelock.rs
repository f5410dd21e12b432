//! One instruction may need more pages than the limit has, and many threads
//! may need theirs at once: everybody gets through, with the right bytes.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::arch::asm;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, heap};
use ghostmem::{Backend, GhostSlice};

mod common;

const LIMIT_PAGES: usize = 5;

fn bytes(backend: Backend, pages: usize) -> GhostSlice<u8> {
    heap(backend, LIMIT_PAGES)
        .slice_from_fn(pages * PAGE_SIZE, byte)
        .unwrap()
}

fn byte(i: usize) -> u8 {
    (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[7]
}

/// Offsets of lanes that each lie across a border of two pages of their own.
fn straddling<const N: usize>(turn: usize) -> [i32; N] {
    std::array::from_fn(|lane| ((2 * lane + 1) * PAGE_SIZE - 1 - turn % 3) as i32)
}

fn expected(at: i32) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|k| byte(at as usize + k)))
}

#[test]
fn an_avx512_gather_over_thirty_two_pages_finishes() {
    if !std::arch::is_x86_feature_detected!("avx512f") {
        eprintln!("SKIPPED: this processor has no AVX-512");
        return;
    }
    let _watchdog = Watchdog::new("AVX-512 gather", 60);
    for backend in BACKENDS {
        let data = bytes(backend, 40);
        for turn in 0..20 {
            let offsets = straddling::<16>(turn);
            let mut out = [0_u32; 16];
            // SAFETY: all lanes lie inside `data`, and the processor has the
            // instructions.
            unsafe {
                asm!(
                    "vmovdqu32 zmm0, [{offsets}]",
                    "kxnorw k1, k1, k1",
                    "vpxord zmm1, zmm1, zmm1",
                    "vpgatherdd zmm1{{k1}}, [{data} + zmm0]",
                    "vmovdqu32 [{out}], zmm1",
                    "vzeroupper",
                    offsets = in(reg) offsets.as_ptr(),
                    data = in(reg) data.as_ptr(),
                    out = in(reg) out.as_mut_ptr(),
                    out("xmm0") _, out("xmm1") _, out("k1") _,
                    options(nostack),
                );
            }
            assert_eq!(out, offsets.map(expected), "{backend}, turn {turn}");
        }
    }
}

#[test]
fn avx2_gathers_of_eight_threads_finish() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        eprintln!("SKIPPED: this processor has no AVX2");
        return;
    }
    let _watchdog = Watchdog::new("AVX2 gathers", 60);
    for backend in BACKENDS {
        let data = bytes(backend, 20);
        thread::scope(|scope| {
            for me in 0..8 {
                let data = &data;
                scope.spawn(move || {
                    for turn in me..me + 10 {
                        let offsets = straddling::<8>(turn);
                        let mut out = [0_u32; 8];
                        // SAFETY: as for AVX-512.
                        unsafe {
                            asm!(
                                "vmovdqu ymm0, [{offsets}]",
                                "vpcmpeqd ymm2, ymm2, ymm2",
                                "vpxor ymm1, ymm1, ymm1",
                                "vpgatherdd ymm1, [{data} + ymm0], ymm2",
                                "vmovdqu [{out}], ymm1",
                                "vzeroupper",
                                offsets = in(reg) offsets.as_ptr(),
                                data = in(reg) data.as_ptr(),
                                out = in(reg) out.as_mut_ptr(),
                                out("xmm0") _, out("xmm1") _, out("xmm2") _,
                                options(nostack),
                            );
                        }
                        assert_eq!(out, offsets.map(expected), "{backend}, turn {turn}");
                    }
                });
            }
        });
    }
}

#[test]
fn rep_movs_across_pages_of_source_and_destination_finishes() {
    let _watchdog = Watchdog::new("rep movs", 60);
    for backend in BACKENDS {
        let from = bytes(backend, 24);
        let mut to = from.heap().slice_from_fn(24 * PAGE_SIZE, |_| 0_u8).unwrap();
        for turn in 0..6 {
            let count = 20 * PAGE_SIZE + turn;
            let (source, target) = (1 + turn, 3 * turn);
            // SAFETY: both ranges lie inside their slices and do not overlap.
            unsafe {
                asm!(
                    "rep movsb",
                    inout("rcx") count => _,
                    inout("rsi") from.as_ptr().add(source) => _,
                    inout("rdi") to.as_mut_ptr().add(target) => _,
                    options(nostack),
                );
            }
            let right = (0..count).all(|i| to[target + i] == byte(source + i));
            assert!(right, "{backend}, turn {turn}");
        }
    }
}

#[test]
fn a_thread_that_gets_on_stays_within_the_limit() {
    let _watchdog = Watchdog::new("random reads at the smallest limit", 60);
    for backend in BACKENDS {
        let data = bytes(backend, 200);
        let mut random = Random::new(3);
        // More refaults in a row than a thread is granted that seems stuck.
        while data.heap().stats().refaults < 10_000 {
            let at = random.below(data.len());
            assert_eq!(data[at], byte(at), "{backend}");
        }
        assert_eq!(data.heap().stats().overdrafts, 0, "{backend}");
    }
}

#[test]
fn eight_threads_that_need_four_pages_for_each_instruction_finish() {
    let _watchdog = Watchdog::new("movsq of 8 threads", 60);
    for backend in BACKENDS {
        // Each thread: 2 pages to read from, 2 to write to, one word across
        // each border. 32 pages wanted at once, 5 to be had.
        let data = heap(backend, LIMIT_PAGES)
            .slice_from_fn(8 * 4 * PAGE_SIZE, byte)
            .unwrap();
        let start = data.as_ptr().expose_provenance();
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            for me in 0..8 {
                let done = &done;
                scope.spawn(move || {
                    for turn in 0..30_usize {
                        let at = me * 4 * PAGE_SIZE + PAGE_SIZE - 1 - turn % 7;
                        let source: *const u64 = std::ptr::with_exposed_provenance(start + at);
                        let target: *mut u64 =
                            std::ptr::with_exposed_provenance_mut(start + at + 2 * PAGE_SIZE);
                        // SAFETY: inside this thread's own four pages.
                        unsafe {
                            asm!(
                                "movsq",
                                inout("rsi") source => _,
                                inout("rdi") target => _,
                                options(nostack),
                            );
                        }
                        // SAFETY: as above.
                        let copied = unsafe { target.read_unaligned() };
                        let want = u64::from_le_bytes(std::array::from_fn(|k| byte(at + k)));
                        assert_eq!(copied, want, "{backend}: thread {me}, turn {turn}");
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(done.load(Ordering::Relaxed), 8 * 30);
        // Once everybody is through, the limit holds again.
        let heap = data.heap();
        for i in (0..data.len()).step_by(PAGE_SIZE) {
            std::hint::black_box(data[i]);
        }
        let resident = heap.stats().resident_bytes;
        assert!(resident <= LIMIT_PAGES * PAGE_SIZE, "{backend}: {resident}");
    }
}
