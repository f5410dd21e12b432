//! The backend without an operating system, by a sink that puts in place what is asked for.
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::sync::atomic::{AtomicU64, Ordering};
use std::{cell::Cell, rc::Rc};

use ghostmem_fault::sim::{Answer, Call, Manner, Odds, Outcome, Simulation, Thread};
use ghostmem_fault::{
    AccessKind, Batch, Fault, FaultSink, Home, Installed, Opened, Region, Registration, Scratch,
    Verdict, register,
};
use ghostmem_os::map::{Access, MapArc, PAGE_SIZE, Reservation};
use ghostmem_os::{OsError, clock, futex};

const PAGES: usize = 64;
const BYTES: usize = 1 << 26;

/// Puts the page's number in every byte of an absent page; opens protected ones.
struct Sink {
    region: Region,
    faults: AtomicU64,
}

impl FaultSink for Sink {
    fn on_fault(&self, fault: &Fault, scratch: &mut Scratch) -> Verdict {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let closed = self.region.protects_from_loads() || fault.present;
        if fault.page >= PAGES {
            return Verdict::Refused;
        }
        if closed && self.region.unprotect(fault.page, 1).is_ok() && fault.present {
            return Verdict::Resolved;
        }
        scratch.page.fill(fault.page as u8);
        let protect = fault.access == AccessKind::Read;
        match self.region.install(fault.page, &scratch.page, protect) {
            Ok(Installed::Bytes(PAGE_SIZE)) => Verdict::Resolved,
            Ok(_) => Verdict::Retry,
            Err(_) => Verdict::Wait {
                barren: true,
                most: std::time::Duration::from_millis(2),
            },
        }
    }
    fn try_before_fork(&self) -> bool {
        true
    }
    fn cancel_fork(&self) {}
    fn copy_for_fork(&self) -> Result<(), OsError> {
        Ok(())
    }
    fn after_fork_in_parent(&self) {}
    fn after_fork_in_child(&self) {}
    fn give_to_monitor_in_child(&self) {}
    fn restart_threads_in_child(&self) {}
}

fn region(manner: Manner) -> Registration<Sink> {
    let home = Home::Own(Reservation::new(BYTES, BYTES, Access::None).unwrap());
    let region = Region::new(Opened::sim(manner), home).unwrap();
    let (span, signs) = (region.span(), region.signs());
    let faults = AtomicU64::new(0);
    let sink = MapArc::new(Sink { region, faults }).unwrap();
    register(span, 0, signs, sink).unwrap()
}

fn load(sim: &Simulation, thread: &mut Thread, address: usize) -> Result<u8, Outcome> {
    let mut byte = [0];
    match sim.load(thread, address, &mut byte) {
        Outcome::Done => Ok(byte[0]),
        other => Err(other),
    }
}

fn drop_pages(region: &Region, pages: &[usize], even_locked: bool) -> Vec<usize> {
    let (mut batch, mut kept) = (Batch::new(), Vec::new());
    for &page in pages {
        region.add_to(&mut batch, page, 1);
    }
    region.drop_batch(&mut batch, even_locked, &mut |page| kept.push(page));
    kept
}

#[test]
fn touches_reach_the_sink_and_only_those_that_do_not_get_through() {
    Simulation::run(1, |sim| {
        let registered = region(Manner::Userfaultfd);
        let sink = registered.sink();
        let (mut thread, base) = (Thread::new(7), sink.region.span().base());
        let faults = || sink.faults.load(Ordering::Relaxed);
        let at = |page: usize| base + page * PAGE_SIZE + 5;
        assert_eq!(load(sim, &mut thread, at(3)), Ok(3));
        assert_eq!(load(sim, &mut thread, at(3)), Ok(3));
        assert_eq!((faults(), sim.frames()), (1, 1));
        // In place for reading: the first store is seen, the second is not.
        for byte in [1, 2] {
            assert_eq!(sim.store(&mut thread, at(3), &[byte]), Outcome::Done);
        }
        assert_eq!((faults(), load(sim, &mut thread, at(3))), (2, Ok(2)));
        sink.region.protect(0, PAGES).unwrap();
        assert_eq!(load(sim, &mut thread, at(3)), Ok(2), "loads get through");
        assert_eq!(sim.store(&mut thread, at(3), &[9]), Outcome::Done);
        assert_eq!(faults(), 3);
        // Absent pages were not protected by it.
        assert_eq!(sink.region.install_zero(4), Ok(Installed::Bytes(PAGE_SIZE)));
        assert_eq!(sink.region.install_zero(4), Ok(Installed::Exists));
        assert_eq!(sim.store(&mut thread, at(4), &[8]), Outcome::Done);
        assert_eq!((faults(), load(sim, &mut thread, at(4))), (3, Ok(8)));
        let mut page = [0; PAGE_SIZE];
        assert!(sink.region.read(4, &mut page));
        assert_eq!((page[4], page[5]), (0, 8));
        let mut mapped = [0; 6];
        assert_eq!(sink.region.mapped(0, &mut mapped), Ok(true));
        assert_eq!(mapped, [0, 0, 0, 1, 1, 0]);
        assert_eq!(drop_pages(&sink.region, &[3, 4], false), []);
        assert_eq!((sim.frames(), load(sim, &mut thread, at(4))), (0, Ok(4)));
        assert_eq!(load(sim, &mut thread, at(PAGES)), Err(Outcome::Refused));
        assert_eq!(load(sim, &mut thread, base - 1), Err(Outcome::Refused));
        assert_eq!(sim.broken(), None);
        let mut out = [0; PAGE_SIZE];
        assert!(!sink.region.read(9, &mut out));
        assert!(sim.broken().unwrap().contains("page 9"));
    });
}

#[test]
fn guard_closes_pages_from_loads_and_keeps_what_is_in_its_file() {
    Simulation::run(2, |sim| {
        let registered = region(Manner::Guard);
        let sink = registered.sink();
        let (mut thread, base) = (Thread::new(7), sink.region.span().base());
        assert_eq!(load(sim, &mut thread, base), Ok(0));
        assert_eq!(sim.store(&mut thread, base, &[6]), Outcome::Done);
        assert_eq!(sink.faults.load(Ordering::Relaxed), 1);
        sink.region.protect(0, 1).unwrap();
        assert_eq!(load(sim, &mut thread, base), Ok(6));
        assert_eq!(sink.faults.load(Ordering::Relaxed), 2);
        // A hole where nobody closed the page is what the kernel makes of it: zeros.
        assert_eq!(drop_pages(&sink.region, &[0], false), []);
        assert_eq!(load(sim, &mut thread, base), Ok(0));
        assert_eq!(sink.faults.load(Ordering::Relaxed), 2);
        // Locked memory takes no markers.
        sim.set_locked(base, true);
        assert!(sink.region.protect(0, 2).is_err());
        sink.region.unlock(0, 1).unwrap();
        sink.region.protect(0, 2).unwrap();
    });
}

#[test]
fn calls_fail_as_they_are_told_to() {
    Simulation::run(3, |sim| {
        let registered = region(Manner::Userfaultfd);
        let region = &registered.sink().region;
        let (mut thread, base) = (Thread::new(7), region.span().base());
        for errno in [libc::EAGAIN, libc::ENOMEM, libc::ESRCH, libc::ENOENT] {
            sim.answer_next(Call::Install, Answer::Refused(errno));
            let error = region.install(0, &[1; 2 * PAGE_SIZE], false).unwrap_err();
            assert_eq!((error.errno, sim.frames()), (errno, 0));
        }
        sim.answer_next(Call::Install, Answer::Part);
        let two = [1; 2 * PAGE_SIZE];
        assert_eq!(
            region.install(0, &two, false),
            Ok(Installed::Bytes(PAGE_SIZE))
        );
        assert_eq!(region.install(0, &two, false), Ok(Installed::Exists));
        assert_eq!(
            region.install(1, &two, false),
            Ok(Installed::Bytes(2 * PAGE_SIZE))
        );
        sim.answer_next(Call::Drop, Answer::Refused(libc::EINVAL));
        sim.set_locked(base + 2 * PAGE_SIZE, true);
        assert_eq!(drop_pages(region, &[0, 1, 2], false), [0, 2]);
        assert_eq!(drop_pages(region, &[0, 2], true), []);
        // A fault that is to wait comes back, and time has passed.
        sim.answer_next(Call::Install, Answer::Refused(libc::ENOMEM));
        let before = clock::now_ns();
        assert_eq!(load(sim, &mut thread, base), Err(Outcome::WouldWait));
        assert!(clock::now_ns() - before >= 2_000_000);
        assert_eq!(load(sim, &mut thread, base), Ok(0));
        assert_eq!(sim.answers_left(), 0);
    });
}

#[test]
fn a_child_has_no_protection_and_says_which_pages_are_mapped() {
    Simulation::run(4, |sim| {
        let registered = region(Manner::Userfaultfd);
        let region = &registered.sink().region;
        let (mut thread, base) = (Thread::new(7), region.span().base());
        for page in 0..3 {
            assert_eq!(
                load(sim, &mut thread, base + page * PAGE_SIZE),
                Ok(page as u8)
            );
        }
        region.after_fork_in_child([0, 1, 2].into_iter()).unwrap();
        assert_eq!(sim.store(&mut thread, base, &[1]), Outcome::Done);
        assert_eq!(registered.sink().faults.load(Ordering::Relaxed), 3);
        assert_eq!(sim.broken(), None);
        region.after_fork_in_child([0, 2].into_iter()).unwrap();
        assert!(sim.broken().is_some(), "one more page is mapped");
    });
}

#[test]
fn others_act_in_the_middle_of_calls_and_time_is_the_simulations() {
    let digest = |seed| {
        Simulation::run(seed, |sim| {
            let registered = region(Manner::Userfaultfd);
            let base = registered.sink().region.span().base();
            sim.set_odds(Odds {
                slow: 100,
                part: 100,
                ..Odds::default()
            });
            let calls = Rc::new(Cell::new(0));
            let seen = calls.clone();
            sim.set_hook(move |_| seen.set(seen.get() + 1));
            let mut thread = Thread::new(1);
            for _ in 0..200 {
                let page = sim.below(PAGES);
                while load(sim, &mut thread, base + page * PAGE_SIZE) != Ok(page as u8) {}
                if sim.random() & 1 == 0 {
                    drop_pages(&registered.sink().region, &[page], false);
                }
            }
            assert!(calls.get() > 200);
            sim.note(clock::now_ns());
            sim.digest()
        })
    };
    assert_eq!(digest(5), digest(5));
    assert_ne!(digest(5), digest(6));
    Simulation::run(5, |_| {
        let (before, word) = (clock::now_ns(), AtomicU64::new(3));
        futex::wait(&word, 4, std::time::Duration::from_secs(3600));
        assert_eq!(clock::now_ns(), before, "it has another value");
        futex::wait(&word, 3, std::time::Duration::from_secs(3600));
        assert_eq!(clock::now_ns() - before, 3600 * 1_000_000_000);
    });
}
