//! Which system calls take which pointers: what the kernel reads and writes.
//!
//! Numbers and structure sizes are those of x86-64 Linux
//! (arch/x86/entry/syscalls/syscall_64.tbl and the manual pages of section 2);
//! they are part of the kernel's interface and never change.

/// How long something is, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    /// Always this.
    Bytes(usize),
    /// What this argument says.
    Argument(usize),
    /// This argument times so many bytes.
    Times(usize, usize),
    /// The 32-bit number that this argument points to.
    At(usize),
    /// A set of this many file descriptors, in whole 64-bit words.
    Set(usize),
    /// One byte for each page of so many bytes.
    Pages(usize),
}

/// What a pointer argument is to the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pointer {
    /// A string up to its NUL.
    Text(usize),
    /// Read.
    In(usize, Length),
    /// Written when the call succeeds.
    Out(usize, Length),
    /// Read, and written whatever the call says.
    Both(usize, Length),
    /// Written as far as the result says, in units of so many bytes.
    Filled(usize, Length, usize),
}

impl Pointer {
    /// The argument's place.
    pub(crate) const fn argument(self) -> usize {
        match self {
            Self::Text(argument)
            | Self::In(argument, _)
            | Self::Out(argument, _)
            | Self::Both(argument, _)
            | Self::Filled(argument, _, _) => argument,
        }
    }
}

use Length::{Argument, At, Bytes, Pages, Set, Times};
use Pointer::{Both, Filled, In, Out, Text};

const STAT: Length = Bytes(144);
const TIME: Length = Bytes(16);
const TIMER: Length = Bytes(32);
const USAGE: Length = Bytes(144);
const SIGNAL_INFO: Length = Bytes(128);
const SIGNAL_SET: Length = Bytes(8);
const WORD: Length = Bytes(4);

/// The pointers of a plain call; `None` for calls that are not in the table.
#[rustfmt::skip]
pub(crate) const fn plain(number: usize) -> Option<&'static [Pointer]> {
    Some(match number {
        // open, access, truncate, chdir, mkdir, rmdir, creat, unlink, chmod, chown, lchown, mknod,
        // uselib, chroot, umount2, swapoff
        2 | 21 | 76 | 80 | 83 | 84 | 85 | 87 | 90 | 92 | 94 | 133 | 134 | 161 | 166 | 168
            => const { &[Text(0)] },
        4 | 6 => const { &[Text(0), Out(1, STAT)] },                   // stat, lstat
        5 => const { &[Out(1, STAT)] },                                // fstat
        7 => const { &[Both(0, Times(1, 8))] },                        // poll
        22 | 293 => const { &[Out(0, Bytes(8))] },                     // pipe, pipe2
        23 => const { &[Both(1, Set(0)), Both(2, Set(0)), Both(3, Set(0)), Both(4, TIME)] }, // select
        27 => const { &[Out(2, Pages(1))] },                           // mincore
        35 => const { &[In(0, TIME), Both(1, TIME)] },                 // nanosleep
        36 | 224 | 287 => const { &[Out(1, TIMER)] },                  // getitimer, timer_gettime, timerfd_gettime
        38 => const { &[In(1, TIMER), Out(2, TIMER)] },                // setitimer
        40 => const { &[Both(2, Bytes(8))] },                          // sendfile
        42 | 49 => const { &[In(1, Argument(2))] },                    // connect, bind
        43 | 288 | 51 | 52 => const { &[Both(1, At(2)), Both(2, WORD)] }, // accept, accept4, getsockname, getpeername
        53 => const { &[Out(3, Bytes(8))] },                           // socketpair
        54 => const { &[In(3, Argument(4))] },                         // setsockopt
        55 => const { &[Both(3, At(4)), Both(4, WORD)] },              // getsockopt
        61 => const { &[Out(1, WORD), Out(3, USAGE)] },                // wait4
        63 => const { &[Out(0, Bytes(390))] },                         // uname
        65 => const { &[In(1, Times(2, 6))] },                         // semop
        78 | 217 => const { &[Filled(1, Argument(2), 1)] },            // getdents, getdents64
        79 => const { &[Filled(0, Argument(1), 1)] },                  // getcwd
        82 | 86 | 88 => const { &[Text(0), Text(1)] },                 // rename, link, symlink
        89 => const { &[Text(0), Filled(1, Argument(2), 1)] },         // readlink
        96 => const { &[Out(0, TIME), Out(1, Bytes(8))] },             // gettimeofday
        97 => const { &[Out(1, Bytes(16))] },                          // getrlimit
        98 => const { &[Out(1, USAGE)] },                              // getrusage
        99 => const { &[Out(0, Bytes(112))] },                         // sysinfo
        100 => const { &[Out(0, Bytes(32))] },                         // times
        115 => const { &[Filled(1, Times(0, 4), 4)] },                 // getgroups
        116 => const { &[In(1, Times(0, 4))] },                        // setgroups
        118 | 120 => const { &[Out(0, WORD), Out(1, WORD), Out(2, WORD)] }, // getresuid, getresgid
        125 => const { &[Both(0, Bytes(8)), Out(1, Bytes(24))] },      // capget
        126 => const { &[Both(0, Bytes(8)), In(1, Bytes(24))] },       // capset
        127 => const { &[Out(0, SIGNAL_SET)] },                        // rt_sigpending
        128 => const { &[In(0, SIGNAL_SET), Out(1, SIGNAL_INFO), In(2, TIME)] }, // rt_sigtimedwait
        129 => const { &[In(2, SIGNAL_INFO)] },                        // rt_sigqueueinfo
        297 => const { &[In(3, SIGNAL_INFO)] },                        // rt_tgsigqueueinfo
        132 => const { &[Text(0), In(1, TIME)] },                      // utime
        137 => const { &[Text(0), Out(1, Bytes(120))] },               // statfs
        138 => const { &[Out(1, Bytes(120))] },                        // fstatfs
        142 => const { &[In(1, WORD)] },                               // sched_setparam
        143 => const { &[Out(1, WORD)] },                              // sched_getparam
        144 => const { &[In(2, WORD)] },                               // sched_setscheduler
        148 => const { &[Out(1, TIME)] },                              // sched_rr_get_interval
        160 => const { &[In(1, Bytes(16))] },                          // setrlimit
        164 => const { &[In(0, TIME), In(1, Bytes(8))] },              // settimeofday
        165 => const { &[Text(0), Text(1), Text(2)] },                 // mount
        170 | 171 => const { &[In(0, Argument(1))] },                  // sethostname, setdomainname
        188 | 189 => const { &[Text(0), Text(1), In(2, Argument(3))] },  // setxattr, lsetxattr
        190 => const { &[Text(1), In(2, Argument(3))] },               // fsetxattr
        191 | 192 => const { &[Text(0), Text(1), Filled(2, Argument(3), 1)] }, // getxattr, lgetxattr
        193 => const { &[Text(1), Filled(2, Argument(3), 1)] },        // fgetxattr
        194 | 195 => const { &[Text(0), Filled(1, Argument(2), 1)] },  // listxattr, llistxattr
        196 => const { &[Filled(1, Argument(2), 1)] },                 // flistxattr
        197 | 198 => const { &[Text(0), Text(1)] },                    // removexattr, lremovexattr
        199 => const { &[Text(1)] },                                   // fremovexattr
        201 => const { &[Out(0, Bytes(8))] },                          // time
        203 => const { &[In(2, Argument(1))] },                        // sched_setaffinity
        204 => const { &[Filled(2, Argument(1), 1)] },                 // sched_getaffinity
        222 => const { &[In(1, Bytes(64)), Out(2, WORD)] },            // timer_create
        223 | 286 => const { &[In(2, TIMER), Out(3, TIMER)] },         // timer_settime, timerfd_settime
        227 => const { &[In(1, TIME)] },                               // clock_settime
        228 | 229 => const { &[Out(1, TIME)] },                        // clock_gettime, clock_getres
        230 => const { &[In(2, TIME), Both(3, TIME)] },                // clock_nanosleep
        232 | 281 | 441 => const { &[Filled(1, Times(2, 12), 12)] },   // epoll_wait and its kin: see calls::masked
        233 => const { &[In(3, Bytes(12))] },                          // epoll_ctl
        235 => const { &[Text(0), In(1, Bytes(32))] },                 // utimes
        240 => const { &[Text(0), In(3, Bytes(64))] },                 // mq_open
        241 => const { &[Text(0)] },                                   // mq_unlink
        242 => const { &[In(1, Argument(2)), In(4, TIME)] },           // mq_timedsend
        243 => const { &[Filled(1, Argument(2), 1), Out(3, WORD), In(4, TIME)] }, // mq_timedreceive
        245 => const { &[In(1, Bytes(64)), Out(2, Bytes(64))] },       // mq_getsetattr
        247 => const { &[Out(2, SIGNAL_INFO), Out(4, USAGE)] },        // waitid
        254 | 257 | 258 | 259 | 260 | 263 | 268 | 269 | 439 => const { &[Text(1)] }, // *at, inotify_add_watch
        261 => const { &[Text(1), In(2, Bytes(32))] },                 // futimesat
        262 => const { &[Text(1), Out(2, STAT)] },                     // newfstatat
        264 | 265 | 316 => const { &[Text(1), Text(3)] },              // renameat, linkat, renameat2
        266 => const { &[Text(0), Text(2)] },                          // symlinkat
        267 => const { &[Text(1), Filled(2, Argument(3), 1)] },        // readlinkat
        275 | 326 => const { &[Both(1, Bytes(8)), Both(3, Bytes(8))] },  // splice, copy_file_range
        280 => const { &[Text(1), In(2, Bytes(32))] },                 // utimensat
        282 | 289 => const { &[In(1, SIGNAL_SET)] },                   // signalfd, signalfd4
        302 => const { &[In(2, Bytes(16)), Out(3, Bytes(16))] },       // prlimit64
        318 => const { &[Filled(0, Argument(1), 1)] },                 // getrandom
        319 => const { &[Text(0)] },                                   // memfd_create
        332 => const { &[Text(1), Out(4, Bytes(256))] },               // statx
        437 => const { &[Text(1), In(2, Argument(3))] },               // openat2
        _ => return None,
    })
}

/// Calls that are looked at whatever their arguments are: nested pointers,
/// signal masks and handlers, the process's end.
pub(crate) const fn always(number: usize) -> bool {
    matches!(
        number,
        3 | 33 | 292 | 436 // close, dup2, dup3, close_range: see crate::descriptors
            | 5 | 32 | 72 | 262 | 332 // fstat, dup, fcntl, newfstatat, statx: likewise
            | 78 | 217     // getdents, getdents64: likewise
            | MMAP         // where it is redirected at all
            | 13 | 14      // rt_sigaction, rt_sigprocmask
            | 19 | 20 | 295 | 296 | 327 | 328   // readv, writev, preadv, pwritev, *2
            | 46 | 47 | 299 | 307               // sendmsg, recvmsg, recvmmsg, sendmmsg
            | CLONE | 57    // clone, fork
            | 59 | 322      // execve, execveat
            | 130 | 131     // rt_sigsuspend, sigaltstack
            | 151           // mlockall
            | 231           // exit_group
            | 270 | 271     // pselect6, ppoll
            | 281 | 441 // epoll_pwait, epoll_pwait2
            | URING_SETUP
    )
}

/// The other calls with rules of their own, and the arguments that may be
/// ghost memory.
const fn special(number: usize) -> Option<&'static [usize]> {
    Some(match number {
        0 | 1 | 17 | 18 => &[1], // read, write, pread64, pwrite64
        44 | 45 => &[1, 4, 5],   // sendto, recvfrom
        10 | 11 | 25 | 26 | 28 | 149 | 150 | 325 | 329 => &[0], // mprotect, munmap, mremap, msync, madvise, mlock, munlock, mlock2, pkey_mprotect
        16 => &[2],                                             // ioctl
        72 => &[2],                                             // fcntl
        157 => &[1, 2, 4],                                      // prctl
        202 => &[0, 3, 4],                                      // futex
        _ => return None,
    })
}

/// Whether a call is to be redirected at all; mmap when `maps`.
pub(crate) const fn matters(number: usize, maps: bool) -> bool {
    if number == MMAP {
        maps
    } else {
        always(number) || special(number).is_some() || plain(number).is_some()
    }
}

const MMAP: usize = 9;
/// io_uring_setup(2).
pub(super) const URING_SETUP: usize = 425;
/// clone(2), which is what fork(3) calls.
pub(crate) const CLONE: usize = 56;

/// The arguments whose being ghost memory makes a call ours.
pub(crate) fn pointers(number: usize) -> impl Iterator<Item = usize> {
    let special = special(number).unwrap_or(&[]).iter().copied();
    let plain = plain(number).unwrap_or(&[]).iter();
    special.chain(plain.map(|pointer| pointer.argument()))
}
