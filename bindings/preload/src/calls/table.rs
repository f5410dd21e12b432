//! Every system call, and what is done about its pointers.
//!
//! Numbers and structure sizes are those of x86-64 Linux
//! (arch/x86/entry/syscalls/syscall_64.tbl and the manual pages of section 2);
//! they are part of the kernel's interface and never change.
//!
//! | treatment | for calls |
//! |---|---|
//! | none | that are known to take no pointer: the only ones left alone |
//! | copied | whose structures have one known size |
//! | held | whose structures point on, or have sizes only a driver knows: the pages are pinned for the call |
//! | own | with rules of their own, in the modules beside this one |
//!
//! A number that is not here is held: newer kernels have calls that are not
//! known yet. `tests/calls_table.rs` fails when the kernel's header has one.

/// How long something is, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    /// Always this.
    Bytes(usize),
    /// What this argument says.
    Argument(usize),
    /// This argument times so many bytes.
    Times(usize, usize),
    /// The same of an `int`: the kernel refuses what is negative.
    Int(usize, usize),
    /// What this argument says, of which the kernel uses so much at most.
    AtMost(usize, usize),
    /// So many bytes and what this argument says.
    Behind(usize, usize),
    /// A socket's address, for which there is as much room as the `int` says that this
    /// argument points to.
    At(usize),
    /// A set of this many file descriptors, in whole 64-bit words.
    Set(usize),
    /// One byte for each page of so many bytes.
    Pages(usize),
    /// Sets of capabilities, in the version that this argument points to (capget(2)).
    Capabilities(usize),
}

/// What a pointer argument is to the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pointer {
    /// A string up to its NUL.
    Text(usize),
    /// Read.
    In(usize, Length),
    /// Written, all of it, when the call succeeds.
    Out(usize, Length),
    /// Read, and written when the call succeeds.
    Both(usize, Length),
    /// Read, and written or not, whatever the call says: at most 16 bytes.
    Always(usize, Length),
    /// Read, and written when the result is above zero.
    Found(usize, Length),
    /// Written only when a signal ended the call (`EINTR`).
    Rest(usize, Length),
    /// Written as far as the result says, in units of so many bytes.
    Filled(usize, Length, usize),
    /// A list of `struct pollfd`: only `revents` is written.
    Polled(usize, Length),
}

impl Pointer {
    /// The argument's place.
    pub(crate) const fn argument(self) -> usize {
        match self {
            Self::Text(argument)
            | Self::In(argument, _)
            | Self::Out(argument, _)
            | Self::Both(argument, _)
            | Self::Always(argument, _)
            | Self::Found(argument, _)
            | Self::Rest(argument, _)
            | Self::Filled(argument, _, _)
            | Self::Polled(argument, _) => argument,
        }
    }
}

/// What is done about a call's pointers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Treatment {
    /// There are none.
    None,
    Copied(&'static [Pointer]),
    /// These arguments are pointers.
    Held(&'static [usize]),
    /// These may be ghost memory, or point to what is.
    HeldDeep(&'static [usize]),
    /// Rules of its own; these arguments may be ghost memory.
    Own(&'static [usize]),
    /// Rules of its own, whatever the arguments are.
    Always,
}

use Length::{Argument, At, AtMost, Behind, Bytes, Capabilities, Int, Pages, Set, Times};
use Pointer::{Always, Both, Filled, Found, In, Out, Polled, Rest, Text};

const STAT: Length = Bytes(144);
const TIME: Length = Bytes(16);
const TIMER: Length = Bytes(32);
const USAGE: Length = Bytes(144);
const SIGNAL_INFO: Length = Bytes(128);
const SIGNAL_SET: Length = Bytes(8);
const WORD: Length = Bytes(4);
const TIMEX: Length = Bytes(208);
/// `struct sockaddr_storage`: the kernel refuses longer addresses, and has none.
pub(crate) const ADDRESS_BYTES: usize = 128;
/// A set of all processors that a kernel may have (`NR_CPUS`).
const PROCESSORS_BYTES: usize = 1024;

/// mmap(2).
pub(crate) const MMAP: usize = 9;
/// brk(2).
pub(crate) const BRK: usize = 12;
/// No call: what stands for the way into the loop that glibc ends a thread with. No kernel has
/// one of this number.
pub(crate) const LEAVES: usize = 1023;
/// clone(2), which is what fork(3) calls.
pub(crate) const CLONE: usize = 56;
/// clone3(2).
pub(crate) const CLONE3: usize = 435;
/// io_uring_setup(2) and io_setup(2): what the kernel does on its own.
pub(crate) const URING_SETUP: usize = 425;
pub(crate) const IO_SETUP: usize = 206;

/// Calls that take no pointer, or none that the kernel reads or writes at.
const fn takes_no_pointer(number: usize) -> bool {
    matches!(
        number,
        15          // rt_sigreturn: the frame is on the stack in use
        | 24        // sched_yield
        | 29        // shmget
        | 34 | 37 | 39 | 41 // pause, alarm, getpid, socket
        | 48 | 50   // shutdown, listen
        | 58        // vfork
        | 62        // kill
        | 64        // semget
        | 68        // msgget
        | 73..=75 | 77 // flock, fsync, fdatasync, ftruncate
        | 81 | 91 | 93 | 95 // fchdir, fchmod, fchown, umask
        | 102 | 104..=114 // getuid, getgid, set[ug]id, get*id, setpgid, getppid, getpgrp, setsid, setre*id
        | 117 | 119 // setresuid, setresgid
        | 121..=124 // getpgid, setfs[ug]id, getsid
        | 135       // personality
        | 140 | 141 | 145..=147 // getpriority, setpriority, sched_getscheduler, sched_get_priority_*
        | 153       // vhangup
        | 162       // sync
        | 172 | 173 // iopl, ioperm
        | 186 | 187 // gettid, readahead
        | 200       // tkill
        | 207       // io_destroy
        | 213       // epoll_create
        | 216       // remap_file_pages: refuses what is no shared mapping of a file
        | 219 | 221 // restart_syscall, fadvise64
        | 225 | 226 // timer_getoverrun, timer_delete
        | 234       // tgkill
        | 251..=253 | 255 // ioprio_set, ioprio_get, inotify_init, inotify_rm_watch
        | 276 | 277 // tee, sync_file_range
        | 283..=285 // timerfd_create, eventfd, fallocate
        | 290 | 291 | 294 // eventfd2, epoll_create1, inotify_init1
        | 300       // fanotify_init
        | 306       // syncfs
        | 323 | 324 // userfaultfd, membarrier
        | 330 | 331 // pkey_alloc, pkey_free
        | 432 | 434 // fsmount, pidfd_open
        | 438       // pidfd_getfd
        | 446..=448 // landlock_restrict_self, memfd_secret, process_mrelease
        | 453 // map_shadow_stack: makes a mapping
    )
}

/// The pointers of a call whose structures have known sizes.
#[rustfmt::skip]
pub(crate) const fn plain(number: usize) -> Option<&'static [Pointer]> {
    Some(match number {
        // open, access, truncate, chdir, mkdir, rmdir, creat, unlink, chmod, chown, lchown, mknod,
        // uselib, chroot, acct, umount2, swapon, swapoff, delete_module
        2 | 21 | 76 | 80 | 83 | 84 | 85 | 87 | 90 | 92 | 94 | 133 | 134 | 161 | 163 | 166 | 167 | 168 | 176
            => const { &[Text(0)] },
        4 | 6 => const { &[Text(0), Out(1, STAT)] },                   // stat, lstat
        5 => const { &[Out(1, STAT)] },                                // fstat
        7 => const { &[Polled(0, Times(1, 8))] },                      // poll
        22 | 293 => const { &[Out(0, Bytes(8))] },                     // pipe, pipe2
        23 => const { &[Both(1, Set(0)), Both(2, Set(0)), Both(3, Set(0)), Always(4, TIME)] }, // select
        27 => const { &[Out(2, Pages(1))] },                           // mincore: see `own`
        35 => const { &[In(0, TIME), Rest(1, TIME)] },                 // nanosleep
        36 | 224 | 287 => const { &[Out(1, TIMER)] },                  // getitimer, timer_gettime, timerfd_gettime
        38 => const { &[In(1, TIMER), Out(2, TIMER)] },                // setitimer
        40 => const { &[Both(2, Bytes(8))] },                          // sendfile
        42 | 49 => const { &[In(1, AtMost(2, ADDRESS_BYTES))] },       // connect, bind
        43 | 288 | 51 | 52 => const { &[Both(1, At(2)), Both(2, WORD)] }, // accept, accept4, getsockname, getpeername
        53 => const { &[Out(3, Bytes(8))] },                           // socketpair
        61 => const { &[Found(1, WORD), Found(3, USAGE)] },            // wait4
        63 => const { &[Out(0, Bytes(390))] },                         // uname
        65 => const { &[In(1, Times(2, 6))] },                         // semop
        220 => const { &[In(1, Times(2, 6)), In(3, TIME)] },           // semtimedop
        69 => const { &[In(1, Behind(8, 2))] },                        // msgsnd: a type before the text
        78 | 217 => const { &[Filled(1, Argument(2), 1)] },            // getdents, getdents64
        79 => const { &[Filled(0, Argument(1), 1)] },                  // getcwd
        82 | 86 | 88 | 155 => const { &[Text(0), Text(1)] },           // rename, link, symlink, pivot_root
        89 => const { &[Text(0), Filled(1, Int(2, 1), 1)] },           // readlink
        96 => const { &[Out(0, TIME), Out(1, Bytes(8))] },             // gettimeofday
        97 => const { &[Out(1, Bytes(16))] },                          // getrlimit
        98 => const { &[Out(1, USAGE)] },                              // getrusage
        99 => const { &[Out(0, Bytes(112))] },                         // sysinfo
        100 => const { &[Out(0, Bytes(32))] },                         // times
        103 => const { &[Filled(1, Int(2, 1), 1)] },                   // syslog
        115 => const { &[Filled(1, Int(0, 4), 4)] },                   // getgroups
        116 => const { &[In(1, Int(0, 4))] },                          // setgroups
        118 | 120 => const { &[Out(0, WORD), Out(1, WORD), Out(2, WORD)] }, // getresuid, getresgid
        125 => const { &[Always(0, Bytes(8)), Out(1, Capabilities(0))] }, // capget
        126 => const { &[Always(0, Bytes(8)), In(1, Capabilities(0))] }, // capset
        129 => const { &[In(2, SIGNAL_INFO)] },                        // rt_sigqueueinfo
        297 => const { &[In(3, SIGNAL_INFO)] },                        // rt_tgsigqueueinfo
        424 => const { &[In(2, SIGNAL_INFO)] },                        // pidfd_send_signal
        132 => const { &[Text(0), In(1, TIME)] },                      // utime
        136 => const { &[Out(1, Bytes(32))] },                         // ustat
        137 => const { &[Text(0), Out(1, Bytes(120))] },               // statfs
        138 => const { &[Out(1, Bytes(120))] },                        // fstatfs
        142 => const { &[In(1, WORD)] },                               // sched_setparam
        143 => const { &[Out(1, WORD)] },                              // sched_getparam
        144 => const { &[In(2, WORD)] },                               // sched_setscheduler
        148 => const { &[Out(1, TIME)] },                              // sched_rr_get_interval
        159 => const { &[Both(0, TIMEX)] },                            // adjtimex
        305 => const { &[Both(1, TIMEX)] },                            // clock_adjtime
        160 => const { &[In(1, Bytes(16))] },                          // setrlimit
        164 => const { &[In(0, TIME), In(1, Bytes(8))] },              // settimeofday
        170 | 171 => const { &[In(0, Int(1, 1))] },                    // sethostname, setdomainname
        188 | 189 => const { &[Text(0), Text(1), In(2, Argument(3))] },  // setxattr, lsetxattr
        190 => const { &[Text(1), In(2, Argument(3))] },               // fsetxattr
        191 | 192 => const { &[Text(0), Text(1), Filled(2, Argument(3), 1)] }, // getxattr, lgetxattr
        193 => const { &[Text(1), Filled(2, Argument(3), 1)] },        // fgetxattr
        194 | 195 => const { &[Text(0), Filled(1, Argument(2), 1)] },  // listxattr, llistxattr
        196 => const { &[Filled(1, Argument(2), 1)] },                 // flistxattr
        197 | 198 => const { &[Text(0), Text(1)] },                    // removexattr, lremovexattr
        199 => const { &[Text(1)] },                                   // fremovexattr
        201 => const { &[Out(0, Bytes(8))] },                          // time
        203 => const { &[In(2, AtMost(1, PROCESSORS_BYTES))] },        // sched_setaffinity
        204 => const { &[Filled(2, Argument(1), 1)] },                 // sched_getaffinity
        222 => const { &[In(1, Bytes(64)), Out(2, WORD)] },            // timer_create
        223 | 286 => const { &[In(2, TIMER), Out(3, TIMER)] },         // timer_settime, timerfd_settime
        227 => const { &[In(1, TIME)] },                               // clock_settime
        228 | 229 => const { &[Out(1, TIME)] },                        // clock_gettime, clock_getres
        230 => const { &[In(2, TIME), Rest(3, TIME)] },                // clock_nanosleep
        232 => const { &[Filled(1, Int(2, 12), 12)] },                 // epoll_wait
        233 => const { &[In(3, Bytes(12))] },                          // epoll_ctl
        235 => const { &[Text(0), In(1, Bytes(32))] },                 // utimes
        240 => const { &[Text(0), In(3, Bytes(64))] },                 // mq_open
        241 => const { &[Text(0)] },                                   // mq_unlink
        242 => const { &[In(1, Argument(2)), In(4, TIME)] },           // mq_timedsend
        243 => const { &[Filled(1, Argument(2), 1), Out(3, WORD), In(4, TIME)] }, // mq_timedreceive
        245 => const { &[In(1, Bytes(64)), Out(2, Bytes(64))] },       // mq_getsetattr
        247 => const { &[Both(2, SIGNAL_INFO), Both(4, USAGE)] },      // waitid: see `misc`
        248 => const { &[Text(0), Text(1), In(2, Argument(3))] },      // add_key
        254 | 257 | 258 | 259 | 260 | 263 | 268 | 269 | 439 | 452 => const { &[Text(1)] }, // *at, inotify_add_watch
        428 | 433 => const { &[Text(1)] },                             // open_tree, fspick
        261 => const { &[Text(1), In(2, Bytes(32))] },                 // futimesat
        262 => const { &[Text(1), Out(2, STAT)] },                     // newfstatat
        264 | 265 | 316 | 429 => const { &[Text(1), Text(3)] },        // renameat, linkat, renameat2, move_mount
        266 => const { &[Text(0), Text(2)] },                          // symlinkat
        267 => const { &[Text(1), Filled(2, Int(3, 1), 1)] },          // readlinkat
        274 => const { &[Out(1, Bytes(8)), Out(2, Bytes(8))] },        // get_robust_list
        275 => const { &[Both(1, Bytes(8)), Both(3, Bytes(8))] },      // splice
        326 => const { &[Found(1, Bytes(8)), Found(3, Bytes(8))] },    // copy_file_range
        280 => const { &[Text(1), In(2, Bytes(32))] },                 // utimensat
        282 | 289 => const { &[In(1, SIGNAL_SET)] },                   // signalfd, signalfd4
        301 => const { &[Text(4)] },                                   // fanotify_mark
        302 => const { &[In(2, Bytes(16)), Out(3, Bytes(16))] },       // prlimit64
        309 => const { &[Out(0, WORD), Out(1, WORD)] },                // getcpu
        313 => const { &[Text(1)] },                                   // finit_module
        318 => const { &[Filled(0, Argument(1), 1)] },                 // getrandom
        319 | 430 => const { &[Text(0)] },                             // memfd_create, fsopen
        332 => const { &[Text(1), Out(4, Bytes(256))] },               // statx
        437 => const { &[Text(1), In(2, Argument(3))] },               // openat2
        442 => const { &[Text(1), In(3, Argument(4))] },               // mount_setattr: its structure has no pointers
        444 => const { &[In(0, Argument(1))] },                        // landlock_create_ruleset
        _ => return None,
    })
}

/// Those of them that a call with these arguments uses.
pub(crate) const fn used(number: usize, args: [usize; 6]) -> &'static [Pointer] {
    match number {
        // An address that is not asked for has no length (accept, accept4).
        43 | 288 if args[1] == 0 => &[],
        // What is taken out of a set needs no event (epoll_ctl).
        233 if args[1] == libc::EPOLL_CTL_DEL as usize => &[],
        _ => match plain(number) {
            Some(pointers) => pointers,
            None => &[],
        },
    }
}

/// Calls whose structures have sizes of their own, or point on: the arguments
/// that are pointers, and whether what they point to may point to ghost memory.
#[rustfmt::skip]
const fn held(number: usize) -> Option<Treatment> {
    use Treatment::{Held, HeldDeep};
    Some(match number {
        31 | 71 => Held(&[2]),            // shmctl, msgctl
        66 => Held(&[3]),                 // semctl
        139 => Held(&[1, 2]),             // sysfs
        154 => Held(&[1]),                // modify_ldt
        158 => Held(&[1]),                // arch_prctl
        165 => Held(&[0, 1, 2, 4]),       // mount: the data is a page at most, or what the file system says
        169 => Held(&[3]),                // reboot
        175 => Held(&[0, 2]),             // init_module
        179 | 443 => Held(&[1, 3]),       // quotactl, quotactl_fd
        205 | 211 => Held(&[0]),          // set_thread_area, get_thread_area
        212 => Held(&[1]),                // lookup_dcookie
        238 => Held(&[1]),                // set_mempolicy
        239 => Held(&[0, 1, 3]),          // get_mempolicy: where the page at an address is
        256 => Held(&[2, 3]),             // migrate_pages
        303 => Held(&[1, 2, 3]),          // name_to_handle_at
        304 => Held(&[1]),                // open_by_handle_at
        312 => Held(&[4]),                // kcmp
        314 | 315 => Held(&[1]),          // sched_setattr, sched_getattr
        320 => Held(&[3]),                // kexec_file_load
        431 => Held(&[2, 3]),             // fsconfig
        445 => Held(&[2]),                // landlock_add_rule
        451 => Held(&[1, 2]),             // cachestat
        457 | 458 => Held(&[0, 1]),       // statmount, listmount
        459 => Held(&[1, 2]),             // lsm_get_self_attr
        461 => Held(&[0, 1]),             // lsm_list_modules
        460 => Held(&[1]),                // lsm_set_self_attr
        465 => Held(&[1, 3]),             // listxattrat
        466 => Held(&[1, 3]),             // removexattrat
        467 => Held(&[1, 3]),             // open_tree_attr
        468 | 469 => Held(&[1, 2]),       // file_getattr, file_setattr
        470 => Held(&[0, 1]),             // listns
        101 => HeldDeep(&[2, 3]),         // ptrace: register sets by way of an iovec; PTRACE_TRACEME: see exec
        156 => HeldDeep(&[0]),            // _sysctl
        208 | 209 => HeldDeep(&[2, 3, 4]), // io_getevents, io_submit
        333 => HeldDeep(&[3, 4, 5]),      // io_pgetevents
        210 => HeldDeep(&[1, 2]),         // io_cancel
        244 => HeldDeep(&[1]),            // mq_notify: the value it carries may be read
        246 => HeldDeep(&[2]),            // kexec_load
        249 => HeldDeep(&[0, 1, 2, 3]),   // request_key
        250 => HeldDeep(&[1, 2, 3, 4]),   // keyctl
        279 => HeldDeep(&[2, 3, 4]),      // move_pages: the pages are in memory, too
        298 => HeldDeep(&[0]),            // perf_event_open: the name of a function, or a file
        317 => HeldDeep(&[2]),            // seccomp
        321 => HeldDeep(&[1]),            // bpf
        426 => HeldDeep(&[4]),            // io_uring_enter
        427 => HeldDeep(&[2]),            // io_uring_register
        440 => HeldDeep(&[1]),            // process_madvise
        463 | 464 => HeldDeep(&[1, 3, 4]), // setxattrat, getxattrat
        // Calls that no kernel of today has (ENOSYS), and those of security modules.
        174 | 177 | 178 | 180..=185 | 214 | 215 | 236 => Held(&[0, 1, 2, 3, 4, 5]),
        _ => return None,
    })
}

/// Calls with rules of their own, and the arguments that may be ghost memory.
const fn own(number: usize) -> Option<&'static [usize]> {
    Some(match number {
        0 | 1 => &[1],                                                       // read, write
        17 | 18 => &[1, 3],    // pread64, pwrite64: of /proc/self/mem
        44 | 45 => &[1, 4, 5], // sendto, recvfrom
        70 => &[1],            // msgrcv
        25 => &[0, 4],         // mremap
        10 | 11 | 26 | 28 | 149 | 150 | 237 | 325 | 329 | 450 | 462 => &[0], // mprotect, munmap, msync, madvise, mlock, munlock, mbind, mlock2, pkey_mprotect, set_mempolicy_home_node, mseal
        30 => &[1],                                                          // shmat
        67 => &[0],                                                          // shmdt
        27 => &[0, 2],                                                       // mincore
        202 => &[0, 3, 4],                                                   // futex
        454 | 455 => &[0, 4],    // futex_wake, futex_wait
        456 => &[0],             // futex_requeue
        218 | 273 | 334 => &[0], // set_tid_address, set_robust_list, rseq: remembered
        _ => return None,
    })
}

/// Calls that are looked at whatever their arguments are: nested pointers,
/// signal masks and handlers, the process's end.
const fn looked_at(number: usize) -> bool {
    matches!(
        number,
        3 | 33 | 292 | 436 // close, dup2, dup3, close_range: see crate::descriptors
            | 5 | 7 | 8 | 32 | 72 | 262 | 332 // fstat, poll, lseek, dup, fcntl, newfstatat, statx: likewise
            | 78 | 217     // getdents, getdents64: likewise
            | 40 | 138 | 233 | 275 | 326 // sendfile, fstatfs, epoll_ctl, splice, copy_file_range: likewise
            | MMAP | BRK   // where they are redirected at all
            | 25 | 30       // mremap, shmat: see crate::own_limits
            | 13 | 14 | 127 | 128 // rt_sigaction, rt_sigprocmask, rt_sigpending, rt_sigtimedwait
            | 16            // ioctl: what its structure points to
            | 19 | 20 | 278 | 295 | 296 | 327 | 328 // readv, writev, vmsplice, preadv, pwritev, *2
            | 46 | 47 | 299 | 307               // sendmsg, recvmsg, recvmmsg, sendmmsg
            | 54 | 55                           // setsockopt, getsockopt: likewise
            | CLONE | 57 | CLONE3               // clone, fork, clone3
            | 59 | 322      // execve, execveat
            | 130 | 131     // rt_sigsuspend, sigaltstack
            | 151 | 152     // mlockall, munlockall
            | 157           // prctl: filters, memory maps
            | 97 | 160 | 302 // getrlimit, setrlimit, prlimit64: see crate::lifted
            | 272 | 308     // unshare, setns: see `single`
            | 60 | 231      // exit, exit_group
            | 23 | 270 | 271 // select, pselect6: see `sets`; ppoll
            | 281 | 441     // epoll_pwait, epoll_pwait2
            | 297           // rt_tgsigqueueinfo: what says that it is for a thread
            | 310 | 311     // process_vm_readv, process_vm_writev
            | 449           // futex_waitv
            | URING_SETUP
            | IO_SETUP
    )
}

/// Numbers that the engine's descriptors have as a rule. Where the limits leave no place there they
/// are lower, and read(2) and write(2), which are made often, find them open.
pub(crate) const OUR_FILES: core::ops::Range<u32> = 3072..4096;

/// The arguments of a call that name a descriptor of the program's, of calls that are looked at
/// for these: ours are not open to them. See `crate::descriptors`.
pub(crate) const fn files(number: usize) -> &'static [usize] {
    match number {
        0 | 1 | 17 | 18 | 19 | 20 | 295 | 296 | 327 | 328 // read, write and their kin
        | 5 | 8 | 16 | 32 | 72 | 262 | 332 // fstat, lseek, ioctl, dup, fcntl, newfstatat, statx
        | 44 | 45 | 46 | 47 | 54 | 55 | 299 | 307 // of sockets
        | 138 | 278 // fstatfs, vmsplice
        => &[0],
        40 => &[0, 1],                // sendfile
        233 | 275 | 326 => &[0, 2],   // epoll_ctl, splice, copy_file_range
        _ => &[],
    }
}

/// What is done about a call; `None` for a number that is not known.
pub(crate) const fn treatment(number: usize) -> Option<Treatment> {
    if takes_no_pointer(number) {
        return Some(Treatment::None);
    }
    if looked_at(number) {
        return Some(Treatment::Always);
    }
    if let Some(arguments) = own(number) {
        return Some(Treatment::Own(arguments));
    }
    if let Some(held) = held(number) {
        return Some(held);
    }
    match plain(number) {
        Some(pointers) => Some(Treatment::Copied(pointers)),
        None => None,
    }
}

/// Calls that are looked at whatever their arguments are.
pub(crate) const fn always(number: usize) -> bool {
    matches!(
        treatment(number),
        None | Some(Treatment::Always | Treatment::HeldDeep(_))
    )
}

/// Whether a call is to be redirected at all; mmap and brk when `maps`.
pub(crate) const fn matters(number: usize, maps: bool) -> bool {
    if matches!(number, MMAP | BRK) {
        maps
    } else {
        !matches!(treatment(number), Some(Treatment::None))
    }
}

/// The arguments whose being ghost memory makes a call ours.
pub(crate) fn pointers(number: usize) -> impl Iterator<Item = usize> {
    let (listed, copied): (&[usize], &[Pointer]) = match treatment(number) {
        Some(Treatment::Copied(pointers)) => (&[], pointers),
        Some(Treatment::Held(arguments) | Treatment::HeldDeep(arguments)) => (arguments, &[]),
        Some(Treatment::Own(arguments)) => (arguments, &[]),
        Some(Treatment::None | Treatment::Always) | None => (&[], &[]),
    };
    let copied = copied.iter().map(|pointer| pointer.argument());
    listed.iter().copied().chain(copied)
}
