//! Memory control groups, versions 1 and 2.
//!
//! `/proc/self/cgroup` names the group as the root of its namespace sees it, and
//! `/proc/self/mountinfo` which part of the hierarchy is mounted where. In a
//! container the two need not meet: only the container's own group is mounted,
//! or the name belongs to a tree that cannot be seen. What is left then is the
//! mounted top, which is the container's group. A limit of any level holds for
//! all below it, so every level that can be seen is read.
//!
//! ```text
//!   version 1   memory.limit_in_bytes   the kernel kills above it
//!   version 2   memory.max              the same
//!               memory.high             the kernel stops processes for up to 2 s at a time above it
//! ```
//! A level's limit is the smaller of its files. `memory.soft_limit_in_bytes` of version 1
//! is no limit: nothing happens above it while the machine has memory.
//!
//! Formats: cgroups(7), proc_pid_mountinfo(5), and the kernel's
//! `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/memory.rst`.

use core::ffi::CStr;
use std::path::Path;

use super::{PathBytes, Pressure, Reports, keyed, number, words};

/// Version 1 says "no limit" with a number near `i64::MAX`.
const NO_LIMIT: u64 = 1 << 60;

/// What a limit file says: bytes, or that there is no limit; `None` for anything else.
pub(crate) fn limit_in(text: &[u8]) -> Option<Option<u64>> {
    match text.trim_ascii() {
        b"max" => Some(None),
        text => number(text).map(|bytes| (bytes < NO_LIMIT).then_some(bytes)),
    }
}

/// File cache in the text of a `memory.stat`, as [`Level::clean_cache_bytes`] says it.
pub(crate) fn clean_cache_in(text: &[u8], version: Version) -> Option<u64> {
    let mut cache = Cache::new(version);
    text.split(|&byte| byte == b'\n')
        .for_each(|line| cache.take(line));
    cache.clean_bytes()
}

/// The figures of file cache, line by line.
struct Cache {
    names: [&'static str; 4],
    found: [Option<u64>; 4],
}

impl Cache {
    fn new(version: Version) -> Self {
        let names = match version {
            Version::V1 => [
                "total_inactive_file",
                "total_active_file",
                "total_dirty",
                "total_writeback",
            ],
            Version::V2 => [
                "inactive_file",
                "active_file",
                "file_dirty",
                "file_writeback",
            ],
        };
        Self {
            names,
            found: [None; 4],
        }
    }

    fn take(&mut self, line: &[u8]) {
        for (name, value) in self.names.iter().zip(&mut self.found) {
            *value = value.or_else(|| keyed(line, name));
        }
    }

    fn clean_bytes(&self) -> Option<u64> {
        let [inactive, active, dirty, writeback] = self.found;
        let unclean = dirty.unwrap_or(0).saturating_add(writeback.unwrap_or(0));
        Some(inactive?.saturating_add(active?).saturating_sub(unclean))
    }
}

/// Which interface a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `memory.limit_in_bytes` and its kin.
    V1,
    /// `memory.max` and its kin.
    V2,
}

impl Version {
    /// The name of the file with the limit that the kernel kills for.
    #[must_use]
    pub const fn limit_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.limit_in_bytes",
            Self::V2 => "memory.max",
        }
    }

    /// The names of all files with a limit, that of [`Version::limit_file`] first.
    pub(crate) const fn limit_files(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["memory.limit_in_bytes"],
            Self::V2 => &["memory.max", "memory.high"],
        }
    }

    pub(crate) const fn usage_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    const fn peak_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.max_usage_in_bytes",
            Self::V2 => "memory.peak",
        }
    }
}

/// Where a hierarchy of memory groups is mounted.
#[derive(Clone, Copy)]
pub struct Mount {
    place: PathBytes,
    version: Version,
}

impl Mount {
    /// The folder, below the root of the [`Reports`].
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.place.as_path()
    }

    /// The hierarchy's version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }
}

/// The memory group of this process, with every level above it that can be seen.
#[derive(Clone, Copy)]
pub struct Group {
    /// The mount point and what of the group's name lies below it.
    place: PathBytes,
    /// Bytes of the mount point.
    top: usize,
    version: Version,
}

impl Group {
    /// The levels, the group itself first and the mounted top last. A level
    /// that cannot be seen has no numbers.
    pub fn levels(&self) -> impl Iterator<Item = Level<'_>> {
        let mut next = Some(self.place.as_bytes());
        core::iter::from_fn(move || {
            let folder = next?;
            let below = &folder[self.top..];
            next = below
                .iter()
                .rposition(|&byte| byte == b'/')
                .map(|cut| &folder[..self.top + cut]);
            Some(Level {
                folder,
                version: self.version,
            })
        })
    }

    /// The smallest limit, bytes; `None` when no level has one.
    #[must_use]
    pub fn limit_bytes(&self) -> Option<u64> {
        self.levels().filter_map(|level| level.limit_bytes()).min()
    }

    /// What the tightest level has left of its limit, bytes; `None` when no
    /// level has a limit.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.levels().filter_map(|level| level.free_bytes()).min()
    }
}

/// One level of a hierarchy.
#[derive(Clone, Copy)]
pub struct Level<'a> {
    folder: &'a [u8],
    version: Version,
}

impl<'a> Level<'a> {
    /// The level with this folder.
    #[must_use]
    pub fn at(folder: &'a Path, version: Version) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self {
            folder: folder.as_os_str().as_bytes(),
            version,
        }
    }

    /// The level's folder, below the root of the [`Reports`].
    #[must_use]
    pub fn folder(&self) -> &'a Path {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(self.folder))
    }

    /// Most that may be charged without harm, bytes; `None` for no limit.
    #[must_use]
    pub fn limit_bytes(&self) -> Option<u64> {
        self.limit().map(|(bytes, _)| bytes)
    }

    /// That limit, and the name of the file that says it.
    #[must_use]
    pub fn limit(&self) -> Option<(u64, &'static str)> {
        let said = |name: &&'static str| {
            let bytes = self
                .file(name)?
                .number()
                .filter(|&bytes| bytes < NO_LIMIT)?;
            Some((bytes, *name))
        };
        let files = self.version.limit_files().iter();
        files.filter_map(said).min_by_key(|&(bytes, _)| bytes)
    }

    /// What is charged now, bytes, file cache included.
    #[must_use]
    pub fn usage_bytes(&self) -> Option<u64> {
        self.file(self.version.usage_file())?.number()
    }

    /// The most that was ever charged, bytes (version 2: Linux 5.19).
    #[must_use]
    pub fn peak_bytes(&self) -> Option<u64> {
        self.file(self.version.peak_file())?.number()
    }

    /// The limit less what is charged, bytes; `None` for no limit.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        Some(self.limit_bytes()?.saturating_sub(self.usage_bytes()?))
    }

    /// File cache of the level and all below it that the kernel can drop
    /// without writing, bytes.
    #[must_use]
    pub fn clean_cache_bytes(&self) -> Option<u64> {
        let mut cache = Cache::new(self.version);
        self.file("memory.stat")?.find(|line| {
            cache.take(line);
            None::<()>
        });
        cache.clean_bytes()
    }

    /// How long the level's tasks waited for memory (version 2, Linux 4.20).
    #[must_use]
    pub fn pressure(&self) -> Option<Pressure> {
        self.file("memory.pressure")?.pressure()
    }

    /// The level's version.
    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    /// Hands the path of one of the level's files to `open`.
    pub(crate) fn with_path<T>(&self, name: &str, open: impl FnOnce(&CStr) -> T) -> Option<T> {
        Some(open(self.file(name)?.as_c_str()?))
    }

    fn file(&self, name: &str) -> Option<PathBytes> {
        let mut path = PathBytes::new();
        path.push(self.folder)?;
        path.push(b"/")?;
        path.push(name.as_bytes())?;
        Some(path)
    }
}

/// A line of mountinfo that mounts memory groups.
struct Mounted<'l> {
    version: Version,
    /// The part of the hierarchy that is mounted.
    part: &'l [u8],
    /// Where, escaped.
    place: &'l [u8],
}

impl<'l> Mounted<'l> {
    /// `32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`
    fn parse(line: &'l [u8]) -> Option<Self> {
        let mut fields = words(line);
        let part = fields.nth(3)?;
        let place = fields.next()?;
        fields.find(|&field| field == b"-")?;
        let kind = fields.next()?;
        let options = fields.nth(1).unwrap_or_default();
        let version = match kind {
            b"cgroup2" => Version::V2,
            b"cgroup" if has(options, b',', b"memory") => Version::V1,
            _ => return None,
        };
        let absolute = part.starts_with(b"/") && place.starts_with(b"/");
        absolute.then_some(Self {
            version,
            part,
            place,
        })
    }

    /// The rest of a group's name below the mounted part.
    fn below<'g>(&self, group: &'g [u8]) -> Option<&'g [u8]> {
        let part = self.part.strip_suffix(b"/").unwrap_or(self.part);
        let rest = group.strip_prefix(part)?;
        (rest.is_empty() || rest[0] == b'/').then_some(rest)
    }
}

fn has(list: &[u8], separator: u8, what: &[u8]) -> bool {
    list.split(|&byte| byte == separator)
        .any(|word| word == what)
}

/// Appends a path of mountinfo, which writes spaces and backslashes as `\040`.
fn push_unescaped(path: &mut PathBytes, escaped: &[u8]) -> Option<()> {
    let mut rest = escaped;
    while let [first, tail @ ..] = rest {
        if let (
            b'\\',
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ],
        ) = (first, tail)
        {
            path.push(&[((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0')])?;
            rest = after;
        } else {
            path.push(&[*first])?;
            rest = tail;
        }
    }
    Some(())
}

impl Reports<'_> {
    /// Where memory groups can be made: the mount with the memory controller.
    #[must_use]
    pub fn memory_mount(&self) -> Option<Mount> {
        self.mounted(Version::V1).or_else(|| {
            let mount = self.mounted(Version::V2)?;
            let mut list = mount.place;
            list.push(b"/cgroup.controllers")?;
            list.find(|line| words(line).any(|word| word == b"memory").then_some(mount))
        })
    }

    /// The first mount of a version.
    fn mounted(&self, version: Version) -> Option<Mount> {
        self.path(&[b"/proc/self/mountinfo"])?.find(|line| {
            let mounted = Mounted::parse(line).filter(|mounted| mounted.version == version)?;
            let mut place = self.path(&[])?;
            push_unescaped(&mut place, mounted.place)?;
            Some(Mount { place, version })
        })
    }

    /// The memory group of this process; `None` where no hierarchy can be seen.
    #[must_use]
    pub fn memory_group(&self) -> Option<Group> {
        // A controller belongs to one hierarchy: version 1 if that names it.
        self.group_of(Version::V1)
            .or_else(|| self.group_of(Version::V2))
    }

    fn group_of(&self, version: Version) -> Option<Group> {
        let name = self.group_name(version)?;
        let name = name.as_bytes();
        let name = name.strip_suffix(b"/").unwrap_or(name);
        let mut best: Option<Group> = None;
        // The part that shows most levels; one that does not show this group at
        // all, only when there is no other.
        let mut best_rank = None;
        self.path(&[b"/proc/self/mountinfo"])?.find(|line| {
            let mounted = Mounted::parse(line).filter(|mounted| mounted.version == version)?;
            let below = mounted.below(name);
            let rank = below.map_or(0, |rest| 1 + rest.len());
            if best_rank.is_none_or(|best| rank > best) {
                let mut place = self.path(&[])?;
                push_unescaped(&mut place, mounted.place)?;
                let top = place.len;
                place.push(below.unwrap_or_default())?;
                best_rank = Some(rank);
                best = Some(Group {
                    place,
                    top,
                    version,
                });
            }
            None::<()>
        });
        best
    }

    /// The group's name in `/proc/self/cgroup`: `4:memory:/name` or `0::/name`.
    fn group_name(&self, version: Version) -> Option<PathBytes> {
        self.path(&[b"/proc/self/cgroup"])?.find(|line| {
            let mut fields = line.splitn(3, |&byte| byte == b':');
            let (hierarchy, controllers) = (fields.next()?, fields.next()?);
            let wanted = match version {
                Version::V1 => has(controllers, b',', b"memory"),
                Version::V2 => number(hierarchy) == Some(0) && controllers.is_empty(),
            };
            let name = fields.next().filter(|_| wanted)?;
            let mut path = PathBytes::new();
            path.push(name)?;
            Some(path)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart() {
        let parse = |line: &'static [u8]| {
            Mounted::parse(line).map(|mounted| (mounted.version, mounted.part, mounted.place))
        };
        assert_eq!(
            parse(b"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 master:1 - cgroup cgroup rw,memory"),
            Some((Version::V1, &b"/"[..], &b"/sys/fs/cgroup/memory"[..]))
        );
        assert_eq!(
            parse(b"29 23 0:26 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw,nsdelegate"),
            Some((Version::V2, &b"/docker/1"[..], &b"/sys/fs/cgroup"[..]))
        );
        assert_eq!(
            parse(b"36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices"),
            None
        );
        assert_eq!(
            parse(b"31 23 0:28 / /memory rw - tmpfs memory rw,memory"),
            None
        );
        assert_eq!(parse(b"31 23 0:28 / /x rw shared:1"), None);
        assert_eq!(parse(b"1 2 0:1 / here rw - cgroup2 cgroup2 rw"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn names_meet_mounted_parts_at_whole_components() {
        let below = |part: &'static [u8], name: &'static [u8]| {
            let mounted = Mounted {
                version: Version::V2,
                part,
                place: b"",
            };
            mounted.below(name).map(<[u8]>::to_vec)
        };
        assert_eq!(below(b"/", b"/a/b").as_deref(), Some(&b"/a/b"[..]));
        assert_eq!(below(b"/a", b"/a/b").as_deref(), Some(&b"/b"[..]));
        assert_eq!(below(b"/a/b", b"/a/b").as_deref(), Some(&b""[..]));
        assert_eq!(below(b"/a", b"/ab"), None);
        assert_eq!(below(b"/..", b"/../c").as_deref(), Some(&b"/c"[..]));
    }

    #[test]
    fn escapes_of_mountinfo_are_undone() {
        let mut path = PathBytes::new();
        push_unescaped(&mut path, br"/a\040b\134c\9\04").unwrap();
        assert_eq!(path.as_bytes(), br"/a b\c\9\04");
        assert!(push_unescaped(&mut path, &[b'x'; 4096]).is_none());
    }
}
