//! The data set: what a real process might hold, at a chosen LZ4 page ratio.
//!
//! Built from files found on the machine (program text, sources, documents,
//! JSON) and from generated integers, heap objects, sensor readings, JSON
//! records and sparse pages. The share of sparse pages is what brings the
//! whole to the ratio asked for; everything else keeps its share relative to
//! the rest. Pages come in runs of 16 to 64 of one kind and in file order, and
//! runs of different kinds are mixed. The same files and seed give the same
//! bytes. No page is all one word: same-filled pages are a case of their own
//! and would flatter every contender.
//!
//! Every page carries *tags*: one word per measuring thread at an offset that
//! depends on the page number, with a value that depends on page, thread and
//! version. A touch reads or writes the thread's tag, so contents are checked
//! at every single touch; everything around the tags is compared with this data
//! set after every workload.
//!
//! The bytes live in an anonymous file that children inherit and read with
//! pread: it is charged to the parent, not to the measured process.

mod files;
mod generate;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use ghostmem_lab::rng::{Rng, mix};

use crate::buffer::PAGE_SIZE;
use crate::error::{Error, Result};
use crate::lz4::Lz4;
use crate::sys;
use files::FileStream;
use generate::Generator;

/// Most threads, and so tags per page, that a data set can serve.
pub(crate) const TAG_SLOTS_MAX: u32 = 8;

/// Pages of a run: the shortest and the longest.
const RUN_PAGES: (u64, u64) = (16, 64);

/// Pages of each kind compressed to learn the kind's ratio.
const SAMPLE_PAGES: usize = 512;

/// Byte offset of `slot`'s tag in `page`, a multiple of 8.
pub(crate) fn tag_offset(page: u32, slot: u32) -> usize {
    let words = (PAGE_SIZE / 8) as u64 - u64::from(TAG_SLOTS_MAX) + 1;
    let first = mix(u64::from(page) ^ 0x7461_6773) % words;
    (first as usize + slot as usize) * 8
}

/// What `slot`'s tag in `page` holds after `version` writes.
pub(crate) fn tag_value(page: u32, slot: u32, version: u32) -> u64 {
    mix(((u64::from(version) << 32) | u64::from(page)) ^ (u64::from(slot) << 60))
}

/// Writes the tags of `page` into `bytes`, slot by slot.
pub(crate) fn stamp(bytes: &mut [u8], page: u32, versions: impl Iterator<Item = u32>) {
    for (slot, version) in (0..).zip(versions) {
        let at = tag_offset(page, slot);
        bytes[at..at + 8].copy_from_slice(&tag_value(page, slot, version).to_le_bytes());
    }
}

/// A kind of page. The discriminant indexes [`Mix`]'s tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Executables and libraries.
    Code,
    /// Program sources and headers.
    Source,
    /// Documents, markup, message catalogues.
    Docs,
    /// JSON files.
    Json,
    /// Generated JSON records.
    Records,
    /// Generated arrays of integers.
    Integers,
    /// Generated heap objects full of pointers.
    Objects,
    /// Generated floating-point readings.
    Floats,
    /// Generated pages that are mostly zero.
    Sparse,
}

impl Kind {
    /// All kinds with their share of the pages that are not sparse, in parts
    /// of a hundred.
    const ALL: [(Self, &'static str, f64); 9] = [
        (Self::Code, "machine code", 18.0),
        (Self::Source, "sources", 20.0),
        (Self::Docs, "documents", 18.0),
        (Self::Json, "JSON files", 5.0),
        (Self::Records, "JSON records", 9.0),
        (Self::Integers, "integers", 9.0),
        (Self::Objects, "heap objects", 17.0),
        (Self::Floats, "floats", 4.0),
        (Self::Sparse, "sparse", 0.0),
    ];
}

/// How to build a data set.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Pages.
    pub(crate) pages: u32,
    /// LZ4 ratio over 4 KiB pages aimed at.
    pub(crate) ratio: f64,
    /// Tags per page.
    pub(crate) slots: u32,
    /// Seed of the order and of everything generated.
    pub(crate) seed: u64,
    /// Directories searched for files; empty for the usual ones.
    pub(crate) from: Vec<PathBuf>,
}

/// What was built.
#[derive(Debug, Clone)]
pub(crate) struct Mix {
    /// LZ4 ratio over all pages, a page that grows counted as 4096 bytes.
    pub(crate) ratio: f64,
    /// Kind, share of the pages, LZ4 ratio of the kind.
    pub(crate) kinds: Vec<(&'static str, f64, f64)>,
}

/// A data set, readable by page.
#[derive(Debug)]
pub(crate) struct DataSet {
    file: File,
    pages: u32,
    slots: u32,
}

impl DataSet {
    /// Builds a data set.
    pub(crate) fn build(spec: &Spec) -> Result<(Self, Mix)> {
        let mut streams = streams(spec)?;
        let sizes: Vec<f64> = streams.iter_mut().map(|s| mean_size(s, spec)).collect();
        let target = PAGE_SIZE as f64 / spec.ratio;
        let mut streams = self::streams(spec)?;

        let file = sys::memfd("ghostmem-bench-data")
            .map_err(|err| Error::io("memfd for the data set", &err))?;
        let set = Self {
            file,
            pages: spec.pages,
            slots: spec.slots,
        };
        let mut rng = Rng::new(spec.seed);
        let mut lz4 = Lz4::new();
        let mut run = vec![0_u8; RUN_PAGES.1 as usize * PAGE_SIZE];
        let mut packed = vec![0_u8; 2 * PAGE_SIZE];
        let mut compressed = 0_u64;
        // Per kind: pages and compressed bytes.
        let mut built = [(0_u32, 0_u64); Kind::ALL.len()];
        let mut page = 0_u32;
        while page < spec.pages {
            if sys::interrupted() {
                return Err(Error::Interrupted);
            }
            let length = RUN_PAGES.0 + rng.below(RUN_PAGES.1 - RUN_PAGES.0 + 1);
            let length = (length as u32).min(spec.pages - page);
            // What is left has to make up for what came out too large or small.
            let left = target * f64::from(spec.pages) - compressed as f64;
            let left = left / f64::from(spec.pages - page);
            let shares = solve(&sizes, left.clamp(target * 0.8, target * 1.25));
            let kind = pick(&shares, rng.unit());
            let stream = &mut streams[kind];
            let bytes = &mut run[..length as usize * PAGE_SIZE];
            for (number, bytes) in (page..).zip(bytes.chunks_exact_mut(PAGE_SIZE)) {
                stream.fill(bytes);
                stamp(bytes, number, std::iter::repeat_n(0, spec.slots as usize));
                let size = lz4
                    .compress(bytes, &mut packed)
                    .unwrap_or(PAGE_SIZE)
                    .min(PAGE_SIZE) as u64;
                compressed += size;
                built[kind].0 += 1;
                built[kind].1 += size;
            }
            set.file
                .write_all_at(bytes, u64::from(page) * PAGE_SIZE as u64)
                .map_err(|err| Error::io("writing the data set", &err))?;
            page += length;
        }
        let kinds = Kind::ALL.iter().zip(built);
        let ratio =
            |pages: u32, bytes: u64| f64::from(pages) * PAGE_SIZE as f64 / bytes.max(1) as f64;
        Ok((
            set,
            Mix {
                ratio: ratio(spec.pages, compressed),
                kinds: kinds
                    .map(|((_, name, _), (pages, bytes))| {
                        let share = f64::from(pages) / f64::from(spec.pages);
                        (*name, share, ratio(pages, bytes))
                    })
                    .collect(),
            },
        ))
    }

    /// The data set a parent process built, by its descriptor.
    pub(crate) fn inherit(fd: RawFd, pages: u32, slots: u32) -> Result<Self> {
        let file = sys::inherited_file(fd).map_err(|err| Error::io("inherited data set", &err))?;
        Ok(Self { file, pages, slots })
    }

    /// The descriptor a child inherits.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Tags per page.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Reads whole pages from `page` on; all tags have version 0.
    pub(crate) fn read(&self, page: u32, bytes: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(bytes, u64::from(page) * PAGE_SIZE as u64)
            .map_err(|err| Error::io("reading the data set", &err))
    }
}

/// A source of pages of one kind.
enum Stream {
    Files(FileStream),
    Generated(Generator),
}

impl Stream {
    fn fill(&mut self, page: &mut [u8]) {
        match self {
            Self::Files(files) => files.fill(page),
            Self::Generated(generator) => generator.fill(page),
        }
        // Files hold runs of one byte; a same-filled page is not wanted.
        if page.iter().all(|&byte| byte == page[0]) {
            page[..8].copy_from_slice(b"GhostMem");
        }
    }
}

/// One stream per kind, each from its beginning.
fn streams(spec: &Spec) -> Result<Vec<Stream>> {
    let found = files::find(&spec.from, spec.seed)?;
    Ok(Kind::ALL
        .iter()
        .zip(0_u64..)
        .map(|((kind, ..), index)| {
            let files: Vec<_> = found.iter().filter(|file| file.kind == *kind).collect();
            if matches!(kind, Kind::Code | Kind::Source | Kind::Docs | Kind::Json)
                && !files.is_empty()
            {
                Stream::Files(FileStream::new(files))
            } else {
                Stream::Generated(Generator::new(*kind, spec.seed ^ mix(index)))
            }
        })
        .collect())
}

/// Mean compressed bytes of a page of one stream.
fn mean_size(stream: &mut Stream, spec: &Spec) -> f64 {
    let mut lz4 = Lz4::new();
    let mut page = vec![0_u8; PAGE_SIZE];
    let mut packed = vec![0_u8; 2 * PAGE_SIZE];
    let mut total = 0;
    for number in 0..SAMPLE_PAGES as u32 {
        // Spread the sample over the files: a few pages here and there.
        if number % 8 == 0
            && let Stream::Files(files) = stream
        {
            files.next_file();
        }
        stream.fill(&mut page);
        stamp(
            &mut page,
            number,
            std::iter::repeat_n(0, spec.slots as usize),
        );
        total += lz4
            .compress(&page, &mut packed)
            .unwrap_or(PAGE_SIZE)
            .min(PAGE_SIZE);
    }
    total as f64 / SAMPLE_PAGES as f64
}

/// Shares of all kinds, summing to 1, whose mean compressed size comes closest
/// to `target` bytes when only the share of sparse pages may move.
fn solve(sizes: &[f64], target: f64) -> Vec<f64> {
    let total: f64 = Kind::ALL.iter().map(|(.., share)| share).sum();
    let dense: f64 = Kind::ALL
        .iter()
        .zip(sizes)
        .map(|((.., share), size)| share / total * size)
        .sum();
    let sparse = sizes[Kind::Sparse as usize];
    let share = ((dense - target) / (dense - sparse)).clamp(0.0, 0.95);
    Kind::ALL
        .iter()
        .map(|(kind, _, part)| match kind {
            Kind::Sparse => share,
            _ => part / total * (1.0 - share),
        })
        .collect()
}

/// The kind that `unit` in [0, 1) falls on.
fn pick(shares: &[f64], unit: f64) -> usize {
    let mut sum = 0.0;
    for (index, share) in shares.iter().enumerate() {
        sum += share;
        if unit < sum {
            return index;
        }
    }
    shares.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(seed: u64) -> (DataSet, Mix) {
        let spec = Spec {
            pages: 4096,
            ratio: 3.0,
            slots: 2,
            seed,
            from: vec![PathBuf::from(env!("CARGO_MANIFEST_DIR"))],
        };
        DataSet::build(&spec).unwrap()
    }

    /// Proves that the ratio asked for is reached, that every tag stands where
    /// a touch looks for it, and that no page is same-filled.
    #[test]
    fn ratio_and_tags() {
        let (set, mix) = small(1);
        assert!((mix.ratio - 3.0).abs() < 0.1, "{}", mix.ratio);
        let mut page = vec![0; PAGE_SIZE];
        for number in 0..set.pages() {
            set.read(number, &mut page).unwrap();
            for slot in 0..2 {
                let at = tag_offset(number, slot);
                let word = u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
                assert_eq!(word, tag_value(number, slot, 0));
            }
            assert!(page.iter().any(|&byte| byte != page[0]));
        }
    }

    /// Proves that a seed fixes every byte, and that seeds differ.
    #[test]
    fn deterministic() {
        let read = |seed| {
            let mut bytes = vec![0; 4096 * PAGE_SIZE];
            small(seed).0.read(0, &mut bytes).unwrap();
            bytes
        };
        assert!(read(3) == read(3));
        assert!(read(3) != read(4));
    }

    /// Proves that a tag changes with page, slot and version.
    #[test]
    fn tags_differ() {
        let one = tag_value(5, 0, 0);
        assert!(
            [tag_value(6, 0, 0), tag_value(5, 1, 0), tag_value(5, 0, 1)]
                .iter()
                .all(|&other| other != one)
        );
    }
}
