//! Random bytes from the kernel's generator.

use crate::error::OsError;
use crate::kernel;

/// Fills `out` with random bytes fit for keys (getrandom(2)). Waits only in the
/// first moments of a machine, before the kernel's generator is ready.
///
/// # Errors
/// The kernel's refusal: a seccomp filter, or a kernel before 3.17.
pub fn fill(out: &mut [u8]) -> Result<(), OsError> {
    let mut done = 0;
    while done < out.len() {
        let rest = &mut out[done..];
        // SAFETY: `rest` is writable and the length its own.
        let got =
            unsafe { kernel::syscall!(libc::SYS_getrandom, rest.as_mut_ptr(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(0) => return Err(OsError::new("getrandom", libc::EIO)),
            Ok(got) => done += got,
            Err(_) if crate::error::errno() == libc::EINTR => {}
            Err(_) => return Err(OsError::last("getrandom")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_differ_from_call_to_call() {
        let (mut one, mut other) = ([0; 300], [0; 300]);
        super::fill(&mut one).unwrap();
        super::fill(&mut other).unwrap();
        assert_ne!(one, other);
        assert!(one[256..].iter().any(|&byte| byte != 0));
    }
}
