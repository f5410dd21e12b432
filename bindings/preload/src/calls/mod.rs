//! The program's system calls that concern ghost memory.
//!
//! The patched places of libc (see [`crate::patch`]) jump to [`entry`] with
//! the registers as the kernel would get them. [`hook`] makes the call in the
//! program's name, with ordinary memory in place of ghost buffers, or lets it
//! happen as it is. Calls of the engine's own threads and code pass untouched.
//!
//! This runs wherever the program makes system calls: in signal handlers, on
//! small stacks, between vfork and exec. It allocates nothing from any heap,
//! takes no lock, and keeps its locals small.

mod buffers;
mod copied;
mod copies;
mod data;
mod entry;
mod exec;
mod held;
mod kept;
mod many;
mod memory;
mod messages;
mod misc;
mod ourselves;
mod parts;
pub(crate) mod protect;
mod sets;
mod single;
mod socket;
mod spawn;
pub(crate) mod table;
mod target;

use core::sync::atomic::AtomicU64;

use ghostmem_os::doorway;

use crate::guarded::{BadAddress, Touch, load};
use crate::raw::{self, Answer};
use crate::{
    begin, confine, descriptors, ghost, lifted, objects, own_limits, raised, signals, taken,
    thread, threads, tree,
};
pub(crate) use buffers::VECTORS_MAX;
use copies::length_of;
pub(crate) use copies::{load_if, store_if, with_copies};
pub(crate) use entry::entry_address;
use table::{Pointer, Treatment};

/// A system call as it arrived. The order of the fields is known to [`entry`].
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) number: usize,
    pub(crate) args: [usize; 6],
    resume: usize,
    /// The stack pointer at the call.
    stack: usize,
    /// Another stack pointer to go on with; 0: the same.
    pub(crate) other_stack: usize,
    /// The vector registers.
    vectors: [u64; 32],
}

impl Call {
    /// Has the thread go on in a function, on the stack below the place of the call, as though
    /// that had called it. The call counts as made.
    fn go_on_in(&mut self, function: extern "C" fn() -> !) {
        // What the ABI lets a leaf use below its stack pointer.
        const RED_ZONE: usize = 128;
        self.resume = function as usize;
        let frame = ((self.stack - RED_ZONE) & !15) - size_of::<usize>();
        // SAFETY: on the thread's stack, below what the caller may use; of `entry`'s frame it is
        // a register that nobody needs any more. Whoever unwinds the stack is to end there.
        unsafe { (frame as *mut usize).write(0) };
        self.other_stack = frame;
    }
}

/// What [`entry`] makes room for.
#[repr(C)]
struct Frame {
    call: Call,
    /// What tells whether this call is going on: see [`crate::bounce::left`].
    mark: AtomicU64,
}

const _: () = assert!(core::mem::offset_of!(Frame, mark) == 336);

/// The thread is in a call while this is there. The mark of a call that is over is none: what
/// is on its place since then is not to be written to, even if the call was unwound.
struct InCall {
    thread: &'static thread::Thread,
    outer: usize,
}

impl InCall {
    fn new(mark: *const AtomicU64) -> Self {
        let thread = thread::current();
        let outer = thread.call.replace(mark.expose_provenance());
        Self { thread, outer }
    }
}

impl Drop for InCall {
    fn drop(&mut self) {
        self.thread.call.set(self.outer);
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Let it happen, in its place.
    Asis,
    /// It was made: this is the answer.
    With(Answer),
}

/// A negative errno.
pub(crate) const fn error(errno: i32) -> Done {
    Done::With(-(errno as isize))
}

/// Decides about one call; 1 when `number` holds the answer.
///
/// Unwinds where the program's thread is cancelled in a blocking call.
extern "C-unwind" fn hook(frame: *mut Frame) -> u32 {
    // SAFETY: `entry`'s frame, which is there until this returns; no reference is made to it.
    let mark = unsafe { &raw const (*frame).mark };
    let inside = InCall::new(mark);
    // SAFETY: the same, filled; nobody else knows of the call, which the mark is no part of.
    decide(inside.thread, unsafe { &mut (*frame).call })
}

fn decide(thread: &'static thread::Thread, call: &mut Call) -> u32 {
    if matches!(call.number, 14 | table::LEAVES) && threads::leaves(thread, call.number, call.args)
    {
        call.go_on_in(threads::end_process);
        return 1;
    }
    if call.number == table::LEAVES {
        return 0;
    }
    let is_own = is_from_us(call) || is_from_libc(call);
    if !ghost::is_on() && (is_own || !begin::at_call(call.number, call.args)) {
        let done = before_the_heap(thread, call).unwrap_or(Done::Asis);
        return answer(call, done);
    }
    let is_inside = thread.inside.get() != 0 && !thread::is_guest(thread);
    let done = if !is_inside || is_of_a_handler(call) {
        if is_inside && unmaps(call.number) {
            // The block's lock may be this thread's.
            return answer(call, error(libc::ENOMEM));
        }
        handle(call).unwrap_or_else(|BadAddress| error(libc::EFAULT))
    } else if matches!(call.number, 56 | 57) && thread.forking.get() != 0 {
        spawn::fork(call.number, call.args)
    } else if call.number == 13 {
        signals::engine_action(call.args).map_or_else(|| engine_made(call), Done::With)
    } else if call.number == 14 {
        signals::engine_mask(call.args).map_or_else(|| engine_made(call), Done::With)
    } else {
        engine_made(call)
    };
    answer(call, done)
}

/// Whether a call that comes in the midst of engine code is the program's nevertheless: of a
/// handler of its own, for a signal that came in the midst of malloc or free. The engine has
/// no buffers in ghost memory, no handlers but those of our code, and executes nothing.
fn is_of_a_handler(call: &Call) -> bool {
    if thread::current().forking.get() != 0 || is_from_us(call) {
        return false;
    }
    match call.number {
        13 => signals::is_programs(call.args),
        // Calls that the engine makes none of.
        46 | 47 | 59 | 299 | 307 | 322 => true,
        57 => ghost::is_on(),
        // The engine makes threads, and no processes once there is a heap.
        table::CLONE => ghost::is_on() && call.args[0] & libc::CLONE_VM as usize == 0,
        table::CLONE3 => {
            let flags = load::<usize>(call.args[0]);
            ghost::is_on() && flags.is_ok_and(|flags| flags & libc::CLONE_VM as usize == 0)
        }
        19 | 20 | 295 | 296 | 327 | 328 => {
            let [_, list, count, ..] = call.args;
            let mut words =
                (0..count.min(buffers::VECTORS_MAX)).map(|index| list.wrapping_add(index * 16));
            ghost::is_ghost(list)
                || words.any(|place| load(place).is_ok_and(|base: usize| ghost::is_ghost(base)))
        }
        number => {
            table::pointers(number).any(|argument| ghost::is_ghost(call.args[argument]))
                || table::plain(number).is_some_and(|pointers| {
                    let mut arguments = pointers.iter().map(|pointer| pointer.argument());
                    arguments.any(|argument| ghost::is_ghost(call.args[argument]))
                })
        }
    }
}

/// munmap and mremap.
const fn unmaps(number: usize) -> bool {
    matches!(number, 11 | 25)
}

/// What `hook` says of a call.
fn answer(call: &mut Call, done: Done) -> u32 {
    match done {
        Done::Asis => 0,
        Done::With(answer) => {
            call.number = answer as usize;
            1
        }
    }
}

/// A call of a process that waits for its heap: nothing is ghost memory, but what it
/// starts may be no program for us, and one descriptor may be the engine's.
fn before_the_heap(thread: &thread::Thread, call: &mut Call) -> Touch<Done> {
    if !begin::is_waiting() || thread.inside.get() != 0 {
        return Ok(Done::Asis);
    }
    let (number, args) = (call.number, call.args);
    let shares = libc::CLONE_VM as usize;
    match number {
        table::CLONE if args[0] & shares != 0 => Ok(Done::Asis),
        table::CLONE | 57 => spawn::raw_fork(call),
        table::CLONE3 if begin::is_readable(args[0]) && load::<usize>(args[0])? & shares == 0 => {
            spawn::raw_fork(call)
        }
        157 if misc::dispatches_calls(args) => Ok(error(libc::EINVAL)),
        157 if confine::can_be_read(number, args) => confine::prctl(args),
        317 if confine::can_be_read(number, args) => {
            Ok(confine::seccomp(args)?.unwrap_or(Done::Asis))
        }
        59 if exec::can_be_read(args, 0) => exec::execve(args, None),
        322 if exec::can_be_read(args, 1) => exec::execve(args, Some(())),
        // The page of all processes came with the program.
        78 | 217 if tree::page().is_some() => descriptors::list(number, args),
        // The table of descriptors is as large as that of the command was.
        23 | 270 => Ok(sets::before_the_heap(number, args)),
        // What a message carries cannot be looked at yet.
        46 => Ok(Done::Asis),
        _ if tree::page().is_some() => {
            Ok(descriptors::by_number(number, args).unwrap_or(Done::Asis))
        }
        _ => Ok(Done::Asis),
    }
}

/// Memory calls that the engine makes, through libc functions that are nothing
/// but the system call: their return address is on top of the stack. The
/// engine's calls are marked by the thread's state almost always; what is left
/// is what the small-object allocator maps when the library is loaded, and gives back
/// when threads and the process end.
fn is_from_us(call: &Call) -> bool {
    matches!(call.number, table::MMAP | 10 | 11 | 28 | 440)
        && objects::is_ours(raw::load(call.stack))
}

/// Memory that libc maps for itself: for the arenas of its own malloc, whose blocks go
/// back there, for stacks, for objects that it loads.
fn is_from_libc(call: &Call) -> bool {
    call.number == table::MMAP && objects::is_libcs(raw::load(call.stack))
}

/// A call that engine code makes through libc: where the program has a filter, which
/// may forbid it to libc, by the engine's own doorway. Those that make threads, or
/// children, go on where they are made.
fn engine_made(call: &Call) -> Done {
    let makes_another = matches!(call.number, 56..=58 | table::CLONE3);
    if doorway::is_confined() && !makes_another {
        Done::With(raw::engine_call(call.number, call.args))
    } else {
        Done::Asis
    }
}

fn handle(call: &mut Call) -> Touch<Done> {
    let (number, args) = (call.number, call.args);
    if is_from_us(call) {
        return Ok(engine_made(call));
    }
    match number {
        157 if args[0] == libc::PR_SET_SECCOMP as usize => return confine::prctl(args),
        157 if misc::dispatches_calls(args) => return Ok(error(libc::EINVAL)),
        317 => {
            if let Some(done) = confine::seccomp(args)? {
                return Ok(done);
            }
        }
        13 => return signals::action(args),
        14 => return signals::mask(args),
        127 => return signals::pending(args),
        128 => return signals::wait(args),
        131 => return signals::stack(args),
        130 => return misc::suspend(args),
        297 => {
            if let Some(done) = signals::sent::queue(args)? {
                return Ok(done);
            }
        }
        23 => return sets::select(args),
        270 => return sets::pselect(args),
        7 => {
            let make = |list| raw::syscall(number, [list, args[1], args[2], 0, 0, 0]);
            if let Some(done) = descriptors::polled(args[0], args[1], make)? {
                return Ok(done);
            }
        }
        271 => return misc::ppoll(args),
        281 | 441 => return misc::masked_wait(number, args),
        table::CLONE | 57 | table::CLONE3 => return spawn::raw_fork(call),
        59 => return exec::execve(args, None),
        322 => return exec::execve(args, Some(())),
        272 | 308 => return single::namespaces(number, args),
        78 | 217 => return descriptors::list(number, args),
        101 if args[0] == exec::PTRACE_TRACEME => return Ok(exec::trace_me()),
        302 => {
            if let Some(told) = raised::asked(args)? {
                return Ok(told);
            }
        }
        307 => {
            let [file, list, count, flags, ..] = args;
            match descriptors::sent_before_ours(list, count) {
                0 if count > 0 => return Ok(error(libc::EBADF)),
                before if before < count => return sent_in_part([file, list, before, flags, 0, 0]),
                _ => {}
            }
        }
        _ => {}
    }
    // The kernel looks at numbers before it looks at addresses.
    if let Some(done) = descriptors::by_number(number, args) {
        return Ok(done);
    }
    if matches!(number, 16 | 54 | 209 | 427)
        && let Some(refused) = kept::settle(number, args)
    {
        return Ok(refused);
    }
    if !kernel_is_blind() && points_to_a_hole(number, args)? {
        // A change by another thread may have been seen half done.
        taken::wait_for_change();
        if points_to_a_hole(number, args)? {
            return Ok(match number {
                0 | 1 | 17 | 18 | 44 | 45 => data::on_nothing(number, args),
                _ => error(libc::EFAULT),
            });
        }
    }
    if matches!(number, 17 | 18 | 440)
        && let Some(done) = ourselves::asked(number, args)?
    {
        return Ok(done);
    }
    if own_limits::any()
        && let Some(refused) = own_limits::refused(number, args, is_from_libc(call))
    {
        return Ok(refused);
    }
    let done = match number {
        231 => {
            crate::report::at_exit();
            Done::Asis
        }
        60 => {
            if threads::ends_the_process() {
                crate::report::at_exit();
                return Ok(Done::With(raw::engine_call(231, args)));
            }
            Done::Asis
        }
        // Of the program's own numbers.
        3 | 33 | 292 | 436 => Done::Asis,
        9 if is_from_libc(call) => own_limits::map_for_libc(args),
        9 => crate::mappings::map(args),
        table::BRK => crate::mappings::move_break(args),
        27 if memory::is_unmapped(args) => error(libc::ENOMEM),
        97 | 160 | 302 if lifted::is_one(args[usize::from(number == 302)]) => {
            return misc::memory_limit(number, args);
        }
        151 => memory::lock_all(args[0]),
        152 => memory::unlock_all(),
        30 => memory::attach(args),
        67 => memory::detach(args[0]),
        10 | 11 | 25 | 26 | 28 | 149 | 150 | 237 | 325 | 329 | 450 | 462 => {
            memory::advised(number, args)
        }
        0 | 17 | 19 | 295 | 327 if !kernel_is_blind() => return data::sighted(number, args),
        // Drivers have devices write by themselves, too.
        16 if !kernel_is_blind() => return held::scanned(number, args, &[2]),
        // There it does not wait for a page: where one is, words that it changes itself.
        202 if !kernel_is_blind() => return misc::futex(args),
        279 if !kernel_is_blind() => return held::scanned(number, args, &[2]),
        157 if !kernel_is_blind() && args[0] == misc::PR_SET_MM => return misc::prctl(args),
        // Nor when a thread ends.
        218 | 273 if !kernel_is_blind() => return held::for_good(number, args),
        310 | 311 if !kernel_is_blind() => ourselves::copied(number, args)?.unwrap_or(Done::Asis),
        _ if !kernel_is_blind() => Done::Asis,
        // What the kernel does on its own cannot be given stand-ins. Programs that
        // can do without are told what older kernels tell them.
        table::URING_SETUP | table::IO_SETUP => error(libc::ENOSYS),
        _ => return with_pointers(number, args),
    };
    Ok(done)
}

/// sendmmsg of fewer messages than the program asks for.
fn sent_in_part(args: [usize; 6]) -> Touch<Done> {
    const SENDMMSG: usize = 307;
    if let Some(done) = descriptors::by_number(SENDMMSG, args) {
        return Ok(done);
    }
    let done = match kernel_is_blind() {
        true => many::many(SENDMMSG, args)?,
        false => Done::Asis,
    };
    Ok(match done {
        Done::Asis => Done::With(raw::syscall(SENDMMSG, args)),
        done => done,
    })
}

/// Whether an argument points to ghost memory that is not the program's. The kernel would
/// wait for such a page, and the fault monitor cannot tell it that there is none.
fn points_to_a_hole(number: usize, args: [usize; 6]) -> Touch<bool> {
    let is_hole = |argument: usize| {
        ghost::owner(args[argument]).is_some_and(|heap| heap.hole_at(args[argument]).is_some())
    };
    let pointers = match table::treatment(number) {
        Some(Treatment::Held(arguments) | Treatment::HeldDeep(arguments)) => {
            return Ok(arguments.iter().any(|&argument| is_hole(argument)));
        }
        Some(Treatment::Copied(_)) => table::used(number, args),
        // Those with rules that are about something else.
        _ if matches!(number, 7 | 27 | 160 | 297 | 302) || !table::files(number).is_empty() => {
            table::used(number, args)
        }
        _ => &[],
    };
    if matches!(number, 0 | 1 | 17 | 18 | 44 | 45) && args[2] > 0 && is_hole(1) {
        return Ok(true);
    }
    for &pointer in pointers {
        let argument = pointer.argument();
        let is_used = matches!(pointer, Pointer::Text(_)) || length_of(pointer, args) != Ok(0);
        if is_used && is_hole(argument) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Requests without a size in their number, of the terminals' kind (FIONREAD and
/// FIONBIO among them): structures of theirs do not point on. They are made often.
fn is_of_terminals(args: [usize; 6]) -> bool {
    args[1] & 0xffff_ff00 == 0x5400
}

/// A call where the kernel fails on absent pages.
fn with_pointers(number: usize, args: [usize; 6]) -> Touch<Done> {
    match number {
        0 | 1 | 17 | 18 => data::plain(number, args),
        19 | 20 | 295 | 296 | 327 | 328 => data::vectored(number, args),
        278 => data::spliced(args),
        310 | 311 => data::other_memory(number, args),
        44 | 45 => messages::addressed(number, args),
        46 | 47 => messages::message(number, args),
        299 | 307 => many::many(number, args),
        70 => misc::queue_receive(args),
        16 if is_of_terminals(args) && !ghost::is_ghost(args[2]) => Ok(Done::Asis),
        16 => held::scanned(number, args, &[2]),
        54 => misc::set_option(args),
        55 => held::scanned(number, args, &[3, 4]),
        72 => misc::fcntl(args),
        157 => misc::prctl(args),
        202 => misc::futex(args),
        230 => misc::sleep(args),
        247 => misc::wait_for_child(args),
        449 => misc::futex_wait_any(args),
        454..=456 => misc::futex_word(number, args),
        218 | 273 | 334 => held::for_good(number, args),
        // Only these three of syslog's requests use their buffer.
        103 if !matches!(args[0], 2..=4) => Ok(Done::Asis),
        _ => match table::treatment(number) {
            Some(Treatment::Held(arguments)) => held::whole(number, args, arguments),
            Some(Treatment::HeldDeep(arguments)) => held::scanned(number, args, arguments),
            None => held::scanned(number, args, &[0, 1, 2, 3, 4, 5]),
            // Copied, or looked at for another reason.
            Some(_) => with_copies(number, args, table::used(number, args)),
        },
    }
}

/// Whether system calls cannot wait for absent pages here.
fn kernel_is_blind() -> bool {
    crate::start::kernel_is_blind()
}
