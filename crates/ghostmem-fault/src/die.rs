//! The end of a process that cannot go on with right data.

use ghostmem_os::stop;

/// Ends the process with one line: there is no program left that could go on
/// with right data. Async-signal-safe.
pub fn die(what: &str, errno: i32) -> ! {
    let mut line = [0_u8; 160];
    let mut len = 0;
    let mut put = |text: &[u8]| {
        for &byte in text {
            if len < line.len() {
                line[len] = byte;
                len += 1;
            }
        }
    };
    put(b"ghostmem: ");
    put(what.as_bytes());
    put(b" (errno ");
    let errno = errno.unsigned_abs();
    for divisor in [100, 10, 1] {
        if errno >= divisor || divisor == 1 {
            put(&[b'0' + (errno / divisor % 10) as u8]);
        }
    }
    put(b"); the process is stopped to keep its data from being wrong\n");
    stop::complain(&line[..len]);
    stop::abort()
}
