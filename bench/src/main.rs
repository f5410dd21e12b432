//! `ghostmem-bench`: the same as `ghostmem bench`, without the rest.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

/// Measures GhostMem beside what a user would pick instead.
#[derive(Debug, Parser)]
#[command(name = "ghostmem-bench", version, after_help = ghostmem_bench::EXIT)]
struct Cli {
    #[command(flatten)]
    bench: ghostmem_bench::BenchArgs,
}

fn main() -> ExitCode {
    ghostmem_bench::run(&Cli::parse().bench, "ghostmem-bench", &[])
}
