//! What the kernel does with a call: as it is asked, or what the plan says.

use ghostmem_fault::sim::{Answer, Call};
use ghostmem_os::sim as system;

use super::Schedule;
use crate::sim::plan::{Choice, Drawn, Verb};

impl Schedule {
    /// What becomes of a call.
    pub(crate) fn answer(&self, call: Call) -> Answer {
        let Some(actor) = self.actors.get(self.current.get()) else {
            return Answer::Done;
        };
        let (op, point) = self.next_point(actor);
        let drawn = self.plan.borrow().drawn(op, point);
        let choice = match drawn {
            Drawn::Written(choice) => choice.filter(|&choice| may_answer(call, choice)),
            Drawn::Random(random) => self.random_answer(call, random),
        };
        let Some(choice) = choice else {
            return Answer::Done;
        };
        self.tell(|| format!("    operation {op} is at its point {point}: {call:?} {choice}"));
        let answer = match choice {
            Choice::Errno(errno) => Answer::Refused(errno),
            Choice::Part => Answer::Part,
            Choice::Lie(how) => Answer::Lie(how),
            Choice::Slow(us) => {
                system::advance(u64::from(us) * 1000);
                Answer::Done
            }
            Choice::Run(_) | Choice::Start => return Answer::Done,
        };
        self.plan.borrow_mut().note(op, point, choice);
        answer
    }

    fn random_answer(&self, call: Call, random: u64) -> Option<Choice> {
        let setting = self.plan.borrow().setting;
        let (draw, how) = (random >> 10 & 1023, (random >> 20) as u32);
        if setting.wrong == 0 {
            return None;
        }
        let errno = |odds, errno| (draw < odds).then_some(Choice::Errno(errno));
        let lies = |odds: u64| match draw {
            _ if setting.lies == 0 => None,
            draw if draw < odds => Some(Choice::Lie(how)),
            draw if draw < 2 * odds => Some(Choice::Part),
            _ => None,
        };
        // A block of which the kernel keeps a page is nobody's for ever.
        let gone = matches!(self.verb(), Some(Verb::Free | Verb::Resize | Verb::Unpin));
        let wrong = match call {
            Call::Install => (draw < 100).then_some(Choice::Part),
            Call::Protect if gone => None,
            Call::Protect if how & 1 == 0 => errno(30, 12),
            Call::Protect => errno(30, 11),
            Call::Read => errno(20, 14),
            Call::Drop if gone => errno(1, 22),
            Call::Drop => errno(10, 22),
            Call::Unlock => errno(20, 12),
            Call::DiskRead => lies(6).or(match setting.lies {
                1 if draw > 1020 => Some(Choice::Errno(5)),
                _ => None,
            }),
            Call::DiskWrite => errno(60, 28).or(match draw {
                60..90 if setting.lies == 1 => Some(Choice::Lie(how)),
                90..120 => Some(Choice::Part),
                _ => None,
            }),
            Call::DiskPunch => errno(20, 95),
            Call::DiskReserve => errno(20, 28),
            Call::Zero | Call::Unprotect => None,
        };
        wrong.or((draw > 1019).then_some(Choice::Slow(how % 5000)))
    }

    /// The verb of the operation that runs.
    fn verb(&self) -> Option<Verb> {
        Some(self.actors.get(self.current.get())?.job.get().verb)
    }
}

/// Whether a call may be answered so: where operations are left out, a script's answer
/// may meet a call that it was not for.
const fn may_answer(call: Call, choice: Choice) -> bool {
    let of_disk = matches!(
        call,
        Call::DiskRead | Call::DiskWrite | Call::DiskPunch | Call::DiskReserve
    );
    match choice {
        Choice::Errno(errno) => match call {
            Call::Protect | Call::Unlock => errno == 11 || errno == 12,
            Call::Read => errno == 14,
            Call::Drop => errno == 22,
            _ => of_disk,
        },
        Choice::Part => of_disk || matches!(call, Call::Install),
        Choice::Lie(_) => of_disk,
        Choice::Slow(_) => true,
        Choice::Run(_) | Choice::Start => false,
    }
}
