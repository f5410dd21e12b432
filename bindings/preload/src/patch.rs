//! Gets between libc's code and the kernel.
//!
//! A kernel access to an absent page does not raise a signal, it fails with
//! EFAULT. Interposing `read` and its kin is not enough: stdio, getaddrinfo,
//! opendir and the thread library make their system calls inside libc, where
//! no symbol is looked up. So the instructions themselves are redirected, at
//! start, while there is one thread:
//!
//! ```text
//!   libc                          stub (one per place, near libc)
//!   ...                           mov eax, 1          the moved instructions
//!   jmp stub  ──────────────────► is an argument ghost?
//!   syscall   ◄────────────────── no: go on where we were
//!   cmp rax, -4095   ◄──┐         yes: enter ──► calls::hook
//!   ...                 └───────────────────────────┘ result in rax
//! ```
//! * Only instructions in front of the system call move; it stays where it is
//!   and runs there, so that unwinding, thread cancellation and debuggers find
//!   what they know. Where the instructions in front cannot move, those
//!   behind do, and the stub makes the call.
//! * What moves is whole instructions of one straight line: a decoder
//!   (iced-x86) reads the function from its start, and no branch of the object
//!   may lead into the middle.
//! * The test in the stub costs about a nanosecond.

use std::collections::HashSet;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use crate::calls::table;
use crate::objects::{Text, texts};
use crate::stub::{Area, Detour, ENTRY_AT, JUMP, Stub, write_jumps};

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Report {
    /// Places redirected.
    pub(crate) patched: usize,
    /// Places that matter and could not be.
    pub(crate) left: usize,
    /// The system call of fork(3) is among those redirected.
    pub(crate) forks: bool,
    /// mmap is among them.
    maps: bool,
}

/// Redirects the system calls of glibc's objects; mmap too when `maps`.
pub(crate) fn install(maps: bool) -> Report {
    let mut report = Report {
        maps,
        ..Report::default()
    };
    for text in texts() {
        patch_object(&text, &mut report);
    }
    report
}

/// Bytes of a system call instruction.
const CALL: usize = 2;

/// One system call instruction, and how to redirect it.
#[derive(Debug)]
pub(crate) struct Place {
    /// Where the jump goes, and how many bytes of instructions it replaces.
    pub(crate) window: usize,
    pub(crate) window_bytes: usize,
    pub(crate) moved: Vec<Instruction>,
    /// The system call instruction.
    pub(crate) call: usize,
    /// The call's number, when the code says it.
    number: Option<usize>,
    /// Where its function starts.
    function: usize,
}

impl Place {
    /// The first byte behind what the jump replaces.
    fn end(&self) -> usize {
        self.window + self.window_bytes
    }

    /// The system call is the first of the moved instructions.
    fn moves_the_call(&self) -> bool {
        self.window == self.call
    }
}

fn patch_object(text: &Text, report: &mut Report) {
    let places = find(code_of(text), text.start, &text.functions, report);
    if places.is_empty() {
        return;
    }
    let Some(area) = Area::near(text) else {
        report.left += places.len();
        return;
    };
    area.set(ENTRY_AT, crate::calls::entry_address());
    let mut cursor = area.first();
    let (mut jumps, mut detours) = (Vec::new(), Vec::new());
    for place in &places {
        match write_stub(place, &area, cursor) {
            Some(end) if end < area.end() => {
                jumps.push(place);
                detours.push(Detour {
                    window: place.window,
                    window_bytes: place.window_bytes,
                    stub: cursor,
                });
                cursor = end.next_multiple_of(16);
            }
            _ => report.left += 1,
        }
    }
    if !area.seal() || !write_jumps(text, &detours) {
        report.left += jumps.len();
        return;
    }
    report.patched += jumps.len();
    // Since glibc 2.34 the call is in a function of its own.
    let forks = [c"_Fork", c"fork"].map(crate::start::next);
    report.forks |= jumps
        .iter()
        .any(|place| place.number == Some(table::CLONE) && forks.contains(&place.function));
}

/// The places in an object's code, which is at `base`, that can be redirected.
pub(crate) fn find(
    code: &[u8],
    base: usize,
    functions: &[usize],
    report: &mut Report,
) -> Vec<Place> {
    let mut places = Vec::new();
    let mut seen = HashSet::new();
    for at in memory_find(code) {
        let address = base + at;
        let index = functions.partition_point(|&start| start <= address);
        let Some(start) = index.checked_sub(1).map(|index| functions[index]) else {
            continue;
        };
        if !seen.insert(start) {
            continue;
        }
        let end = functions.get(index).copied().unwrap_or(usize::MAX);
        let end = end.min(base + code.len());
        if let Some(function) = code.get(start.wrapping_sub(base)..end - base) {
            find_places(function, start, &mut places, report);
        }
    }
    drop_entered(code, base, &mut places, report);
    places
}

pub(crate) fn code_of(text: &Text) -> &'static [u8] {
    // SAFETY: a loaded, readable segment of libc, which is never unloaded; it
    // is written only after the last use of this slice.
    unsafe { core::slice::from_raw_parts(text.start as *const u8, text.bytes) }
}

/// Where the bytes of a system call instruction stand.
fn memory_find(code: &[u8]) -> Vec<usize> {
    let pairs = code.windows(2).enumerate();
    pairs
        .filter(|(_, pair)| *pair == [0x0f, 0x05])
        .map(|(at, _)| at)
        .collect()
}

/// Decodes one function and adds the system calls in it that matter.
fn find_places(code: &[u8], start: usize, places: &mut Vec<Place>, report: &mut Report) {
    let decoder = Decoder::with_ip(64, code, start as u64, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.into_iter().collect();
    // glibc lets the table entry of its signal trampoline begin a byte before
    // the code (for unwinders that look one byte back), so its instructions
    // come out wrong here. Returning from a signal is not for us anyway.
    const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    if code
        .windows(SIGRETURN.len())
        .any(|bytes| bytes == SIGRETURN)
    {
        return;
    }
    let targets: HashSet<usize> = instructions.iter().filter_map(target).collect();
    for (index, instruction) in instructions.iter().enumerate() {
        if instruction.code() != Code::Syscall {
            continue;
        }
        let number = number_before(&instructions[..index], instruction.ip() as usize, &targets);
        if number.is_some_and(|number| !table::matters(number, report.maps)) {
            continue;
        }
        let call = instruction.ip() as usize;
        // A prefix means nothing, but the stub counts on two bytes.
        if instruction.len() != CALL {
            report.left += 1;
            continue;
        }
        // What moved for the call before cannot move again: its bytes are a jump.
        let free_from = places.last().map_or(0, Place::end);
        let place = window_before(&instructions[..index], call, &targets)
            .filter(|place| place.window >= free_from)
            .or_else(|| window_behind(&instructions[index..], &targets));
        match place {
            Some(place) => places.push(Place {
                number,
                function: start,
                ..place
            }),
            None if never_returns(&instructions, index) => {}
            None => report.left += 1,
        }
    }
}

/// Whether a system call stands in a loop without a way out: how glibc ends a
/// thread, by exit(2) with 0, again and again until it is gone. That takes no
/// pointer, and no other call is made so.
fn never_returns(instructions: &[Instruction], index: usize) -> bool {
    let Some(back) = instructions.get(index + 1) else {
        return false;
    };
    let again = (back.flow_control() == FlowControl::UnconditionalBranch)
        .then(|| target(back))
        .flatten();
    let Some(again) = again else {
        return false;
    };
    let body = instructions[..index]
        .iter()
        .rev()
        .take_while(|instruction| instruction.ip() as usize >= again);
    let mut zero = false;
    let mut count = 0;
    for instruction in body {
        count += 1;
        if instruction.flow_control() != FlowControl::Next {
            return false;
        }
        zero |= matches!(instruction.code(), Code::Xor_rm32_r32 | Code::Xor_r32_rm32)
            && instruction.op0_register() == Register::EDI
            && instruction.op1_register() == Register::EDI;
    }
    zero && count <= 4
}

/// Where a direct branch leads.
pub(crate) fn target(instruction: &Instruction) -> Option<usize> {
    (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch64() as usize)
}

/// The number that the code loads just before a system call.
fn number_before(before: &[Instruction], call: usize, targets: &HashSet<usize>) -> Option<usize> {
    let mut after = call;
    for instruction in before.iter().rev().take(8) {
        // A branch that leads in here may bring another number.
        if targets.contains(&after) || target(instruction).is_some() {
            return None;
        }
        after = instruction.ip() as usize;
        if instruction.op_count() > 0 && instruction.op0_register() == Register::EAX {
            return match instruction.code() {
                Code::Mov_r32_imm32 => Some(instruction.immediate32() as usize),
                Code::Xor_rm32_r32 | Code::Xor_r32_rm32
                    if instruction.op1_kind() == OpKind::Register
                        && instruction.op1_register() == Register::EAX =>
                {
                    Some(0)
                }
                _ => None,
            };
        }
        if instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().full_register() == Register::RAX
        {
            return None;
        }
    }
    None
}

/// Instructions in front of a system call that can move: enough bytes for a
/// jump, in a straight line that is only entered at its start.
fn window_before(before: &[Instruction], call: usize, targets: &HashSet<usize>) -> Option<Place> {
    let mut first = before.len();
    let mut start = call;
    while call - start < JUMP {
        // Whoever jumps to what follows would land in our jump.
        if targets.contains(&start) {
            return None;
        }
        first = first.checked_sub(1)?;
        let instruction = before.get(first)?;
        if !moves(instruction) {
            return None;
        }
        start = instruction.ip() as usize;
    }
    Some(Place {
        window: start,
        window_bytes: call - start,
        moved: before[first..].to_vec(),
        call,
        number: None,
        function: 0,
    })
}

/// The system call and instructions behind it.
fn window_behind(from: &[Instruction], targets: &HashSet<usize>) -> Option<Place> {
    let call = from.first()?.ip() as usize;
    let mut end = call;
    let mut count = 0;
    while end - call < JUMP {
        let instruction = from.get(count)?;
        if count > 0 && (targets.contains(&end) || !moves(instruction)) {
            return None;
        }
        end = instruction.next_ip() as usize;
        count += 1;
    }
    Some(Place {
        window: call,
        window_bytes: end - call,
        moved: from[..count].to_vec(),
        call,
        number: None,
        function: 0,
    })
}

/// Whether an instruction means the same elsewhere and goes on to the next.
fn moves(instruction: &Instruction) -> bool {
    instruction.code() != Code::Syscall && instruction.flow_control() == FlowControl::Next
}

/// Gives up places that a branch from another function leads into: parts of a
/// function that the compiler moved away are functions of their own in the
/// unwinding table. Only long branches reach that far; any bytes that look
/// like one count.
fn drop_entered(code: &[u8], base: usize, places: &mut Vec<Place>, report: &mut Report) {
    let inside = |place: &Place| {
        let end = (place.window + place.window_bytes).max(place.call + 1);
        place.window + 1..end
    };
    let inner = places.iter().flat_map(inside).collect();
    let entered = entered(code, base, &inner);
    places.retain(|place| {
        let kept = !inside(place).any(|address| entered.contains(&address));
        report.left += usize::from(!kept);
        kept
    });
}

/// Which of some addresses the long branches in an object's code may lead to.
pub(crate) fn entered(code: &[u8], base: usize, inner: &HashSet<usize>) -> HashSet<usize> {
    let mut entered = HashSet::new();
    for (at, bytes) in code.windows(6).enumerate() {
        let operand = match bytes[..2] {
            [0xe9, _] => 1,
            [0x0f, second] if second & 0xf0 == 0x80 => 2,
            _ => continue,
        };
        let mut distance = [0; 4];
        distance.copy_from_slice(&bytes[operand..operand + 4]);
        let next = base + at + operand + 4;
        let target = next.wrapping_add_signed(i32::from_le_bytes(distance) as isize);
        if inner.contains(&target) {
            entered.insert(target);
        }
    }
    entered
}

/// Writes the stub of one place at `at`; where it ends.
fn write_stub(place: &Place, area: &Area, at: usize) -> Option<usize> {
    let mut stub = Stub::new(area, at);
    let (front, behind): (&[Instruction], &[Instruction]) = if place.moves_the_call() {
        (&[], &place.moved[1..])
    } else {
        (&place.moved, &[])
    };
    stub.relocate(front)?;
    let mut to_slow = Vec::new();
    let always = place.number.is_none_or(table::always);
    if !always {
        for argument in table::pointers(place.number?) {
            stub.test(argument);
            to_slow.push(stub.jump_below());
        }
    }
    if always {
        to_slow.push(stub.jump());
    }
    let in_place;
    if place.moves_the_call() {
        in_place = stub.here();
        stub.put(&[0x0f, 0x05]);
        stub.relocate(behind)?;
        stub.jump_to(place.window + place.window_bytes)?;
    } else {
        in_place = place.call;
        if !always {
            stub.jump_to(place.call)?;
        }
    }
    for jump in to_slow {
        stub.land(jump)?;
    }
    // rcx: the address after the system call; it and r11 are the kernel's to
    // change, so they are ours.
    stub.put(&[0x48, 0xb9]);
    stub.put(&(in_place + CALL).to_le_bytes());
    stub.jump_by(ENTRY_AT)?;
    Some(stub.write())
}
