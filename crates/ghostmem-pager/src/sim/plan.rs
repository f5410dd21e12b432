//! What a run does: a setting, operations of the program, and what the scheduler and the
//! kernel decide while these run.
//!
//! ```text
//!   from a seed     all of it is worked out from the seed, the operation's number and
//!                   the number of the point that the operation has come to
//!   from a script   all of it is written down, a line each; what is not, is the default:
//!                   an operation runs to its end, and the kernel does what it is asked
//! ```
//! A script is what a run from a seed writes down when it fails. It can be made shorter:
//! an operation left out takes its own decisions along, and leaves those of others alone.
//!
//! ```text
//!   setting limit 96        a number of the setting
//!   op 17 store 5 9         operation 17, with two numbers that say where and how
//!   choice 17 3 run 12      at its third point operation 12 goes on
//!   choice 17 8 errno 22    at its eighth, a call, the kernel refuses
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Display};

mod script;

pub(crate) use script::Script;

/// The point after an operation's last one.
pub(crate) const END: u32 = u32::MAX;

/// Mixes numbers to one that looks random (SplitMix64's finish).
pub(crate) const fn mix(seed: u64, op: u32, point: u32) -> u64 {
    let state = seed
        .wrapping_add((op as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .wrapping_add((point as u64).wrapping_mul(0xD1B5_4A32_D192_ED03));
    let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $verb:ident $text:literal $weight:literal,)*) => {
        /// What an operation is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Verb {
            $($(#[$doc])* $verb,)*
        }

        /// Each verb, its name in a script, and how often it comes beside the others.
        const VERBS: &[(Verb, &str, u64)] = &[$((Verb::$verb, $text, $weight),)*];
    };
}

verbs! {
    /// A page is loaded from.
    Load "load" 280,
    /// A page is stored to.
    Store "store" 280,
    /// Pages in a row.
    Sweep "sweep" 40,
    /// Many pages by one instruction.
    Gather "gather" 16,
    Evict "evict" 70,
    EvictColdest "evict-coldest" 16,
    Prefetch "prefetch" 16,
    MakeCold "make-cold" 10,
    Discard "discard" 40,
    Allocate "allocate" 24,
    Free "free" 18,
    Resize "resize" 14,
    Pin "pin" 22,
    /// One page, more often than 16 bits can count.
    PinOften "pin-often" 0,
    Unpin "unpin" 22,
    Limit "limit" 8,
    ForkParent "fork-parent" 6,
    ForkChild "fork-child" 4,
    Lock "lock" 8,
    Unlock "unlock" 8,
    Shed "shed" 8,
    Compact "compact" 16,
    /// Time passes.
    Time "time" 16,
    /// A turn of the reclaimer's thread.
    Reclaimer "reclaimer" 30,
    /// A turn of the demoter's thread.
    Demoter "demoter" 52,
    /// All that is counted is compared.
    Audit "audit" 2,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        VERBS
            .iter()
            .find(|row| row.0 == self)
            .map_or("", |row| row.1)
    }

    /// Nothing else is under way meanwhile.
    pub(crate) const fn is_alone(self) -> bool {
        matches!(self, Self::ForkChild | Self::Audit)
    }

    /// Halves of its weight that it has in any run: without pages and the engine's threads
    /// nothing happens.
    const fn parts_min(self) -> u64 {
        match self {
            Self::Load | Self::Store | Self::Allocate | Self::Reclaimer | Self::Demoter => 2,
            _ => 0,
        }
    }
}

/// An operation. What its two numbers mean is the verb's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) verb: Verb,
    pub(crate) at: u64,
    pub(crate) how: u64,
}

/// Operation after which a page is pinned often, in runs whose setting says so.
const PIN_OFTEN: u32 = 100;

/// Operations that a run begins with: blocks for all others.
const ALLOCATIONS: u32 = 3;

/// How often each verb comes in a run: for each the sum of its weight and of those before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights([u64; VERBS.len()]);

impl Weights {
    /// Those of the table in half of the runs. In the others each verb comes as often as
    /// there, more often, or never: what many verbs hide from each other, fewer reach.
    fn of(seed: u64) -> Self {
        const PARTS: [u64; 8] = [0, 0, 2, 2, 2, 2, 5, 12];
        let is_own = mix(seed ^ 0x3E16, 0, 0) & 1 == 1;
        let mut sums = [0; VERBS.len()];
        let mut sum = 0;
        for (number, &(verb, _, weight)) in VERBS.iter().enumerate() {
            let parts = match mix(seed ^ 0x3E16, 1, number as u32) % PARTS.len() as u64 {
                _ if !is_own => 2,
                drawn => PARTS[drawn as usize],
            };
            sum += weight * parts.max(verb.parts_min());
            sums[number] = sum;
        }
        Self(sums)
    }

    fn draw(&self, random: u64) -> Verb {
        let drawn = random % self.0[VERBS.len() - 1];
        VERBS[self.0.partition_point(|&sum| sum <= drawn)].0
    }
}

impl Op {
    fn of(seed: u64, id: u32, setting: &Setting, weights: &Weights) -> Self {
        let at = mix(seed ^ 0xA5A5, id, 1);
        let how = mix(seed ^ 0x5A5A, id, 2);
        let verb = match weights.draw(mix(seed, id, 0)) {
            _ if id < ALLOCATIONS => Verb::Allocate,
            _ if id == PIN_OFTEN && setting.often == 1 => Verb::PinOften,
            Verb::Demoter if setting.file == 0 => Verb::Load,
            verb => verb,
        };
        Self { verb, at, how }
    }
}

/// Steps of a run of a seed, at most `most`: a thread's first turns and the first batch of
/// a file come once in each run.
const fn steps_of(seed: u64, most: u64) -> u64 {
    most >> [0, 0, 2, 4][(mix(seed ^ 0x57E9, 0, 0) % 4) as usize]
}

/// What is decided at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// That operation goes on.
    Run(u32),
    /// The next operation begins.
    Start,
    /// The kernel refuses.
    Errno(i32),
    /// It does a part.
    Part,
    /// A disk says that it did.
    Lie(u32),
    /// The call takes so many microseconds.
    Slow(u32),
}

impl Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(op) => write!(f, "run {op}"),
            Self::Start => write!(f, "start"),
            Self::Errno(errno) => write!(f, "errno {errno}"),
            Self::Part => write!(f, "part"),
            Self::Lie(how) => write!(f, "lie {how}"),
            Self::Slow(us) => write!(f, "slow {us}"),
        }
    }
}

macro_rules! setting {
    ($($(#[$doc:meta])* $field:ident = $draw:expr;)*) => {
        /// What a run is like: a number each, so that it can be written down.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct Setting {
            $($(#[$doc])* pub(crate) $field: u64,)*
        }

        impl Setting {
            fn of(seed: u64) -> Self {
                let mut drawn = 0;
                let mut draw = |most: u64| -> u64 {
                    drawn += 1;
                    mix(seed ^ 0x5E77, drawn, 0) % most
                };
                $(let $field = ($draw)(&mut draw);)*
                Self { $($field,)* }
            }

            fn set(&mut self, name: &str, value: u64) -> bool {
                match name {
                    $(stringify!($field) => self.$field = value,)*
                    _ => return false,
                }
                true
            }

            fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field),)*]
            }
        }
    };
}

type Draw<'a> = &'a mut dyn FnMut(u64) -> u64;

setting! {
    /// 0: userfaultfd, 1: guard, 2: guard by mprotect.
    manner = |draw: Draw<'_>| [0, 0, 0, 1, 2][draw(5) as usize];
    /// 1: there is a file.
    file = |draw: Draw<'_>| draw(2);
    /// Pages that may be resident.
    limit = |draw: Draw<'_>| 16 + draw(120);
    readahead = |draw: Draw<'_>| u64::from(draw(4) > 0);
    compress = |draw: Draw<'_>| u64::from(draw(4) > 0);
    /// 1: clean pages keep their copies.
    copies = |draw: Draw<'_>| u64::from(draw(8) > 0);
    /// KiB of the store beside a file; 0: pages go there as soon as they are evicted.
    share = |draw: Draw<'_>| [0, 8, 16, 32, 64][draw(5) as usize];
    encrypt = |draw: Draw<'_>| draw(2);
    /// 1: a disk lies and forgets.
    lies = |draw: Draw<'_>| u64::from(draw(3) == 0);
    /// 1: the kernel keeps locked pages whatever it is asked.
    keeps_locked = |draw: Draw<'_>| draw(2);
    /// Points of 1024 at which another operation goes on.
    switch = |draw: Draw<'_>| [8, 40, 160, 400][draw(4) as usize];
    /// 1: calls go wrong.
    wrong = |draw: Draw<'_>| u64::from(draw(4) > 0);
    /// 1: a page is pinned very often.
    often = |draw: Draw<'_>| u64::from(draw(200) == 0);
    /// Switches of 1024 after which an actor stays where it is for long, whoever else goes
    /// on.
    stall = |draw: Draw<'_>| [0, 32, 128, 512][draw(4) as usize];
    /// Pages of all blocks together, about: the fewer, the more often two actors meet.
    pages = |draw: Draw<'_>| [12, 40, 150, 500][draw(4) as usize];
    /// 1: a child has a reclaimer and a demoter of its own; 0: it has none.
    heirs = |draw: Draw<'_>| u64::from(draw(4) > 0);
}

/// Where a run's operations and decisions come from.
pub(crate) enum Source {
    Seed {
        seed: u64,
        /// Steps after which no operation begins.
        steps: u64,
        weights: Weights,
    },
    Script(Script),
}

/// A run to be made.
pub(crate) struct Plan {
    pub(crate) setting: Setting,
    source: Source,
    next: usize,
    /// What was done, to be done again.
    pub(crate) record: Option<Script>,
}

impl Plan {
    /// A seed's run, of at most so many steps, and a few more until all are at their ends.
    pub(crate) fn of_seed(seed: u64, steps_max: u64, record: bool) -> Self {
        let setting = Setting::of(seed);
        let record = record.then(|| Script {
            setting,
            ops: Vec::new(),
            choices: BTreeMap::new(),
        });
        Self {
            setting,
            source: Source::Seed {
                seed,
                steps: steps_of(seed, steps_max),
                weights: Weights::of(seed),
            },
            next: 0,
            record,
        }
    }

    pub(crate) fn of_script(script: Script) -> Self {
        Self {
            setting: script.setting,
            source: Source::Script(script),
            next: 0,
            record: None,
        }
    }

    /// The operation that would begin next.
    pub(crate) fn peek(&self, steps_done: u64) -> Option<(u32, Op)> {
        match &self.source {
            Source::Seed {
                seed,
                steps,
                weights,
            } => (steps_done < *steps).then(|| {
                let id = self.next as u32;
                (id, Op::of(*seed, id, &self.setting, weights))
            }),
            Source::Script(script) => script.ops.get(self.next).copied(),
        }
    }

    /// It begins, or is left out.
    pub(crate) fn advance(&mut self, begun: Option<(u32, Op)>) {
        self.next += 1;
        if let (Some(record), Some(op)) = (&mut self.record, begun) {
            record.ops.push(op);
        }
    }

    /// A random number for a point, or what the script says of it.
    pub(crate) fn drawn(&self, op: u32, point: u32) -> Drawn {
        match &self.source {
            Source::Seed { seed, .. } => Drawn::Random(mix(*seed, op, point)),
            Source::Script(script) => Drawn::Written(script.choices.get(&(op, point)).copied()),
        }
    }

    pub(crate) fn note(&mut self, op: u32, point: u32, choice: Choice) {
        if let Some(record) = &mut self.record {
            record.choices.insert((op, point), choice);
        }
    }
}

/// What decides at a point.
pub(crate) enum Drawn {
    Random(u64),
    Written(Option<Choice>),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_script_that_is_written_is_read_again() {
        let setting = Setting::of(3);
        let weights = Weights::of(3);
        let op = |id| (id, Op::of(3, id, &setting, &weights));
        let ops = (0..400).map(op).collect();
        let choices = [
            ((3, 7), Choice::Run(2)),
            ((3, END), Choice::Start),
            ((9, 1), Choice::Errno(22)),
            ((9, 2), Choice::Part),
            ((9, 3), Choice::Lie(5)),
            ((9, 4), Choice::Slow(77)),
        ];
        let script = Script {
            setting,
            ops,
            choices: choices.into(),
        };
        let text = format!("# a comment\n\n{script}");
        assert_eq!(Script::parse(&text), Ok(script));
        assert!(Script::parse("op 1 fly 2 3").is_err());
        assert!(Script::parse("choice 1 2 run").is_err());
        assert!(Script::parse("setting colour 3").is_err());
    }

    #[test]
    fn runs_differ_in_length_and_in_what_they_do() {
        let steps: BTreeSet<u64> = (0..64).map(|seed| steps_of(seed, 1600)).collect();
        assert_eq!(steps, [100, 400, 1600].into());
        let count = |seed, verb| {
            let (setting, weights) = (Setting::of(seed), Weights::of(seed));
            let verbs = (0..2000).map(|id| Op::of(seed, id, &setting, &weights).verb);
            verbs.filter(|&drawn| drawn == verb).count()
        };
        let evictions: Vec<usize> = (0..64).map(|seed| count(seed, Verb::Evict)).collect();
        let (least, most) = (evictions.iter().min(), evictions.iter().max());
        assert!(least == Some(&0) && most > Some(&400), "{evictions:?}");
        assert!((0..64).all(|seed| count(seed, Verb::Store) > 100));
    }

    #[test]
    fn operations_left_out_take_their_choices_along() {
        let text = "op 1 load 1 1\nchoice 1 2 run 3\nop 3 load 0 0\nchoice 3 1 part\n";
        let kept = Script::parse(text).unwrap().keeping(|id| id == 3);
        assert_eq!((kept.ops.len(), kept.choices.len()), (1, 1));
    }
}
