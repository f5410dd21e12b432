//! Files of this process's own.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::PathBuf;

/// A path in the temporary folder.
pub(crate) fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ghostmem-fuzz-{}-{name}", std::process::id()))
}

/// An open file without a name, with these bytes, at its start.
pub(crate) fn holding(data: &[u8]) -> File {
    let path = path("unnamed");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .expect("a temporary file");
    fs::remove_file(&path).expect("the temporary file");
    file.write_all(data).expect("room for a temporary file");
    file.rewind().expect("a file that has a start");
    file
}
