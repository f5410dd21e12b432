//! Answers of the kernel that a test chooses: seccomp(2), for the whole process
//! and until it ends. For tests that run alone.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

/// Makes system call `number` fail with `errno` from now on, on every thread, where
/// the low halves of its arguments are those given as (index, value).
pub(crate) fn refuse(number: i64, arguments: &[(u32, u32)], errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // Offsets in `struct seccomp_data` (linux/seccomp.h), little-endian.
    let offset_of = |index: u32| 16 + 8 * index;
    let tests = [(0, number as u32)]
        .into_iter()
        .chain(arguments.iter().map(|&(at, value)| (offset_of(at), value)));
    let mut program = Vec::new();
    let count = 1 + arguments.len();
    for (place, (offset, value)) in tests.enumerate() {
        program.push(statement(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            offset,
        ));
        // Past what is left of the tests, and past the refusal.
        let left = 2 * (count - 1 - place) + 1;
        program.push(libc::sock_filter {
            jf: left as u8,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
        });
    }
    let refusal = libc::SECCOMP_RET_ERRNO | errno as u32;
    program.push(statement(libc::BPF_RET | libc::BPF_K, refusal));
    program.push(statement(
        libc::BPF_RET | libc::BPF_K,
        libc::SECCOMP_RET_ALLOW,
    ));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: it only takes a right away; the other arguments must be zero.
    let rc = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(rc, 0, "no_new_privs");
    // SAFETY: a whole program, alive for the call, which copies it.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        )
    };
    assert_eq!(rc, 0, "seccomp: {}", std::io::Error::last_os_error());
}
