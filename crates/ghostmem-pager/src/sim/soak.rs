//! The command of `tests/soak.rs`: runs, one after the other, and what becomes of one that
//! fails.

use core::cell::RefCell;
use core::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::OnceLock;
use std::time::Instant;

use crate::sim::plan::{Plan, Script};
use crate::sim::run::Runner;
use crate::sim::schedule::{Counts, Schedule};
use crate::sim::shrink::{manner_of, shrink};

/// Steps of the longest runs, after which no operation begins.
const RUN_STEPS: u64 = 40_000;

/// Steps where none are asked for: what `scripts/test` runs.
const STEPS: u64 = 1_000_000;

const HELP: &str = "\
usage: soak [--steps N] [--seed N] [--run-steps N] [--seeds-only]
       soak --replay FILE [--tell]
       soak --shrink SEED [--run-steps N] [--out FILE]

Runs the engine from one seed after the other, N steps in all, after it replayed what is
kept in tests/sim. A run that fails is made shorter, printed and written to a file.

  --steps N      steps in all (1000000)
  --seed N       the first seed (1)
  --run-steps N  steps of the longest runs (40000); others have fewer
  --seeds-only   replays nothing that is kept, and leaves a run that fails as it is
  --replay FILE  runs what a file says
  --tell         prints each operation and decision
  --shrink SEED  makes the run of a seed that fails shorter
  --out FILE     where the short run goes (seed-SEED.txt below the temporary directory)
";

#[derive(Debug, Default)]
struct Asked {
    steps: Option<u64>,
    seed: Option<u64>,
    run_steps: Option<u64>,
    replay: Option<PathBuf>,
    shrink: Option<u64>,
    record: Option<PathBuf>,
    out: Option<PathBuf>,
    seeds_only: bool,
    tell: bool,
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.replace('_', "").parse().ok(),
    }
}

impl Asked {
    /// # Errors
    /// What is no option.
    fn of(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{argument} wants a value"))
            };
            let parsed = |text: String| number(&text).ok_or(format!("{text} is no number"));
            match argument.as_str() {
                "--steps" => asked.steps = Some(parsed(value()?)?),
                "--seed" => asked.seed = Some(parsed(value()?)?),
                "--run-steps" => asked.run_steps = Some(parsed(value()?)?),
                "--shrink" => asked.shrink = Some(parsed(value()?)?),
                "--replay" => asked.replay = Some(value()?.into()),
                "--record" => asked.record = Some(value()?.into()),
                "--out" => asked.out = Some(value()?.into()),
                "--seeds-only" => asked.seeds_only = true,
                "--tell" => asked.tell = true,
                // What cargo's own harness is told.
                "--nocapture" | "--quiet" | "-q" => {}
                _ => return Err(format!("{argument} is no option")),
            }
        }
        Ok(asked)
    }

    fn run_steps(&self) -> u64 {
        self.run_steps.unwrap_or(RUN_STEPS)
    }
}

/// What a failure is to be told with.
#[derive(Debug)]
struct OnFailure {
    /// The seed is made shorter, a run of so many steps.
    shrink: Option<u64>,
    /// What was recorded goes here.
    record: Option<PathBuf>,
}

/// What a run is decided by.
#[derive(Debug, Clone)]
enum Origin {
    Seed(u64),
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(seed) => write!(f, "seed {seed}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

std::thread_local! {
    static ORIGIN: RefCell<Origin> = const { RefCell::new(Origin::Seed(0)) };
}

/// A run that fails leaves locks taken and stacks half-way: the process ends with it.
fn end_with_a_failure(on: OnFailure) {
    static ON: OnceLock<OnFailure> = OnceLock::new();
    ON.set(on).expect("once");
    std::panic::set_hook(Box::new(|panic| {
        let origin = ORIGIN.with_borrow(Clone::clone);
        eprintln!("simulation of {origin}: {panic}");
        let Some(on) = ON.get() else { exit(101) };
        if let Some(schedule) = Schedule::current() {
            let (where_it_was, steps) = (schedule.whereabouts(), schedule.steps());
            let all = schedule.counts().steps;
            eprintln!("  in {where_it_was}; step {steps} of the run, {all} of all");
            if let (Some(place), Some(script)) = (&on.record, schedule.recorded()) {
                let written = std::fs::write(place, script.to_string());
                written.unwrap_or_else(|error| eprintln!("{}: {error}", place.display()));
            }
        }
        // What is kept in a file is short already.
        if let (Some(run_steps), Origin::Seed(seed)) = (on.shrink, origin) {
            let me = std::env::current_exe().unwrap_or_default();
            let (seed, run_steps) = (seed.to_string(), run_steps.to_string());
            let asked = ["--shrink", &seed, "--run-steps", &run_steps];
            let _shrunk = Command::new(me).args(asked).status();
        }
        exit(101);
    }));
}

/// What a failing seed was made to.
fn tell_short(seed: u64, short: &Script, out: &Path) {
    let text = format!("# Seed {seed}, made shorter.\n{short}");
    match std::fs::write(out, &text) {
        Ok(()) => println!("{text}\nkept in {}", out.display()),
        Err(error) => println!("{text}\n{}: {error}", out.display()),
    }
    println!("To keep it for ever, move it to crates/ghostmem-pager/tests/sim/.");
}

fn run_shrink(seed: u64, asked: &Asked) -> i32 {
    let folder = std::env::temp_dir();
    let id = std::process::id();
    let recorded = folder.join(format!("ghostmem-sim-{id}.recorded"));
    let tried = folder.join(format!("ghostmem-sim-{id}.tried"));
    let me = std::env::current_exe().expect("this program");
    let (number, steps) = (seed.to_string(), asked.run_steps().to_string());
    let run = Command::new(me)
        .args(["--seed", &number, "--steps", "1", "--run-steps", &steps])
        .args(["--record".as_ref(), recorded.as_os_str()])
        .output()
        .expect("a process");
    if run.status.success() {
        println!("the run of seed {seed} does not fail");
        return 1;
    }
    let like = manner_of(&String::from_utf8_lossy(&run.stderr));
    let text = std::fs::read_to_string(&recorded).unwrap_or_default();
    let script = Script::parse(&text).expect("a script just written");
    println!("{} operations failed; making them fewer", script.ops.len());
    let short = shrink(script, &like, &tried);
    for place in [recorded, tried] {
        let _gone = std::fs::remove_file(place);
    }
    let Some(short) = short else {
        println!("what was recorded does not fail: the run is not decided by its seed");
        return 1;
    };
    let out = asked
        .out
        .clone()
        .unwrap_or_else(|| folder.join(format!("seed-{seed}.txt")));
    tell_short(seed, &short, &out);
    0
}

/// What is kept for ever.
fn kept() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim");
    let files = std::fs::read_dir(&folder).expect("tests/sim");
    let files = files.map(|file| file.expect("a file").path());
    let is_script = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "txt");
    let mut scripts: Vec<PathBuf> = files.filter(is_script).collect();
    scripts.sort();
    scripts
}

fn replay(runner: &mut Runner, path: &Path) {
    ORIGIN.set(Origin::File(path.to_owned()));
    let text = std::fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let script = Script::parse(&text);
    let script = script.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    runner.run(0, Plan::of_script(script));
}

fn soak(runner: &mut Runner, asked: &Asked) {
    let began = Instant::now();
    let wanted = asked.steps.unwrap_or(STEPS);
    let first = asked.seed.unwrap_or(1);
    let run_steps = asked.run_steps();
    let before = runner.schedule.counts().steps;
    let done = |runner: &Runner| runner.schedule.counts().steps - before;
    let mut seed = first;
    while done(runner) < wanted {
        ORIGIN.set(Origin::Seed(seed));
        let record = asked.record.is_some();
        let digest = runner.run(seed, Plan::of_seed(seed, run_steps, record));
        // One seed is one run.
        if seed == first && !record {
            let again = runner.run(seed, Plan::of_seed(seed, run_steps, false));
            assert_eq!(digest, again, "two runs of one seed differ");
        }
        seed += 1;
    }
    tell(&runner.schedule.counts(), began, first..seed);
}

fn tell(counts: &Counts, began: Instant, seeds: core::ops::Range<u64>) {
    let seconds = began.elapsed().as_secs_f64();
    let own = ghostmem_os::clock::thread_ns() as f64 / 1e9;
    let Counts {
        steps,
        looks,
        switches,
        ops,
        runs,
    } = counts;
    println!(
        "seeds {} to {}, {runs} runs: {steps} steps, {looks} looks beside, {switches} switches, \
         {ops} operations",
        seeds.start,
        seeds.end - 1
    );
    println!(
        "{seconds:.1} s, {own:.1} s of the processor: {:.0} steps a second, {:.0} a second of \
         the processor",
        *steps as f64 / seconds,
        *steps as f64 / own
    );
}

/// What `tests/soak.rs` does; its exit status.
#[must_use]
pub fn main() -> i32 {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if asked.iter().any(|word| word == "--help" || word == "-h") {
        print!("{HELP}");
        return 0;
    }
    if asked.iter().any(|word| word == "--list") {
        println!("soak: test");
        return 0;
    }
    let asked = match Asked::of(asked.into_iter()) {
        Ok(asked) => asked,
        Err(wrong) => {
            eprintln!("{wrong}\n\n{HELP}");
            return 2;
        }
    };
    if let Some(seed) = asked.shrink {
        return run_shrink(seed, &asked);
    }
    let shrinks = asked.replay.is_none() && asked.record.is_none() && !asked.seeds_only;
    end_with_a_failure(OnFailure {
        shrink: shrinks.then(|| asked.run_steps()),
        record: asked.record.clone(),
    });
    let mut runner = Runner::new();
    runner.schedule.tells.set(asked.tell);
    if let Some(path) = &asked.replay {
        replay(&mut runner, path);
        return 0;
    }
    if asked.record.is_none() && !asked.seeds_only {
        let kept = kept();
        kept.iter().for_each(|path| replay(&mut runner, path));
        println!("{} kept runs replayed", kept.len());
    }
    soak(&mut runner, &asked);
    0
}
