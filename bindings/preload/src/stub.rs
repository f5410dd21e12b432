//! Code of our own near an object's: what a rewritten site jumps to.
//!
//! ```text
//!   object's text          area: data page        stubs
//!   ... jmp ────────┐      bounds, addresses ◄─── cmp rcx, [rip + ...]
//!                   └─────────────────────────► ...
//! ```
//! An area is writable until it is executable, and its code never changes after.
//! The data page stays writable: the bounds of ghost memory move.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use iced_x86::{BlockEncoder, BlockEncoderOptions, Instruction, InstructionBlock};

use ghostmem_os::guard;

use crate::objects::Text;
use crate::patch::Site;
use crate::raw::{call, failed};

/// The length of the jump that is written.
pub(crate) const JUMP: usize = 5;
/// Room for the stubs of one object, and what comes in front of them: the
/// bounds and addresses to jump to.
const AREA: usize = 256 << 10;
const DATA: usize = 4096;
/// Where in the data page things are.
const LOW_AT: usize = 0;
const LENGTH_AT: usize = 8;
/// Where in the data page the addresses are that stubs jump to.
pub(crate) const ENTRY_AT: usize = 16;

/// Data pages of the areas made, for new bounds. Few objects are patched: those of
/// glibc, and those that make system calls themselves. An area stays for ever, as who
/// tells the bounds may be in the midst of it.
static AREAS: [AtomicUsize; AREAS_MAX] = [const { AtomicUsize::new(0) }; AREAS_MAX];
const AREAS_MAX: usize = 64;
/// Where the code of each area's object starts; 0: it is not loaded any more.
static OBJECTS: [AtomicUsize; AREAS_MAX] = [const { AtomicUsize::new(0) }; AREAS_MAX];

/// Whether every address is to be looked at: engine code in libc makes calls that a
/// filter of the program's must not see.
static LOOK_AT_ALL: AtomicBool = AtomicBool::new(false);

/// From now on every call that may have a pointer to ghost memory is looked at.
pub(crate) fn look_at_all() {
    LOOK_AT_ALL.store(true, Ordering::SeqCst);
    publish_bounds(0, usize::MAX);
}

/// The object whose code started there is not loaded any more: its areas are for others.
pub(crate) fn give_up_areas(start: usize) {
    for object in &OBJECTS {
        if object.load(Ordering::Relaxed) == start {
            object.store(0, Ordering::Relaxed);
        }
    }
}

/// Tells the stubs between which addresses ghost memory lies.
pub(crate) fn publish_bounds(low: usize, length: usize) {
    let all = LOOK_AT_ALL.load(Ordering::SeqCst);
    publish(if all { (0, usize::MAX) } else { (low, length) });
    // Whoever wants all to be looked at may have said so, and told it, meanwhile.
    if !all && LOOK_AT_ALL.load(Ordering::SeqCst) {
        publish((0, usize::MAX));
    }
}

fn publish((low, length): (usize, usize)) {
    for area in &AREAS {
        let data = area.load(Ordering::Acquire);
        if data == 0 {
            return;
        }
        // Any address may be ghost memory while the two change.
        word(data + LENGTH_AT).store(usize::MAX, Ordering::SeqCst);
        word(data + LOW_AT).store(low, Ordering::SeqCst);
        word(data + LENGTH_AT).store(length, Ordering::SeqCst);
    }
}

fn word(address: usize) -> &'static AtomicUsize {
    // SAFETY: an aligned word of a data page, mapped for ever and only ever
    // used as an atomic.
    unsafe { &*(address as *const AtomicUsize) }
}

/// Room for the stubs of one object, within reach of a jump.
pub(crate) struct Area {
    data: usize,
    /// Where the object's code starts.
    object: usize,
}

/// Less than what a jump reaches, either way.
const REACH: usize = 1500 << 20;

impl Area {
    /// An area near an object's code: one that another object has no more, or a new one.
    pub(crate) fn near(text: &Text) -> Option<Self> {
        // Wide steps first: objects stand close together, and what is between them
        // is seldom free. The last are for the gaps between large mappings.
        const WIDE: usize = 16 << 20;
        const CLOSE: usize = 1 << 20;
        const CLOSEST: usize = 64 << 10;
        if let Some(area) = Self::left_near(text) {
            return Some(area);
        }
        // The kernel puts its own object above the first stack, which grows into what is
        // below.
        // SAFETY: no preconditions.
        let stack = unsafe { libc::getauxval(libc::AT_RANDOM) } as usize;
        let is_above_it = text.start > stack;
        let steps = |step: usize| (1..REACH / step).map(move |count| (step, count * step));
        for (step, distance) in steps(WIDE).chain(steps(CLOSE)).chain(steps(CLOSEST)) {
            let down = (text.start & !(step - 1))
                .checked_sub(distance)
                .filter(|_| !is_above_it);
            let up = (text.start + text.bytes).next_multiple_of(step) + distance;
            for hint in down.into_iter().chain([up]) {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let area = call!(libc::SYS_mmap, hint, AREA, access, flags, -1_isize, 0);
                if area as usize == hint {
                    return Some(Self {
                        data: hint,
                        object: text.start,
                    });
                }
                if !failed(area) {
                    let _ours = call!(libc::SYS_munmap, area, AREA);
                }
            }
        }
        None
    }

    /// An area in reach that another object had, with fresh pages for its stubs.
    fn left_near(text: &Text) -> Option<Self> {
        let is_near = |data: usize| {
            let low = text.start.saturating_sub(REACH);
            (low..text.start + text.bytes + REACH).contains(&data)
        };
        let left = |(area, object): &(&AtomicUsize, &AtomicUsize)| {
            let data = area.load(Ordering::Relaxed);
            data != 0 && is_near(data) && object.load(Ordering::Relaxed) == 0
        };
        let (area, _) = AREAS.iter().zip(&OBJECTS).find(left)?;
        let data = area.load(Ordering::Relaxed);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let (first, bytes) = (data + DATA, AREA - DATA);
        let fresh = call!(libc::SYS_mmap, first, bytes, access, flags, -1_isize, 0);
        let object = text.start;
        (fresh as usize == first).then_some(Self { data, object })
    }

    /// Puts an address that stubs jump to into the data page.
    pub(crate) fn set(&self, offset: usize, address: usize) {
        word(self.data + offset).store(address, Ordering::Relaxed);
    }

    /// Where the first stub goes.
    pub(crate) fn first(&self) -> usize {
        self.data + DATA
    }

    /// Where the room ends.
    pub(crate) fn end(&self) -> usize {
        self.data + AREA
    }

    /// Makes the stubs executable, and their bounds follow.
    pub(crate) fn make_executable(&self) -> bool {
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        let first = self.first();
        let sealed = call!(libc::SYS_mprotect, first, AREA - DATA, executable);
        if failed(sealed) && !replace(first, AREA - DATA, &[]) {
            return false;
        }
        let is_free = |area: &AtomicUsize| [0, self.data].contains(&area.load(Ordering::Relaxed));
        let place = AREAS.iter().zip(&OBJECTS).find(|(area, _)| is_free(area));
        place.is_some_and(|(area, object)| {
            object.store(self.object, Ordering::Relaxed);
            area.store(self.data, Ordering::Release);
            true
        })
    }
}

/// A jump to put in place of instructions: where, of how many bytes, and to what.
pub(crate) struct Detour {
    pub(crate) window: usize,
    pub(crate) window_bytes: usize,
    pub(crate) stub: usize,
}

impl Detour {
    /// Writes the jump, as it is in its window, to `place`.
    fn write_at(&self, place: usize) {
        let distance = (self.stub as isize - (self.window + JUMP) as isize) as i32;
        let mut bytes = vec![0x90; self.window_bytes];
        bytes[0] = 0xe9;
        bytes[1..JUMP].copy_from_slice(&distance.to_le_bytes());
        crate::raw::copy(place, bytes.as_ptr() as usize, bytes.len());
    }
}

/// Set where code could not be made or changed.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether the system let no code be made or changed.
pub(crate) fn was_refused() -> bool {
    REFUSED.load(Ordering::Relaxed)
}

/// Puts the same bytes, with jumps in them, in the place of whole pages, as code from
/// the start: where memory that was writable may not become executable, and code not
/// writable (`PR_SET_MDWE`, a service manager's `MemoryDenyWriteExecute`). They come
/// out of a memory file, by way of another mapping.
fn replace(start: usize, bytes: usize, detours: &[Detour]) -> bool {
    let replaced = replaced(start, bytes, detours);
    if !replaced {
        REFUSED.store(true, Ordering::Relaxed);
    }
    replaced
}

fn replaced(start: usize, bytes: usize, detours: &[Detour]) -> bool {
    let Ok(file) = guard::memory_file(bytes) else {
        return false;
    };
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let draft = call!(libc::SYS_mmap, 0, bytes, access, libc::MAP_SHARED, file, 0);
    let mut done = false;
    if !failed(draft) {
        let draft = draft as usize;
        crate::raw::copy(draft, start, bytes);
        for detour in detours {
            detour.write_at(draft + (detour.window - start));
        }
        let _gone = call!(libc::SYS_munmap, draft, bytes);
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_FIXED,
        );
        let put = call!(libc::SYS_mmap, start, bytes, access, flags, file, 0);
        done = put as usize == start;
    }
    guard::close(file);
    done
}

/// Writes jumps into an object's code; whether that was possible.
pub(crate) fn write_jumps(text: &Text, detours: &[Detour]) -> bool {
    let executable = libc::PROT_READ | libc::PROT_EXEC;
    let page = text.start & !4095;
    let pages = (text.start + text.bytes).next_multiple_of(4096) - page;
    let writable = executable | libc::PROT_WRITE;
    if failed(call!(libc::SYS_mprotect, page, pages, writable)) {
        return replace(page, pages, detours);
    }
    for detour in detours {
        detour.write_at(detour.window);
    }
    let _stays_writable = call!(libc::SYS_mprotect, page, pages, executable);
    true
}

/// The code of one stub, as it is put together.
pub(crate) struct Stub {
    area: usize,
    at: usize,
    bytes: Vec<u8>,
}

/// A jump whose target is not known yet: where its distance stands.
pub(crate) struct Jump(usize);

impl Stub {
    /// A stub at `at`, not written yet.
    pub(crate) fn new(area: &Area, at: usize) -> Self {
        Self {
            area: area.data,
            at,
            bytes: Vec::with_capacity(128),
        }
    }

    /// Writes it; where it ends.
    pub(crate) fn write(&self) -> usize {
        crate::raw::copy(self.at, self.bytes.as_ptr() as usize, self.bytes.len());
        self.here()
    }

    /// The address of what comes next.
    pub(crate) fn here(&self) -> usize {
        self.at + self.bytes.len()
    }

    /// Adds code that stands anywhere.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A distance to something in the data page, from the instruction's end.
    fn data(&mut self, offset: usize) -> Option<()> {
        let distance = (self.area + offset) as isize - (self.here() + 4) as isize;
        self.put(&i32::try_from(distance).ok()?.to_le_bytes());
        Some(())
    }

    /// Adds the instructions of a window: their bytes, with the distances that count
    /// from where they are led to the same place from here.
    pub(crate) fn move_here(&mut self, site: &Site) -> Option<()> {
        let start = self.bytes.len();
        let farther = (site.window as isize).wrapping_sub(self.here() as isize);
        let bytes = (site.window..site.end()).map(crate::raw::load::<u8>);
        self.bytes.extend(bytes);
        for &at in site.distances.iter().filter(|&&at| at != 0) {
            let at = start + usize::from(at);
            let distance = self.bytes.get_mut(at..)?.first_chunk_mut::<4>()?;
            let moved = i32::from_le_bytes(*distance) as isize + farther;
            *distance = i32::try_from(moved).ok()?.to_le_bytes();
        }
        Some(())
    }

    /// Adds an object's instructions, so that they mean the same here.
    pub(crate) fn relocate(&mut self, instructions: &[Instruction]) -> Option<()> {
        if instructions.is_empty() {
            return Some(());
        }
        let block = InstructionBlock::new(instructions, self.here() as u64);
        let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).ok()?;
        self.put(&encoded.code_buffer);
        Some(())
    }

    /// Compares argument number `argument` with the bounds: below when it may
    /// be ghost memory. Changes rcx and the flags only.
    pub(crate) fn test(&mut self, argument: usize) {
        // mov rcx, rdi | rsi | rdx | r10 | r8 | r9
        const MOVES: [[u8; 3]; 6] = [
            [0x48, 0x89, 0xf9],
            [0x48, 0x89, 0xf1],
            [0x48, 0x89, 0xd1],
            [0x4c, 0x89, 0xd1],
            [0x4c, 0x89, 0xc1],
            [0x4c, 0x89, 0xc9],
        ];
        self.put(&MOVES[argument % 6]);
        // sub rcx, [rip + LOW]; cmp rcx, [rip + LENGTH]
        self.put(&[0x48, 0x2b, 0x0d]);
        let _near = self.data(LOW_AT);
        self.put(&[0x48, 0x3b, 0x0d]);
        let _near = self.data(LENGTH_AT);
    }

    /// Compares argument number 0, a descriptor, with these: below when it is one of them.
    /// Changes rcx and the flags only.
    pub(crate) fn test_file(&mut self, files: Range<u32>) {
        // mov ecx, edi; sub ecx, the first; cmp ecx, how many
        self.put(&[0x89, 0xf9, 0x81, 0xe9]);
        self.put(&files.start.to_le_bytes());
        self.put(&[0x81, 0xf9]);
        self.put(&(files.end - files.start).to_le_bytes());
    }

    /// A jump taken when the comparison before it said below.
    pub(crate) fn jump_below(&mut self) -> Jump {
        self.put(&[0x0f, 0x82, 0, 0, 0, 0]);
        Jump(self.bytes.len() - 4)
    }

    /// A jump always taken.
    pub(crate) fn jump(&mut self) -> Jump {
        self.put(&[0xe9, 0, 0, 0, 0]);
        Jump(self.bytes.len() - 4)
    }

    /// A jump to an address.
    pub(crate) fn jump_to(&mut self, address: usize) -> Option<()> {
        let distance = address as isize - (self.here() + JUMP) as isize;
        self.put(&[0xe9]);
        self.put(&i32::try_from(distance).ok()?.to_le_bytes());
        Some(())
    }

    /// Jumps to the address at a place of the data page.
    pub(crate) fn jump_by(&mut self, offset: usize) -> Option<()> {
        self.put(&[0xff, 0x25]);
        self.data(offset)
    }

    /// Makes a jump lead here.
    pub(crate) fn land(&mut self, jump: Jump) -> Option<()> {
        let distance = i32::try_from(self.bytes.len() - (jump.0 + 4)).ok()?;
        self.bytes[jump.0..jump.0 + 4].copy_from_slice(&distance.to_le_bytes());
        Some(())
    }
}
