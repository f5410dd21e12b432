//! Which real files the demo works on, and reading them.
//!
//! A [`Plan`] is a list of documents: each is a stretch of a file, and for further copies a
//! rotation of it (its bytes start in the middle and wrap around), so that no two pages of the heap
//! hold the same bytes at the same place. The plan and the checksums in it live in ordinary memory
//! and are made before the heap exists. Files are always read into an ordinary buffer; a ghost
//! buffer is never given to a system call.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::content::{CHUNK, Facts, Survey, Totals};
use super::threads::{Hand, on_threads};
use crate::failure::Failure;
use crate::size::Bytes;

/// Data that is collected when no files are named.
pub(crate) const DEFAULT_SIZE_BYTES: u64 = 1 << 30;
/// Longest document; longer files become several.
const DOCUMENT_MAX_BYTES: u64 = 8 << 20;
/// Shortest piece that a file is cut into.
const DOCUMENT_CUT_BYTES: u64 = 64 << 10;
/// Most documents: their list is ordinary memory and must stay small beside the smallest limit.
const DOCUMENTS_MAX: usize = 200_000;

/// One document to be loaded.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// Index of its file.
    pub(crate) file: u32,
    /// Length in bytes, more than 0.
    pub(crate) len: u32,
    /// Bytes by which it is rotated to the left, less than its length; 0 in the first copy.
    pub(crate) rotate: u32,
    /// Where it starts in the file.
    pub(crate) offset: u64,
    /// What is known of its content.
    pub(crate) facts: Facts,
}

/// How much came from one place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    /// File or folder.
    pub(crate) root: String,
    /// Files taken from it.
    pub(crate) files: u64,
    /// Bytes taken from it.
    pub(crate) bytes: u64,
}

/// The whole work list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Paths of the files.
    pub(crate) files: Vec<Box<str>>,
    /// Documents in load order.
    pub(crate) pieces: Vec<Piece>,
    /// Where the files are from.
    pub(crate) shares: Vec<Share>,
    /// Bytes of documents that are files as they are.
    pub(crate) real_bytes: u64,
    /// Bytes of documents that are rotated further copies.
    pub(crate) copied_bytes: u64,
    /// Of these, bytes in copies that must equal an earlier one: a file of n bytes has only n
    /// rotations.
    pub(crate) repeated_bytes: u64,
    /// Files and folders that could not be read and were left out.
    pub(crate) skipped: u64,
    /// Sums over all documents.
    pub(crate) totals: Totals,
}

impl Plan {
    /// Bytes of all documents.
    pub(crate) fn bytes(&self) -> u64 {
        self.real_bytes + self.copied_bytes
    }

    /// Collects documents from `named` files and folders, or from this machine's own files, until
    /// there are at least `size` bytes. Named files are taken whole and completely; without `size`
    /// nothing is copied.
    ///
    /// # Errors
    /// A named path cannot be read, nothing was found, or the files are too small to be copied to
    /// such a size.
    pub(crate) fn collect(named: &[PathBuf], size: Option<u64>) -> Result<Self, Failure> {
        let mut plan = if named.is_empty() {
            let size = size.unwrap_or(DEFAULT_SIZE_BYTES);
            Self::gather(default_roots(), size, false)?
        } else {
            for path in named {
                check_readable(path)?;
            }
            Self::gather(named.to_vec(), u64::MAX, true)?
        };
        if plan.pieces.is_empty() {
            return Err(Failure::new(
                "found no readable files with content to work on",
            ));
        }
        if named.is_empty() {
            plan.copy_up_to(size.unwrap_or(DEFAULT_SIZE_BYTES))?;
        } else if let Some(size) = size {
            plan.copy_up_to(size)?;
        }
        plan.shares.retain(|share| share.bytes > 0);
        plan.pieces.shrink_to_fit();
        plan.files.shrink_to_fit();
        Ok(plan)
    }

    /// Takes files from each root in turn, from the one that gave least so far.
    fn gather(roots: Vec<PathBuf>, size: u64, named: bool) -> Result<Self, Failure> {
        let mut plan = Self::default();
        let mut seen = HashSet::new();
        let mut walks: VecDeque<_> = roots
            .iter()
            .map(|root| WalkDir::new(root).sort_by_file_name().into_iter())
            .enumerate()
            .collect();
        plan.shares = roots
            .iter()
            .map(|root| Share {
                root: shown(root),
                files: 0,
                bytes: 0,
            })
            .collect();
        // One big library must not be the whole of a small demo.
        let file_max = if named {
            u64::MAX
        } else {
            (size / 16).max(DOCUMENT_CUT_BYTES)
        };
        let cut = (size / 32).clamp(DOCUMENT_CUT_BYTES, DOCUMENT_MAX_BYTES);
        while plan.real_bytes < size {
            let least = walks
                .iter()
                .enumerate()
                .min_by_key(|(_, (share, _))| plan.shares[*share].bytes)
                .map(|(position, _)| position);
            let Some(position) = least else { break };
            let (share, walk) = &mut walks[position];
            let share = *share;
            let Some(entry) = walk.next() else {
                walks.remove(position);
                continue;
            };
            let Ok(entry) = entry else {
                plan.skipped += 1;
                continue;
            };
            // A named path is followed even if it is a symbolic link; those found inside are not.
            let metadata = if entry.depth() == 0 {
                std::fs::metadata(entry.path()).ok()
            } else {
                entry.metadata().ok()
            };
            let Some(metadata) = metadata.filter(|m| m.is_file() && m.len() > 0) else {
                continue;
            };
            if !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            let Some(path) = entry
                .path()
                .to_str()
                .filter(|_| File::open(entry.path()).is_ok())
            else {
                plan.skipped += 1;
                continue;
            };
            let bytes = metadata
                .len()
                .min(file_max)
                .min((size - plan.real_bytes).max(1));
            plan.take(share, path, bytes, cut)?;
        }
        Ok(plan)
    }

    /// Adds the first `bytes` of a file as documents of at most `cut` bytes.
    fn take(&mut self, share: usize, path: &str, bytes: u64, cut: u64) -> Result<(), Failure> {
        let file = self.files.len() as u32;
        self.files.push(path.into());
        let mut offset = 0;
        while offset < bytes {
            let len = (bytes - offset).min(cut);
            self.add(Piece {
                file,
                len: len as u32,
                rotate: 0,
                offset,
                facts: Facts::default(),
            })?;
            offset += len;
        }
        self.real_bytes += bytes;
        self.shares[share].files += 1;
        self.shares[share].bytes += bytes;
        Ok(())
    }

    fn add(&mut self, piece: Piece) -> Result<(), Failure> {
        if self.pieces.len() == DOCUMENTS_MAX {
            return Err(Failure::new(format!(
                "the files are too many or too small: {} documents hold only {}; name fewer files, \
                 larger files or a smaller --size",
                DOCUMENTS_MAX,
                Bytes(self.bytes())
            )));
        }
        self.pieces.push(piece);
        Ok(())
    }

    /// Repeats the documents, each time rotated by another distance, until `size` is reached.
    fn copy_up_to(&mut self, size: u64) -> Result<(), Failure> {
        let originals = self.pieces.len();
        let mut round = 0u64;
        while self.bytes() < size {
            round += 1;
            for index in 0..originals {
                let piece = self.pieces[index];
                let distance = round.wrapping_mul(7919) + index as u64 * 2 + 1;
                // Never the file as it is again, unless it is a single byte.
                let rotate = (distance % u64::from(piece.len)).max(1) as u32 % piece.len;
                self.add(Piece { rotate, ..piece })?;
                self.copied_bytes += u64::from(piece.len);
                if round >= u64::from(piece.len) {
                    self.repeated_bytes += u64::from(piece.len);
                }
                if self.bytes() >= size {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads every document once and notes its checksums, before and after the edits to come.
    ///
    /// # Errors
    /// A file cannot be read or has shrunk.
    pub(crate) fn survey(
        &mut self,
        seed: u64,
        threads: usize,
        advance: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Failure> {
        let files = &self.files;
        let hand = Hand::new(self.pieces.iter_mut().enumerate());
        let sums = on_threads(threads, |_| {
            let mut buffer = vec![0; CHUNK];
            let mut sums = Totals::default();
            while let Some((document, piece)) = hand.next() {
                let mut survey = Survey::new(seed, document as u32);
                piece.read(files, &mut buffer, |chunk| survey.take(chunk))?;
                let (facts, totals) = survey.finish();
                piece.facts = facts;
                sums.add(&totals);
                advance(u64::from(piece.len));
            }
            Ok(sums)
        })?;
        self.totals = Totals::default();
        sums.iter().for_each(|sum| self.totals.add(sum));
        Ok(())
    }
}

impl Piece {
    /// Reads the document through `buffer` ([`CHUNK`] bytes), handing on one full buffer after the
    /// other; only the last may be shorter.
    ///
    /// # Errors
    /// The file cannot be read or has shrunk.
    pub(crate) fn read(
        &self,
        files: &[Box<str>],
        buffer: &mut [u8],
        mut each: impl FnMut(&mut [u8]),
    ) -> Result<(), Failure> {
        let path = &*files[self.file as usize];
        let fail = |error| Failure::new(format!("cannot read '{path}': {error}"));
        let file = File::open(path).map_err(fail)?;
        let (len, rotate) = (self.len as usize, self.rotate as usize);
        let mut done = 0;
        while done < len {
            let chunk = (len - done).min(buffer.len());
            let chunk = &mut buffer[..chunk];
            // The chunk may wrap around the end of the rotated document once.
            let start = (rotate + done) % len;
            let until_end = (len - start).min(chunk.len());
            let (first, second) = chunk.split_at_mut(until_end);
            file.read_exact_at(first, self.offset + start as u64)
                .map_err(fail)?;
            file.read_exact_at(second, self.offset).map_err(fail)?;
            done += chunk.len();
            each(chunk);
        }
        Ok(())
    }
}

/// Says in one line why a named path cannot be used.
fn check_readable(path: &Path) -> Result<(), Failure> {
    let fail = |error| Failure::new(format!("cannot read '{}': {error}", path.display()));
    let metadata = std::fs::metadata(path).map_err(fail)?;
    if metadata.is_dir() {
        std::fs::read_dir(path).map_err(fail)?;
    } else if !metadata.is_file() {
        return Err(Failure::new(format!(
            "'{}' is neither a file nor a folder",
            path.display()
        )));
    } else {
        File::open(path).map_err(fail)?;
        if metadata.len() == 0 {
            return Err(Failure::new(format!("'{}' is empty", path.display())));
        }
    }
    if path.to_str().is_none() {
        return Err(Failure::new(format!(
            "the name of '{}' is not UTF-8",
            path.display()
        )));
    }
    Ok(())
}

/// A path for people: the home folder is `~`.
fn shown(path: &Path) -> String {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute());
    match home.and_then(|home| path.strip_prefix(home).ok().map(Path::to_path_buf)) {
        Some(below) => Path::new("~").join(below).display().to_string(),
        None => path.display().to_string(),
    }
}

/// Text, source and binaries that most Linux machines have, and this program as a last resort.
fn default_roots() -> Vec<PathBuf> {
    let home = |variable: &str, default: &str, below: &str| {
        let base = std::env::var_os(variable).map(PathBuf::from);
        let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(default)));
        base.map(|base| base.join(below))
    };
    let system = [
        "/usr/include",
        "/usr/share/doc",
        "/usr/lib",
        "/usr/bin",
        "/usr/share",
    ];
    let mut roots: Vec<PathBuf> = system.map(PathBuf::from).into();
    roots.extend(home("CARGO_HOME", ".cargo", "registry/src"));
    roots.extend(home("RUSTUP_HOME", ".rustup", "toolchains"));
    roots.retain(|root| root.exists());
    if roots.is_empty() {
        roots.extend(std::env::current_exe().ok());
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(piece: &Piece, files: &[Box<str>], buffer_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; buffer_bytes];
        piece
            .read(files, &mut buffer, |chunk| bytes.extend_from_slice(chunk))
            .unwrap();
        bytes
    }

    #[test]
    fn copies_reach_the_size_and_are_rotations_of_the_file() {
        let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/data.rs"));
        let text = std::fs::read(&source).unwrap();
        let plan = Plan::collect(&[source], Some(100_000)).unwrap();
        assert_eq!(plan.real_bytes, text.len() as u64);
        assert!(plan.bytes() >= 100_000 && plan.copied_bytes > 0);
        let mut all = HashSet::new();
        for piece in &plan.pieces {
            let bytes = whole(piece, &plan.files, 1000);
            let mut expected = text.clone();
            expected.rotate_left(piece.rotate as usize);
            assert_eq!(bytes, expected);
            assert!(all.insert(bytes), "two copies are the same");
        }
    }

    #[test]
    fn more_copies_than_rotations_are_admitted() {
        let file = std::env::temp_dir().join(format!("ghostmem-cli-{}", std::process::id()));
        std::fs::write(&file, "0123456789").unwrap();
        let plan = Plan::collect(std::slice::from_ref(&file), Some(200)).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!((plan.real_bytes, plan.copied_bytes), (10, 190));
        assert_eq!(plan.repeated_bytes, 100, "nine rotations are all there are");
    }

    #[test]
    fn named_folders_are_taken_whole_and_files_once() {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let file = folder.join("main.rs");
        let plan = Plan::collect(&[folder.clone(), folder, file], None).unwrap();
        let mut paths: Vec<_> = plan.files.clone();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), plan.files.len());
        let sum: u64 = plan
            .files
            .iter()
            .map(|p| std::fs::metadata(&**p).unwrap().len())
            .sum();
        assert_eq!((plan.real_bytes, plan.copied_bytes), (sum, 0));
    }

    #[test]
    fn a_survey_does_not_depend_on_threads() {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let mut one = Plan::collect(&[folder], None).unwrap();
        let mut four = one.clone();
        one.survey(1, 1, &|_| ()).unwrap();
        four.survey(1, 4, &|_| ()).unwrap();
        assert_eq!(one.totals, four.totals);
        assert_eq!(one.totals.bytes, one.bytes());
        assert_eq!(
            one.totals.texts,
            one.pieces.len() as u64,
            "sources are text"
        );
    }

    #[test]
    fn default_data_stops_at_the_size() {
        let plan = Plan::collect(&[], Some(1 << 20)).unwrap();
        assert_eq!(plan.bytes(), 1 << 20);
    }
}
