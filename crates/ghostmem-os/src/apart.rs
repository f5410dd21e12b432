//! Work on a thread with a table of descriptors of its own, for as long as it takes.
//!
//! A file that is opened gets the lowest number that is free, if only for a moment: a
//! program that closes a number to have its next file there gets another one, and one that
//! puts a file over that number (dup2(2)) has it closed. So what is opened, read and closed
//! is opened elsewhere:
//!
//! ```text
//!   caller   write what is to be done ─► clone(2) ─► wait ─────────────► read what came of it
//!   thread                                   └► leave the table, empty ─► open, read ─► end
//! ```
//! The thread shares memory with the caller, its thread-local storage too, and nothing of
//! the program's runs on it. All lies in memory of its own: the caller's stack may be ghost
//! memory. Async-signal-safe.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use crate::doorway;
use crate::error::OsError;
use crate::kernel;
use crate::map::{PAGE_SIZE, Reservation};
use crate::stack::{self, Call};
use crate::thread::SignalsBlocked;

/// Bytes of the thread's stack.
const STACK_BYTES: usize = 64 << 10;
/// At the end of it: [`Words`].
const WORDS_BYTES: usize = 64;

/// A place for one such thread at a time.
#[derive(Debug)]
pub struct Apart {
    memory: Reservation,
}

/// Zero in a forked child, whose copy of the place nobody uses.
struct Words {
    /// The process that the place belongs to; 0: none yet. A child of vfork(2) is not it:
    /// the memory is its parent's.
    owner: AtomicI32,
    /// Whether somebody is there.
    taken: AtomicBool,
    /// The thread has not ended.
    running: AtomicU32,
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Somebody else is there.
    Taken,
    /// The process may have no more threads, the kernel has no close_range(2), or the place
    /// is another process's.
    NotToBeHad,
}

impl Apart {
    /// A place of the calling process.
    ///
    /// # Errors
    /// The kernel's refusal to map the stack, or to wipe it in children.
    pub fn new() -> Result<Self, OsError> {
        let memory = stack::memory(STACK_BYTES)?;
        memory.advise(PAGE_SIZE, STACK_BYTES, libc::MADV_WIPEONFORK)?;
        let apart = Self { memory };
        apart.settle();
        Ok(apart)
    }

    /// In a forked child, before others are there: its copy of the place is its own. Nothing
    /// happens where the place is a process's.
    pub fn settle(&self) {
        let owner = &self.words().owner;
        let _is_somebodys =
            owner.compare_exchange(0, process(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Runs `body` where no descriptor is open, and none that it opens is seen by others.
    /// `body` is moved to memory of ours and does not unwind. What it refers to is ordinary
    /// memory.
    ///
    /// # Errors
    /// Nothing was done, and why.
    pub fn run<F: FnOnce() -> R + Send, R: Send>(&self, body: F) -> Result<R, Refused> {
        extern "C" fn work<F: FnOnce() -> R, R>(call: *mut Call<F, R>) {
            // SAFETY: written by `run`, which waits for this thread before it looks again.
            let call = unsafe { &mut *call };
            if leave_descriptors() {
                call.result = call.body.take().map(|body| body());
            }
            // A filter that the program installed meanwhile lets the doorway by.
            // SAFETY: ends this thread, which has nothing left to drop.
            unsafe { doorway::call(libc::SYS_exit as usize, [0; 6]) };
        }
        const {
            assert!(size_of::<Call<F, R>>() <= PAGE_SIZE);
            assert!(align_of::<Call<F, R>>() <= WORDS_BYTES);
        }
        let _turn = self.take_turn()?;
        let place = (self.words_at() - size_of::<Call<F, R>>()) & !(WORDS_BYTES - 1);
        let call = place as *mut Call<F, R>;
        // SAFETY: aligned memory of ours above the stack, which nobody else uses: it is
        // this thread's turn.
        unsafe { call.write(Call::new(body)) };
        let running = &self.words().running;
        running.store(1, Ordering::Release);
        // The thread inherits the mask: nothing of the program's is to run there.
        let blocked = SignalsBlocked::new();
        let word = core::ptr::from_ref(running).addr();
        // SAFETY: `place` is the aligned end of a stack of ours, `work` takes what was
        // written there, and both are left alone until the word says that the thread ended.
        let made = unsafe { begin(place, work::<F, R> as *const () as usize, place, word) };
        if made {
            wait_until_ended(running);
        }
        drop(blocked);
        // SAFETY: written above, and the thread that could change it is gone, or never was.
        let call = unsafe { call.read() };
        call.result.ok_or(Refused::NotToBeHad)
    }

    pub(crate) fn take_turn(&self) -> Result<Turn<'_>, Refused> {
        let words = self.words();
        if words.owner.load(Ordering::Relaxed) != process() {
            return Err(Refused::NotToBeHad);
        }
        match words.taken.swap(true, Ordering::Acquire) {
            true => Err(Refused::Taken),
            false => Ok(Turn(&words.taken)),
        }
    }

    fn words_at(&self) -> usize {
        self.memory.base() + self.memory.len() - WORDS_BYTES
    }

    fn words(&self) -> &Words {
        const {
            assert!(size_of::<Words>() <= WORDS_BYTES);
        }
        // SAFETY: aligned memory of ours that is used for nothing else and mapped as long as
        // `self`; zero is a value of each atomic.
        unsafe { &*(self.words_at() as *const Words) }
    }
}

/// The number of this process, asked for by a call that nobody redirects.
pub(crate) fn process() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { kernel::syscall!(libc::SYS_getpid) as i32 }
}

/// The right to use the place.
pub(crate) struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Leaves the table of descriptors for one that has none (close_range(2) since 5.9): those
/// of the process stay as they are, and nothing keeps them open.
fn leave_descriptors() -> bool {
    const CLOSE_RANGE_UNSHARE: u32 = 2;
    // SAFETY: no memory is involved; the table is this thread's own before it is emptied.
    unsafe { kernel::syscall!(libc::SYS_close_range, 0, u32::MAX, CLOSE_RANGE_UNSHARE) == 0 }
}

/// The kernel clears the word and wakes whoever waits for it, as for any futex that
/// processes share.
fn wait_until_ended(running: &AtomicU32) {
    while running.load(Ordering::Acquire) != 0 {
        let word = core::ptr::from_ref(running);
        let args = [word as usize, libc::FUTEX_WAIT as usize, 1, 0, 0, 0];
        // SAFETY: a live word; no time, and nothing is written: `errno` is the thread's.
        unsafe { doorway::call(libc::SYS_futex as usize, args) };
    }
}

/// Begins a thread at `entry(argument)`; whether there is one. The kernel clears the word at
/// `running` when it has ended.
///
/// # Safety
/// `top` is the end, at a multiple of 16, of a stack that is the thread's until then, and
/// `entry` a function of the C ABI that takes `argument` and does not unwind.
#[cfg(target_arch = "x86_64")]
unsafe fn begin(top: usize, entry: usize, argument: usize, running: usize) -> bool {
    const FLAGS: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_CHILD_CLEARTID;
    let stack = (top - 2 * size_of::<usize>()) as *mut [usize; 2];
    // SAFETY: the uppermost words of the stack, by the caller's promise.
    unsafe { stack.write([entry, argument]) };
    let mut answer = libc::SYS_clone as isize;
    // SAFETY: the caller goes on with an answer, everything that the kernel changes being
    // declared; the thread is on a stack of its own from its first instruction, and ends.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "pop rax",
            "pop rdi",
            "call rax",
            "xor edi, edi",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") answer,
            in("rdi") FLAGS as usize,
            in("rsi") stack,
            in("rdx") 0_usize,
            in("r10") running,
            in("r8") 0_usize,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    answer > 0
}

/// # Safety
/// None: there is no such thread.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn begin(_top: usize, _entry: usize, _argument: usize, _running: usize) -> bool {
    false
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::calls;
    use crate::map::Access;
    use crate::stack::forked;

    /// Takes the next number, and gives it back.
    fn lowest_free() -> i32 {
        let fd = calls::open(c"/dev/null", libc::O_RDONLY, 0);
        calls::close(fd);
        fd
    }

    #[test]
    fn what_is_opened_apart_has_the_lowest_number_of_a_table_of_its_own() {
        let apart = Apart::new().unwrap();
        let words = [3_u64; 50];
        // Apart from the tests beside this one, which open files.
        let code = forked(|| {
            apart.settle();
            let before = lowest_free();
            let as_expected = (0..20_u64).all(|round| {
                let seen = apart.run(move || {
                    let fd = calls::open(c"/proc/self/stat", libc::O_RDONLY, 0);
                    let mut text = [0; 16];
                    let got = calls::read_at(fd, &mut text, 0);
                    // Left open: it goes with the table.
                    (fd, got, words.iter().sum::<u64>() + round)
                });
                seen == Ok((0, 16, 150 + round))
            });
            i32::from(before > 2 && as_expected && lowest_free() == before)
        });
        assert_eq!(code, 1);
    }

    #[test]
    fn one_thread_is_apart_at_a_time_and_a_forked_child_has_its_own_turn() {
        let apart = Apart::new().unwrap();
        let inner = apart.run(|| apart.run(|| 1));
        assert_eq!(inner, Ok(Err(Refused::Taken)));
        let turn = apart.take_turn().unwrap();
        let code = forked(|| {
            let before = apart.run(|| 1) == Err(Refused::NotToBeHad);
            apart.settle();
            apart.run(|| 5).unwrap_or(6) + i32::from(before)
        });
        assert_eq!(code, 6);
        assert_eq!(apart.run(|| 1), Err(Refused::Taken), "not its turn");
        drop(turn);
        assert_eq!(apart.run(|| 1), Ok(1));
    }

    #[test]
    fn a_child_on_the_parents_memory_leaves_the_place_alone() {
        struct Seen<'a> {
            apart: &'a Apart,
            found: [Option<Result<i32, Refused>>; 2],
        }
        extern "C" fn child(seen: *mut libc::c_void) -> i32 {
            // SAFETY: the parent's local, which waits until this ends.
            let seen = unsafe { &mut *seen.cast::<Seen<'_>>() };
            seen.found[0] = Some(seen.apart.run(|| 5));
            seen.apart.settle();
            seen.found[1] = Some(seen.apart.run(|| 5));
            0
        }
        let apart = Apart::new().unwrap();
        let turn = apart.take_turn().unwrap();
        let stack = Reservation::new(1 << 18, PAGE_SIZE, Access::ReadWrite).unwrap();
        let mut seen = Seen {
            apart: &apart,
            found: [None; 2],
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = (stack.base() + stack.len()) as *mut libc::c_void;
        // SAFETY: a stack of its own, and this thread waits until the child has ended.
        let made = unsafe { libc::clone(child, top, flags, (&raw mut seen).cast()) };
        assert!(made > 0);
        // SAFETY: our own child; its status is not asked for.
        unsafe { libc::waitpid(made, core::ptr::null_mut(), 0) };
        assert_eq!(seen.found, [Some(Err(Refused::NotToBeHad)); 2]);
        assert_eq!(
            apart.run(|| 1),
            Err(Refused::Taken),
            "the turn is still ours"
        );
        drop(turn);
        assert_eq!(apart.run(|| 1), Ok(1));
    }

    #[test]
    fn without_another_thread_nothing_is_done() {
        let apart = Apart::new().unwrap();
        let code = forked(|| {
            apart.settle();
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: a valid limit.
            let bound = unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const none) } == 0;
            // SAFETY: numbers only. The limit is not for the user 0, who may do this; any
            // other is bound as it is.
            unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            let refused = [(); 2].map(|()| apart.run(|| 5) == Err(Refused::NotToBeHad));
            i32::from(bound && refused == [true; 2])
        });
        assert_eq!(code, 1);
    }

    #[test]
    fn a_filter_that_comes_meanwhile_lets_the_thread_end() {
        let apart = Apart::new().unwrap();
        let code = forked(|| {
            apart.settle();
            let filtered = apart.run(only_the_doorway_ends_threads);
            1 + i32::from(filtered != Ok(true))
        });
        assert_eq!(code, 1);
    }

    /// Installs a filter on the calling thread that ends the process at an exit(2) made
    /// elsewhere.
    fn only_the_doorway_ends_threads() -> bool {
        const NUMBER_AT: u32 = 0;
        const PLACE_AT: u32 = 8;
        let load = |at: u32| libc::sock_filter {
            code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
            jt: 0,
            jf: 0,
            k: at,
        };
        let skip_if = |value: u32, jt: u8, jf: u8| libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt,
            jf,
            k: value,
        };
        let answer = |with: u32| libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: with,
        };
        let behind = doorway::doorway().map_or(0, |doorway| doorway.behind);
        let mut filter = [
            load(NUMBER_AT),
            skip_if(libc::SYS_exit as u32, 0, 2),
            load(PLACE_AT),
            skip_if(behind as u32, 0, 1),
            answer(libc::SECCOMP_RET_ALLOW),
            answer(libc::SECCOMP_RET_KILL_PROCESS),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        let by_filter = libc::SECCOMP_MODE_FILTER;
        // SAFETY: numbers only.
        let may = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0;
        // SAFETY: a valid program, which the kernel copies.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, by_filter, &raw const program) };
        may && set == 0
    }
}
