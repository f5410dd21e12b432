//! Keeps the record of a program that runs with the preload library: waits for
//! it, takes its touches out of the ring, and writes them to a file.
//!
//! The program is a child of this process. Signals sent to this process go on
//! to it; those of the terminal reach it by themselves.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use ghostmem::record::Recording;
use ghostmem_lab::recorded::{Header, Writer};

use crate::sys;

/// How long nothing is looked at when there was nothing: the ring holds many
/// times what a program can fault in that time.
const PAUSE: Duration = Duration::from_micros(500);
/// Touches taken before the program's end and signals are looked at.
const TURN: u32 = 10_000;

/// What became of a recorded run.
#[derive(Debug)]
pub struct Outcome {
    /// How the program ended.
    pub status: ExitStatus,
    /// Touches in the file.
    pub touches: u64,
    /// Touches that are not, as this process was not given time.
    pub lost: u64,
    /// Why the file has not all of them; the program ran on without a record.
    pub unwritten: Option<io::Error>,
}

/// Runs `command`, whose library finds the ring of `recording`, and writes its
/// touches to a new file at `path`.
///
/// # Errors
/// The program cannot be started (`false`), or the file cannot be made
/// (`true`).
pub fn record(
    command: &mut Command,
    recording: Recording,
    header: &Header,
    path: &Path,
) -> Result<Outcome, (bool, io::Error)> {
    let create = || -> io::Result<_> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let writer = Writer::new(file, header)?;
        sys::pass_signals_on()?;
        Ok(writer)
    };
    let mut writer = create().map_err(|error| (true, error))?;
    let mut child = command.spawn().map_err(|error| (false, error))?;
    let mut recording = Some(recording);
    let mut unwritten = None;
    let mut ended = None;
    loop {
        let mut taken = 0;
        while let Some(touch) = recording.as_mut().and_then(Recording::take) {
            if let Err(error) = writer.push(touch.page, touch.thread, touch.write) {
                // Dropped: the program does not wait for us any more.
                recording = None;
                unwritten = Some(error);
            }
            taken += 1;
            if taken == TURN {
                break;
            }
        }
        for signal in sys::signals_to_pass_on() {
            sys::send_signal(child.id(), signal);
        }
        if taken == TURN {
            continue;
        }
        // Ended, and after that nothing was left to take.
        if let Some(status) = ended {
            let lost = recording.as_ref().map_or(0, Recording::lost);
            let (touches, error) = match writer.finish() {
                Ok(touches) => (touches, None),
                Err(error) => (0, Some(error)),
            };
            return Ok(Outcome {
                status,
                touches,
                lost,
                unwritten: unwritten.or(error),
            });
        }
        ended = child.try_wait().map_err(|error| (false, error))?;
        if ended.is_none() && taken == 0 {
            std::thread::sleep(PAUSE);
        }
    }
}
