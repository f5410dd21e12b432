//! The end of a process that cannot go on with right data.

use core::fmt::Write;

use ghostmem_os::message::Line;
use ghostmem_os::{OsError, stop};

/// Ends the process with one line: there is no program left that could go on
/// with right data. Async-signal-safe.
pub fn die(what: &str, errno: i32) -> ! {
    end(what, None, errno)
}

/// The same, for a system call that failed: the line names it.
pub fn die_of(what: &str, error: OsError) -> ! {
    end(what, Some(error.call), error.errno)
}

fn end(what: &str, call: Option<&str>, errno: i32) -> ! {
    #[cfg(feature = "sim")]
    if ghostmem_os::sim::is_on() {
        panic!("{what}: {} (errno {errno})", call.unwrap_or_default());
    }
    // Windows has numbers of its own.
    let kind = if errno < 0 { "Windows error" } else { "errno" };
    let (by, call) = call.map_or(("", ""), |call| (": ", call));
    let mut line = Line::new();
    let _cut_off = write!(
        line,
        "{what}{by}{call} ({kind} {}); the process is stopped to keep its data from being wrong",
        errno.unsigned_abs()
    );
    line.print();
    stop::abort()
}
