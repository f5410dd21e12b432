//! What the demo says where `--memory` does not hold its data: one line, with a number that would.

use crate::failure::Failure;
use crate::size::Bytes;

/// What the collections take beside the documents: table, a second one while it is sorted, index,
/// the ends of pages. An eighth.
const BESIDE: f64 = 1.125;

/// Data that was not loaded may compress worse than what was: an eighth.
const WORSE: f64 = 1.125;

/// What a bound keeps free: a thirty-second, 4 MiB at least.
const FREE_SHARE: f64 = 32.0;
const FREE_LEAST: f64 = (4 << 20) as f64;

/// A number that is named is a multiple of this.
const STEP_BYTES: u64 = 16 << 20;

/// How far the work came before memory was full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// The bound on the process, where there is one.
    pub(super) memory_bytes: Option<u64>,
    /// What the process took before the work.
    pub(super) before_bytes: u64,
    /// All documents.
    pub(super) data_bytes: u64,
    /// Documents that were in memory.
    pub(super) loaded_bytes: u64,
}

impl Room {
    /// The line.
    pub(super) fn refused(&self) -> Failure {
        let data = Bytes(self.data_bytes);
        match self.memory_bytes {
            Some(memory) => Failure::new(format!(
                "--memory {}M does not hold the demo's {data} of data: --memory {}M would",
                memory >> 20,
                self.enough_bytes(memory) >> 20
            )),
            None => Failure::new(format!(
                "the heap has no room for the demo's {data} of data: choose less with --size"
            )),
        }
    }

    /// A bound that holds all of it, by what was loaded under `memory_bytes`: no more than it
    /// takes uncompressed.
    fn enough_bytes(&self, memory_bytes: u64) -> u64 {
        let memory = memory_bytes as f64;
        let before = self.before_bytes as f64;
        let usable = memory - (memory / FREE_SHARE).max(FREE_LEAST);
        let taken = (usable - before).max(0.0) / (self.loaded_bytes as f64).max(1.0);
        let each = (taken * WORSE).min(1.0) * BESIDE;
        let all = before + self.data_bytes as f64 * each;
        let bound = (all * FREE_SHARE / (FREE_SHARE - 1.0)).max(all + FREE_LEAST);
        let least = bound.max(memory + 1.0) as u64;
        least.next_multiple_of(STEP_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn enough_mib(memory: u64, loaded: u64, data: u64) -> u64 {
        let room = Room {
            memory_bytes: Some(memory * MIB),
            before_bytes: 10 * MIB,
            data_bytes: data * MIB,
            loaded_bytes: loaded * MIB,
        };
        room.enough_bytes(memory * MIB) / MIB
    }

    #[test]
    fn what_is_named_grows_with_what_was_not_loaded_and_is_no_more_than_plain_data_takes() {
        // 610 MiB held 900 of 1024.
        assert_eq!(enough_mib(640, 900, 1024), 928);
        // It compresses ten to one.
        assert_eq!(enough_mib(64, 500, 1024), 160);
        // Not at all, or nothing is known.
        let plain = (1024.0_f64 * BESIDE + 10.0) / 31.0 * 32.0;
        for loaded in [0, 20, 50] {
            let enough = enough_mib(64, loaded, 1024);
            assert!(enough as f64 >= plain && enough < plain as u64 + 17);
        }
        // It failed at the last moment.
        assert!(enough_mib(640, 1024, 1024) > 640);
    }

    #[test]
    fn one_line_names_what_was_given_and_what_does() {
        let room = Room {
            memory_bytes: Some(640 * MIB),
            before_bytes: 10 * MIB,
            data_bytes: 1024 * MIB,
            loaded_bytes: 900 * MIB,
        };
        assert_eq!(
            room.refused().to_string(),
            "--memory 640M does not hold the demo's 1.00 GiB of data: --memory 928M would"
        );
        let without = Room {
            memory_bytes: None,
            ..room
        };
        assert!(without.refused().to_string().contains("--size"));
    }
}
