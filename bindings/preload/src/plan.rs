//! A kept plan: which sites of an object are redirected, so that finding them
//! again costs nothing.
//!
//! Where system calls stand and what may move depends on the object's code alone,
//! which its build id names, and on our table of calls. Finding out means decoding
//! hundreds of functions at the start of each program; the answer is therefore kept
//! in a file of the user's cache, one for each object:
//!
//! ```text
//!   $XDG_CACHE_HOME/ghostmem/plans/BUILD-ID.KEY     folder 0700, file 0600
//!   sign ─ key ─ count ─ left ─ records ─ hash      a record: see `Record`
//! ```
//! A plan is a hint. It says *where*; the code of a stub is always made of the
//! object's own instructions. A plan is used only if the file is the user's own and
//! nobody else's to read or write, if it is whole, if it is for this build id and
//! this table of calls, and if every site has the very bytes, in front of and at the
//! system call, that the plan was made for. One that does not fit is as good as none.
//! With raised privileges (`AT_SECURE`, another effective user or group) none is read
//! or written.

use std::ffi::{CStr, OsStr};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::calls::table;
use crate::objects::Text;
use crate::patch::{Site, code_of};
use crate::raw::call;
use crate::window::DISTANCES_MAX;

/// The sites of one object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) sites: Vec<Site>,
    /// How many that matter cannot be redirected.
    pub(crate) left: usize,
}

/// What a plan holds for: an object, and what is to be redirected in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    build: Vec<u8>,
    /// Of how many bytes its code is.
    bytes: u64,
    calls: u64,
}

impl Key {
    pub(crate) fn of(text: &Text, maps: bool) -> Self {
        Self::new(&text.build, text.bytes, maps)
    }

    pub(crate) fn new(build: &[u8], bytes: usize, maps: bool) -> Self {
        Self {
            build: build.to_vec(),
            bytes: bytes as u64,
            calls: if maps { WITH_MAPS } else { WITHOUT_MAPS },
        }
    }

    /// The name of its file.
    fn name(&self) -> String {
        use std::fmt::Write as _;
        let mut name = String::new();
        for byte in &self.build {
            let _written = write!(name, "{byte:02x}");
        }
        let _written = write!(name, ".{:016x}", self.calls);
        name
    }
}

const WITHOUT_MAPS: u64 = calls_hash(false);
const WITH_MAPS: u64 = calls_hash(true);

/// A number for which calls are redirected: another table makes other plans.
const fn calls_hash(maps: bool) -> u64 {
    // FNV-1a.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut number = 0;
    while number < NUMBERS {
        hash = (hash ^ table::matters(number, maps) as u64).wrapping_mul(0x100_0000_01b3);
        number += 1;
    }
    hash
}

/// Call numbers are below this.
pub(crate) const NUMBERS: usize = 1 << 10;
const _: () = assert!(table::LEAVES < NUMBERS);

/// What a plan's file begins with; another form has another sign.
const SIGN: [u8; 8] = *b"gm-plan2";
/// Bytes of the sign, the key's numbers, the count, and what is left.
const HEAD: usize = 40;
const HASH: usize = 8;
/// Most sites of one object: glibc has 470.
const PLACES_MAX: usize = 1 << 13;
/// Most bytes of a window: four and one instruction.
const WINDOW_MAX: usize = 19;
const CALL_BYTES: usize = 2;

/// One site, as it stands in a file: little endian.
///
/// | bytes | hold |
/// |---|---|
/// | 0..4 | the window, from the start of the code |
/// | 4..8 | the function, likewise |
/// | 8..10 | the call's number; `0xffff`: the code does not say it |
/// | 10 | bytes of the window |
/// | 11 | 1: the window begins with the call; 0: the call follows it |
/// | 12..15 | where distances stand |
/// | 16..37 | the bytes of the window, and of the call behind it |
pub(crate) const RECORD: usize = 40;
const NO_NUMBER: u16 = u16::MAX;
const BYTES_AT: usize = 16;
const _: () = assert!(BYTES_AT + WINDOW_MAX + CALL_BYTES <= RECORD && DISTANCES_MAX <= 4);

/// A plan as it stands in a file.
pub(crate) fn write(plan: &Plan, key: &Key, code: &[u8], base: usize) -> Option<Vec<u8>> {
    let mut file = Vec::with_capacity(HEAD + plan.sites.len() * RECORD + HASH);
    file.extend_from_slice(&head(key, plan.sites.len(), plan.left));
    for site in &plan.sites {
        let mut record = [0; RECORD];
        let at = u32::try_from(site.window.checked_sub(base)?).ok()?;
        let function = u32::try_from(site.function.checked_sub(base)?).ok()?;
        let number = site.number.and_then(|number| u16::try_from(number).ok());
        record[0..4].copy_from_slice(&at.to_le_bytes());
        record[4..8].copy_from_slice(&function.to_le_bytes());
        record[8..10].copy_from_slice(&number.unwrap_or(NO_NUMBER).to_le_bytes());
        record[10] = u8::try_from(site.window_bytes).ok()?;
        record[11] = u8::from(site.moves_the_call());
        record[12..12 + DISTANCES_MAX].copy_from_slice(&site.distances);
        let end = site.end().max(site.call + CALL_BYTES) - base;
        let bytes = code.get(site.window - base..end)?;
        record[BYTES_AT..]
            .get_mut(..bytes.len())?
            .copy_from_slice(bytes);
        file.extend_from_slice(&record);
    }
    let hash = xxhash_rust::xxh3::xxh3_64(&file);
    file.extend_from_slice(&hash.to_le_bytes());
    Some(file)
}

/// What a file begins with.
pub(crate) fn head(key: &Key, count: usize, left: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let (sign, rest) = head.split_at_mut(SIGN.len());
    sign.copy_from_slice(&SIGN);
    let numbers = [key.bytes, key.calls, count as u64, left as u64];
    for (place, number) in rest.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
        *place = number.to_le_bytes();
    }
    head
}

/// The plan that a file holds, if it is one for this key and this code.
pub(crate) fn read(file: &[u8], key: &Key, code: &[u8], base: usize) -> Option<Plan> {
    let (body, hash) = file.split_last_chunk::<HASH>()?;
    let (head, records) = body.split_first_chunk::<HEAD>()?;
    let number = |index: usize| {
        let bytes = head.get(8 * index..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let count = usize::try_from(number(3)?).ok()?;
    if head[..8] != SIGN
        || number(1)? != key.bytes
        || number(2)? != key.calls
        || count > PLACES_MAX
        || records.len() != count * RECORD
        || xxhash_rust::xxh3::xxh3_64(body) != u64::from_le_bytes(*hash)
    {
        return None;
    }
    let mut plan = Plan {
        sites: Vec::with_capacity(count),
        left: usize::try_from(number(4)?).ok()?,
    };
    let mut free_from = base;
    for record in records.as_chunks::<RECORD>().0 {
        let site = site(record, code, base)?;
        // Each behind the one before it: nothing is replaced twice.
        if site.window < free_from {
            return None;
        }
        free_from = site.end();
        plan.sites.push(site);
    }
    Some(plan)
}

/// One site, if the code has it.
fn site(record: &[u8; RECORD], code: &[u8], base: usize) -> Option<Site> {
    let word = |at: usize| {
        let bytes = record.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes) as usize)
    };
    let (at, function) = (word(0)?, word(4)?);
    let number = u16::from_le_bytes([record[8], record[9]]);
    let window_bytes = usize::from(record[10]);
    let (call, bytes) = match record[11] {
        0 => (at + window_bytes, window_bytes + CALL_BYTES),
        1 => (at, window_bytes),
        _ => return None,
    };
    // In front of a loop that ends a thread no call stands.
    let is_call =
        usize::from(number) == table::LEAVES || code.get(call..call + CALL_BYTES)? == [0x0f, 0x05];
    let whole = (crate::stub::JUMP..=WINDOW_MAX).contains(&window_bytes)
        && function <= at
        && (number == NO_NUMBER || usize::from(number) < NUMBERS)
        && code.get(at..at + bytes)? == record.get(BYTES_AT..BYTES_AT + bytes)?
        && is_call;
    let mut distances = [0; DISTANCES_MAX];
    distances.copy_from_slice(&record[12..12 + DISTANCES_MAX]);
    let within = |&at: &u8| usize::from(at) + 4 <= window_bytes;
    (whole && distances.iter().all(within)).then(|| Site {
        window: base + at,
        window_bytes,
        call: base + call,
        number: (number != NO_NUMBER).then_some(usize::from(number)),
        function: base + function,
        distances,
    })
}

/// The user's folder of plans.
#[derive(Debug)]
pub(crate) struct Plans {
    folder: Option<PathBuf>,
    user: u32,
}

impl Plans {
    /// None are read or kept.
    pub(crate) const fn none() -> Self {
        Self {
            folder: None,
            user: 0,
        }
    }

    /// The folder that the environment names; none with raised privileges.
    pub(crate) fn of(cache: Option<&CStr>, home: Option<&CStr>) -> Self {
        let user = call!(libc::SYS_geteuid) as u32;
        let path = |text: Option<&CStr>| {
            let path = PathBuf::from(OsStr::from_bytes(text?.to_bytes()));
            path.is_absolute().then_some(path)
        };
        let folder = path(cache).or_else(|| path(home).map(|home| home.join(".cache")));
        let folder = folder.filter(|_| !has_raised_rights());
        Self {
            folder: folder.map(|folder| folder.join("ghostmem/plans")),
            user,
        }
    }

    /// The plan that is kept for a key, if there is one that fits.
    pub(crate) fn get(&self, text: &Text, key: &Key) -> Option<Plan> {
        if key.build.is_empty() {
            return None;
        }
        let file = self.read_own(&key.name()).ok()?;
        read(&file, key, code_of(text), text.start)
    }

    /// Keeps a plan. Where that is not possible the next start finds out anew.
    pub(crate) fn keep(&self, text: &Text, key: &Key, plan: &Plan) {
        if key.build.is_empty() {
            return;
        }
        if let Some(file) = write(plan, key, code_of(text), text.start) {
            let _not_kept = self.write_own(&key.name(), &file);
        }
    }

    fn folder(&self) -> io::Result<&Path> {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        self.folder.as_deref().ok_or_else(none)
    }

    /// A file's content, if nobody but the user can have written it.
    fn read_own(&self, name: &str) -> io::Result<Vec<u8>> {
        const MOST: u64 = (HEAD + PLACES_MAX * RECORD + HASH) as u64;
        let folder = self.folder()?;
        self.check(&fs::symlink_metadata(folder)?, true)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(folder.join(name))?;
        let found = file.metadata()?;
        self.check(&found, false)?;
        // One more than there is: the end is found without another look.
        let mut content = Vec::with_capacity(found.len().min(MOST) as usize + 1);
        file.take(MOST).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Writes a file whole or not at all: others may start programs at this moment.
    fn write_own(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let folder = self.folder()?;
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700).create(folder)?;
        self.check(&fs::symlink_metadata(folder)?, true)?;
        let part = folder.join(format!("{name}.{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&part).or_else(|error| {
            // What a process of this number left when it was ended here.
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            fs::remove_file(&part)?;
            options.open(&part)
        });
        let written = file
            .and_then(|mut file: File| file.write_all(content))
            .and_then(|()| fs::rename(&part, folder.join(name)));
        written.inspect_err(|_| {
            let _unfinished = fs::remove_file(&part);
        })
    }

    /// Refuses what is not the user's own, or is open to others.
    fn check(&self, found: &fs::Metadata, is_folder: bool) -> io::Result<()> {
        let right = if is_folder {
            found.is_dir()
        } else {
            found.is_file()
        };
        if right && found.uid() == self.user && found.mode() & 0o077 == 0 {
            Ok(())
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

/// Whether the process has more rights than whoever started it.
fn has_raised_rights() -> bool {
    // SAFETY: no preconditions.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    secure
        || call!(libc::SYS_getuid) != call!(libc::SYS_geteuid)
        || call!(libc::SYS_getgid) != call!(libc::SYS_getegid)
}
