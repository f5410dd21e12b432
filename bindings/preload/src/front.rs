//! The instructions that go in front of a program's filter, and let the engine's own
//! calls by: what calls those are, with what arguments, and the code that asks for them.
//!
//! Put together on the stack, without a heap: filters may be installed between fork and
//! exec.

use ghostmem_os::doorway::Doorway;

/// Files that the engine's words may go to.
pub(crate) const REPORTS_MAX: usize = 3;

/// What is asked of one argument of a call, by its lower half.
#[derive(Debug, Clone, Copy)]
enum Test {
    /// None of these bits.
    Without(u32),
    /// All bits of a one-bit mask.
    With(u32),
    /// This number.
    Is(u32),
    /// One of two numbers.
    Either(u32, u32),
    /// This number under a mask.
    Masked(u32, u32),
    /// A null pointer.
    Null,
}

/// Calls that the engine makes with any arguments. They concern this process's own
/// memory, threads and descriptors, and make none of them more than it is.
const FREE: [i64; 24] = [
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_munmap,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_close,
    libc::SYS_fstat,
    // The kernel's reports, whose descriptors were open before.
    libc::SYS_pread64,
    libc::SYS_memfd_create,
    libc::SYS_exit_group,
    libc::SYS_ppoll,
];

/// Calls whose arguments are looked at: which argument, and for what.
const TESTED: [(i64, usize, Test); 10] = [
    // No code is made.
    (libc::SYS_mmap, 2, Test::Without(libc::PROT_EXEC as u32)),
    (libc::SYS_mprotect, 2, Test::Without(libc::PROT_EXEC as u32)),
    // Requests of userfaultfd, whose letter is 0xAA.
    (libc::SYS_ioctl, 1, Test::Masked(0xff00, 0xaa00)),
    // One that only hears of the program's own touches (UFFD_USER_MODE_ONLY).
    (libc::SYS_userfaultfd, 0, Test::With(1)),
    (
        libc::SYS_fcntl,
        1,
        Test::Either(libc::F_DUPFD_CLOEXEC as u32, libc::F_GETFL as u32),
    ),
    // Limits are asked, none is set.
    (libc::SYS_prlimit64, 2, Test::Null),
    // Of this process: PIDFD_SELF_THREAD_GROUP.
    (libc::SYS_process_madvise, 0, Test::Is(-10001_i32 as u32)),
    // Whether there are filters.
    (libc::SYS_prctl, 0, Test::Is(libc::PR_GET_SECCOMP as u32)),
    // Where the caller's own list of mutexes is.
    (libc::SYS_get_robust_list, 0, Test::Is(0)),
    // Whether a thread is there.
    (libc::SYS_tkill, 1, Test::Is(0)),
];

/// Calls on the files of the guard backend and of `--spill`, whose descriptors were
/// open before.
const FILES: [i64; 7] = [
    libc::SYS_pwrite64,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_pipe2,
    // Of the signal that comes with `EFBIG`.
    libc::SYS_rt_sigtimedwait,
];

/// Offsets in `struct seccomp_data` (linux/seccomp.h), little-endian.
pub(crate) const NUMBER_AT: u32 = 0;
pub(crate) const ARCHITECTURE_AT: u32 = 4;
const POINTER_AT: u32 = 8;
const ARGUMENTS_AT: u32 = 16;
/// `AUDIT_ARCH_X86_64` (linux/audit.h).
pub(crate) const X86_64: u32 = 0xc000_003e;

/// Instructions that one filter may have (`BPF_MAXINSNS`).
pub(crate) const MOST: usize = 4096;
/// Room for ours.
const OURS_MOST: usize = 192;

pub(crate) type Instruction = libc::sock_filter;

/// A place in our instructions that a jump leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    /// Whether the call comes from the doorway.
    Origin,
    /// The program's filter.
    Program,
}

/// Our instructions, as they are put together. No heap: filters may be installed
/// between fork and exec.
pub(crate) struct Front {
    pub(crate) code: [Instruction; OURS_MOST],
    /// Jumps always taken, whose distance is not known yet.
    open: [Option<Label>; OURS_MOST],
    pub(crate) len: usize,
}

const NOTHING: Instruction = Instruction {
    code: 0,
    jt: 0,
    jf: 0,
    k: 0,
};

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
pub(crate) const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
pub(crate) const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const CONSTANT: u32 = libc::BPF_LD | libc::BPF_IMM;

impl Front {
    pub(crate) fn put(&mut self, code: u32, value: u32, jt: u8, jf: u8) {
        self.code[self.len] = Instruction {
            code: code as u16,
            jt,
            jf,
            k: value,
        };
        self.len += 1;
    }

    pub(crate) fn load(&mut self, at: u32) {
        self.put(LOAD, at, 0, 0);
    }

    fn go(&mut self, to: Label) {
        self.open[self.len] = Some(to);
        self.put(JUMP, 0, 0, 0);
    }

    /// Goes on only where the loaded word is `value`; to the program's filter else.
    pub(crate) fn only(&mut self, value: u32) {
        self.put(EQUAL, value, 1, 0);
        self.go(Label::Program);
    }

    pub(crate) fn land(&mut self, label: Label) {
        for (at, open) in self.open.iter_mut().enumerate().take(self.len) {
            if *open == Some(label) {
                *open = None;
                self.code[at].k = (self.len - at - 1) as u32;
            }
        }
    }

    /// A call with one of our numbers, if its argument is as ours have it.
    fn tested(&mut self, number: u32, argument: usize, test: Test) {
        let before = self.len;
        self.put(EQUAL, number, 0, 0);
        let at = ARGUMENTS_AT + 8 * argument as u32;
        self.load(at);
        match test {
            Test::Without(bits) => self.put(BITS, bits, 1, 0),
            Test::With(bit) => self.put(BITS, bit, 0, 1),
            Test::Is(value) => self.put(EQUAL, value, 0, 1),
            Test::Either(one, other) => {
                self.put(EQUAL, one, 1, 0);
                self.put(EQUAL, other, 0, 1);
            }
            Test::Masked(mask, value) => {
                self.put(AND, mask, 0, 0);
                self.put(EQUAL, value, 0, 1);
            }
            Test::Null => {
                // Past the other half, and past what lets it by.
                self.put(EQUAL, 0, 0, 3);
                self.load(at + 4);
                self.put(EQUAL, 0, 0, 1);
            }
        }
        self.go(Label::Origin);
        self.go(Label::Program);
        self.code[before].jf = (self.len - before - 1) as u8;
    }

    fn free(&mut self, number: u32) {
        self.put(EQUAL, number, 0, 1);
        self.go(Label::Origin);
    }

    /// No instructions yet.
    pub(crate) const fn empty() -> Self {
        Self {
            code: [NOTHING; OURS_MOST],
            open: [None; OURS_MOST],
            len: 0,
        }
    }

    /// What lets the engine's calls by.
    pub(crate) fn new(
        doorway: Doorway,
        with_files: bool,
        with_messages: bool,
        reports: [i32; REPORTS_MAX],
    ) -> Self {
        let mut front = Self::empty();
        front.load(ARCHITECTURE_AT);
        front.only(X86_64);
        // Numbers first: the kernel remembers of those that are not ours what the
        // program's filter says, where that looks at no more either.
        front.load(NUMBER_AT);
        for (number, argument, test) in TESTED {
            front.tested(number as u32, argument, test);
        }
        for file in reports {
            if file >= 0 {
                front.tested(libc::SYS_write as u32, 0, Test::Is(file as u32));
            }
        }
        for number in FREE {
            front.free(number as u32);
        }
        if with_files {
            FILES.iter().for_each(|&number| front.free(number as u32));
        }
        if with_messages {
            front.free(libc::SYS_read as u32);
        }
        front.go(Label::Program);
        front.land(Label::Origin);
        front.load(POINTER_AT);
        front.put(EQUAL, doorway.behind as u32, 2, 0);
        front.put(EQUAL, doorway.returned as u32, 1, 0);
        front.go(Label::Program);
        front.load(POINTER_AT + 4);
        front.only((doorway.behind >> 32) as u32);
        front.put(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
        front.land(Label::Program);
        // As the program's filter expects to begin.
        front.put(CONSTANT, 0, 0, 0);
        front
    }
}
