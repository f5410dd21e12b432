//! One line to standard error, from anywhere.
//!
//! A fault handler must be able to say what happened: [`Line`] is formatted on
//! the stack and written with one write(2), which is async-signal-safe. What
//! does not fit is cut off.

use core::fmt;

/// Most bytes of a line, its end included.
const LINE_BYTES: usize = 512;

/// A line being put together.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    /// A line that begins with the program's name.
    #[must_use]
    pub fn new() -> Self {
        let mut line = Self {
            bytes: [0; LINE_BYTES],
            len: 0,
        };
        line.put(b"ghostmem: ");
        line
    }

    fn put(&mut self, text: &[u8]) {
        // The last byte is the end of the line.
        let room = LINE_BYTES - 1 - self.len;
        let text = &text[..text.len().min(room)];
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    /// Writes the line. An error has nowhere to go.
    pub fn print(mut self) {
        // What is said to the program there is the simulation's to look at.
        #[cfg(feature = "sim")]
        if crate::sim::is_on() {
            return;
        }
        self.bytes[self.len] = b'\n';
        let len = self.len + 1;
        crate::stop::complain(&self.bytes[..len]);
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn what_is_too_long_is_cut_off() {
        let mut line = Line::new();
        for number in 0..1000 {
            write!(line, "{number} ").unwrap();
        }
        assert_eq!(line.len, LINE_BYTES - 1);
        assert!(line.bytes.starts_with(b"ghostmem: 0 1 2 3 "));
        line.print();
    }
}
