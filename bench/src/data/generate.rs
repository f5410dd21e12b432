//! Generated pages: the data structures of a running program that no file on
//! disk shows.

use std::io::Write;

use ghostmem_lab::rng::Rng;

use super::Kind;

const WORDS: [&str; 24] = [
    "alpha", "order", "customer", "pending", "shipped", "north", "south", "invoice", "total",
    "session", "cache", "index", "thread", "signal", "buffer", "window", "london", "lima",
    "nairobi", "osaka", "retry", "timeout", "upload", "report",
];

/// An endless stream of pages of one generated kind.
#[derive(Debug)]
pub(super) struct Generator {
    kind: Kind,
    rng: Rng,
    /// What continues from page to page: record numbers, clocks, levels.
    serial: u64,
}

impl Generator {
    /// A stream of `kind`. Kinds that come from files are given records: that
    /// is what stands in on a machine without such files.
    pub(super) const fn new(kind: Kind, seed: u64) -> Self {
        Self {
            kind,
            rng: Rng::new(seed),
            serial: 0,
        }
    }

    /// Writes the next page.
    pub(super) fn fill(&mut self, page: &mut [u8]) {
        match self.kind {
            Kind::Integers => self.integers(page),
            Kind::Objects => self.objects(page),
            Kind::Floats => self.floats(page),
            Kind::Sparse => self.sparse(page),
            _ => self.records(page),
        }
    }

    /// Alternating columns: small counts, row numbers with gaps, timestamps.
    fn integers(&mut self, page: &mut [u8]) {
        match self.rng.below(3) {
            0 => {
                for word in page.chunks_exact_mut(4) {
                    let bits = self.rng.below(14);
                    let value = self.rng.below(1 << bits);
                    word.copy_from_slice(&(value as u32).to_le_bytes());
                }
            }
            1 => {
                for word in page.chunks_exact_mut(8) {
                    self.serial += 1 + self.rng.below(5);
                    word.copy_from_slice(&self.serial.to_le_bytes());
                }
            }
            _ => {
                for word in page.chunks_exact_mut(8) {
                    self.serial += self.rng.below(5000);
                    let stamp = 1_700_000_000_000 + self.serial;
                    word.copy_from_slice(&stamp.to_le_bytes());
                }
            }
        }
    }

    /// 64-byte objects as a heap holds them: type pointer, links into one
    /// arena, counts, a short inline string, padding.
    fn objects(&mut self, page: &mut [u8]) {
        let arena = 0x0000_7f3a_4000_0000_u64;
        for object in page.chunks_exact_mut(64) {
            object.fill(0);
            let words = [
                0x0000_5581_c0de_1000 + self.rng.below(12) * 0x48,
                arena + (self.serial + self.rng.below(1 << 8)) * 64,
                arena + self.rng.below(1 << 18) * 64,
                1 + self.rng.below(3),
                self.rng.below(200) << 32 | self.serial & 0xffff,
            ];
            for (slot, word) in object.chunks_exact_mut(8).zip(words) {
                slot.copy_from_slice(&word.to_le_bytes());
            }
            let text = WORDS[self.rng.below(WORDS.len() as u64) as usize].as_bytes();
            object[40..40 + text.len()].copy_from_slice(text);
            self.serial += 1;
        }
    }

    /// A sensor that drifts, read to two decimals.
    fn floats(&mut self, page: &mut [u8]) {
        let mut level = 2000 + (self.serial % 1000) as i64;
        for word in page.chunks_exact_mut(8) {
            level += self.rng.below(21) as i64 - 10;
            word.copy_from_slice(&(level as f64 / 100.0).to_le_bytes());
        }
        self.serial = level.unsigned_abs();
    }

    /// Zeros with a few short bursts of words in use.
    fn sparse(&mut self, page: &mut [u8]) {
        page.fill(0);
        for _ in 0..2 + self.rng.below(6) {
            let at = self.rng.below(500) as usize * 8;
            for word in page[at..].chunks_exact_mut(8).take(3) {
                let value = self.rng.below(1 << 24);
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// JSON objects, one per line.
    fn records(&mut self, page: &mut [u8]) {
        let mut rest = page;
        while !rest.is_empty() {
            self.serial += 1;
            let word = |rng: &mut Rng| WORDS[rng.below(WORDS.len() as u64) as usize];
            let (name, state, city) = (
                word(&mut self.rng),
                word(&mut self.rng),
                word(&mut self.rng),
            );
            let line = format!(
                "{{\"id\":{},\"user\":\"{name}{}\",\"state\":\"{state}\",\"city\":\"{city}\",\
                 \"amount\":{}.{:02},\"at\":{},\"tag\":\"{:08x}\"}}\n",
                self.serial,
                self.rng.below(100_000),
                self.rng.below(5000),
                self.rng.below(100),
                1_700_000_000 + self.serial * 7,
                self.rng.below(1 << 32),
            );
            let take = line.len().min(rest.len());
            // Writing into a slice of at least that many bytes cannot fail.
            let _ = rest.write(&line.as_bytes()[..take]);
        }
    }
}
