//! Who could go on at a point, and who of them does.

use ghostmem_os::sim as system;

use super::{ACTORS, Actor, DEMOTER, Next, PROGRAM, RECLAIMER, Schedule};
use crate::sim::plan::{Choice, Drawn, Verb};

/// Steps that a stalled actor stays where it is, at least; 128 times as many at most.
const STALL_STEPS: u64 = 32;

impl Schedule {
    fn can_run(&self, at: usize) -> bool {
        let actor = &self.actors[at];
        let until = actor.until_ns.get();
        actor.busy.get() && (until == 0 || until <= system::now_ns().unwrap_or(0))
    }

    /// Whether the next operation can begin. Turns of a thread that is in the middle of
    /// one are left out.
    fn can_start(&self) -> bool {
        if self.alone.get() {
            return false;
        }
        loop {
            let next = self.plan.borrow().peek(self.steps.get());
            let Some((_, op)) = next else {
                return false;
            };
            return match op.verb {
                Verb::Reclaimer if self.actors[RECLAIMER].busy.get() => {
                    self.plan.borrow_mut().advance(None);
                    continue;
                }
                Verb::Demoter if self.actors[DEMOTER].busy.get() => {
                    self.plan.borrow_mut().advance(None);
                    continue;
                }
                Verb::Reclaimer | Verb::Demoter => true,
                verb if verb.is_alone() => !self.actors.iter().any(|actor| actor.busy.get()),
                _ => self.actors[..PROGRAM].iter().any(|actor| !actor.busy.get()),
            };
        }
    }

    /// Everybody but `not` who could go on, the default first.
    pub(super) fn options(&self, not: usize) -> ([Next; ACTORS + 1], usize) {
        let mut options = [Next::Start; ACTORS + 1];
        let mut count = 0;
        for step in 1..=ACTORS {
            let at = (not + step) % (ACTORS + 1);
            if at < ACTORS && at != not && self.can_run(at) {
                options[count] = Next::Resume(at);
                count += 1;
            }
        }
        if self.can_start() {
            options[count] = Next::Start;
            count += 1;
        }
        (options, count)
    }

    pub(super) fn choice_of(&self, next: Next) -> Choice {
        match next {
            Next::Start => Choice::Start,
            Next::Resume(at) => Choice::Run(self.actors[at].op.get()),
        }
    }

    /// Who goes on instead of actor `not`, where it may not, or the plan wants somebody else
    /// to in so many of 1024 cases.
    pub(super) fn decide(
        &self,
        not: usize,
        (op, point): (u32, u32),
        odds: Option<u64>,
    ) -> Option<Next> {
        let drawn = self.plan.borrow().drawn(op, point);
        if let (Drawn::Random(random), Some(odds)) = (&drawn, odds)
            && random & 1023 >= odds
        {
            return None;
        }
        if let (Drawn::Written(None), Some(_)) = (&drawn, odds) {
            return None;
        }
        let (options, count) = self.options(not);
        let options = &options[..count];
        let next = match drawn {
            Drawn::Random(_) if count == 0 => None,
            Drawn::Random(random) => Some(self.draw(options, random >> 32)),
            Drawn::Written(choice) => {
                let written = options
                    .iter()
                    .find(|&&next| choice == Some(self.choice_of(next)));
                // What must go on somewhere does so at the default.
                let default = options.first().filter(|_| odds.is_none());
                written.or(default).copied()
            }
        }?;
        if odds.is_some() || Some(&next) != options.first() {
            let choice = self.choice_of(next);
            self.plan.borrow_mut().note(op, point, choice);
        }
        Some(next)
    }

    /// One of `options`; a stalled actor only where all of them are stalled.
    fn draw(&self, options: &[Next], random: u64) -> Next {
        let steps = self.steps.get();
        let goes_on = |next: &&Next| match **next {
            Next::Resume(at) => self.actors[at].stalled_until.get() <= steps,
            Next::Start => true,
        };
        let count = options.iter().filter(goes_on).count();
        let drawn = match count {
            0 => options.get(random as usize % options.len()),
            _ => options.iter().filter(goes_on).nth(random as usize % count),
        };
        *drawn.expect("somebody could go on")
    }

    /// An actor that gives way stays where it is for long, now and then, while others do
    /// many operations. A script says who goes on, and stalls no actor.
    pub(super) fn stall(&self, actor: &Actor, (op, point): (u32, u32)) {
        let plan = self.plan.borrow();
        if let Drawn::Random(random) = plan.drawn(op, point)
            && random >> 10 & 1023 < plan.setting.stall
        {
            let steps = STALL_STEPS << (random >> 20 & 7);
            actor.stalled_until.set(self.steps.get() + steps);
        }
    }
}
