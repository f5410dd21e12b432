//! A memory cgroup of our own, version 1 or 2, removed on drop.
//!
//! Created directly below the root of the memory hierarchy, so that limits of
//! the surrounding groups do not take part.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ghostmem_os::report::{Level, Reports, Version, keyed};

use crate::error::{Error, Result};

/// Start of the names of our groups, followed by a process number.
pub(crate) const PREFIX: &str = "ghostmem-bench-";

/// A memory cgroup, by its directory.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    version: Version,
    owned: bool,
}

/// Where memory cgroups are mounted.
fn mount() -> Result<(PathBuf, Version)> {
    Reports::of_this_machine()
        .memory_mount()
        .map(|mount| (mount.folder().to_owned(), mount.version()))
        .ok_or_else(|| Error::Skipped("no memory cgroup controller is mounted".into()))
}

impl Cgroup {
    /// Creates a group named after this process.
    pub(crate) fn create() -> Result<Self> {
        let (root, version) = mount()?;
        if version == Version::V2 {
            // Already on wherever systemd runs; the write is then refused or
            // changes nothing.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        }
        let dir = root.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).map_err(|err| {
            Error::Skipped(format!(
                "cannot create a memory cgroup in {}: {err}",
                root.display()
            ))
        })?;
        let group = Self {
            dir,
            version,
            owned: true,
        };
        if !group.dir.join(group.version.limit_file()).exists() {
            return Err(Error::Skipped(
                "the memory controller is off for cgroups".into(),
            ));
        }
        Ok(group)
    }

    /// A group that somebody else created and removes.
    pub(crate) fn open(dir: PathBuf) -> Self {
        let version = if dir.join("memory.limit_in_bytes").exists() {
            Version::V1
        } else {
            Version::V2
        };
        Self {
            dir,
            version,
            owned: false,
        }
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, value).map_err(|err| Error::io(path.display(), &err))
    }

    fn level(&self) -> Level<'_> {
        Level::at(&self.dir, self.version)
    }

    fn said(&self, what: &str, bytes: Option<u64>) -> Result<u64> {
        let dir = self.dir.display();
        bytes.ok_or_else(|| Error::Failed(format!("{dir}: the kernel does not say {what}")))
    }

    /// Moves this process into the group.
    pub(crate) fn join(&self) -> Result<()> {
        self.write("cgroup.procs", &std::process::id().to_string())
    }

    /// Sets the limit on memory (swap not counted), bytes.
    pub(crate) fn set_limit(&self, bytes: u64) -> Result<()> {
        self.write(self.version.limit_file(), &bytes.to_string())
    }

    /// Keeps what is charged out of swap, as far as the version allows.
    pub(crate) fn forbid_swap(&self) {
        // Refused where the kernel has no swap at all, which is as good.
        let _ = match self.version {
            Version::V1 => self.write("memory.swappiness", "0"),
            Version::V2 => self.write("memory.swap.max", "0"),
        };
    }

    /// Lets the kernel swap what the group holds rather than drop files it reads, as
    /// far as the version allows.
    pub(crate) fn swap_readily(&self) -> Result<()> {
        match self.version {
            Version::V1 => self.write("memory.swappiness", "100"),
            Version::V2 => Ok(()),
        }
    }

    /// Lets a process wait for memory that the kernel cannot find, in place of being
    /// killed (version 1; there is no such switch in version 2).
    pub(crate) fn wait_for_memory(&self) -> Result<()> {
        match self.version {
            Version::V1 => self.write("memory.oom_control", "1"),
            Version::V2 => Ok(()),
        }
    }

    /// Whether a process waits for memory that the kernel cannot find.
    pub(crate) fn is_waiting(&self) -> bool {
        let control = fs::read(self.dir.join("memory.oom_control")).unwrap_or_default();
        keyed(&control, "under_oom") == Some(1)
    }

    /// Whether this is a group of the first version.
    pub(crate) fn is_version_1(&self) -> bool {
        self.version == Version::V1
    }

    /// Memory charged now, bytes.
    pub(crate) fn usage(&self) -> Result<u64> {
        self.said("what is charged", self.level().usage_bytes())
    }

    /// Most memory ever charged, bytes (version 2: Linux 5.19).
    pub(crate) fn peak(&self) -> Result<u64> {
        self.said("the most ever charged", self.level().peak_bytes())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        // A process that has just been reaped may still be on its way out.
        for _ in 0..100 {
            match fs::remove_dir(&self.dir) {
                Ok(()) => return,
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        eprintln!(
            "could not remove {}: remove it with rmdir",
            self.dir.display()
        );
    }
}

/// Removes empty groups that an earlier run left behind; returns their names.
pub(crate) fn remove_leftovers() -> Vec<String> {
    let Ok((root, _)) = mount() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter(|entry| fs::remove_dir(entry.path()).is_ok())
        .map(|entry| entry.path().display().to_string())
        .collect()
}
