//! A run that is written down, a line for each part of it.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use super::{Choice, END, Op, Setting, VERBS};

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) setting: Setting,
    pub(crate) ops: Vec<(u32, Op)>,
    pub(crate) choices: BTreeMap<(u32, u32), Choice>,
}

impl Script {
    /// Without operations whose number `keeps` refuses, and their choices.
    pub(crate) fn keeping(&self, keeps: impl Fn(u32) -> bool) -> Self {
        let mut kept = self.clone();
        kept.ops.retain(|op| keeps(op.0));
        kept.choices.retain(|at, _| keeps(at.0));
        kept
    }

    /// # Errors
    /// The line that is none of a script.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self {
            setting: Setting::of(0),
            ops: Vec::new(),
            choices: BTreeMap::new(),
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.is_empty() || words[0].starts_with('#') {
                continue;
            }
            script
                .take_line(&words)
                .ok_or_else(|| format!("no line of a script: {line}"))?;
        }
        Ok(script)
    }

    fn take_line(&mut self, words: &[&str]) -> Option<()> {
        match *words {
            ["setting", name, value] => self.setting.set(name, value.parse().ok()?).then_some(()),
            ["op", id, verb, at, how] => {
                let verb = VERBS.iter().find(|row| row.1 == verb)?.0;
                let (at, how) = (at.parse().ok()?, how.parse().ok()?);
                self.ops.push((id.parse().ok()?, Op { verb, at, how }));
                Some(())
            }
            ["choice", op, point, what, ..] => {
                let number = || words.get(4)?.parse::<u32>().ok();
                let choice = match what {
                    "run" => Choice::Run(number()?),
                    "start" => Choice::Start,
                    "errno" => Choice::Errno(number()? as i32),
                    "part" => Choice::Part,
                    "lie" => Choice::Lie(number()?),
                    "slow" => Choice::Slow(number()?),
                    _ => return None,
                };
                let point = match point {
                    "end" => END,
                    point => point.parse().ok()?,
                };
                self.choices.insert((op.parse().ok()?, point), choice);
                Some(())
            }
            _ => None,
        }
    }
}

impl Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.setting.rows() {
            writeln!(f, "setting {name} {value}")?;
        }
        for (id, op) in &self.ops {
            writeln!(f, "op {id} {} {} {}", op.verb.name(), op.at, op.how)?;
            for ((_, point), choice) in self.choices.range((*id, 0)..=(*id, END)) {
                match *point {
                    END => writeln!(f, "choice {id} end {choice}")?,
                    point => writeln!(f, "choice {id} {point} {choice}")?,
                }
            }
        }
        Ok(())
    }
}
