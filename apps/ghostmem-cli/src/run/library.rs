//! Which preload library a program gets.
//!
//! The library and the command are one build: they speak to each other through
//! settings that a different build may not know. An optimised command carries its
//! library, so that the command alone (`cargo install`) works; a library near the
//! command is used where it lies if it is that very one, byte for byte, and
//! otherwise the carried one is kept in the user's cache. One that is near and
//! damaged is said and nothing runs: what is installed there is broken. An
//! unoptimised command carries none and takes the newest that is near: cargo leaves an older build's
//! beside the command when only the command is built again.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::failure::{EXIT_NOT_RUN, Failure};

use super::elf;

/// The library's file name; the library knows itself by it in `LD_PRELOAD`.
const LIBRARY: &str = "libghostmem_preload.so";
/// Names the library, whatever is near.
const VARIABLE: &str = "GHOSTMEM_PRELOAD";
/// Where it may lie, from the command's folder: cargo's folders and those of an
/// installed prefix.
const PLACES: [&str; 5] = ["", "deps", "../lib", "../lib64", "../lib/ghostmem"];

/// The folder in the cache with notes of libraries that were compared.
const NOTES: &str = "compared";
/// What is mounted where, and how.
const MOUNTS: &str = "/proc/self/mountinfo";
/// In a mode: the group or anybody may write.
const OTHERS_WRITE: u32 = 0o022;

/// The library of this very build; empty in an unoptimised build.
#[cfg(carries_library)]
static CARRIED: &[u8] = include_bytes!(env!("GHOSTMEM_BUILT_LIBRARY"));
#[cfg(not(carries_library))]
static CARRIED: &[u8] = &[];

/// The preload library: named by a variable, near this executable, or carried in it.
///
/// # Errors
/// One line that says what helps.
pub(super) fn find() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(path);
        let refused = |why: &str| {
            let shown = path.display();
            Err(Failure::new(format!(
                "{VARIABLE} names {shown}, which {why}"
            )))
        };
        return match path.canonicalize() {
            // By its name it is left out where a child cannot have it.
            Ok(found) if found.file_name() != Some(OsStr::new(LIBRARY)) => {
                refused(&format!("is no {LIBRARY}"))
            }
            Ok(found) if found.is_file() => checked(found),
            _ => refused("is no file"),
        };
    }
    let command = std::env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find where this command is: {error}")))?;
    let folder = command.parent().unwrap_or_else(|| Path::new("/"));
    let near: Vec<PathBuf> = PLACES
        .iter()
        .map(|place| folder.join(place).join(LIBRARY))
        .filter(|path| path.is_file())
        .collect();
    if CARRIED.is_empty() {
        return newest(near).map_or_else(|| Err(nowhere(&command)), checked);
    }
    if let Some(path) = near.iter().find(|path| is_known(path, CARRIED)) {
        return checked(path.clone());
    }
    if let Some(other) = near.first() {
        near.iter().try_for_each(|path| is_whole(path))?;
        eprintln!(
            "ghostmem: {} is of another build than this command, which uses its own",
            other.display()
        );
    }
    checked(keep(CARRIED)?)
}

/// The one that was written last.
fn newest(paths: Vec<PathBuf>) -> Option<PathBuf> {
    let written = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
    paths.into_iter().max_by_key(written)
}

fn nowhere(command: &Path) -> Failure {
    Failure::new(format!(
        "{LIBRARY} is neither beside {} nor in ../lib, and only an optimised command carries \
         its own: install both with 'scripts/install --prefix DIR' and use DIR/bin/ghostmem, or \
         name the library in {VARIABLE}",
        command.display()
    ))
}

/// Whether a file holds these bytes and no others.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let compare = || -> io::Result<bool> {
        let mut file = File::open(path)?;
        if file.metadata()?.len() != bytes.len() as u64 {
            return Ok(false);
        }
        let mut buffer = vec![0; 1 << 18];
        let mut rest = bytes;
        loop {
            let got = file.read(&mut buffer)?;
            let Some((expected, after)) = rest.split_at_checked(got) else {
                return Ok(false);
            };
            if got == 0 || expected != &buffer[..got] {
                return Ok(got == 0 && rest.is_empty());
            }
            rest = after;
        }
    };
    compare().unwrap_or(false)
}

/// As [`holds`], with a note in the cache of what was found: as long as neither the
/// file nor this command is another one since, nothing is read.
fn is_known(path: &Path, bytes: &[u8]) -> bool {
    is_known_in(cache_folder().as_deref(), path, bytes)
}

fn is_known_in(cache: Option<&Path>, path: &Path, bytes: &[u8]) -> bool {
    let Some(cache) = cache else {
        return holds(path, bytes);
    };
    let note = identity(path).zip(identity(Path::new("/proc/self/exe")));
    let Some(note) = note.map(|(library, command)| format!("{library}\n{command}\n")) else {
        return holds(path, bytes);
    };
    let (folder, name) = (cache.join(NOTES), name_of(path.as_os_str().as_bytes()));
    let me = fs::metadata("/proc/self").map(|found| found.uid());
    let is_own = |found: &fs::Metadata| {
        me.as_ref().is_ok_and(|me| *me == found.uid()) && found.mode() & OTHERS_WRITE == 0
    };
    let place = folder.join(&name);
    let noted = [&folder, &place]
        .iter()
        .all(|path| fs::symlink_metadata(path).is_ok_and(|found| is_own(&found)))
        && fs::read(&place).is_ok_and(|found| found == note.as_bytes());
    if noted {
        return true;
    }
    if !holds(path, bytes) {
        return false;
    }
    let _next_time_again = me.and_then(|me| {
        make_folder(&folder, me)?;
        write_whole(&folder, &name, 0o600, note.as_bytes())
    });
    true
}

/// What is another one when a file was changed or replaced: its times have the
/// nanoseconds of the file system, and the last of them cannot be set.
fn identity(path: &Path) -> Option<String> {
    let found = fs::metadata(path).ok()?;
    let numbers = [
        found.dev().cast_signed(),
        found.ino().cast_signed(),
        found.size().cast_signed(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ];
    Some(numbers.map(|number| number.to_string()).join(" "))
}

fn name_of(bytes: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes))
}

/// Puts the library into the user's cache, once for each build.
fn keep(bytes: &[u8]) -> Result<PathBuf, Failure> {
    let cache = cache_folder().ok_or_else(|| {
        Failure::new(no_cache(
            "neither XDG_CACHE_HOME nor HOME is an absolute path",
        ))
    })?;
    keep_in(&cache, bytes)
        .map_err(|error| Failure::new(no_cache(&format!("{}: {error}", cache.display()))))
}

/// Bytes of a library that its folder is named by: its header and its build id are
/// among the first. What the file holds is compared whole.
const NAMED_BY: usize = 64 << 10;

fn keep_in(cache: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let me = fs::metadata("/proc/self")?.uid();
    let folder = cache.join(name_of(&bytes[..bytes.len().min(NAMED_BY)]));
    let folder = make_folder(&folder, me)?;
    let path = folder.join(LIBRARY);
    let is_own = |file: fs::Metadata| file.uid() == me && file.mode() & OTHERS_WRITE == 0;
    if fs::symlink_metadata(&path).is_ok_and(is_own) && is_known_in(Some(cache), &path, bytes) {
        return Ok(path);
    }
    write_whole(&folder, LIBRARY, 0o755, bytes)?;
    Ok(path)
}

/// Makes a folder in the cache that only its user can write.
fn make_folder(folder: &Path, me: u32) -> io::Result<PathBuf> {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700).create(folder)?;
    let folder = folder.canonicalize()?;
    // What is compared now is loaded later, and again by each program that the
    // program starts: nobody else may be able to put another file there.
    for folder in folder.ancestors().take(2) {
        make_own(folder, me)?;
    }
    Ok(folder)
}

/// Writes a file whole or not at all: others may start programs with it at this
/// moment. The folder may be seen by several containers, where process ids are not
/// unique.
fn write_whole(folder: &Path, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let (part, mut file) = loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let unlike = now.map_or(0, |time| time.as_nanos());
        let part = folder.join(format!("{name}.{}.{unlike}", std::process::id()));
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(mode).open(&part) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            file => break (part, file?),
        }
    };
    let mut write = || -> io::Result<()> {
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, folder.join(name))
    };
    write().inspect_err(|_| {
        let _unfinished = fs::remove_file(&part);
    })
}

/// Sees to it that only its user can write a folder.
fn make_own(folder: &Path, me: u32) -> io::Result<()> {
    let found = fs::metadata(folder)?;
    if found.uid() != me {
        let whose = format!("{} is another user's", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, whose));
    }
    if found.mode() & OTHERS_WRITE != 0 {
        let mode = found.mode() & 0o7777 & !OTHERS_WRITE;
        fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn no_cache(why: &str) -> String {
    format!(
        "this command carries {LIBRARY} and cannot put it into a cache ({why}): install both with \
         'scripts/install --prefix DIR' and use DIR/bin/ghostmem, or name the library in {VARIABLE}"
    )
}

/// `ghostmem` in the user's cache, as the XDG base directory specification has it.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|folder| folder.join("ghostmem"))
}

/// Refuses a library that the loader could not load: it would say so, and start the
/// program without it.
fn is_whole(path: &Path) -> Result<(), Failure> {
    let whole = File::open(path).and_then(|mut file| elf::is_whole_library(&mut file));
    let path = path.display();
    let why = match whole {
        Ok(true) => return Ok(()),
        Ok(false) => format!(
            "{path} is damaged: the loader would start the program without it; build or install \
             it again"
        ),
        Err(error) => format!("{path} cannot be read: {error}"),
    };
    Err(Failure::new(why).ending_with(EXIT_NOT_RUN))
}

/// LD_PRELOAD separates paths by spaces and colons and cannot quote them.
fn checked(path: PathBuf) -> Result<PathBuf, Failure> {
    let path = path.canonicalize().unwrap_or(path);
    is_whole(&path)?;
    let bytes = OsStr::as_bytes(path.as_os_str());
    if bytes.iter().any(|byte| matches!(byte, b' ' | b':')) {
        return Err(Failure::new(format!(
            "{} has a space or a colon in its path, which the loader's LD_PRELOAD cannot hold: \
             move it, or name a copy in {VARIABLE}",
            path.display()
        )));
    }
    // The loader would say so, and start the program without it.
    if fs::read(MOUNTS).is_ok_and(|mounts| forbids_code(&mounts, bytes)) {
        return Err(Failure::new(format!(
            "{} lies where nothing may be executed (noexec): name a copy elsewhere in {VARIABLE}, \
             or set XDG_CACHE_HOME",
            path.display()
        )));
    }
    Ok(path)
}

/// Whether a text in the form of proc_pid_mountinfo(5) has a path in a mount without
/// code. Names that it escapes do not occur in the paths that are asked for.
fn forbids_code(mounts: &[u8], path: &[u8]) -> bool {
    let mut longest = 0;
    let mut forbidden = false;
    for line in mounts.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b' ').skip(4);
        let (Some(place), Some(options)) = (fields.next(), fields.next()) else {
            continue;
        };
        let place = place.strip_suffix(b"/").unwrap_or(place);
        let rest = path.strip_prefix(place);
        // Of two mounts in one place the later covers the earlier.
        if rest.is_some_and(|rest| rest.starts_with(b"/")) && place.len() >= longest {
            longest = place.len();
            let mut options = options.split(|&byte| byte == b',');
            forbidden = options.any(|option| option == b"noexec");
        }
    }
    forbidden
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A folder of this test's own that does not exist.
    fn fresh(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ghostmem-{name}-{}", std::process::id()));
        let _left_behind = fs::remove_dir_all(&folder);
        folder
    }

    /// Threads have one process id, as processes of several containers may.
    #[test]
    fn many_that_keep_it_at_once_all_have_it_whole() {
        let cache = fresh("at-once");
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        std::thread::scope(|scope| {
            let keepers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let path = keep_in(&cache, &bytes).expect("a library");
                        assert!(holds(&path, &bytes), "half a library");
                        path
                    })
                })
                .collect();
            for keeper in keepers {
                let path = keeper.join().expect("a keeper");
                assert!(holds(&path, &bytes));
            }
        });
        let folders = fs::read_dir(&cache).expect("the cache");
        let kept = folders
            .map(|folder| folder.expect("one").path())
            .filter(|folder| !folder.ends_with(NOTES))
            .flat_map(|folder| fs::read_dir(folder).expect("it"));
        assert_eq!(kept.count(), 1, "nothing half written stays");
        fs::remove_dir_all(&cache).expect("the cache");
    }

    #[test]
    fn nobody_else_can_write_where_it_is_kept() {
        let cache = fresh("private");
        let path = keep_in(&cache, b"a library").expect("a library");
        let folder = path.parent().expect("a folder");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
        let open_to_all = fs::Permissions::from_mode(0o777);
        for place in [&path, folder, &cache] {
            assert_eq!(mode(place) & OTHERS_WRITE, 0, "{}", place.display());
            fs::set_permissions(place, open_to_all.clone()).expect("a mode");
        }
        // Whoever could write it may be able to still: a file that was open to all
        // is another one afterwards.
        let before = fs::metadata(&path).expect("a file").ino();
        let _open = File::open(&path).expect("a file");
        assert_eq!(keep_in(&cache, b"a library").expect("a library"), path);
        for place in [&path, folder, &cache] {
            assert_eq!(mode(place) & OTHERS_WRITE, 0, "{}", place.display());
        }
        assert_ne!(fs::metadata(&path).expect("a file").ino(), before);
        fs::remove_dir_all(&cache).expect("the cache");
    }

    /// The second look reads nothing: it is answered by the note, until the file is
    /// another one.
    #[test]
    fn a_library_that_was_compared_is_not_read_again() {
        let cache = fresh("compared");
        fs::create_dir_all(&cache).expect("a folder");
        let path = cache.join("library");
        fs::write(&path, b"this build").expect("a file");
        let known = |bytes: &[u8]| is_known_in(Some(&cache), &path, bytes);
        assert!(!known(b"other build"), "nothing is noted of another build");
        assert!(known(b"this build"));
        assert!(known(b"by its note"), "by its note");
        fs::write(&path, b"that build").expect("a file");
        assert!(!known(b"this build"), "the file is another one");
        fs::write(&path, b"this build").expect("a file");
        assert!(known(b"this build"));
        let note = cache.join(NOTES).join(name_of(path.as_os_str().as_bytes()));
        fs::set_permissions(&note, fs::Permissions::from_mode(0o622)).expect("a mode");
        assert!(!known(b"by its note"), "somebody else may have written it");
        fs::set_permissions(&note, fs::Permissions::from_mode(0o600)).expect("a mode");
        fs::write(&note, b"nonsense").expect("a note");
        assert!(!known(b"by its note"), "it notes something else");
        assert!(known(b"this build"));
        fs::remove_dir_all(&cache).expect("the cache");
    }

    #[test]
    fn a_mount_without_code_is_told() {
        let mounts = b"21 1 8:1 / / rw,relatime - ext4 /dev/a rw\n\
            22 21 0:5 / /home rw,nosuid,noexec shared:1 - ext4 /dev/b rw\n\
            23 22 0:6 /x /home/a/.cache rw,noexecutive - tmpfs c rw\n\
            24 21 0:7 / /twice rw - tmpfs c rw\n\
            25 24 0:8 / /twice rw,noexec - tmpfs c rw,noexec\n\
            26 21 0:9 / /data rw - tmpfs c rw,noexec\n";
        let forbids = |path: &str| forbids_code(mounts, path.as_bytes());
        assert!(forbids("/home/lib.so") && forbids("/home/b/lib.so") && forbids("/twice/lib.so"));
        assert!(!forbids("/usr/lib.so") && !forbids("/homes/lib.so") && !forbids("/data/lib.so"));
        assert!(!forbids("/home/a/.cache/lib.so"));
        assert!(!forbids_code(b"", b"/lib.so") && !forbids_code(b"nonsense\n\n", b"/lib.so"));
        assert!(forbids_code(
            b"1 1 8:1 / / ro,noexec - ext4 /dev/a ro",
            b"/lib.so"
        ));
    }

    #[test]
    fn another_users_folder_is_refused() {
        let folder = fresh("foreign");
        fs::create_dir(&folder).expect("a folder");
        let me = fs::metadata(&folder).expect("a folder").uid();
        assert!(make_own(&folder, me).is_ok());
        let refused = make_own(&folder, me + 1).expect_err("another user's");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        fs::remove_dir(&folder).expect("the folder");
    }

    #[test]
    fn a_file_holds_what_it_holds_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("ghostmem-holds-{}", std::process::id()));
        let bytes: Vec<u8> = (0..700_000_u32).map(|i| (i / 7) as u8).collect();
        fs::write(&path, &bytes).expect("a temporary file");
        assert!(holds(&path, &bytes));
        assert!(!holds(&path, &bytes[1..]));
        let mut other = bytes.clone();
        other[699_999] ^= 1;
        assert!(!holds(&path, &other));
        fs::write(&path, b"").expect("a temporary file");
        assert!(!holds(&path, &bytes));
        assert!(holds(&path, b""));
        fs::remove_file(&path).expect("the temporary file");
        assert!(!holds(&path, b""), "a file that is not there");
    }

    #[test]
    fn the_newest_is_the_one_written_last() {
        let folder = std::env::temp_dir().join(format!("ghostmem-newest-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        let at = |name: &str, seconds: u64| {
            let path = folder.join(name);
            let file = File::create(&path).expect("a temporary file");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            file.set_modified(time).expect("a time");
            path
        };
        let (old, new, gone) = (at("old", 100), at("new", 200), folder.join("gone"));
        assert_eq!(newest(vec![old.clone(), new.clone()]), Some(new.clone()));
        assert_eq!(newest(vec![new.clone(), old.clone()]), Some(new));
        assert_eq!(newest(vec![gone, old.clone()]), Some(old));
        assert_eq!(newest(Vec::new()), None);
        fs::remove_dir_all(&folder).expect("the temporary folder");
    }
}
