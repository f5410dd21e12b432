//! What a report needs of the system, asked for and opened ahead: under a filter of system
//! calls that comes later, or that may end the process for it, nobody can any more.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::ffi::CStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use ghostmem_os::{OsError, descriptor, trial};

use super::write::{name_of, open_anew};
use super::{know_program, move_up, owes_json, with_process};
use crate::raw::{Answer, own, say};
use crate::settings::Settings;
use crate::start;
use crate::thread::{self, EngineScope};

/// The file for `--stats-json`, where it was opened ahead; -1: not.
static JSON: AtomicI32 = AtomicI32::new(-1);

/// The descriptor of the file for `--stats-json`; -1 where it was not opened.
pub(super) fn file() -> i32 {
    JSON.load(Ordering::Relaxed)
}

/// In a forked child: it is its parent's.
pub(super) fn forget_in_child() {
    let file = JSON.swap(-1, Ordering::Relaxed);
    // On a table that both share it would be closed for the parent.
    if file >= 0 && !descriptor::is_shared() {
        let _closed = own!(libc::SYS_close, file);
    }
}

/// A filter of system calls is about to be in force: opens and asks ahead what the
/// report needs. The descriptors that it and our last words go to; -1 for none.
pub(crate) fn settle() -> [i32; 3] {
    let copy = super::STDERR.load(Ordering::Relaxed);
    if let Some(settings) = start::settings() {
        open_ahead(settings, |path| open_anew(path, 0));
    }
    [2, if copy == 2 { -1 } else { copy }, file()]
}

/// Where the file for `--stats-json` is a descriptor of the program's (`/dev/stdout`), keeps a
/// copy of it: programs close theirs before they end, and to open the name would cut off, and
/// write over, what they wrote to a file.
pub(super) fn keep_named(settings: &Settings) {
    let path = settings
        .stats_json
        .as_deref()
        .filter(|path| owes_json(path));
    let file = path.and_then(|path| descriptor::named(path.as_os_str().as_bytes()));
    if let Some(file) = file.filter(|_| self::file() < 0) {
        JSON.store(move_up(file), Ordering::Relaxed);
    }
}

/// Opens the file for `--stats-json` ahead, by `open`, where it has to be written and is not
/// open yet. Says so, once, where that cannot be: nobody is told at the end.
fn open_ahead(settings: &Settings, open: impl FnOnce(&CStr) -> Result<Answer, i32>) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let path = settings
        .stats_json
        .as_deref()
        .filter(|path| file() < 0 && !SAID.load(Ordering::Relaxed) && owes_json(path));
    let Some(path) = path else { return };
    let _inside = EngineScope::new(thread::current());
    know_program();
    let path = with_process(path);
    let opened = name_of(&path)
        .and_then(|name| open(&name))
        .and_then(|file| {
            let kept = move_up(file as i32);
            let _closed = own!(libc::SYS_close, file);
            // No number is left.
            (kept >= 0).then_some(kept).ok_or(libc::EMFILE)
        });
    match opened {
        Ok(kept) => JSON.store(kept, Ordering::Relaxed),
        Err(errno) => {
            SAID.store(true, Ordering::Relaxed);
            let error = io::Error::from_raw_os_error(errno);
            let path = path.display();
            let line = format!(
                "ghostmem: cannot write {path}: {error}; under this process's filter of system \
                 calls no report is made\n"
            );
            say(line.as_bytes());
        }
    }
}

/// A filter came with the program, and may end the process for opening a file: so it is tried
/// in a child, and the report's is opened now.
pub(super) fn open_under_filter(settings: &Settings) {
    let refusal = |errno| OsError::new("openat", errno);
    open_ahead(settings, |path| {
        let attempt = || open_anew(path, 0).map(|_| 0).map_err(refusal);
        trial::ask("openat", attempt).map_err(|error| error.errno)?;
        open_anew(path, 0)
    });
}
