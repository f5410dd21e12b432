//! Calls with signal masks, and calls whose pointers depend on a request.

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::PAGE_SIZE;

use crate::bounce::{self, Lease};
use crate::guarded::{self, BadAddress, Touch, load};
use crate::raw::{self, Answer, call, failed};
use crate::signals::Blocked;
use crate::{descriptors, ghost, lifted, moving, own_limits, signals, taken};

use super::buffers::touches_ghost;
use super::kept::{self, Way};
use super::table::{self, Length, Pointer};
use super::{Done, error, exec, held, load_if, with_copies};

/// rt_sigsuspend: our signals stay deliverable while it waits.
pub(super) fn suspend(args: [usize; 6]) -> Touch<Done> {
    let [mask, bytes, ..] = args;
    if mask == 0 || bytes != size_of::<u64>() {
        return Ok(Done::Asis);
    }
    let asked = load(mask)?;
    let mask = signals::without_ours(asked);
    let answer = signals::with_mask(asked, || {
        call!(libc::SYS_rt_sigsuspend, &raw const mask, bytes)
    });
    Ok(Done::With(answer))
}

/// A mask argument with our signals taken out, in a place of ours.
pub(super) struct Mask {
    value: u64,
    address: usize,
}

impl Mask {
    pub(super) fn of(address: usize) -> Touch<Self> {
        let value = load_if::<u64>(address)?.map_or(0, signals::without_ours);
        Ok(Self { value, address })
    }

    pub(super) fn place(&self) -> usize {
        if self.address == 0 {
            0
        } else {
            (&raw const self.value) as usize
        }
    }
}

/// ppoll.
pub(super) fn ppoll(args: [usize; 6]) -> Touch<Done> {
    let mask = Mask::of(args[3])?;
    let mut args = args;
    args[3] = mask.place();
    let time = Pointer::Always(2, Length::Bytes(16));
    let pointers = [Pointer::Polled(0, Length::Times(1, 8)), time];
    let on_a_copy = |list| {
        let mut args = args;
        args[0] = list;
        match made(271, args, &[time]) {
            Ok(Done::With(answer)) => answer,
            _ => -(libc::EFAULT as Answer),
        }
    };
    match descriptors::polled(args[0], args[1], on_a_copy)? {
        Some(done) => Ok(done),
        None => made(271, args, &pointers),
    }
}

/// epoll_pwait, epoll_pwait2.
pub(super) fn masked_wait(number: usize, args: [usize; 6]) -> Touch<Done> {
    let mask = Mask::of(args[4])?;
    let mut args = args;
    args[4] = mask.place();
    let pointers = [
        Pointer::Filled(1, Length::Int(2, 12), 12),
        Pointer::In(3, Length::Bytes(16)),
    ];
    let pointers = if number == 441 {
        &pointers[..]
    } else {
        &pointers[..1]
    };
    made(number, args, pointers)
}

/// Makes a call whose mask was replaced, with copies where the kernel wants
/// them.
pub(super) fn made(number: usize, args: [usize; 6], pointers: &[Pointer]) -> Touch<Done> {
    let done = if super::kernel_is_blind() {
        with_copies(number, args, pointers)?
    } else {
        Done::Asis
    };
    Ok(match done {
        Done::Asis => Done::With(raw::syscall(number, args)),
        done => done,
    })
}

/// Makes a call on words that the kernel looks at itself, so that no stand-in
/// will do. It fails with EFAULT before anything has happened: `open` brings
/// the words in, and the call is made again.
fn with_words(call: impl Fn() -> Answer, open: impl Fn() -> Touch<()>) -> Touch<Done> {
    for _ in 0..10_000 {
        let answer = call();
        if answer != -(libc::EFAULT as isize) {
            return Ok(Done::With(answer));
        }
        open()?;
    }
    Err(BadAddress)
}

/// Opens a word, if it is ours to open.
fn open_word(word: usize) -> Touch<()> {
    if ghost::is_ghost(word) {
        guarded::open(word)
    } else {
        Ok(())
    }
}

/// futex.
pub(super) fn futex(args: [usize; 6]) -> Touch<Done> {
    let [word, operation, value, fourth, second, third_value] = args;
    let operation_only = operation & 0x7f;
    // WAIT, LOCK_PI, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2 take a time.
    let has_time = matches!(operation_only, 0 | 6 | 9 | 11 | 13);
    let time: Option<[u64; 2]> = if has_time && ghost::is_ghost(fourth) {
        load_if(fourth)?
    } else {
        None
    };
    let fourth = time
        .as_ref()
        .map_or(fourth, |time| core::ptr::from_ref(time) as usize);
    // WAKE needs no look at the word, WAKE_OP and the requeues use two.
    let two = matches!(operation_only, 3 | 4 | 5 | 11 | 12);
    let any = ghost::is_ghost(word) || (two && ghost::is_ghost(second));
    if !any && time.is_none() {
        return Ok(Done::Asis);
    }
    with_words(
        || raw::syscall(202, [word, operation, value, fourth, second, third_value]),
        || {
            if !any {
                return Err(BadAddress);
            }
            open_word(word)?;
            if two { open_word(second) } else { Ok(()) }
        },
    )
}

/// `struct futex_waitv`: the address stands behind the value.
const WAITER_BYTES: usize = 24;
const WAITER_ADDRESS_AT: usize = 8;
/// The most that one call waits for (`FUTEX_WAITV_MAX`).
const WAITERS_MAX: usize = 128;

/// Opens the words of a list of waiters.
fn open_waiters(list: usize, count: usize) -> Touch<()> {
    let mut any = false;
    for index in 0..count {
        let word = load(list + index * WAITER_BYTES + WAITER_ADDRESS_AT)?;
        any |= ghost::is_ghost(word);
        open_word(word)?;
    }
    if any { Ok(()) } else { Err(BadAddress) }
}

/// futex_waitv.
pub(super) fn futex_wait_any(mut args: [usize; 6]) -> Touch<Done> {
    let [list, count, _, timeout, ..] = args;
    if list == 0 || count == 0 || count > WAITERS_MAX {
        return Ok(Done::Asis);
    }
    let bytes = count * WAITER_BYTES;
    let Some(lease) = Lease::new(bytes) else {
        return Ok(error(libc::ENOMEM));
    };
    guarded::copy(lease.address(), list, bytes)?;
    args[0] = lease.address();
    let time: Option<[u64; 2]> = load_if(timeout)?;
    args[3] = time
        .as_ref()
        .map_or(0, |time| core::ptr::from_ref(time) as usize);
    with_words(
        || raw::syscall(449, args),
        || open_waiters(lease.address(), count),
    )
}

/// futex_wake, futex_wait, futex_requeue.
pub(super) fn futex_word(number: usize, mut args: [usize; 6]) -> Touch<Done> {
    let word = args[0];
    let mut pair = [0_u8; 2 * WAITER_BYTES];
    let mut time = [0_u64; 2];
    if number == 456 {
        guarded::copy(pair.as_mut_ptr() as usize, word, pair.len())?;
        args[0] = pair.as_ptr() as usize;
    } else if number == 455 && args[4] != 0 {
        time = load(args[4])?;
        args[4] = time.as_ptr() as usize;
    }
    let done = with_words(
        || raw::syscall(number, args),
        || {
            if number == 456 {
                open_waiters(pair.as_ptr() as usize, 2)
            } else if ghost::is_ghost(word) {
                guarded::open(word)
            } else {
                Err(BadAddress)
            }
        },
    );
    // Used by the call until here.
    let _ = (pair, time);
    done
}

/// msgrcv: a type, and as much text as the result says.
pub(super) fn queue_receive(mut args: [usize; 6]) -> Touch<Done> {
    const TYPE_BYTES: usize = 8;
    let (theirs, bytes) = (args[1], args[2]);
    if !ghost::is_ghost(theirs) {
        return Ok(Done::Asis);
    }
    // A message that is not there, or too long, is the kernel's to refuse. One that does
    // not fit a stand-in stays in its queue, whole.
    let most = bounce::most_bytes();
    let is_cut = bytes > most;
    let bytes = bytes.min(most);
    if is_cut {
        args[2] = bytes;
        args[4] &= !(libc::MSG_NOERROR as usize);
    }
    let Some(lease) = Lease::new(bytes + TYPE_BYTES) else {
        return Ok(error(libc::ENOMEM));
    };
    // What cannot be written must not be taken from the queue.
    guarded::open(theirs)?;
    args[1] = lease.address();
    let answer = raw::syscall(70, args);
    if is_cut && answer == -(libc::E2BIG as isize) {
        return Ok(error(libc::ENOBUFS));
    }
    if !failed(answer) {
        let got = (answer as usize).min(bytes) + TYPE_BYTES;
        guarded::copy(theirs, lease.address(), got)?;
    }
    Ok(Done::With(answer))
}

/// Namespaces of processes within each other (`MAX_PID_NS_LEVEL`).
pub(super) const LEVELS_MAX: usize = 32;

/// clone3's list of the numbers that a child is to have, by a copy at `args[0]` of its
/// structure: the list is brought to `room`.
pub(super) fn choose_numbers(args: [usize; 6], room: &mut [u32; LEVELS_MAX]) -> Touch<()> {
    const LIST_AT: usize = 64;
    let [place, bytes, ..] = args;
    if bytes < LIST_AT + 2 * size_of::<usize>() {
        return Ok(());
    }
    let [list, count]: [usize; 2] = load(place + LIST_AT)?;
    if ghost::is_ghost(list) && count <= LEVELS_MAX {
        let ours = room.as_mut_ptr() as usize;
        guarded::copy(ours, list, count * size_of::<u32>())?;
        guarded::store(place + LIST_AT, ours)?;
    }
    Ok(())
}

/// setsockopt: numbers by copy; whatever may point on, in place.
pub(super) fn set_option(args: [usize; 6]) -> Touch<Done> {
    // A filter is a length and a pointer: 16 bytes.
    const POINTS_FROM: usize = 16;
    let [_, _, _, value, bytes, _] = args;
    if bytes >= POINTS_FROM {
        return held::scanned(54, args, &[3]);
    }
    if !ghost::is_ghost(value) {
        return Ok(Done::Asis);
    }
    with_copies(54, args, &[Pointer::In(3, Length::Argument(4))])
}

/// fcntl: locks, owners, and hints. Those that are set are not written to.
pub(super) fn fcntl(args: [usize; 6]) -> Touch<Done> {
    let (bytes, asks) = match args[1] {
        // F_GETLK, F_OFD_GETLK; F_SETLK, F_SETLKW and theirs.
        5 | 36 => (32, true),
        6 | 7 | 37 | 38 => (32, false),
        // F_GETOWN_EX, and hints about what is written.
        16 | 1035 | 1037 => (8, true),
        15 | 1036 | 1038 => (8, false),
        _ => return held::whole(72, args, &[2]),
    };
    let pointer = match asks {
        true => Pointer::Both(2, Length::Bytes(bytes)),
        false => Pointer::In(2, Length::Bytes(bytes)),
    };
    with_copies(72, args, &[pointer])
}

/// waitid: of what says which child it was the kernel writes some fields, whatever it answers,
/// and what that one used only where there was one.
pub(super) fn wait_for_child(mut args: [usize; 6]) -> Touch<Done> {
    /// `si_signo`, `si_errno` and `si_code`; `si_pid`, `si_uid` and `si_status`.
    const FIELDS: [usize; 2] = [0, 16];
    const FIELD_BYTES: usize = 12;
    const INFO_WORDS: usize = 128 / size_of::<u64>();
    const USAGE_WORDS: usize = size_of::<libc::rusage>() / size_of::<u64>();
    let [_, _, info, _, usage, _] = args;
    let is_given = |at: usize, words: usize| at != 0 && touches_ghost(at, words * 8);
    let (has_info, has_usage) = (is_given(info, INFO_WORDS), is_given(usage, USAGE_WORDS));
    if !has_info && !has_usage {
        return Ok(Done::Asis);
    }
    let Some(mut lease) = Lease::new((INFO_WORDS + USAGE_WORDS) * 8 + 64) else {
        return Ok(error(libc::ENOMEM));
    };
    let (Some(ours), Some(used)) = (lease.carve(INFO_WORDS * 8), lease.carve(USAGE_WORDS * 8))
    else {
        return Ok(error(libc::ENOMEM));
    };
    // No signal has this number, and no time is that long.
    guarded::store(ours, [u64::MAX; INFO_WORDS])?;
    guarded::store(used, [u64::MAX; USAGE_WORDS])?;
    if has_info {
        args[2] = ours;
    }
    if has_usage {
        args[4] = used;
    }
    let answer = raw::syscall(247, args);
    if has_usage && raw::load::<u64>(used) != u64::MAX {
        guarded::copy(usage, used, USAGE_WORDS * 8)?;
    }
    if has_info && raw::load::<u32>(ours) != u32::MAX {
        for field in FIELDS {
            guarded::copy(info + field, ours + field, FIELD_BYTES)?;
        }
    }
    Ok(Done::With(answer))
}

/// clock_nanosleep: one that sleeps until a time tells of none that is left.
pub(super) fn sleep(args: [usize; 6]) -> Touch<Done> {
    let pointers = table::plain(230).unwrap_or(&[]);
    let is_until = args[1] & libc::TIMER_ABSTIME as usize != 0;
    with_copies(230, args, if is_until { &pointers[..1] } else { pointers })
}

/// getrlimit, setrlimit and prlimit64 of what bounds memory: what the program sets counts for
/// blocks and mappings from then on, and is what it is told.
pub(super) fn memory_limit(number: usize, args: [usize; 6]) -> Touch<Done> {
    let sets = number == 160 || number == 302 && args[2] != 0;
    if sets {
        // The kernel may refuse every mapping from then on.
        taken::map_ahead();
        exec::map_ahead();
    }
    // What moves could not be opened again.
    let _blocked = Blocked::new();
    let _still = sets.then(moving::hold_still);
    if let Some(answer) = lifted::asked(number, args)? {
        return Ok(Done::With(answer));
    }
    let answer = match with_copies(number, args, table::plain(number).unwrap_or(&[]))? {
        Done::With(answer) => answer,
        Done::Asis => raw::syscall(number, args),
    };
    if sets && !failed(answer) {
        own_limits::look();
    }
    Ok(Done::With(answer))
}

/// prctl's request (since 5.11) to get the process's calls as signals: those of the engine
/// would be among them. It is told what older kernels say.
pub(super) fn dispatches_calls(args: [usize; 6]) -> bool {
    const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;
    args[0] == PR_SET_SYSCALL_USER_DISPATCH && args[1] != 0
}

/// The kernel's answer to a name for a page that nobody uses.
fn named(mut args: [usize; 6]) -> Answer {
    let Some(page) = bounce::map(PAGE_SIZE) else {
        return -(libc::ENOMEM as Answer);
    };
    args[2] = page + args[2] % PAGE_SIZE;
    args[3] = args[3].min(PAGE_SIZE);
    let answer = match with_copies(157, args, &[Pointer::Text(4)]) {
        Ok(Done::With(answer)) => answer,
        _ => raw::syscall(157, args),
    };
    bounce::unmap(page, PAGE_SIZE);
    answer
}

/// prctl's request about where the parts of a process are.
pub(super) const PR_SET_MM: usize = 35;

/// prctl: names and numbers; the rest in place.
pub(super) fn prctl(args: [usize; 6]) -> Touch<Done> {
    const PR_SET_VMA: usize = 0x5356_4d41;
    const PR_SET_SECCOMP: usize = 22;
    /// Of a thread, its NUL included.
    const NAME_BYTES: usize = 16;
    match args[0] {
        // The kernel looks at no more of a name than it takes.
        15 if ghost::is_ghost(args[1]) => {
            let bytes = guarded::string_bytes(args[1], NAME_BYTES)?;
            with_copies(157, args, &[Pointer::In(1, Length::Bytes(bytes))])
        }
        15 => Ok(Done::Asis),
        16 => with_copies(157, args, &[Pointer::Out(1, Length::Bytes(16))]),
        2 | 37 | 9 | 11 | 5 | 25 | 19 => {
            with_copies(157, args, &[Pointer::Out(1, Length::Bytes(4))])
        }
        // Naming our memory in /proc would split our mapping.
        PR_SET_VMA if ghost::is_ghost(args[2]) => Ok(Done::With(named(args))),
        PR_SET_SECCOMP => held::scanned(157, args, &[2]),
        PR_SET_MM => {
            let done = held::scanned(157, args, &[2])?;
            if done == Done::With(0) {
                hold_lines(args[1], args[2])?;
            }
            Ok(done)
        }
        _ => held::whole(157, args, &[1, 2, 3, 4]),
    }
}

/// Where the kernel finds the arguments and the environment of the process, of those that a
/// program has told it: beginning and end of each.
static LINES: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
/// Longer ones are not held.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Whoever reads `/proc/PID/cmdline`, or `environ`, reads the program's memory, where they
/// are by prctl(2)'s word (ps shows names that daemons give themselves).
fn hold_lines(option: usize, told: usize) -> Touch<()> {
    const ARG_START: usize = 8;
    const ENV_END: usize = 11;
    const MAP: usize = 14;
    /// In `struct prctl_mm_map`.
    const LINES_AT: usize = 7 * size_of::<usize>();
    match option {
        ARG_START..=ENV_END => LINES[option - ARG_START].store(told, Ordering::Relaxed),
        MAP => {
            let lines: [usize; 4] = load(told.wrapping_add(LINES_AT))?;
            for (place, line) in LINES.iter().zip(lines) {
                place.store(line, Ordering::Relaxed);
            }
        }
        _ => return Ok(()),
    }
    for line in LINES.chunks(2) {
        let [start, end] = [0, 1].map(|index| line[index].load(Ordering::Relaxed));
        if start < end && end - start <= LINE_BYTES_MAX && ghost::is_ghost(start) {
            // What cannot be had is read as nothing.
            let _stays = kept::stays(start, end - start, Way::Moved);
        }
    }
    Ok(())
}
