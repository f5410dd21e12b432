//! Programs that confine themselves: filters of system calls, and the strict mode.
//!
//! A filter that a program installs (prctl(2), seccomp(2)) knows nothing of the calls
//! that bring its pages back. So instructions of ours go in front of it: they let by
//! what comes from the engine's [doorway] and has one of the numbers, and one of the
//! kinds of arguments, that the engine needs. All else meets the program's filter as
//! it is, with every flag that was asked for:
//!
//! ```text
//!   number is one of ours? ── no ─────────────────────────► the program's filter
//!        yes, with arguments as ours? ── no ──────────────► the program's filter
//!             yes, from the doorway? ── no ───────────────► the program's filter
//!                  yes: allow
//! ```
//! The doorway is mapped at an address that all processes of one `ghostmem run`
//! share, chosen at random for it: filters outlive execve(2), and what a child needs
//! is let by as well.
//!
//! What a program gains by jumping to the doorway is argued in SAFETY.md.
//!
//! [doorway]: ghostmem_os::doorway

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use ghostmem::{Backend, Heap};
use ghostmem_os::doorway::{self, DOORWAY_BYTES, Doorway};
use ghostmem_os::{descriptor, machine, ranges, trial, uffd};

use crate::bounce::Lease;
use crate::calls::{Done, error};
use crate::front::{
    ARCHITECTURE_AT, EQUAL, Front, Instruction, Label, MOST, NUMBER_AT, REPORTS_MAX, RETURN, X86_64,
};
use crate::guarded::{self, Touch, load};
use crate::raw::{self, Answer, call, failed, own};
use crate::settings::Settings;
use crate::{begin, endings, ghost, lifted, objects, report, signals, start, stub};

/// Maps the doorway where this run has it. Called once, at start, before the engine
/// makes a call: a filter that came with exec may let by that place only.
pub(crate) fn prepare(settings: &Settings) {
    if settings.doorway != 0 {
        share(settings.doorway);
    }
}

/// Whether filters came with exec that the command did not have: they may end the process
/// for a call that only saves time.
pub(crate) fn came_with_exec(settings: &Settings) -> bool {
    own!(libc::SYS_prctl, libc::PR_GET_SECCOMP) != 0
        && (settings.filters.is_none() || machine::filters() != settings.filters)
}

/// Says whether filters are in force already, once: when the heap is made, or before
/// anything that a filter may end the process for. Filters that come later pass by
/// [`install`].
pub(crate) fn look() {
    static LOOKED: AtomicBool = AtomicBool::new(false);
    let Some(settings) = start::settings() else {
        return;
    };
    if LOOKED.swap(true, Ordering::Relaxed) {
        return;
    }
    let filters = machine::filters();
    let are_known = filters.is_some() && filters == settings.filters;
    if are_known {
        trial::all_is_known();
    }
    if !settings.spares {
        descriptor::hold_no_spares();
    }
    if !settings.calls_userfaultfd {
        uffd::avoid_call();
    }
    if !settings.vectored {
        ranges::drop_one_by_one();
    }
    // Under those that the command found it opened files and ran as ever; where they end
    // nobody for what they do not name (a container's), so does the engine. Without /proc
    // nobody can tell: then as if there were others.
    if filters != Some(0) && !(are_known && settings.answered) {
        doorway::confine();
    }
}

/// Maps the page of the doorway, out of this library's file, at `place`. Where that is
/// not possible the library's own page stays in use.
fn share(place: usize) {
    let Some(page) = doorway::page() else {
        return;
    };
    let Some(file) = objects::our_offset(page) else {
        return;
    };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let folder = libc::AT_FDCWD;
    let opened = call!(libc::SYS_openat, folder, objects::our_file(), flags, 0);
    if failed(opened) {
        return;
    }
    // Mapped with its rights from the start: no memory is ever writable and
    // executable, or becomes executable (PR_SET_MDWE).
    let access = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
    let mapped = call!(
        libc::SYS_mmap,
        place,
        DOORWAY_BYTES,
        access,
        flags,
        opened,
        file
    );
    let _closed = call!(libc::SYS_close, opened);
    if failed(mapped) {
        return;
    }
    // A kernel before 4.17 takes the address for a hint; and the file may be another
    // build's by now.
    if mapped as usize != place || !raw::is_same(place, page, DOORWAY_BYTES) {
        let _gone = call!(libc::SYS_munmap, mapped, DOORWAY_BYTES);
        return;
    }
    // SAFETY: the same bytes, executable, and never unmapped: the program's calls on
    // mappings reach us, and nobody else knows of this one.
    unsafe { doorway::move_to(place) };
}

/// `struct sock_fprog`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Program {
    count: u16,
    code: usize,
}

/// What the engine says goes here: descriptors that it may write to; -1: none.
static REPORTS: [AtomicI32; REPORTS_MAX] = [const { AtomicI32::new(-1) }; REPORTS_MAX];

/// Settles what cannot be done any more once a filter is in force. Whether signals were
/// watched until then.
fn settle() -> bool {
    for (place, file) in REPORTS.iter().zip(report::settle()) {
        place.store(file, Ordering::Relaxed);
    }
    lifted::end();
    doorway::confine();
    stub::look_at_all();
    signals::return_by_doorway();
    endings::let_be()
}

/// Whether a filter is in force, by the answer to the call that was to install it. With
/// `SECCOMP_FILTER_FLAG_TSYNC` a number above 0 is a thread's that has another filter, and
/// nothing was installed; with `SECCOMP_FILTER_FLAG_NEW_LISTENER` it is a descriptor.
fn is_installed(flags: usize, answer: Answer) -> bool {
    answer == 0 || (answer > 0 && flags as u64 & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0)
}

/// Installs the filter at `given`, with ours in front of it; `ask` makes the call, with these
/// flags of seccomp(2).
fn install(given: Program, flags: usize, ask: impl Fn(usize) -> Answer) -> Touch<Done> {
    let Some((settings, doorway)) = start::settings().zip(doorway::doorway()) else {
        return Ok(Done::Asis);
    };
    look();
    let was_watched = settle();
    let done = put_in_front(settings, doorway, given, ask);
    let is_in_force = matches!(done, Ok(Done::With(answer)) if is_installed(flags, answer));
    if was_watched && !is_in_force {
        endings::watch_again();
    }
    done
}

fn put_in_front(
    settings: &Settings,
    doorway: Doorway,
    given: Program,
    ask: impl Fn(usize) -> Answer,
) -> Touch<Done> {
    // A child of vfork(2) can have none made: the filter is for what it executes.
    let backend = ghost::heap().map_or_else(|| start::backend(settings), Heap::backend);
    let files = settings.spill.is_some() || !matches!(backend, Backend::Inline | Backend::Monitor);
    let reports = REPORTS.each_ref().map(|file| file.load(Ordering::Relaxed));
    let front = Front::new(doorway, files, backend == Backend::Monitor, reports);
    let count = front.len + usize::from(given.count);
    if count > MOST {
        raw::say(
            b"ghostmem: this program's system call filter has so many instructions that ours \
              cannot go in front of it: it cannot run on ghost memory\n",
        );
        own!(libc::SYS_exit_group, 126);
    }
    const EACH: usize = size_of::<Instruction>();
    let Some(mut lease) = Lease::new(MOST * EACH + 64) else {
        return Ok(error(libc::ENOMEM));
    };
    let Some(code) = lease.carve(count * EACH) else {
        return Ok(error(libc::ENOMEM));
    };
    raw::copy(code, front.code.as_ptr() as usize, front.len * EACH);
    let rest = usize::from(given.count) * EACH;
    guarded::copy(code + front.len * EACH, given.code, rest)?;
    let whole = Program {
        count: count as u16,
        code,
    };
    Ok(Done::With(ask((&raw const whole) as usize)))
}

/// What strict mode lets by (seccomp(2)), as a filter: the kernel's own takes none of
/// ours in front of it.
fn strict(ask: impl Fn(usize) -> Answer) -> Touch<Done> {
    const ALLOWED: [i64; 4] = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_exit,
        libc::SYS_rt_sigreturn,
    ];
    let mut filter = Front::empty();
    filter.load(ARCHITECTURE_AT);
    filter.only(X86_64);
    filter.load(NUMBER_AT);
    for number in ALLOWED {
        filter.put(EQUAL, number as u32, 0, 1);
        filter.put(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    }
    filter.land(Label::Program);
    filter.put(RETURN, libc::SECCOMP_RET_KILL_THREAD, 0, 0);
    // One who may make no other call gains no privileges.
    let _as_strict = call!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    let given = Program {
        count: filter.len as u16,
        code: filter.code.as_ptr() as usize,
    };
    install(given, 0, ask)
}

/// A filter as a program gives it; `None` for one that the kernel refuses at once.
fn given(at: usize) -> Touch<Option<Program>> {
    let given: Program = load(at)?;
    let count = usize::from(given.count);
    Ok((count > 0 && count <= MOST).then_some(given))
}

/// Whether the thread has a filter; it cannot change to strict mode then.
fn has_filter() -> bool {
    call!(libc::SYS_prctl, libc::PR_GET_SECCOMP, 0, 0, 0, 0) != 0
}

/// Whether a call installs a filter, and the filter can be read: before the heap is made
/// no handler of ours turns a bad address into an answer.
pub(crate) fn can_be_read(number: usize, args: [usize; 6]) -> bool {
    let [first, second, at, ..] = args;
    let installs = match number {
        157 => first == libc::PR_SET_SECCOMP as usize && second as u32 == libc::SECCOMP_MODE_FILTER,
        _ => first as u32 == libc::SECCOMP_SET_MODE_FILTER,
    };
    if !installs || !begin::is_readable(at) || !begin::is_readable(at.wrapping_add(8)) {
        return false;
    }
    let Program { count, code } = raw::load(at);
    let end = code.wrapping_add(usize::from(count) * size_of::<Instruction>());
    // Each page of it, and its end.
    let pages = (code..end).step_by(4096).chain([end.wrapping_sub(8)]);
    pages.into_iter().all(begin::is_readable)
}

/// prctl's PR_SET_SECCOMP.
pub(crate) fn prctl(args: [usize; 6]) -> Touch<Done> {
    let [option, mode, filter, ..] = args;
    match mode as u32 {
        libc::SECCOMP_MODE_FILTER => {
            let Some(given) = given(filter)? else {
                return Ok(error(libc::EINVAL));
            };
            install(given, 0, |whole| {
                raw::syscall(157, [option, mode, whole, 0, 0, 0])
            })
        }
        libc::SECCOMP_MODE_STRICT if !has_filter() => strict(|whole| {
            let mode = libc::SECCOMP_MODE_FILTER as usize;
            raw::syscall(157, [option, mode, whole, 0, 0, 0])
        }),
        _ => Ok(Done::Asis),
    }
}

/// seccomp.
pub(crate) fn seccomp(args: [usize; 6]) -> Touch<Option<Done>> {
    let [operation, flags, filter, ..] = args;
    match operation as u32 {
        libc::SECCOMP_SET_MODE_FILTER => {
            let Some(given) = given(filter)? else {
                return Ok(Some(error(libc::EINVAL)));
            };
            install(given, flags, |whole| {
                raw::syscall(317, [operation, flags, whole, 0, 0, 0])
            })
            .map(Some)
        }
        libc::SECCOMP_SET_MODE_STRICT if flags == 0 && filter == 0 && !has_filter() => {
            strict(|whole| {
                let operation = libc::SECCOMP_SET_MODE_FILTER as usize;
                raw::syscall(317, [operation, 0, whole, 0, 0, 0])
            })
            .map(Some)
        }
        _ => Ok(None),
    }
}
