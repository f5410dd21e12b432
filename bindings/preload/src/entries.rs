//! Leads libc's own `free`, `realloc` and `malloc_usable_size` here.
//!
//! Not everybody finds ours: a library opened with `RTLD_DEEPBIND`, as PHP and
//! Apache open their modules, looks into libc first, and so does whoever asks
//! dlsym(3) for libc's functions. Such code may be handed a block of ours. So
//! the functions themselves begin with a look at their argument:
//!
//! ```text
//!   libc's free            stub
//!   jmp stub ────────────► may the block be ghost? yes: our `free`
//!   ...        ◄────────── no: the moved instructions, and on     ◄── bypass
//! ```
//! Our own calls of them take the bypass: an address between the bounds that is
//! not ghost memory would come back for ever. What such code allocates is
//! ordinary memory.
//!
//! Called before anything else is set up, while there is one thread.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

use crate::objects::Text;
use crate::patch::{code_of, target};
use crate::scan::Scan;
use crate::stub::{Area, Detour, ENTRY_AT, JUMP, Stub, write_jumps};
use crate::{family, ordinary};

/// Where a function of libc's leads, and how it is called past that.
struct Entry {
    address: usize,
    ours: usize,
    bypass: fn(usize),
}

/// Redirects what can be; without it such code has to do without ghost blocks.
pub(crate) fn redirect(texts: &[Text]) {
    let entries = [
        Entry {
            address: ordinary::libc_free(),
            ours: family::free as *const () as usize,
            bypass: ordinary::free_by,
        },
        Entry {
            address: ordinary::libc_realloc(),
            ours: family::realloc as *const () as usize,
            bypass: ordinary::reallocate_by,
        },
        Entry {
            address: ordinary::find_usable_size(),
            ours: family::malloc_usable_size as *const () as usize,
            bypass: ordinary::usable_size_by,
        },
    ];
    for text in texts {
        let inside = |entry: &&Entry| entry.address.wrapping_sub(text.start) < text.bytes;
        let here: Vec<&Entry> = entries.iter().filter(inside).collect();
        if !here.is_empty() {
            redirect_in(text, &here);
        }
    }
}

fn redirect_in(text: &Text, entries: &[&Entry]) {
    let scan = Scan::of(code_of(text), text.start);
    let functions = text.functions();
    let Some(area) = Area::near(text) else {
        return;
    };
    let mut cursor = area.first();
    let (mut detours, mut bypasses) = (Vec::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        let Some(moved) = first_instructions(text, &scan, &functions, entry.address) else {
            continue;
        };
        let place = ENTRY_AT + index * size_of::<usize>();
        area.set(place, entry.ours);
        let Some((bypass, end)) = write_stub(&area, cursor, place, &moved) else {
            continue;
        };
        let window_end = moved.last().map_or(0, |last| last.next_ip() as usize);
        detours.push(Detour {
            window: entry.address,
            window_bytes: window_end - entry.address,
            stub: cursor,
        });
        bypasses.push((entry.bypass, bypass));
        cursor = end.next_multiple_of(16);
    }
    if !area.make_executable() {
        return;
    }
    // A bypass is good before the jump is there, and needed from then on.
    for (set, bypass) in &bypasses {
        set(*bypass);
    }
    let _as_before_if_not = write_jumps(text, &detours);
}

/// Instructions at the start of a function that make room for a jump and can
/// stand elsewhere: nothing leads in between them.
fn first_instructions(
    text: &Text,
    scan: &Scan,
    functions: &[usize],
    start: usize,
) -> Option<Vec<Instruction>> {
    let index = functions.partition_point(|&other| other <= start);
    if functions.get(index.checked_sub(1)?) != Some(&start) {
        return None;
    }
    let text_end = text.start + text.bytes;
    let end = functions
        .get(index)
        .map_or(text_end, |&end| end.min(text_end));
    let code = code_of(text);
    let function = code.get(start - text.start..end - text.start)?;
    let decoder = Decoder::with_ip(64, function, start as u64, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.into_iter().collect();
    let mut moved = Vec::new();
    let mut after = start;
    for instruction in &instructions {
        if after - start >= JUMP {
            break;
        }
        let flow = instruction.flow_control();
        let is_branch = flow == FlowControl::ConditionalBranch
            && instruction.op0_kind() == OpKind::NearBranch64;
        if !is_branch && flow != FlowControl::Next {
            return None;
        }
        after = instruction.next_ip() as usize;
        moved.push(*instruction);
    }
    let inner = start + 1..after;
    let led_into = instructions
        .iter()
        .filter_map(target)
        .any(|target| inner.contains(&target))
        || inner.clone().any(|address| scan.is_entered(address));
    (after - start >= JUMP && !led_into).then_some(moved)
}

/// Writes a stub: where the bypass begins, and where the stub ends.
fn write_stub(
    area: &Area,
    at: usize,
    ours: usize,
    moved: &[Instruction],
) -> Option<(usize, usize)> {
    let mut stub = Stub::new(area, at);
    stub.test(0);
    let ghost = stub.jump_below();
    let bypass = stub.here();
    stub.relocate(moved)?;
    stub.jump_to(moved.last()?.next_ip() as usize)?;
    stub.land(ghost)?;
    stub.jump_by(ours)?;
    Some((bypass, stub.write()))
}
