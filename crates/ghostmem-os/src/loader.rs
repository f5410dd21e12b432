//! Program loaders: whether the one that a program names can load the library that
//! `ghostmem run` puts into it.
//!
//! A glibc that is too old for the library ends the program. Its loader does not have the
//! name of the version that the library needs within it.

/// The usual loader of glibc on x86-64, which nobody looks into.
const USUAL: &[u8] = b"/lib64/ld-linux-x86-64.so.2";
/// The newest version of glibc's functions that the library uses.
const VERSION: &[u8] = b"GLIBC_2.34\0";
/// Longer files are no loaders, bytes: that of glibc 2.41 has 0.3 MB.
const MOST_BYTES: usize = 4 << 20;

/// A C library, by its loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CLibrary {
    /// A glibc that can load the library.
    Glibc,
    /// An older one.
    OldGlibc,
    /// Another one.
    Other,
}

impl CLibrary {
    /// What a loader's path says; `None`: its file has to be looked into.
    #[must_use]
    pub fn of_path(path: &[u8]) -> Option<Self> {
        const GLIBC: &[u8] = b"/ld-linux";
        if path == USUAL {
            Some(Self::Glibc)
        } else if path.windows(GLIBC.len()).any(|part| part == GLIBC) {
            None
        } else {
            Some(Self::Other)
        }
    }

    /// What is in the file of a glibc's loader. `read_at` fills a buffer from an offset on,
    /// and says how many bytes it filled: all of them, but at the file's end. Uses 2 KiB of
    /// the stack, and no other memory.
    pub fn of_file(mut read_at: impl FnMut(&mut [u8], usize) -> usize) -> Self {
        let mut piece = [0_u8; 2048];
        let mut at = 0;
        loop {
            let got = read_at(&mut piece, at);
            let mut parts = piece[..got].windows(VERSION.len());
            if parts.any(|part| part == VERSION) {
                return Self::Glibc;
            }
            if got < piece.len() || at > MOST_BYTES {
                return Self::OldGlibc;
            }
            // One that lies across two pieces is whole in the next.
            at += piece.len() - (VERSION.len() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_loader_is_not_looked_into() {
        assert_eq!(CLibrary::of_path(USUAL), Some(CLibrary::Glibc));
        let musl = CLibrary::of_path(b"/lib/ld-musl-x86_64.so.1");
        assert_eq!(musl, Some(CLibrary::Other));
        assert_eq!(CLibrary::of_path(b"/opt/old/ld-linux-x86-64.so.2"), None);
    }

    #[test]
    fn a_version_is_found_wherever_it_lies() {
        let look = |file: &[u8]| {
            CLibrary::of_file(|piece, at| {
                let rest = &file[at.min(file.len())..];
                let got = rest.len().min(piece.len());
                piece[..got].copy_from_slice(&rest[..got]);
                got
            })
        };
        for at in [0, 2040, 2047, 2048, 4000, 9000 - VERSION.len()] {
            let mut file = vec![b'x'; 9000];
            file[at..at + VERSION.len()].copy_from_slice(VERSION);
            assert_eq!(look(&file), CLibrary::Glibc, "at {at}");
        }
        assert_eq!(look(&[b'x'; 9000]), CLibrary::OldGlibc);
        assert_eq!(look(b"GLIBC_2.340"), CLibrary::OldGlibc);
        assert_eq!(look(b""), CLibrary::OldGlibc);
    }
}
