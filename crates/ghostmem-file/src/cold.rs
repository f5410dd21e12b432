//! The file as a tier for cold pages: what the engine sees of it.

use ghostmem_store::MAX_SLOT_BYTES;
use ghostmem_store::tier::{
    ColdTier, EachRead, Moved, Packed, Read, Tended, TierError, TierSlot, TierStats, WriteError,
};

use crate::read::WORK_BYTES;
use crate::tier::FileTier;

impl ColdTier for FileTier {
    fn title(&self) -> &'static str {
        Self::title(self)
    }

    fn work_bytes(&self) -> usize {
        WORK_BYTES
    }

    fn read(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Read {
        Self::read(self, slot, owner, work, out)
    }

    fn read_run(&self, pages: &[(TierSlot, u64)], work: &mut [u8], each: &mut EachRead<'_>) {
        Self::read_run(self, pages, work, each);
    }

    fn undecodable(&self, slot: TierSlot) -> TierError {
        Self::undecodable(self, slot)
    }

    fn remove(&self, slot: TierSlot) {
        Self::remove(self, slot);
    }

    fn write(
        &self,
        pages: &[Packed<'_>],
        slots: &mut [Option<TierSlot>],
    ) -> Result<(), WriteError> {
        Self::write(self, pages, slots)
    }

    fn tend(&self, budget_bytes: u64, moved: &mut Moved<'_>) -> Tended {
        self.clean(budget_bytes, moved)
    }

    fn stats(&self) -> TierStats {
        Self::stats(self)
    }

    fn try_before_fork(&self) -> bool {
        Self::try_before_fork(self)
    }

    fn cancel_fork(&self) {
        Self::cancel_fork(self);
    }

    fn after_fork_in_parent(&self) {
        Self::after_fork_in_parent(self);
    }

    fn after_fork_in_child(&self) {
        Self::after_fork_in_child(self);
    }
}
