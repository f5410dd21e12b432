//! The monitor backend's engine threads.
//!
//! They own no ghost memory (stacks of our own, nothing allocated), so they
//! can never fault on what they serve. Several of them, since one may have to
//! wait for a page that another thread is moving.

use core::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::thread::EngineThread;
use ghostmem_os::uffd::Uffd;
use ghostmem_os::{OsError, machine};

use crate::backend::open_monitor;
use crate::registry::{Verdict, on_message};

/// The process's fault monitor: one descriptor, a few threads.
pub(crate) struct Monitor {
    uffd: Uffd,
    started: AtomicBool,
}

const THREADS_MAX: usize = 4;

impl Monitor {
    pub(crate) fn start() -> Result<Self, OsError> {
        Ok(Self {
            uffd: open_monitor()?,
            started: AtomicBool::new(false),
        })
    }

    /// The descriptor. The threads start with the first region, when the
    /// monitor has its final address.
    pub(crate) fn uffd(&'static self) -> &'static Uffd {
        if !self.started.swap(true, Ordering::AcqRel)
            && let Err(error) = self.spawn()
        {
            die("the fault monitor's thread cannot start", error.errno);
        }
        &self.uffd
    }

    fn spawn(&'static self) -> Result<(), OsError> {
        for _ in 0..machine::cpus().clamp(2, THREADS_MAX) {
            let thread =
                EngineThread::spawn(c"ghostmem-fault", serve, core::ptr::from_ref(self) as usize)?;
            // It runs for as long as the process.
            core::mem::forget(thread);
        }
        Ok(())
    }

    pub(crate) fn restart_after_fork(&'static self) -> Result<(), OsError> {
        self.uffd.replace(open_monitor()?);
        if self.started.load(Ordering::Acquire) {
            self.spawn()
        } else {
            Ok(())
        }
    }
}

extern "C" fn serve(monitor: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `spawn` passes a `&'static Monitor`.
    let monitor = unsafe { &*monitor.cast::<Monitor>() };
    loop {
        match monitor.uffd.read_message() {
            Ok(Some(message)) => {
                let verdict = on_message(
                    message.address,
                    message.write,
                    message.protected,
                    message.thread,
                );
                match verdict {
                    Verdict::Resolved => {}
                    Verdict::Retry => {
                        let page = message.address & !(ghostmem_os::PAGE_SIZE - 1);
                        let _nobody = monitor.uffd.wake(page, ghostmem_os::PAGE_SIZE);
                    }
                    Verdict::Refused => die("a ghost page cannot be brought back", libc::EIO),
                }
            }
            Ok(None) => wait_for_message(monitor.uffd.fd()),
            Err(error) => die("the fault monitor cannot read its messages", error.errno),
        }
    }
}

fn wait_for_message(fd: i32) {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, -1) };
}

/// Ends the process with one line: there is no program left that could go on
/// with right data. Async-signal-safe.
pub fn die(what: &str, errno: i32) -> ! {
    let mut line = [0_u8; 160];
    let mut len = 0;
    let mut put = |text: &[u8]| {
        for &byte in text {
            if len < line.len() {
                line[len] = byte;
                len += 1;
            }
        }
    };
    put(b"ghostmem: ");
    put(what.as_bytes());
    put(b" (errno ");
    let errno = errno.unsigned_abs();
    for divisor in [100, 10, 1] {
        if errno >= divisor || divisor == 1 {
            put(&[b'0' + (errno / divisor % 10) as u8]);
        }
    }
    put(b"); the process is stopped to keep its data from being wrong\n");
    // SAFETY: `line` holds `len` initialised bytes; write(2) is
    // async-signal-safe.
    unsafe { libc::write(2, line.as_ptr().cast(), len) };
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}
