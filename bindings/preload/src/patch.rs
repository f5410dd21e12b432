//! Gets between libc's code and the kernel.
//!
//! A kernel access to an absent page does not raise a signal, it fails with
//! EFAULT. Interposing `read` and its kin is not enough: stdio, getaddrinfo,
//! opendir and the thread library make their system calls inside libc, where
//! no symbol is looked up. So the instructions themselves are redirected, at
//! start, while there is one thread:
//!
//! ```text
//!   libc                          stub (one per site, near libc)
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

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use crate::calls::table;
use crate::objects::Text;
use crate::plan::{Key, NUMBERS, Plan, Plans};
use crate::scan::Scan;
use crate::stub::{Area, Detour, ENTRY_AT, Stub, write_jumps};
use crate::window::{DISTANCES_MAX, distances, window_before, window_behind, window_in_front};

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Report {
    /// Places redirected.
    pub(crate) patched: usize,
    /// Places that matter and could not be.
    pub(crate) left: usize,
    /// The system call of fork(3) is among those redirected.
    pub(crate) forks: bool,
    /// The same two for system calls outside glibc.
    pub(crate) own_patched: usize,
    pub(crate) own_left: usize,
    /// mmap is among them.
    pub(crate) maps: bool,
    /// Ways into a loop that ends a thread ([`table::LEAVES`]).
    pub(crate) ways_out: usize,
}

/// Most bytes of code outside glibc that one start looks at, where no plan is kept
/// of it: some 0.1 ms for each MiB.
const LOOKED_AT_MOST: usize = 32 << 20;
/// Shorter code is looked at for calls before its plan is.
const KEPT_FROM: usize = 256 << 10;

/// Redirects the system calls of what is loaded; mmap too when `maps`. `plans` knows
/// where they are, or has it found out.
pub(crate) fn install(texts: &[Text], maps: bool, plans: &Plans) -> Report {
    let mut report = Report {
        maps,
        ..Report::default()
    };
    let mut room = LOOKED_AT_MOST;
    for text in texts {
        // To look at little costs no more than to read what was found before; but
        // what looks like a call there has to be decoded.
        let is_short = !text.of_libc && text.bytes < KEPT_FROM;
        if is_short && Scan::for_calls(code_of(text), text.start).calls.is_empty() {
            continue;
        }
        let key = Key::of(text, maps);
        let plan = match plans.get(text, &key) {
            Some(plan) => plan,
            None if !text.of_libc && text.bytes > room => continue,
            None => {
                if !text.of_libc {
                    room -= text.bytes;
                }
                let plan = look_for(text, maps);
                plans.keep(text, &key, &plan);
                plan
            }
        };
        let mut here = Report {
            left: plan.left,
            ..Report::default()
        };
        patch_object(text, &plan.sites, &mut here);
        if text.of_libc {
            report.patched += here.patched;
            report.left += here.left;
            report.forks |= here.forks;
            report.ways_out += here.ways_out;
        } else if !text.of_kernel {
            report.own_patched += here.patched;
            report.own_left += here.left;
        }
    }
    report
}

/// Finds an object's sites.
fn look_for(text: &Text, maps: bool) -> Plan {
    let mut found = Report {
        maps,
        ..Report::default()
    };
    let functions = || text.functions();
    let mut sites = find(code_of(text), text.start, functions, &mut found);
    // Others have such loops, too, and mean no thread's end.
    sites.retain(|site| text.of_libc || !site.is_way_out());
    Plan {
        sites,
        left: found.left,
    }
}

/// Bytes of a system call instruction.
const CALL: usize = 2;

/// One system call instruction, and how to redirect it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Site {
    /// Where the jump goes, and how many bytes of instructions it replaces.
    pub(crate) window: usize,
    pub(crate) window_bytes: usize,
    /// The system call instruction.
    pub(crate) call: usize,
    /// The call's number, when the code says it.
    pub(crate) number: Option<usize>,
    /// Where its function starts.
    pub(crate) function: usize,
    /// Where in the window distances stand that count from where they are; 0: none,
    /// as each has its instruction's code in front.
    pub(crate) distances: [u8; DISTANCES_MAX],
}

impl Site {
    /// The first byte behind what the jump replaces.
    pub(crate) fn end(&self) -> usize {
        self.window + self.window_bytes
    }

    /// The system call is the first of the moved instructions.
    pub(crate) fn moves_the_call(&self) -> bool {
        self.window == self.call
    }

    /// It is the way into a loop without a way out: the loop begins behind the window.
    fn is_way_out(&self) -> bool {
        self.number == Some(table::LEAVES)
    }
}

fn patch_object(text: &Text, sites: &[Site], report: &mut Report) {
    if sites.is_empty() {
        return;
    }
    let Some(area) = Area::near(text) else {
        report.left += sites.len();
        return;
    };
    area.set(ENTRY_AT, crate::calls::entry_address());
    let mut cursor = area.first();
    let (mut jumps, mut detours) = (Vec::new(), Vec::new());
    for site in sites {
        match write_stub(site, &area, cursor) {
            Some(end) if end < area.end() => {
                jumps.push(site);
                detours.push(Detour {
                    window: site.window,
                    window_bytes: site.window_bytes,
                    stub: cursor,
                });
                cursor = end.next_multiple_of(16);
            }
            _ => report.left += 1,
        }
    }
    if !area.make_executable() || !write_jumps(text, &detours) {
        report.left += jumps.len();
        return;
    }
    report.patched += jumps.len();
    let is_way_out = |site: &&&Site| site.number == Some(table::LEAVES);
    report.ways_out += jumps.iter().filter(is_way_out).count();
    // Since glibc 2.34 the call is in a function of its own.
    let forks = [c"_Fork", c"fork"].map(crate::start::next);
    report.forks |= jumps
        .iter()
        .any(|site| site.number == Some(table::CLONE) && forks.contains(&site.function));
}

/// The sites in an object's code, which is at `base`, that can be redirected.
pub(crate) fn find(
    code: &[u8],
    base: usize,
    functions: impl FnOnce() -> Vec<usize>,
    report: &mut Report,
) -> Vec<Site> {
    // Most objects have none, and do without a look at their branches.
    let scan = Scan::for_calls(code, base);
    if scan.calls.is_empty() {
        return Vec::new();
    }
    let mut sites = candidates(code, &scan, &functions(), report);
    if !sites.is_empty() {
        drop_entered(&Scan::of(code, base), &mut sites, report);
    }
    sites
}

/// Those sites, some of which may be entered from another function.
fn candidates(code: &[u8], scan: &Scan, functions: &[usize], report: &mut Report) -> Vec<Site> {
    let base = scan.base;
    let mut sites = Vec::new();
    let mut function = Function::default();
    let mut seen = 0;
    for &address in &scan.calls {
        let index = functions.partition_point(|&start| start <= address);
        let Some(start) = index.checked_sub(1).map(|index| functions[index]) else {
            continue;
        };
        // Calls ascend, so those of one function follow each other.
        if seen == start {
            continue;
        }
        seen = start;
        let end = functions.get(index).copied().unwrap_or(usize::MAX);
        let end = end.min(base + code.len());
        if let Some(code) = code.get(start.wrapping_sub(base)..end - base) {
            function.decode(code, start);
            find_sites(code, &function, &mut sites, report);
        }
    }
    sites
}

/// A function's instructions, and where its branches lead.
#[derive(Default)]
pub(crate) struct Function {
    pub(crate) start: usize,
    pub(crate) instructions: Vec<Instruction>,
    /// Ascending.
    targets: Vec<usize>,
}

impl Function {
    fn decode(&mut self, code: &[u8], start: usize) {
        self.start = start;
        let decoder = Decoder::with_ip(64, code, start as u64, DecoderOptions::NONE);
        self.instructions.clear();
        self.instructions.extend(decoder);
        self.targets.clear();
        self.targets
            .extend(self.instructions.iter().filter_map(target));
        self.targets.sort_unstable();
    }

    /// How many branches of the function lead to an address.
    fn count_to(&self, address: usize) -> usize {
        let first = self.targets.partition_point(|&target| target < address);
        let there = self.targets[first..].iter();
        there.take_while(|&&target| target == address).count()
    }

    /// Whether a branch of the function leads to an address.
    pub(crate) fn leads_to(&self, address: usize) -> bool {
        self.targets.binary_search(&address).is_ok()
    }
}

pub(crate) fn code_of(text: &Text) -> &'static [u8] {
    // SAFETY: a loaded, readable segment of libc, which is never unloaded; it
    // is written only after the last use of this slice.
    unsafe { core::slice::from_raw_parts(text.start as *const u8, text.bytes) }
}

/// Adds the system calls of one function that matter.
fn find_sites(code: &[u8], function: &Function, sites: &mut Vec<Site>, report: &mut Report) {
    let instructions = &function.instructions;
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
    for (index, instruction) in instructions.iter().enumerate() {
        if instruction.code() != Code::Syscall {
            continue;
        }
        let number = number_before(&instructions[..index], instruction.ip() as usize, function);
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
        let free_from = sites.last().map_or(0, Site::end);
        let window = window_before(&instructions[..index], call, function)
            .filter(|window| window.start >= free_from)
            .or_else(|| window_behind(&instructions[index..], function));
        let site = window.and_then(|window| {
            Some(Site {
                window: window.start,
                window_bytes: window.len(),
                call,
                // No kernel has such a call, and no plan keeps it.
                number: number.filter(|&number| number < NUMBERS),
                function: function.start,
                distances: distances(code, function, &window)?,
            })
        });
        match site {
            Some(site) => sites.push(site),
            None => match head_without_return(instructions, index) {
                Some(head) => sites.extend(way_out(code, function, head, free_from)),
                None => report.left += 1,
            },
        }
    }
}

/// The way into the loop at `head`, which no call comes out of: what we want to know is that a
/// thread has come there. Where nothing in front can move, nobody is told.
fn way_out(code: &[u8], function: &Function, head: usize, free_from: usize) -> Option<Site> {
    let instructions = &function.instructions;
    let place = instructions.partition_point(|one| (one.ip() as usize) < head);
    // Nobody but the loop itself leads there past what is in front.
    if function.count_to(head) != 1 || !is_exit(instructions, place) {
        return None;
    }
    let window = window_in_front(&instructions[..place], head, function)
        .filter(|window| window.start >= free_from)?;
    Some(Site {
        window: window.start,
        window_bytes: window.len(),
        call: head,
        number: Some(table::LEAVES),
        function: function.start,
        distances: distances(code, function, &window)?,
    })
}

/// Whether the loop whose head is at a place makes exit(2): by a number that it loads, or has
/// in a register from before.
fn is_exit(instructions: &[Instruction], head: usize) -> bool {
    const EXIT: u64 = libc::SYS_exit as u64;
    let (before, body) = instructions.split_at(head);
    let loads = |instruction: &Instruction, register: Register| {
        instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().full_register() == register.full_register()
    };
    let Some(load) = body.iter().find(|one| loads(one, Register::EAX)) else {
        return false;
    };
    let is_number = |one: &Instruction| {
        one.code() == Code::Mov_r32_imm32 && u64::from(one.immediate32()) == EXIT
    };
    match load.code() {
        Code::Mov_rm32_r32 | Code::Mov_r32_rm32 if load.op1_kind() == OpKind::Register => {
            let from = load.op1_register();
            let set = before.iter().rev().take(8).find(|one| loads(one, from));
            set.is_some_and(is_number)
        }
        _ => is_number(load),
    }
}

/// The head of a loop without a way out that a system call stands in: how glibc ends a
/// thread, by exit(2) with 0, again and again until it is gone. That takes no
/// pointer, and no other call is made so.
fn head_without_return(instructions: &[Instruction], index: usize) -> Option<usize> {
    let back = instructions.get(index + 1)?;
    let again = (back.flow_control() == FlowControl::UnconditionalBranch)
        .then(|| target(back))
        .flatten()?;
    let body = instructions[..index]
        .iter()
        .rev()
        .take_while(|instruction| instruction.ip() as usize >= again);
    let mut zero = false;
    let mut count = 0;
    for instruction in body {
        count += 1;
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        zero |= matches!(instruction.code(), Code::Xor_rm32_r32 | Code::Xor_r32_rm32)
            && instruction.op0_register() == Register::EDI
            && instruction.op1_register() == Register::EDI;
    }
    (zero && count <= 4).then_some(again)
}

/// Where a direct branch leads.
pub(crate) fn target(instruction: &Instruction) -> Option<usize> {
    (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch64() as usize)
}

/// The number that the code loads just before a system call.
fn number_before(before: &[Instruction], call: usize, function: &Function) -> Option<usize> {
    let mut after = call;
    for instruction in before.iter().rev().take(8) {
        // A branch that leads in here may bring another number.
        if function.leads_to(after) || target(instruction).is_some() {
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

/// Gives up sites that a branch from another function leads into: parts of a
/// function that the compiler moved away are functions of their own in the
/// unwinding table. Only long branches reach that far; any bytes that look
/// like one count.
fn drop_entered(scan: &Scan, sites: &mut Vec<Site>, report: &mut Report) {
    sites.retain(|site| {
        // The loop itself leads to its head.
        let end = match site.is_way_out() {
            true => site.end(),
            false => site.end().max(site.call + 1),
        };
        let kept = !(site.window + 1..end).any(|address| scan.is_entered(address));
        report.left += usize::from(!kept);
        kept
    });
}

/// Writes the stub of one site at `at`; where it ends.
fn write_stub(site: &Site, area: &Area, at: usize) -> Option<usize> {
    let mut stub = Stub::new(area, at);
    if !site.moves_the_call() {
        stub.move_here(site)?;
    }
    let mut to_slow = Vec::new();
    let always = site.number.is_none_or(table::always);
    if !always {
        for argument in table::pointers(site.number?) {
            stub.test(argument);
            to_slow.push(stub.jump_below());
        }
        if table::files(site.number?).contains(&0) {
            stub.test_file(table::OUR_FILES);
            to_slow.push(stub.jump_below());
        }
    }
    if always {
        to_slow.push(stub.jump());
    }
    let in_place;
    if site.moves_the_call() {
        in_place = stub.here();
        stub.move_here(site)?;
        stub.jump_to(site.end())?;
    } else {
        in_place = site.call;
        if !always {
            stub.jump_to(site.call)?;
        }
    }
    for jump in to_slow {
        stub.land(jump)?;
    }
    if site.is_way_out() {
        // mov eax, what stands for it: the loop sets the call's number by itself.
        stub.put(&[0xb8]);
        stub.put(&(table::LEAVES as u32).to_le_bytes());
    }
    // rcx: the address after the system call; it and r11 are the kernel's to
    // change, so they are ours.
    stub.put(&[0x48, 0xb9]);
    stub.put(&(in_place + CALL).to_le_bytes());
    stub.jump_by(ENTRY_AT)?;
    Some(stub.write())
}
