//! The disk of a run: a file in memory, and what the schedule makes of each call.

use ghostmem_fault::sim::{Answer, Call, Simulation};
use ghostmem_file::{Faults, Injected, Options};
use ghostmem_os::PAGE_SIZE;

use crate::parts::cold::{Cold, ColdSettings};
use crate::sim::plan::Setting;

/// A disk of the simulation of whatever thread uses it.
#[derive(Debug)]
struct Disk;

impl Disk {
    fn call(call: Call, offset: u64, len: usize) -> Injected {
        let answer = Simulation::current().map(|sim| sim.call(call, offset as usize / PAGE_SIZE));
        let reads = call == Call::DiskRead;
        match answer {
            Some(Answer::Refused(errno)) => Injected::Errno(errno),
            Some(Answer::Part) => Injected::Short(len / 2, 28),
            Some(Answer::Lie(how)) if reads || how & 1 == 0 => {
                Injected::Flip(how as usize >> 4, 1 << (how >> 1 & 7))
            }
            Some(Answer::Lie(_)) => Injected::Lost,
            _ => Injected::Nothing,
        }
    }
}

impl Faults for Disk {
    fn read(&self, offset: u64, len: usize) -> Injected {
        Self::call(Call::DiskRead, offset, len)
    }
    fn write(&self, offset: u64, len: usize) -> Injected {
        Self::call(Call::DiskWrite, offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> Injected {
        Self::call(Call::DiskPunch, offset, len as usize)
    }
    fn reserve(&self, offset: u64, len: u64) -> Injected {
        Self::call(Call::DiskReserve, offset, len as usize)
    }
}

/// A file in memory, where there is such a file system.
pub(crate) fn file(setting: &Setting) -> ColdSettings {
    let memory = std::path::Path::new("/dev/shm");
    let place = match memory.is_dir() {
        true => memory.to_path_buf(),
        false => std::env::temp_dir(),
    };
    let options = Options::unnamed(place)
        .direct(false)
        .encrypt(setting.encrypt == 1)
        .faults(&Disk);
    let file = Cold::file(&options).expect("a file for the simulation");
    ColdSettings::new(file, Some(setting.share as usize * 1024)).expect("a share of the store")
}
