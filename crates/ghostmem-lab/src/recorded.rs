//! Traces of real programs, as files.
//!
//! ```text
//!   ghostmem trace 1\n
//!   window-pages 64\n                      most pages open at once while recording
//!   command sort -S 1G words\n             what ran; line ends in it are spaces
//!   \n
//!   touch, touch, ...                      to the end of the file
//!
//!   touch = varint( zigzag(page - page of this thread's touch before) << 2
//!                   | store << 1 | other thread than the touch before )
//!           [ varint(thread) ]             when it is another thread's
//! ```
//! Pages are addresses over 4096; threads are numbered by appearance, and the
//! first touch is compared with thread 0, page 0. A varint has seven bits a
//! byte, lowest first, and the top bit set on all bytes but the last (LEB128).
//!
//! What a file does *not* have: touches of pages that were open, at most
//! `window-pages` at a time. A replay under a limit of many windows loses
//! little by that (Smith, "Two methods for the efficient analysis of memory
//! address trace data", 1977), one below the window means nothing.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};

use crate::trace::{PAGES_MAX, Touch, Trace};

const FIRST_LINE: &str = "ghostmem trace 1";
/// Pages farther apart than this are replayed at this distance: it is as far
/// as readahead looks, and page numbers index arrays.
const GAP: u64 = 64;

/// What is known of a recorded run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Most pages open at once while it was recorded.
    pub window_pages: u64,
    /// What ran.
    pub command: String,
}

/// One touch of a recorded run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Address over 4096.
    pub page: u64,
    /// Threads are numbered in the order of their first touches.
    pub thread: u32,
    /// Whether it is a store.
    pub write: bool,
}

/// Why a file is no trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormatError {
    /// It does not begin as one.
    NoTrace,
    /// A line of the header cannot be read.
    Header(String),
    /// It ends in the middle of a touch, or of the header.
    CutShort,
    /// A number in it is too large, at this byte.
    Number(usize),
    /// It has no touch.
    Empty,
    /// More pages than a trace can have.
    TooManyPages,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTrace => write!(
                f,
                "no trace: it does not begin with \"{FIRST_LINE}\"; record one with 'ghostmem run \
                 --trace FILE -- PROGRAM'"
            ),
            Self::Header(line) => write!(f, "its header has the line \"{line}\""),
            Self::CutShort => f.write_str("it ends in the middle: was it copied whole?"),
            Self::Number(at) => write!(f, "it is damaged at byte {at}"),
            Self::Empty => f.write_str("nothing was touched while it was recorded"),
            Self::TooManyPages => write!(f, "it has more than {PAGES_MAX} pages"),
        }
    }
}

impl std::error::Error for FormatError {}

/// What a thread touched last, and its number.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    number: u32,
    page: u64,
}

/// Writes a trace file.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    threads: HashMap<u32, Last>,
    current: u32,
    touches: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file. `out` gets many small writes.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        let command = header.command.replace(['\n', '\r'], " ");
        write!(
            out,
            "{FIRST_LINE}\nwindow-pages {}\ncommand {command}\n\n",
            header.window_pages
        )?;
        Ok(Self {
            out,
            threads: HashMap::new(),
            current: 0,
            touches: 0,
        })
    }

    /// Adds a touch. `thread` is any number that tells threads apart.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn push(&mut self, page: u64, thread: u32, write: bool) -> io::Result<()> {
        let number = self.threads.len() as u32;
        let last = self
            .threads
            .entry(thread)
            .or_insert(Last { number, page: 0 });
        let delta = page.wrapping_sub(last.page).cast_signed();
        let zigzag = ((delta << 1) ^ (delta >> 63)).cast_unsigned();
        let other = last.number != self.current;
        last.page = page;
        self.current = last.number;
        let value = u128::from(zigzag) << 2 | u128::from(write) << 1 | u128::from(other);
        put(&mut self.out, value)?;
        if other {
            put(&mut self.out, u128::from(self.current))?;
        }
        self.touches += 1;
        Ok(())
    }

    /// Ends the file; how many touches it has.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(mut self) -> io::Result<u64> {
        self.out.flush()?;
        Ok(self.touches)
    }
}

fn put(out: &mut impl Write, mut value: u128) -> io::Result<()> {
    let mut bytes = [0; 19];
    let mut len = 0;
    loop {
        let more = value > 0x7f;
        bytes[len] = (value & 0x7f) as u8 | u8::from(more) << 7;
        len += 1;
        value >>= 7;
        if !more {
            return out.write_all(&bytes[..len]);
        }
    }
}

/// A trace file that was read.
#[derive(Debug, Clone)]
pub struct Recorded<'a> {
    /// What is known of the run.
    pub header: Header,
    touches: &'a [u8],
}

impl<'a> Recorded<'a> {
    /// Reads the header; touches are read as they are asked for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut rest = bytes
            .strip_prefix(FIRST_LINE.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"\n"))
            .ok_or(FormatError::NoTrace)?;
        let mut header = Header {
            window_pages: 0,
            command: String::new(),
        };
        loop {
            let end = rest
                .iter()
                .position(|&byte| byte == b'\n')
                .ok_or(FormatError::CutShort)?;
            let line = String::from_utf8_lossy(&rest[..end]);
            rest = &rest[end + 1..];
            match line.split_once(' ') {
                None if line.is_empty() => break,
                Some(("window-pages", pages)) => {
                    header.window_pages = pages
                        .parse()
                        .map_err(|_| FormatError::Header(line.to_string()))?;
                }
                Some(("command", command)) => command.clone_into(&mut header.command),
                // A later version may say more.
                _ => {}
            }
        }
        Ok(Self {
            header,
            touches: rest,
        })
    }

    /// The touches in order. After an error there is nothing more.
    #[must_use]
    pub fn touches(&self) -> Touches<'a> {
        Touches {
            bytes: self.touches,
            at: 0,
            threads: Vec::new(),
            current: 0,
        }
    }

    /// The whole run as a trace for replay: pages numbered in the order of
    /// their addresses, gaps cut to 64 numbers, thread numbers folded to
    /// eight. All of it is measured.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn trace(&self, name: &str) -> Result<Trace, FormatError> {
        let mut pages = self
            .touches()
            .map(|touch| touch.map(|touch| touch.page))
            .collect::<Result<Vec<u64>, _>>()?;
        pages.sort_unstable();
        pages.dedup();
        let mut numbers = HashMap::with_capacity(pages.len());
        let (mut number, mut before) = (0, *pages.first().ok_or(FormatError::Empty)?);
        for &page in &pages {
            number += (page - before).min(GAP);
            before = page;
            let number = u32::try_from(number)
                .ok()
                .filter(|&number| number < PAGES_MAX)
                .ok_or(FormatError::TooManyPages)?;
            numbers.insert(page, number);
        }
        let touches: Vec<Touch> = self
            .touches()
            .map(|touch| {
                touch.map(|touch| {
                    let number = numbers[&touch.page];
                    if touch.write {
                        Touch::write(number, touch.thread)
                    } else {
                        Touch::read(number, touch.thread)
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Trace {
            name: name.to_owned().into(),
            pages: number as u32 + 1,
            distinct: pages.len() as u32,
            measured: 0..touches.len(),
            touches,
        })
    }
}

/// Touches of a [`Recorded`] run.
#[derive(Debug, Clone)]
pub struct Touches<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Pages touched last, by thread.
    threads: Vec<u64>,
    current: u32,
}

impl Touches<'_> {
    fn varint(&mut self) -> Result<u128, FormatError> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = *self.bytes.get(self.at).ok_or(FormatError::CutShort)?;
            self.at += 1;
            value |= u128::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            if shift > 70 {
                return Err(FormatError::Number(self.at));
            }
        }
    }

    fn touch(&mut self) -> Result<Seen, FormatError> {
        let value = self.varint()?;
        if value & 1 == 1 {
            let thread = self.varint()?;
            // By appearance: never more than one beyond those known.
            if thread > self.threads.len() as u128 {
                return Err(FormatError::Number(self.at));
            }
            self.current = thread as u32;
        }
        let thread = self.current as usize;
        if thread >= self.threads.len() {
            self.threads.push(0);
        }
        let zigzag = u64::try_from(value >> 2).map_err(|_| FormatError::Number(self.at))?;
        let delta = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        let page = self.threads[thread].wrapping_add(delta);
        self.threads[thread] = page;
        Ok(Seen {
            page,
            thread: self.current,
            write: value & 2 == 2,
        })
    }
}

impl Iterator for Touches<'_> {
    type Item = Result<Seen, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.bytes.len() {
            return None;
        }
        let touch = self.touch();
        if touch.is_err() {
            self.at = self.bytes.len();
        }
        Some(touch)
    }
}
