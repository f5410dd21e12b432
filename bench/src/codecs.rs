//! `ghostmem-bench codecs`: C LZ4 against lz4_flex on the pages of the data
//! set, the evidence for the choice of the engine's codec.
//!
//! Each page is coded on its own with state made beforehand, as a fault handler
//! has to do it. Rounds of the contenders alternate; every decoded page is
//! compared. One build holds lz4_flex either unchecked or (feature
//! `lz4-flex-safe`) checked.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};
use serde_json::{Value, json};

use crate::buffer::PAGE_SIZE;
use crate::compare::report_mix;
use crate::error::{Error, Result};
use crate::lz4::{self, Lz4};
use crate::options::{DataArgs, Size};
use crate::report::{self, Spread};

const FLEX: &str = if cfg!(feature = "lz4-flex-safe") {
    "lz4_flex, checked"
} else {
    "lz4_flex, unchecked"
};

/// Room for one coded page, more than either library's worst case.
const ROOM: usize = 2 * PAGE_SIZE;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct CodecsArgs {
    #[command(flatten)]
    data: DataArgs,
    /// How much of the data set is coded; pages are taken evenly from all of it.
    #[arg(long, default_value = "64M")]
    sample: Size,
    /// Rounds of each codec.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Everything measured, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

trait Codec {
    fn name(&self) -> &'static str;
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> Option<usize>;
    fn decompress(&mut self, packed: &[u8], out: &mut [u8]) -> Option<usize>;
}

struct C(Lz4);

impl Codec for C {
    fn name(&self) -> &'static str {
        "C lz4"
    }
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> Option<usize> {
        self.0.compress(page, out)
    }
    fn decompress(&mut self, packed: &[u8], out: &mut [u8]) -> Option<usize> {
        lz4::decompress(packed, out)
    }
}

struct Flex(CompressTable);

impl Codec for Flex {
    fn name(&self) -> &'static str {
        FLEX
    }
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> Option<usize> {
        compress_into_with_table(page, out, &mut self.0).ok()
    }
    fn decompress(&mut self, packed: &[u8], out: &mut [u8]) -> Option<usize> {
        decompress_into(packed, out).ok()
    }
}

/// Nanoseconds per page of one codec, one value per round, and its ratio.
#[derive(Default)]
struct Figures {
    compress: Vec<f64>,
    decompress: Vec<f64>,
    compressed: usize,
}

/// Runs the command.
pub(crate) fn run(args: &CodecsArgs) -> Result<()> {
    let (data, mix) = args.data.build(1)?;
    report_mix(&mix, args.data.size.0);
    let count = (args.sample.0 / PAGE_SIZE as u64).clamp(1, u64::from(data.pages())) as u32;
    let mut pages = vec![0_u8; count as usize * PAGE_SIZE];
    for (index, page) in (0_u64..).zip(pages.chunks_exact_mut(PAGE_SIZE)) {
        let from = index * u64::from(data.pages()) / u64::from(count);
        data.read(from as u32, page)?;
    }
    let mut codecs: Vec<(Box<dyn Codec>, Figures)> = vec![
        (Box::new(C(Lz4::new())), Figures::default()),
        (Box::new(Flex(CompressTable::small())), Figures::default()),
    ];
    let mut packed = vec![0_u8; count as usize * ROOM];
    // One round more than asked for: the first warms caches and is dropped.
    for round in 0..=args.rounds {
        for (codec, figures) in &mut codecs {
            let (compress, decompress, compressed) =
                one_round(codec.as_mut(), &pages, &mut packed)?;
            if round > 0 {
                figures.compress.push(compress);
                figures.decompress.push(decompress);
                figures.compressed = compressed;
            }
        }
        codecs.reverse();
    }
    codecs.sort_by_key(|(codec, _)| codec.name());

    let mut table = report::table(&[
        "4 KiB pages, ns: median (min-max)",
        "compress",
        "decompress",
        "ratio",
    ]);
    let mut results = Vec::new();
    for (codec, figures) in &codecs {
        let (Some(compress), Some(decompress)) = (
            Spread::of(&figures.compress),
            Spread::of(&figures.decompress),
        ) else {
            return Err(Error::Failed("--rounds: at least 1".into()));
        };
        let ratio = pages.len() as f64 / figures.compressed as f64;
        table.add_row([
            codec.name().to_owned(),
            compress.text(),
            decompress.text(),
            format!("{ratio:.3}"),
        ]);
        results.push(json!({
            "codec": codec.name(),
            "compress_ns": compress.json(),
            "decompress_ns": decompress.json(),
            "ratio": ratio,
        }));
    }
    println!("{table}");
    if let Some(path) = &args.json {
        let value = json!({ "machine": report::machine(), "codecs": Value::Array(results) });
        report::write_json(path, &value)?;
    }
    Ok(())
}

/// Codes all pages into `packed` and back, one page at a time into the same
/// page as a fault handler does: nanoseconds per page both ways, and bytes in
/// total with a page that grows counted as stored raw.
fn one_round(codec: &mut dyn Codec, pages: &[u8], packed: &mut [u8]) -> Result<(f64, f64, usize)> {
    let count = pages.len() / PAGE_SIZE;
    let mut lengths = vec![0_usize; count];
    let failed = Error::Failed(format!("{} failed", codec.name()));
    let slots = || pages.chunks_exact(PAGE_SIZE).zip(0..count);

    let start = Instant::now();
    for (page, index) in slots() {
        let out = &mut packed[index * ROOM..(index + 1) * ROOM];
        match codec.compress(page, out) {
            Some(length) => lengths[index] = length,
            None => return Err(failed),
        }
    }
    let compress = start.elapsed().as_nanos() as f64 / count as f64;

    let mut back = vec![0_u8; PAGE_SIZE];
    let packed = |index: usize| &packed[index * ROOM..index * ROOM + lengths[index]];
    let start = Instant::now();
    for index in 0..count {
        if codec.decompress(packed(index), &mut back) != Some(PAGE_SIZE) {
            return Err(failed);
        }
    }
    let decompress = start.elapsed().as_nanos() as f64 / count as f64;
    for (page, index) in slots() {
        codec.decompress(packed(index), &mut back);
        if back != page {
            return Err(Error::Failed(format!("{}: wrong contents", codec.name())));
        }
    }
    let total = lengths.iter().map(|&length| length.min(PAGE_SIZE)).sum();
    Ok((compress, decompress, total))
}
