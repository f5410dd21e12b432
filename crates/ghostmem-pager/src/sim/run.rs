//! Makes runs, one after the other: a schedule, a machine, and a stack for each actor.

use std::cell::RefCell;
use std::rc::Rc;

use ghostmem_fault::sim::{Fibre, Simulation, Stop};
use ghostmem_os::sim as system;
use ghostmem_table::sim::{Moment, set_hook};

use crate::sim::machine::Machine;
use crate::sim::plan::Plan;
use crate::sim::schedule::{ACTORS, Schedule, here};

/// Makes runs on the thread that made it.
pub(crate) struct Runner {
    pub(crate) schedule: &'static Schedule,
    machine: Rc<RefCell<Option<Rc<Machine>>>>,
    fibres: Vec<Fibre>,
}

impl Runner {
    pub(crate) fn new() -> Self {
        let schedule = Schedule::new();
        let machine: Rc<RefCell<Option<Rc<Machine>>>> = Rc::default();
        let fibre = |at: usize| {
            let machine = machine.clone();
            Fibre::new(move || {
                let machine = machine.borrow().clone();
                if let Some(machine) = machine {
                    machine.perform(at, schedule.actors[at].job.get());
                }
            })
        };
        let fibres = (0..ACTORS).map(fibre).collect();
        Self {
            schedule,
            machine,
            fibres,
        }
    }

    /// Makes a run; a number that two runs have in common, if they did the same.
    ///
    /// # Panics
    /// When a promise is broken.
    pub(crate) fn run(&mut self, seed: u64, plan: Plan) -> u64 {
        let setting = plan.setting;
        Simulation::run(seed, |sim| {
            let machine = Machine::new(sim, &setting, self.schedule);
            self.run_in(sim, &machine, plan);
            machine.end();
            sim.digest()
        })
    }

    fn run_in(&mut self, sim: &Rc<Simulation>, machine: &Rc<Machine>, plan: Plan) {
        let schedule = self.schedule;
        schedule.begin_run(plan);
        *self.machine.borrow_mut() = Some(machine.clone());
        system::set_scheduler(Some(system::Scheduler {
            wait: |word, until| here(|schedule| schedule.wait(word, until)),
            wake: |word| here(|schedule| schedule.wake(word)),
            pause: || here(Schedule::pause),
        }));
        set_hook(Some(|moment| {
            here(|schedule| schedule.at_point(moment == Moment::Look));
        }));
        let checked = machine.clone();
        sim.set_hook(move |_| {
            checked.check();
            schedule.at_point(false);
        });
        sim.set_decider(move |call| schedule.answer(call));
        while let Some(at) = schedule.next() {
            schedule.enter(sim, at);
            let stop = self.fibres[at].resume();
            schedule.leave(at, stop == Stop::Over);
        }
        set_hook(None);
        sim.clear_hook();
        self.machine.take();
        system::set_scheduler(None);
    }
}
