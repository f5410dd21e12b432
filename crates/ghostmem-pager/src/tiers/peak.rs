//! Of what the process consists, for the figures.

use ghostmem_os::PAGE_SIZE;
use ghostmem_store::tier::ColdTier;

use crate::parts::engine::Engine;
use crate::parts::peak::ProcessParts;

impl Engine {
    /// Notes that the process takes `total` bytes now.
    pub(crate) fn note_peak(&self, total: usize) {
        let parts = self.parts_of(total);
        self.metrics.peak.note(&parts);
    }

    /// The parts of `total` bytes that the process takes.
    fn parts_of(&self, total: usize) -> ProcessParts {
        let store = self.store.stats();
        let file = self.cold.as_ref().map(|cold| cold.tier.stats());
        let (file_slots, file_tables) =
            file.map_or((0, 0), |file| (file.slots, file.metadata_bytes));
        let resident = self.budget.used().max(0) as usize * PAGE_SIZE;
        let tables = self.table_bytes() + (store.metadata_bytes + file_tables) as usize;
        let held = store.held_bytes as usize;
        // A copy takes what a page in the store takes on average.
        let slots = (store.live_slots as usize).max(1);
        let copied = self.copies.sum();
        let copies = (held as u128 * copied.min(slots) as u128 / slots as u128) as usize;
        let other = total.saturating_sub(resident + tables + held);
        let away = (store.live_slots as usize + file_slots as usize).saturating_sub(copied);
        ProcessParts {
            total,
            resident,
            stored: held - copies,
            copies,
            tables,
            other,
            plain: resident + away * PAGE_SIZE + other,
        }
    }

    /// Bytes that the heap's pages would take if all of them were uncompressed.
    pub(crate) fn plain_bytes(&self) -> usize {
        let parts = self.parts_of(0);
        parts.plain
    }
}
