//! Keeping the file dense: emptied segments are used again or given back, thin ones
//! are emptied by writing what lives in them elsewhere.
//!
//! How full the file is kept is a bargain: every byte less of it costs more bytes
//! written. Cleaning begins when the file is larger than 1.13 times what lives in it
//! and a few segments; the thinnest segment goes first, and what it held is written
//! apart from new records, so that what lives long is seldom moved again.
//!
//! A record that is moved is opened, which proves it, and sealed anew. One that
//! cannot be read stays where it is, and so does its segment: whoever touches the
//! page is told.

use ghostmem_os::file::{BLOCK_BYTES, File, Tether};
use ghostmem_os::lineage;
use ghostmem_store::tier::{Moved, Packed, Tended, TierSlot, WriteError};

use crate::seal::KEYS;
use crate::segments::TRIM_SHARE;
use crate::table::SlotNumber;
use crate::table::{RECORDS, SEGMENT_BYTES, SegmentState, segment_offset};
use crate::tier::FileTier;
use crate::write::{Stream, Writer};

/// Segments the file may have beyond its share of what lives: those being filled and
/// those kept for the next ones.
const SLACK_BYTES: u64 = 5 << 20;
/// Part of what lives that the file may be larger by: 13 in 100.
const DEAD_SHARE: u64 = 13;
/// The same when the file is near its limit, or the disk full.
const DEAD_SHARE_AT_LIMIT: u64 = 3;
const SLACK_BYTES_AT_LIMIT: u64 = 2 << 20;
/// Keys in use from which on segments with old ones are cleaned.
const KEYS_BUSY: usize = KEYS / 2;
/// Files from which on segments of ancestors' files are cleaned.
const FILES_BUSY: usize = 8;

/// A segment that is to be emptied.
#[derive(Debug, Clone, Copy)]
struct Victim {
    segment: u32,
    /// For the place of its file or key, whatever room it takes elsewhere.
    is_for_its_place: bool,
    /// Its blocks are room again once it is empty.
    gives_room: bool,
}

impl FileTier {
    /// See [`ColdTier::tend`](ghostmem_store::tier::ColdTier::tend).
    pub fn clean(&self, budget_bytes: u64, moved: &mut Moved<'_>) -> Tended {
        let mut report = Tended::default();
        if lineage::is_stranger() {
            return report;
        }
        let w = &mut *self.writer.lock();
        self.collect(w);
        // A file that nothing was ever written to needs no room to clean.
        if w.unused > 1 {
            self.keep_spare(w);
        }
        let mut for_places = true;
        while let Some(victim) = self.thinnest(w, for_places) {
            if report.written_bytes >= budget_bytes || report.segments >= u64::from(w.unused) {
                report.is_behind = true;
                break;
            }
            report.segments += 1;
            w.is_cleaning = true;
            let written = self.empty_segment(w, victim, moved, &mut report);
            w.is_cleaning = false;
            // Pages that are being read stay: another segment is next then.
            let (left, _) = self.table.live(victim.segment);
            w.passed_over = if left > 0 { victim.segment } else { 0 };
            self.collect(w);
            self.keep_spare(w);
            match written {
                Ok(()) => {}
                // What cannot be had for a place may not be needed for room.
                Err(_) if victim.is_for_its_place => for_places = false,
                Err(WriteError::NoSpace { .. } | WriteError::LimitReached) => {
                    w.is_full = true;
                    break;
                }
                Err(_) => break,
            }
        }
        report
    }

    /// Takes what was emptied since the last time.
    pub(crate) fn collect(&self, w: &mut Writer) {
        self.thaw(w);
        let mut next = self.table.take_emptied();
        while next != 0 {
            let segment = next;
            next = self.table.next(segment);
            self.forget(w, segment);
        }
    }

    /// A segment has lost its last record.
    fn forget(&self, w: &mut Writer, segment: u32) {
        let key = crate::seal::Generation::of(self.table.generation(segment)).key();
        w.key_users[key] -= 1;
        if w.key_users[key] == 0 && w.key != Some(key) {
            self.seals.drop_key(key);
        }
        let file = self.table.file(segment);
        w.file_users[file] -= 1;
        let is_bad = self.table.state(segment) == SegmentState::Damaged;
        if w.own != Some(file) {
            self.let_go_of_file(w, file);
            self.table.set_state(segment, SegmentState::Free);
            self.retire_segment(&mut w.unbacked, segment);
        } else if self.is_frozen(w, segment) {
            self.table.set_state(segment, SegmentState::Frozen);
            self.counters.frozen_bytes.add(self.table.blocks(segment));
            self.push(&mut w.frozen, segment);
        } else {
            self.free_segment(w, segment, is_bad);
        }
    }

    /// Whether a child may still read a segment of the own file.
    fn is_frozen(&self, w: &Writer, segment: u32) -> bool {
        let born = self.table.born(segment);
        w.watches.iter().flatten().any(|&(fork, _)| fork > born)
    }

    /// Looks whether children have let go.
    fn thaw(&self, w: &mut Writer) {
        let mut changed = false;
        for watch in &mut w.watches {
            if let Some((_, end)) = *watch
                && end != File::from_number(-1)
                && Tether::is_let_go(end)
            {
                end.close();
                *watch = None;
                changed = true;
            }
        }
        if !changed {
            return;
        }
        let mut next = Self::take_list(&mut w.frozen);
        while next != 0 {
            let segment = next;
            next = self.table.next(segment);
            if self.is_frozen(w, segment) {
                self.push(&mut w.frozen, segment);
            } else {
                self.counters.frozen_bytes.sub(self.table.blocks(segment));
                self.free_segment(w, segment, false);
            }
        }
    }

    /// The segment whose cleaning gains most, if any need be.
    fn thinnest(&self, w: &Writer, for_places: bool) -> Option<Victim> {
        let many_keys = for_places && self.has_many_keys(w);
        let many_files = for_places && self.has_many_files(w);
        let file_bytes = self.counters.file_bytes.get() - self.counters.frozen_bytes.get();
        let (records, sealed_bytes) = self.own_live(w);
        let live_bytes = sealed_bytes - records * self.seals.overhead() as u64;
        let is_near_limit = self.counters.file_bytes.get() + SLACK_BYTES > self.limit_bytes;
        let (share, slack) = if is_near_limit || w.is_full {
            (DEAD_SHARE_AT_LIMIT, SLACK_BYTES_AT_LIMIT)
        } else {
            (DEAD_SHARE, SLACK_BYTES)
        };
        // Measured by the packed bytes; but what the records are larger by, in tiny
        // ones, cannot be cleaned away.
        let least = sealed_bytes + sealed_bytes * DEAD_SHARE_AT_LIMIT / 100;
        let dense = (live_bytes + live_bytes * share / 100).max(least) + slack;
        let is_thin = file_bytes > dense;
        if !is_thin && !w.is_out_of_numbers && !many_keys && !many_files {
            return None;
        }
        let mut best: Option<(usize, u32)> = None;
        let mut rarest: Option<(u32, Victim)> = None;
        for segment in 1..w.unused {
            if self.table.state(segment) != SegmentState::Closed || segment == w.passed_over {
                continue;
            }
            let (records, bytes) = self.table.live(segment);
            if records == 0 {
                continue;
            }
            let key = crate::seal::Generation::of(self.table.generation(segment)).key();
            let file = self.table.file(segment);
            let gives_room = w.own == Some(file) && !self.is_frozen(w, segment);
            let is_old_key = many_keys && w.key != Some(key);
            let is_old_file = many_files && w.own != Some(file);
            if is_old_key || is_old_file {
                let key_users = is_old_key.then_some(w.key_users[key]);
                let file_users = is_old_file.then_some(w.file_users[file]);
                // The place that the fewest segments are left of is free first.
                let users = key_users.into_iter().chain(file_users).min().unwrap_or(0);
                if rarest.is_none_or(|(least, _)| users < least) {
                    let victim = Victim {
                        segment,
                        is_for_its_place: true,
                        gives_room,
                    };
                    rarest = Some((users, victim));
                }
            }
            let more = |amount: usize| amount + amount * TRIM_SHARE / 100;
            let is_used_up = more(records) >= RECORDS;
            // Written again, it may lie in two segments, each padded to a block. And
            // one that cannot be cut short has room that no number is left for.
            let has_dead = more(bytes) + 2 * BLOCK_BYTES < self.table.blocks(segment)
                && !(is_used_up && w.has_no_holes);
            let has_numbers = !is_used_up && more(bytes) < SEGMENT_BYTES;
            let gains = gives_room && (is_thin && has_dead || w.is_out_of_numbers && has_numbers);
            if gains && best.is_none_or(|(least, _)| bytes < least) {
                best = Some((bytes, segment));
            }
        }
        let best = best.map(|(_, segment)| Victim {
            segment,
            is_for_its_place: false,
            gives_room: true,
        });
        rarest.map(|(_, victim)| victim).or(best)
    }

    /// Records in the own file, and their bytes.
    fn own_live(&self, w: &Writer) -> (u64, u64) {
        let others =
            (0..w.file_users.len()).any(|file| w.own != Some(file) && w.file_users[file] > 0);
        if !others {
            // Removals count here one after the other.
            let records = self.counters.slots.get();
            let bytes = self.counters.live_bytes.get();
            return (records, bytes + records * self.seals.overhead() as u64);
        }
        (1..w.unused)
            .filter(|&segment| w.own == Some(self.table.file(segment)))
            .map(|segment| self.table.live(segment))
            .fold((0, 0), |(records, bytes), (more, longer)| {
                (records + more as u64, bytes + longer as u64)
            })
    }

    /// Whether there are too many old keys.
    fn has_many_keys(&self, w: &Writer) -> bool {
        let used = |&key: &usize| w.key_users[key] > 0 && w.key != Some(key);
        (0..KEYS).filter(used).count() >= KEYS_BUSY
    }

    /// Whether there are too many ancestors' files.
    fn has_many_files(&self, w: &Writer) -> bool {
        let used = |&file: &usize| w.file_users[file] > 0 && w.own != Some(file);
        (0..w.file_users.len()).filter(used).count() >= FILES_BUSY
    }

    /// Writes what lives in a segment elsewhere, or says why it cannot be written.
    fn empty_segment(
        &self,
        w: &mut Writer,
        victim: Victim,
        moved: &mut Moved<'_>,
        report: &mut Tended,
    ) -> Result<(), WriteError> {
        let segment = victim.segment;
        // Room that does not come back is not cleaning's to take.
        let stream = if victim.gives_room {
            Stream::Moved
        } else {
            Stream::Fresh
        };
        let file = self.table.file(segment);
        let start = segment_offset(segment);
        let end = (0..RECORDS as u32)
            .filter_map(|index| self.table.find(TierSlot::new(segment, index)))
            .map(|record| record.start + record.len + self.seals.overhead())
            .max();
        let (Some(end), Some(mut buffer)) = (end, w.victim.take()) else {
            return Ok(());
        };
        let bytes = &mut *buffer;
        let wanted = end.next_multiple_of(BLOCK_BYTES);
        let got = self.files.read(file, &mut bytes[..wanted], start);
        let Ok(got) = got else {
            self.counters.read_errors.add(1);
            self.table.set_state(segment, SegmentState::Damaged);
            w.victim = Some(buffer);
            return Ok(());
        };
        let mut pages = [(0_u64, TierSlot::from_number(0), TierSlot::from_number(0)); RECORDS];
        let mut count = 0;
        let mut result = Ok(());
        for index in 0..RECORDS as u32 {
            let from = TierSlot::new(segment, index);
            let Some(record) = self.table.find(from) else {
                continue;
            };
            let Ok((owner, packed)) = self.open_any(&record, start, got, bytes) else {
                self.counters.read_errors.add(1);
                self.table.set_state(segment, SegmentState::Damaged);
                continue;
            };
            let page = Packed {
                owner,
                codec: record.codec,
                bytes: packed,
            };
            match self.append(w, stream, &page) {
                Ok(to) => {
                    report.written_bytes += record.len as u64;
                    pages[count] = (owner, from, to);
                    count += 1;
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            result = self.flush(w, stream);
        }
        w.victim = Some(buffer);
        for &(owner, from, to) in &pages[..count] {
            if result.is_ok() && moved(owner, from, to) {
                let len = self.table.find(to).map_or(0, |record| record.len);
                report.moved_bytes += len as u64;
                report.moved_pages += 1;
                self.counters.pages_moved.add(1);
                self.remove(from);
            } else {
                self.remove(to);
            }
        }
        if result.is_err() {
            self.counters.write_errors.add(1);
            self.collect(w);
        }
        result
    }
}
