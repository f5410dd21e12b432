//! `ghostmem-bench zram`: GhostMem and zram side by side, in one run.
//!
//! Repetitions come in pairs, and the order within a pair alternates, so that a
//! machine that warms up or slows down treats both alike. Each ratio is the
//! median of the ratios within the pairs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::contenders::zram::Swap;
use crate::data::{DataSet, Mix};
use crate::error::{Error, Result};
use crate::options::{DataArgs, Size};
use crate::report::{self, Spread, mib};
use crate::sys::{self, Mapping};
use crate::work::Pattern;

const ZRAM: &str = "zram";
const INLINE: &str = "inline";

/// How many times faster than zram each workload has to be.
const fn target(pattern: Pattern) -> f64 {
    match pattern {
        Pattern::SeqRead => 3.5,
        Pattern::RandomRead => 2.3,
        Pattern::RandomWrite => 1.5,
        Pattern::ZipfRead => 2.5,
    }
}

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Bytes of the buffer that may be resident.
    #[arg(long, default_value = "256M")]
    resident: Size,
    /// Repetitions of each contender.
    #[arg(long, default_value_t = 3)]
    pairs: u32,
    /// Numbers of touching threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<u32>,
    /// Workloads, run in this order whatever order they are named in; later
    /// ones find the memory as the earlier ones left it.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "seq-read,random-read,random-write,zipf-read"
    )]
    workload: Vec<Pattern>,
    /// GhostMem backends: `all`, or some of inline, monitor, guard,
    /// guard-mprotect; `none` measures zram alone. Backends other than inline make fewer touches.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    backend: Vec<String>,
    /// Compression algorithm of zram.
    #[arg(long, default_value = "lz4")]
    algorithm: String,
    /// Factor on the number of touches.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Leave zram out; needs no privilege.
    #[arg(long)]
    no_zram: bool,
    /// Seconds after which a measured process is stopped.
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// Do not touch the machine's memory first.
    #[arg(long)]
    no_warm: bool,
    /// Everything measured, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// One row per measurement, as CSV.
    #[arg(long)]
    csv: Option<PathBuf>,
}

impl CompareArgs {
    /// The workloads asked for, as the child takes them.
    fn workloads(&self) -> Vec<&'static str> {
        self.patterns().map(Pattern::argument).collect()
    }

    /// The workloads asked for, in the order they run.
    fn patterns(&self) -> impl Iterator<Item = Pattern> {
        Pattern::ALL
            .into_iter()
            .filter(|pattern| self.workload.contains(pattern))
    }
}

/// Runs the command.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let backends = backends(&args.backend)?;
    sys::catch_signals().map_err(|err| Error::io("sigaction", &err))?;
    // Refuse before spending time on the data.
    let swap_bytes = args.data.size.0 * 3 / 2;
    if !args.no_zram {
        drop(Rig::set_up(swap_bytes, &args.algorithm)?);
    }
    if report::machine()["zswap"] == "Y" {
        eprintln!("note: zswap is on and stands between the cgroup and zram");
    }
    let threads_max = args.threads.iter().copied().max().unwrap_or(1);
    let (data, mix) = args.data.build(threads_max)?;
    report_mix(&mix, args.data.size.0);
    if !args.no_warm {
        warm(args.data.size.0)?;
    }

    let mut runs = Vec::new();
    for pair in 0..args.pairs {
        let mut order = Vec::new();
        if !args.no_zram {
            order.push(ZRAM);
        }
        if backends.contains(&INLINE) {
            order.push(INLINE);
        }
        if pair % 2 == 1 {
            order.reverse();
        }
        for contender in order {
            eprintln!("pair {}/{}: {contender}", pair + 1, args.pairs);
            runs.push((pair, measure(args, &data, contender, args.scale)?));
        }
    }
    for backend in backends.iter().filter(|&&backend| backend != INLINE) {
        eprintln!("beside it: {backend}");
        match measure(args, &data, backend, args.scale / 8.0) {
            Ok(run) => runs.push((0, run)),
            Err(Error::Skipped(why)) => eprintln!("{backend} skipped: {why}"),
            Err(err) => return Err(err),
        }
    }
    print(&runs, args);
    if let Some(path) = &args.json {
        let value = json!({
            "machine": report::machine(),
            "mix": mix_json(&mix),
            "runs": runs.iter().map(|(pair, run)| json!({ "pair": pair, "run": run }))
                .collect::<Vec<_>>(),
        });
        report::write_json(path, &value)?;
    }
    if let Some(path) = &args.csv {
        write_csv(path, &runs)?;
    }
    Ok(())
}

fn backends(asked: &[String]) -> Result<Vec<&'static str>> {
    const ALL: [&str; 4] = [INLINE, "monitor", "guard", "guard-mprotect"];
    let mut chosen = Vec::new();
    for name in asked {
        match name.as_str() {
            "all" => chosen.extend(ALL),
            "none" => {}
            name => chosen.push(
                ALL.into_iter()
                    .find(|known| *known == name)
                    .ok_or_else(|| Error::Failed(format!("no backend named {name}")))?,
            ),
        }
    }
    Ok(chosen)
}

/// Swap and cgroup for one zram child. Fields are dropped in this order: the
/// cgroup has to be empty, the device unused.
struct Rig {
    swap: Swap,
    group: Cgroup,
}

impl Rig {
    fn set_up(bytes: u64, algorithm: &str) -> Result<Self> {
        let swap = Swap::set_up(bytes, algorithm)?;
        let group = Cgroup::create()?;
        Ok(Self { swap, group })
    }
}

/// Touches memory the machine may not have used yet: a guest's first touch of
/// a page can cost many times the later ones, and would hit whoever is first.
fn warm(size: u64) -> Result<()> {
    let available = report::meminfo_bytes("MemAvailable");
    let bytes = (size * 3).min(available / 10 * 8) as usize;
    eprintln!("warming {} MiB of the machine's memory", bytes >> 20);
    let mapping = Mapping::anonymous(bytes).map_err(|err| Error::io("mmap", &err))?;
    mapping
        .populate()
        .map_err(|err| Error::io("populating memory", &err))
}

/// Kills and reaps the child whatever happens.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures one contender in a child process.
fn measure(args: &CompareArgs, data: &DataSet, contender: &str, scale: f64) -> Result<Value> {
    let rig = if contender == ZRAM {
        Some(Rig::set_up(args.data.size.0 * 3 / 2, &args.algorithm)?)
    } else {
        None
    };
    let exe = std::env::current_exe().map_err(|err| Error::io("own executable", &err))?;
    let threads: Vec<_> = args.threads.iter().map(u32::to_string).collect();
    let mut command = Command::new(exe);
    command
        .arg("child")
        .args(["--contender", contender])
        .args(["--fd", &data.fd().to_string()])
        .args(["--pages", &data.pages().to_string()])
        .args(["--slots", &data.slots().to_string()])
        .args(["--resident", &args.resident.0.to_string()])
        .args(["--threads", &threads.join(",")])
        .args(["--scale", &scale.to_string()])
        .args(["--workload", &args.workloads().join(",")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if let Some(rig) = &rig {
        command.arg("--cgroup").arg(rig.group.dir());
        command.args(["--device", rig.swap.name()]);
    }
    // Declared after the rig: gone before the rig is taken down.
    let mut child = Reaped(
        command
            .spawn()
            .map_err(|err| Error::io("starting a measured process", &err))?,
    );
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let status = loop {
        if sys::interrupted() {
            return Err(Error::Interrupted);
        }
        if Instant::now() > deadline {
            return Err(Error::Failed(format!(
                "{contender} took more than {} s",
                args.timeout
            )));
        }
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(Duration::from_millis(50)),
            Err(err) => return Err(Error::io("waiting for a measured process", &err)),
        }
    };
    let mut text = String::new();
    if let Some(mut out) = child.0.stdout.take() {
        std::io::Read::read_to_string(&mut out, &mut text)
            .map_err(|err| Error::io("reading a result", &err))?;
    }
    match status.code() {
        Some(0) => serde_json::from_str(&text)
            .map_err(|err| Error::Failed(format!("{contender}: unreadable result: {err}"))),
        Some(3) => Err(Error::Skipped(format!("{contender}: see above"))),
        _ => Err(Error::Failed(format!("{contender} ended with {status}"))),
    }
}

/// Prints what the data set is made of.
pub(crate) fn report_mix(mix: &Mix, bytes: u64) {
    eprint!("data set: {} MiB, LZ4 ratio {:.2}:", bytes >> 20, mix.ratio);
    for (name, share, ratio) in &mix.kinds {
        eprint!(" {name} {:.0}% ({ratio:.2})", share * 100.0);
    }
    eprintln!();
}

fn mix_json(mix: &Mix) -> Value {
    json!({
        "lz4_ratio": mix.ratio,
        "kinds": mix.kinds.iter().map(|(name, share, ratio)| json!({
            "kind": name, "share": share, "lz4_ratio": ratio,
        })).collect::<Vec<_>>(),
    })
}

/// Figures of one contender and workload, by pair.
type Series = BTreeMap<u32, f64>;

fn series(
    runs: &[(u32, Value)],
    contender: &str,
    pattern: Pattern,
    threads: u32,
    field: &str,
) -> Series {
    let mut series = Series::new();
    for (pair, run) in runs {
        let results = run["workloads"].as_array();
        for result in results.into_iter().flatten() {
            if run["contender"] == contender
                && result["workload"] == pattern.name()
                && result["threads"] == threads
            {
                series.insert(*pair, result[field].as_f64().unwrap_or(f64::NAN));
            }
        }
    }
    series
}

fn spread(series: &Series) -> Option<Spread> {
    Spread::of(&series.values().copied().collect::<Vec<_>>())
}

/// Ratios within the pairs that have both.
fn ratios(slow: &Series, fast: &Series) -> Option<Spread> {
    let ratios: Vec<f64> = slow
        .iter()
        .filter_map(|(pair, slow)| Some(slow / fast.get(pair)?))
        .collect();
    Spread::of(&ratios)
}

fn print(runs: &[(u32, Value)], args: &CompareArgs) {
    let mut table = report::table(&[
        "ns per touch: median (min-max)",
        "threads",
        "zram",
        "GhostMem inline",
        "times faster",
        "target",
        "cpu ns zram",
        "cpu ns inline",
        "faults/touch zram",
        "faults/touch inline",
    ]);
    let dash = || "-".to_owned();
    for &threads in &args.threads {
        for pattern in args.patterns() {
            let get = |contender, field| series(runs, contender, pattern, threads, field);
            let median = |contender, field, digits: usize| {
                spread(&get(contender, field))
                    .map_or_else(dash, |s| format!("{:.*}", digits, s.median))
            };
            let time = "ns_per_touch";
            let (zram, inline) = (get(ZRAM, time), get(INLINE, time));
            table.add_row([
                pattern.name().to_owned(),
                threads.to_string(),
                spread(&zram).map_or_else(dash, Spread::text),
                spread(&inline).map_or_else(dash, Spread::text),
                ratios(&zram, &inline).map_or_else(dash, |s| {
                    format!("{:.2} ({:.2}-{:.2})", s.median, s.min, s.max)
                }),
                format!("{:.1}", target(pattern)),
                median(ZRAM, "cpu_ns_per_touch", 0),
                median(INLINE, "cpu_ns_per_touch", 0),
                median(ZRAM, "faults_per_touch", 3),
                median(INLINE, "faults_per_touch", 3),
            ]);
        }
    }
    println!("{table}");
    print_beside(runs, args);
    print_memory(runs);
}

/// The other backends: time per touch and what a fault costs there.
fn print_beside(runs: &[(u32, Value)], args: &CompareArgs) {
    let beside: Vec<&str> = runs
        .iter()
        .filter_map(|(_, run)| run["contender"].as_str())
        .filter(|name| *name != ZRAM && *name != INLINE)
        .collect();
    if beside.is_empty() {
        return;
    }
    let mut table = report::table(&[
        "other backends",
        "workload",
        "threads",
        "ns per touch",
        "ns per fault",
        "cpu ns per touch",
    ]);
    for backend in beside {
        for &threads in &args.threads {
            for pattern in args.patterns() {
                let get = |field| {
                    let series = series(runs, backend, pattern, threads, field);
                    spread(&series).map_or(f64::NAN, |s| s.median)
                };
                let (time, faults) = (get("ns_per_touch"), get("faults_per_touch"));
                table.add_row([
                    backend.to_owned(),
                    pattern.name().to_owned(),
                    threads.to_string(),
                    format!("{time:.0}"),
                    if faults > 0.0 {
                        format!("{:.0}", time / faults)
                    } else {
                        "-".to_owned()
                    },
                    format!("{:.0}", get("cpu_ns_per_touch")),
                ]);
            }
        }
    }
    println!("{table}");
}

/// What each contender held, from its last run.
fn print_memory(runs: &[(u32, Value)]) {
    let mut table = report::table(&[
        "memory, MiB",
        "fill ns/page",
        "resident",
        "compressed",
        "held for it",
        "metadata",
        "peak of all",
        "peak RSS",
        "RSS before",
    ]);
    let mut last = BTreeMap::new();
    for (_, run) in runs {
        last.insert(run["contender"].as_str().unwrap_or("?"), run);
    }
    for (name, run) in last {
        let bytes = |value: &Value| mib(value.as_u64().unwrap_or(0));
        let end = &run["end"];
        table.add_row([
            name.to_owned(),
            format!("{:.0}", run["fill_ns_per_page"].as_f64().unwrap_or(0.0)),
            bytes(&end["resident"]),
            bytes(&end["data"]),
            bytes(&end["held"]),
            bytes(&end["metadata"]),
            bytes(&end["peak"]),
            bytes(&run["peak_rss"]),
            bytes(&run["baseline_rss"]),
        ]);
    }
    println!("{table}");
}

fn write_csv(path: &std::path::Path, runs: &[(u32, Value)]) -> Result<()> {
    let fields = ["ns_per_touch", "cpu_ns_per_touch", "faults_per_touch"];
    let memory = ["resident", "data", "held", "metadata", "peak"];
    let mut header = vec!["contender", "pair", "workload", "threads", "touches"];
    header.extend(fields);
    header.extend(memory);
    let plain = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let mut rows = Vec::new();
    for (pair, run) in runs {
        let results = run["workloads"].as_array();
        for result in results.into_iter().flatten() {
            let mut row = vec![plain(&run["contender"]), pair.to_string()];
            row.extend(["workload", "threads", "touches"].map(|name| plain(&result[name])));
            row.extend(fields.map(|name| plain(&result[name])));
            row.extend(memory.map(|name| plain(&result["memory"][name])));
            rows.push(row);
        }
    }
    report::write_csv(path, &header, &rows)
}
