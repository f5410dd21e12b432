//! What can be said to the comparison.

use std::path::PathBuf;

use clap::Args;

use crate::options::{DataArgs, Size};
use crate::work::Pattern;

/// How the comparison is made and where it goes.
#[derive(Debug, Clone, Args)]
pub(super) struct Common {
    /// Numbers of touching threads, 1 to 8
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub(super) threads: Vec<u32>,
    /// Factor on the number of touches
    #[arg(long, default_value_t = 1.0)]
    pub(super) scale: f64,
    /// Seconds after which a measured process is stopped and its contender left out
    #[arg(long, default_value_t = 300)]
    pub(super) timeout: u64,
    /// Do not touch the machine's memory first
    #[arg(long)]
    pub(super) no_warm: bool,
    /// Go on from a record written by --json: the repetitions made now are added to its own
    #[arg(long = "continue", value_name = "FILE")]
    pub(super) continued: Option<PathBuf>,
    /// Everything measured, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// One row per measurement, as CSV
    #[arg(long, value_name = "FILE")]
    pub(super) csv: Option<PathBuf>,
    /// Plots, as one HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Directory on a local disk for swap files and mapped files
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(super) scratch: PathBuf,
}

/// Arguments of the comparison.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Data over the memory that may be resident
    #[arg(long, value_delimiter = ',', default_value = "4")]
    pub(super) ratios: Vec<f64>,
    /// Repetitions of each contender
    #[arg(long, default_value_t = 3)]
    pub(super) repetitions: u32,
    /// `all`, or some of plain, inline, monitor, guard, guard-mprotect, zram-COMPRESSOR, zswap,
    /// disk, file, spill, spill-idle, peer
    #[arg(long, value_delimiter = ',', default_value = "all")]
    pub(super) contenders: Vec<String>,
    /// Workloads, always run in the order of this list; default: all
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(super) workload: Vec<Pattern>,
    /// A shared library with the C++ interface of GhostMemoryManager, to compare with
    #[arg(long, value_name = "FILE")]
    pub(super) peer: Option<PathBuf>,
    /// The directory that has its header ghostmem/GhostMemoryManager.h; without it the
    /// library's limit is what it was built with
    #[arg(long, value_name = "DIR", requires = "peer")]
    pub(super) peer_include: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Arguments of `zram`, the shorter comparison.
#[derive(Debug, Clone, Args)]
pub(crate) struct ZramArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Bytes of the buffer that may be resident
    #[arg(long, default_value = "256M")]
    pub(super) resident: Size,
    /// Repetitions of each contender
    #[arg(long, default_value_t = 3)]
    pub(super) pairs: u32,
    /// Workloads, always run in the order of this list
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "seq-read,random-read,random-write,zipf-read"
    )]
    pub(super) workload: Vec<Pattern>,
    /// GhostMem backends: `all`, or some of inline, monitor, guard, guard-mprotect; `none`
    /// measures zram alone
    #[arg(long, value_delimiter = ',', default_value = "all")]
    pub(super) backend: Vec<String>,
    /// Compression algorithm of zram
    #[arg(long, default_value = "lz4")]
    pub(super) algorithm: String,
    /// Leave zram out; needs no privilege
    #[arg(long)]
    pub(super) no_zram: bool,
    #[command(flatten)]
    pub(super) common: Common,
}
