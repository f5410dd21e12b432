//! The window of a system call: the instructions beside it that a jump can take the place
//! of, as they mean the same elsewhere.

use core::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Register};

use crate::patch::Function;
use crate::stub::JUMP;

/// Most distances of a window: instructions that have one take six bytes and more.
pub(crate) const DISTANCES_MAX: usize = 3;

/// Instructions in front of a system call that can move: enough bytes for a
/// jump, in a straight line that is only entered at its start.
pub(crate) fn window_before(
    before: &[Instruction],
    call: usize,
    function: &Function,
) -> Option<Range<usize>> {
    // Whoever jumps to the call would pass our jump by.
    if function.leads_to(call) {
        return None;
    }
    window_in_front(before, call, function)
}

/// The same, in front of a place that is jumped to as well: the head of a loop.
pub(crate) fn window_in_front(
    before: &[Instruction],
    place: usize,
    function: &Function,
) -> Option<Range<usize>> {
    let mut first = before.len();
    let mut start = place;
    while place - start < JUMP {
        // Whoever jumps to what follows would land in our jump.
        if start < place && function.leads_to(start) {
            return None;
        }
        first = first.checked_sub(1)?;
        let instruction = before.get(first)?;
        if !moves(instruction) {
            return None;
        }
        start = instruction.ip() as usize;
    }
    Some(start..place)
}

/// The system call and instructions behind it.
pub(crate) fn window_behind(from: &[Instruction], function: &Function) -> Option<Range<usize>> {
    let call = from.first()?.ip() as usize;
    let mut end = call;
    let mut count = 0;
    while end - call < JUMP {
        let instruction = from.get(count)?;
        if count > 0 && (function.leads_to(end) || !moves(instruction)) {
            return None;
        }
        end = instruction.next_ip() as usize;
        count += 1;
    }
    Some(call..end)
}

/// Whether an instruction means the same elsewhere, once its distance is mended, and
/// goes on to the next.
fn moves(instruction: &Instruction) -> bool {
    instruction.code() != Code::Syscall
        && instruction.flow_control() == FlowControl::Next
        && instruction.memory_base() != Register::EIP
}

/// Where in a window of a function's code the distances stand that count from where
/// they are.
pub(crate) fn distances(
    code: &[u8],
    function: &Function,
    window: &Range<usize>,
) -> Option<[u8; DISTANCES_MAX]> {
    let mut found = [0; DISTANCES_MAX];
    let mut sites = found.iter_mut();
    let within = |instruction: &&Instruction| window.contains(&(instruction.ip() as usize));
    for instruction in function.instructions.iter().filter(within) {
        if !instruction.is_ip_rel_memory_operand() {
            continue;
        }
        let start = instruction.ip() as usize;
        let bytes = code.get(start - function.start..)?;
        let mut decoder = Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE);
        let again = decoder.decode();
        let offsets = decoder.get_constant_offsets(&again);
        if offsets.displacement_size() != 4 {
            return None;
        }
        let site = start - window.start + offsets.displacement_offset();
        *sites.next()? = u8::try_from(site).ok()?;
    }
    Some(found)
}
