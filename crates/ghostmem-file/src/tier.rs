//! [`FileTier`]: opening it, its parts, and how it ends.

use core::ffi::CStr;
use std::collections::HashSet;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use ghostmem_os::file::{self, BLOCK_BYTES, File};
use ghostmem_os::lock::Lock;
use ghostmem_os::{OsError, lineage, machine};

use crate::error::OpenError;
use crate::files::Files;
use crate::options::Options;
use crate::seal::Seals;
use crate::stats::Counters;
use crate::table::{ENTRY_ROW_BYTES, SEGMENT_BYTES, SEGMENTS_MAX, Table};
use crate::write::Writer;

/// The smallest limit a tier works with: a few segments filling and some to clean
/// into.
const LIMIT_BYTES_MIN: u64 = 8 * SEGMENT_BYTES as u64;
/// Segments have at least this many bytes when a limit says how many there can be:
/// with smaller ones, of tiny records, slots run out before the space does.
const SEGMENT_BYTES_LEAST: u64 = 64 << 10;
/// What every file begins with, so that one left behind is known again.
const MAGIC: &[u8] = b"GhostMem spill file 1: of no use without the process that wrote it\n";

/// Pages in a file. See the crate's documentation.
#[derive(Debug)]
pub struct FileTier {
    pub(crate) table: Table,
    pub(crate) files: Files,
    pub(crate) seals: Seals,
    pub(crate) counters: Counters,
    pub(crate) writer: Lock<Writer>,
    pub(crate) location: FileLocation,
    pub(crate) limit_bytes: u64,
}

/// Where the file is, for messages and for a child's own file. Never freed: errors
/// name it, and are copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileLocation {
    /// The directory.
    pub(crate) dir: &'static CStr,
    /// The file of a named tier.
    pub(crate) named: Option<&'static CStr>,
    /// The same for messages.
    pub(crate) title: &'static str,
    /// Around the page cache, if that is possible.
    pub(crate) direct: bool,
}

/// What a file would be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Findings {
    /// Reads and writes go around the page cache.
    pub is_direct: bool,
    /// The keys are in memory that is never swapped out.
    pub is_key_locked: bool,
}

impl Options {
    /// Opens a file, looks at it, and closes it again.
    ///
    /// # Errors
    /// As of [`FileTier::open`].
    pub fn try_out(&self) -> Result<Findings, OpenError> {
        FileTier::open(self).map(|tier| Findings {
            is_direct: tier.is_direct(),
            is_key_locked: tier.is_key_locked(),
        })
    }
}

impl FileTier {
    /// Opens a file and checks that it takes writes.
    ///
    /// # Errors
    /// What cannot be made or used, see [`OpenError`].
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        if options.limit_bytes < LIMIT_BYTES_MIN {
            return Err(OpenError::LimitTooSmall {
                limit_bytes: options.limit_bytes,
                least_bytes: LIMIT_BYTES_MIN,
            });
        }
        lineage::refuse_stranger().map_err(OpenError::Os)?;
        if options.on_disk_only
            && let Some(kept_by) = options.kept_in_memory_by()
        {
            return Err(OpenError::InMemory {
                path: options.path.display().to_string(),
                kept_by,
            });
        }
        let location = FileLocation::new(options)?;
        let segments = options.limit_bytes / SEGMENT_BYTES_LEAST + 8;
        // Where address space is scarce, no more than a part of it goes for tables.
        let room = machine::address_space_left().map_or(u64::MAX, |bytes| bytes / 32);
        let segments = segments.min(room / ENTRY_ROW_BYTES as u64).max(64);
        let segments = u32::try_from(segments).map_or(SEGMENTS_MAX, |n| n.min(SEGMENTS_MAX));
        let table = Table::new(segments).map_err(OpenError::Os)?;
        let seals = Seals::new(options.encrypt).map_err(OpenError::Os)?;
        let files = Files::new(options.faults);
        let mut writer = Writer::new(options.nonce_bits).map_err(OpenError::Os)?;
        let (file, direct) = ghostmem_os::file::without_size_signal(|| location.open())?;
        writer.own = files.add(file, direct);
        let tier = Self {
            table,
            files,
            seals,
            counters: Counters::default(),
            writer: Lock::new(writer),
            location,
            limit_bytes: options.limit_bytes,
        };
        tier.counters.file_bytes_add(BLOCK_BYTES);
        Ok(tier)
    }

    /// Whether reads and writes go around the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        let own = self.writer.lock().own;
        own.is_some_and(|own| self.files.is_direct(own))
    }

    /// Whether records are encrypted.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.seals.is_encrypting()
    }

    /// Whether the keys are in memory that is never swapped out: `RLIMIT_MEMLOCK`
    /// may forbid it.
    #[must_use]
    pub fn is_key_locked(&self) -> bool {
        self.seals.is_locked()
    }

    /// The file, or the directory of an unlinked one, as messages name it.
    #[must_use]
    pub const fn title(&self) -> &'static str {
        self.location.title
    }
}

impl Drop for FileTier {
    fn drop(&mut self) {
        let mut writer = self.writer.lock();
        if let Some(path) = self.location.named.filter(|_| writer.removes_name)
            && !lineage::is_stranger()
        {
            // Somebody else may have put another file there meanwhile.
            let ours = writer.own.map(|own| self.files.get(own).status());
            if let (Some(Ok(ours)), Ok(there)) = (ours, file::identity_at(path))
                && ours.identity == there
            {
                let _gone_already = file::unlink(path);
            }
        }
        writer.close_watches();
        drop(writer);
        self.close_files();
    }
}

impl FileLocation {
    fn new(options: &Options) -> Result<Self, OpenError> {
        let given = options.path.as_path();
        let bad = || OpenError::BadPath {
            path: given.display().to_string(),
        };
        // A child makes its own file later, wherever the process has gone to.
        let whole = std::path::absolute(given).map_err(|_| bad())?;
        let dir = if options.is_named {
            whole.file_name().ok_or_else(bad)?;
            whole.parent().ok_or_else(bad)?
        } else {
            whole.as_path()
        };
        let keep = |path: &Path| {
            let bytes = path.as_os_str().as_bytes().to_vec();
            CString::new(bytes).map(kept).map_err(|_| bad())
        };
        let title = if options.is_named {
            whole.display().to_string()
        } else {
            format!("unlinked file in {}", whole.display())
        };
        let title = CString::new(title).map(kept).map_err(|_| bad())?;
        Ok(Self {
            dir: keep(dir)?,
            named: options.is_named.then(|| keep(&whole)).transpose()?,
            title: title.to_str().map_err(|_| bad())?,
            direct: options.direct,
        })
    }

    fn text(path: &CStr) -> String {
        OsString::from_vec(path.to_bytes().to_vec())
            .to_string_lossy()
            .into_owned()
    }

    /// Opens the file as it was asked for, and whether it works directly.
    fn open(&self) -> Result<(File, bool), OpenError> {
        let Some(path) = self.named else {
            let failed = |error| OpenError::File {
                path: Self::text(self.dir),
                error,
            };
            return self.open_unnamed().map_err(failed);
        };
        let failed = |error| OpenError::File {
            path: Self::text(path),
            error,
        };
        let file = loop {
            let file = File::open_or_create(path).map_err(failed)?;
            match take_over(file, path) {
                Ok(Takeover::Ours) => break file,
                Ok(Takeover::Replaced) => file.close(),
                Ok(Takeover::InUse) => {
                    file.close();
                    return Err(OpenError::InUse {
                        path: Self::text(path),
                    });
                }
                Ok(Takeover::Foreign) => {
                    file.close();
                    return Err(OpenError::Foreign {
                        path: Self::text(path),
                    });
                }
                Err(error) => {
                    file.close();
                    return Err(failed(error));
                }
            }
        };
        let begun = file.set_len(0).and_then(|()| begin(file, self.direct));
        match begun {
            Ok(direct) => Ok((file, direct)),
            Err(error) => {
                let _left = file::unlink(path);
                file.close();
                Err(failed(error))
            }
        }
    }

    /// Opens a file without a name. Allocates nothing. Its header is for nobody: where
    /// the disk has no room for one now, what is written later is tried again anyway.
    pub(crate) fn open_unnamed(&self) -> Result<(File, bool), OsError> {
        let file = match File::unnamed(self.dir) {
            Err(error) if has_no_tmpfile(error.errno) => self.create_and_unlink()?,
            other => other?,
        };
        match begin(file, self.direct) {
            Ok(direct) => Ok((file, direct)),
            Err(error) if matches!(error.errno, libc::ENOSPC | libc::EDQUOT) => Ok((file, false)),
            Err(error) => {
                file.close();
                Err(error)
            }
        }
    }

    /// For file systems without `O_TMPFILE`. The name is there for a moment.
    fn create_and_unlink(&self) -> Result<File, OsError> {
        for _ in 0..16 {
            let mut random = [0; 8];
            ghostmem_os::random::fill(&mut random)?;
            let mut path = [0_u8; 4096];
            let Some(path) = temporary_name(self.dir, u64::from_ne_bytes(random), &mut path) else {
                return Err(OsError::new("open", libc::ENAMETOOLONG));
            };
            match File::create(path) {
                Ok(file) => {
                    if let Err(error) = file::unlink(path) {
                        file.close();
                        return Err(error);
                    }
                    return Ok(file);
                }
                Err(error) if error.errno == libc::EEXIST => {}
                Err(error) => return Err(error),
            }
        }
        Err(OsError::new("open(O_CREAT)", libc::EEXIST))
    }
}

/// What a named file turned out to be.
enum Takeover {
    Ours,
    InUse,
    Foreign,
    /// Its user removed it between the open and the lock.
    Replaced,
}

fn take_over(file: File, path: &CStr) -> Result<Takeover, OsError> {
    let status = file.status()?;
    // Another user could read what is written, or write what is read.
    if !status.is_regular || !status.is_own {
        return Ok(Takeover::Foreign);
    }
    match file.try_lock() {
        Err(error) if error.errno == libc::EWOULDBLOCK => return Ok(Takeover::InUse),
        other => other?,
    }
    match file::identity_at(path) {
        Ok(there) if there == status.identity => {}
        Ok(_) => return Ok(Takeover::Replaced),
        Err(error) if error.errno == libc::ENOENT => return Ok(Takeover::Replaced),
        Err(error) => return Err(error),
    }
    let mut begins = [0; MAGIC.len()];
    let len = file.read_at(&mut begins, 0)?;
    if file.status()?.len_bytes != 0 && (len != MAGIC.len() || begins != *MAGIC) {
        return Ok(Takeover::Foreign);
    }
    file.make_private()?;
    Ok(Takeover::Ours)
}

/// Writes the header, which shows whether the file takes writes, and how.
fn begin(file: File, direct: bool) -> Result<bool, OsError> {
    #[repr(align(4096))]
    struct Block([u8; BLOCK_BYTES]);
    let mut block = Block([0; BLOCK_BYTES]);
    block.0[..MAGIC.len()].copy_from_slice(MAGIC);
    let direct = direct && file.set_direct(true).is_ok();
    let written = file.write_at(&block.0, 0);
    if direct && written.is_ok_and(|()| file.read_at(&mut block.0, 0) == Ok(BLOCK_BYTES)) {
        return Ok(true);
    }
    file.set_direct(false)?;
    file.expect_random();
    file.write_at(&block.0, 0)?;
    Ok(false)
}

/// Whether an error of `O_TMPFILE` means that there is no such thing here.
const fn has_no_tmpfile(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
}

fn temporary_name<'a>(dir: &CStr, random: u64, out: &'a mut [u8]) -> Option<&'a CStr> {
    const PREFIX: &[u8] = b"/.ghostmem-";
    let mut digits = [0; 16];
    for (at, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(random >> (at * 4) & 15) as usize];
    }
    let mut len = 0;
    for part in [dir.to_bytes(), PREFIX, &digits, &[0]] {
        out.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    CStr::from_bytes_with_nul(&out[..len]).ok()
}

/// Keeps a text for the life of the process, once however often it is asked for.
fn kept(text: CString) -> &'static CStr {
    static TEXTS: OnceLock<Mutex<HashSet<&'static CStr>>> = OnceLock::new();
    let texts = TEXTS.get_or_init(Mutex::default);
    let mut texts = texts
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(text) = texts.get(text.as_c_str()) {
        return text;
    }
    let text: &'static CStr = Box::leak(text.into_boxed_c_str());
    texts.insert(text);
    text
}
