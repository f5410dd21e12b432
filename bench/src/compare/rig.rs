//! What one measured process needs around it, and the process itself.
//!
//! Everything is undone when its value is dropped: in order, the process is
//! gone, swap is off, zswap is as it was, the cgroup is removed. A signal only
//! sets a flag (`sys::interrupted`), so that this happens then too.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::progress::Progress;
use crate::cgroup::Cgroup;
use crate::child::{Job, Line};
use crate::contenders::swapfile::SwapFile;
use crate::contenders::{Kind, zram, zswap};
use crate::error::{Error, Result};
use crate::sys;

/// Swap of one kind.
#[derive(Debug)]
enum Area {
    Zram(zram::Swap),
    File { _file: SwapFile },
}

/// Fields are dropped in this order.
#[derive(Debug)]
pub(super) struct Rig {
    area: Option<Area>,
    _zswap: Option<zswap::Switch>,
    group: Option<Cgroup>,
}

impl Rig {
    /// Nothing around.
    pub(super) const fn none() -> Self {
        Self {
            area: None,
            _zswap: None,
            group: None,
        }
    }

    /// What `kind` needs for a buffer of so many bytes.
    ///
    /// # Errors
    /// [`Error::Skipped`] when the machine does not allow it. GhostMem, the
    /// peer and plain memory need nothing and go without a cgroup where there
    /// is none.
    pub(super) fn set_up(kind: &Kind, bytes: u64, scratch: &Path) -> Result<Self> {
        let room = bytes / 2 * 3;
        let (area, zswap) = match kind {
            Kind::Plain
            | Kind::Ghost(_)
            | Kind::Spill
            | Kind::SpillIdle
            | Kind::Peer
            | Kind::File => (None, None),
            Kind::Zram(algorithm) => {
                // zswap would stand between the cgroup and zram.
                let off = zswap::Switch::set(false)?;
                (Some(Area::Zram(zram::Swap::set_up(room, algorithm)?)), off)
            }
            Kind::Zswap | Kind::Disk => {
                let switch = zswap::Switch::set(*kind == Kind::Zswap)?;
                let file = SwapFile::set_up(room, scratch)?;
                (Some(Area::File { _file: file }), switch)
            }
        };
        let group = match (kind, Cgroup::create()) {
            (_, Ok(group)) => Some(group),
            (kind, Err(_)) if kind.is_ghost() || matches!(kind, Kind::Plain | Kind::Peer) => None,
            (_, Err(err)) => return Err(err),
        };
        Ok(Self {
            area,
            _zswap: zswap,
            group,
        })
    }

    pub(super) fn group_dir(&self) -> Option<PathBuf> {
        self.group.as_ref().map(|group| group.dir().to_owned())
    }

    pub(super) fn device(&self) -> Option<String> {
        match &self.area {
            Some(Area::Zram(swap)) => Some(swap.name().to_owned()),
            _ => None,
        }
    }

    /// Starts a measured process, by calling this program with `call`, and
    /// waits for its last line.
    ///
    /// # Errors
    /// [`Error::Killed`] when the kernel ended it within its cgroup,
    /// [`Error::Skipped`] when it took longer than `timeout` seconds. Else what
    /// the process reported, that it died, or that a signal asked to stop. It
    /// is gone then.
    pub(super) fn child(
        &self,
        call: &[&str],
        job: &Job,
        timeout: u64,
        progress: &Progress,
    ) -> Result<Line> {
        let kind = &job.kind;
        let exe = std::env::current_exe().map_err(|err| Error::io("own executable", &err))?;
        let text = serde_json::to_string(job)
            .map_err(|err| Error::Failed(format!("a job as JSON: {err}")))?;
        let mut child = Reaped(
            Command::new(exe)
                .args(call)
                .args(["--job", &text])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|err| Error::io("starting a measured process", &err))?,
        );
        let out = child
            .0
            .stdout
            .take()
            .ok_or_else(|| Error::Failed("no pipe to the measured process".into()))?;
        let (sender, lines) = mpsc::channel();
        // Ends with the process, when the pipe does.
        std::thread::spawn(move || {
            for line in BufReader::new(out)
                .lines()
                .map_while(std::result::Result::ok)
            {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut doing = "start".to_owned();
        let deadline = Instant::now() + Duration::from_secs(timeout);
        loop {
            if sys::interrupted() {
                return Err(Error::Interrupted);
            }
            if Instant::now() > deadline {
                return Err(Error::Skipped(format!(
                    "took more than {timeout} s (--timeout), at {doing}"
                )));
            }
            let line = match lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    let status = child.0.wait();
                    let killed = status
                        .as_ref()
                        .is_ok_and(|s| s.signal() == Some(libc::SIGKILL));
                    if killed && self.group.is_some() {
                        return Err(Error::Killed(doing));
                    }
                    let status = status.map_or_else(|err| err.to_string(), |s| s.to_string());
                    if *kind == Kind::Peer {
                        // Somebody else's library may end its process; that
                        // says nothing about the others.
                        return Err(Error::Skipped(format!("ended with {status}, at {doing}")));
                    }
                    return Err(Error::Failed(format!("{kind} ended with {status}")));
                }
            };
            match serde_json::from_str(&line) {
                Ok(Line::At(what)) => {
                    doing.clone_from(&what);
                    progress.at(what);
                }
                Ok(Line::Skipped(why)) => return Err(Error::Skipped(why)),
                Ok(Line::Failed(why)) => return Err(Error::Failed(format!("{kind}: {why}"))),
                Ok(last) => return Ok(last),
                Err(err) => {
                    return Err(Error::Failed(format!("{kind}: unreadable result: {err}")));
                }
            }
        }
    }
}

/// Kills and reaps the child whatever happens.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
