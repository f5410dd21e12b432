//! From a run that fails to the shortest one that does: operations are left out, then
//! decisions, larger and smaller parts in turn, as long as what is left fails
//! (delta debugging). Each try is a process of its own, as a failure leaves locks taken.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sim::plan::Script;

/// Tries, and time for them.
const TRIES: u32 = 1500;
const PATIENCE: Duration = Duration::from_secs(240);

struct Shrinker<'a> {
    /// Where a script lies while it is tried.
    place: &'a Path,
    /// How it is to fail.
    like: &'a str,
    tries: u32,
    began: Instant,
    shortest: Script,
}

impl Shrinker<'_> {
    /// Whether a script fails: it is the shortest then.
    fn try_out(&mut self, script: Script) -> bool {
        if self.tries == TRIES || self.began.elapsed() > PATIENCE {
            return false;
        }
        self.tries += 1;
        let fails = fails(&script, self.place).is_some_and(|how| how == self.like);
        if fails {
            self.shortest = script;
        }
        fails
    }

    /// Leaves out of `count` things as many as can be left out, in parts down to `least`;
    /// `without` makes the script without those whose place it is told.
    fn leave_out(
        &mut self,
        least: usize,
        count: impl Fn(&Script) -> usize,
        without: impl Fn(&Script, &dyn Fn(usize) -> bool) -> Script,
    ) -> bool {
        let mut any = false;
        let mut part = count(&self.shortest);
        loop {
            // From the end: what comes last needs what came first.
            let mut end = count(&self.shortest);
            while end > 0 {
                let gone = end.saturating_sub(part)..end;
                let shorter = without(&self.shortest, &|place| gone.contains(&place));
                any |= self.try_out(shorter);
                end = gone.start;
            }
            if part <= least {
                return any;
            }
            part = part.div_ceil(2);
        }
    }

    fn fewer_ops(&mut self) -> bool {
        self.leave_out(
            1,
            |script| script.ops.len(),
            |script, gone| {
                let kept = script.ops.iter().enumerate();
                let kept: BTreeSet<u32> = kept
                    .filter(|(place, _)| !gone(*place))
                    .map(|(_, op)| op.0)
                    .collect();
                script.keeping(|id| kept.contains(&id))
            },
        )
    }

    fn fewer_choices(&mut self, least: usize) -> bool {
        self.leave_out(
            least,
            |script| script.choices.len(),
            |script, gone| {
                let mut shorter = script.clone();
                let kept = script.choices.iter().enumerate();
                shorter.choices = kept
                    .filter(|(place, _)| !gone(*place))
                    .map(|(_, (at, choice))| (*at, *choice))
                    .collect();
                shorter
            },
        )
    }
}

/// What the message of a failure begins with: the place in the code.
pub(crate) fn manner_of(message: &str) -> String {
    let line = message.lines().find(|line| line.contains("panicked at"));
    line.and_then(|line| line.split("panicked at ").nth(1))
        .unwrap_or("without a panic")
        .to_owned()
}

/// How a process that runs the script fails, if it does.
fn fails(script: &Script, place: &Path) -> Option<String> {
    std::fs::write(place, script.to_string()).expect("a place for scripts");
    let me = std::env::current_exe().expect("this program");
    let replayed = Command::new(me)
        .args(["--replay".as_ref(), place.as_os_str()])
        .stdout(Stdio::null())
        .output()
        .expect("a process");
    let message = String::from_utf8_lossy(&replayed.stderr);
    (!replayed.status.success()).then(|| manner_of(&message))
}

/// The shortest script that fails like one that does; `None` where that does not.
pub(crate) fn shrink(script: Script, like: &str, place: &Path) -> Option<Script> {
    let mut shrinker = Shrinker {
        place,
        like,
        tries: 0,
        began: Instant::now(),
        shortest: script.clone(),
    };
    if !shrinker.try_out(script) {
        return None;
    }
    // Coarsely first: there are ten times as many.
    let part = shrinker.shortest.choices.len() / 32;
    shrinker.fewer_choices(part.max(1));
    while shrinker.fewer_ops() | shrinker.fewer_choices(1) {}
    Some(shrinker.shortest)
}
