//! Kernel calls that fail: a clear error or the next backend, never a hang.
//! Each case in a process of its own.
#![cfg(target_os = "linux")] // seccomp, rlimits and mlock
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::sync::OnceLock;

use common::{PAGE_SIZE, Random, Watchdog, alone, heap, role, run_alone, word};
use ghostmem::{Backend, Error, Heap};

mod common;

/// Refuses userfaultfd(2) to this thread and those it starts, and, where
/// `device` says so, descriptors from /dev/userfaultfd too.
fn refuse_userfaultfd(device: bool) {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    /// `USERFAULTFD_IOC_NEW` of linux/userfaultfd.h.
    const IOC_NEW: u32 = 0xAA00;
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // struct seccomp_data: nr at 0, args[1] at 24 (low half first).
    let mut filter = [
        step(load, 0, 0, 0),
        step(equal, 4, 0, libc::SYS_userfaultfd as u32),
        step(equal, 0, 2, libc::SYS_ioctl as u32),
        step(load, 0, 0, 24),
        step(equal, 1, 0, if device { IOC_NEW } else { u32::MAX }),
        step(give, 0, 0, ALLOW),
        step(give, 0, 0, EPERM),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: plain numbers.
    let rc = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(rc, 0);
    // SAFETY: `program` names a valid filter that outlives the call.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: refused.
    let rc = unsafe { libc::syscall(libc::SYS_userfaultfd, 1) };
    assert_eq!(rc, -1);
    assert_eq!(
        std::io::Error::last_os_error().raw_os_error(),
        Some(libc::EPERM)
    );
}

fn works(heap: &Heap) {
    let data = heap.slice_from_fn(100_000, |i| word(i, 1)).unwrap();
    assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
    let stats = heap.stats();
    assert!(stats.refaults > 0, "{heap:?}: {stats:?}");
}

#[test]
fn without_userfaultfd_auto_takes_guard_and_the_others_say_why() {
    let name = "without_userfaultfd_auto_takes_guard_and_the_others_say_why";
    alone(name, || {
        let _watchdog = Watchdog::new("no userfaultfd", 30);
        refuse_userfaultfd(true);
        let auto = Heap::builder().resident_limit(64 << 10).build().unwrap();
        assert!(
            matches!(auto.backend(), Backend::Guard | Backend::GuardMprotect),
            "{auto:?}"
        );
        works(&auto);
        for backend in [Backend::Inline, Backend::Monitor] {
            let error = Heap::builder().backend(backend).build().unwrap_err();
            assert!(
                matches!(error, Error::BackendUnavailable { backend: b, .. } if b == backend),
                "{error:?}"
            );
            let text = error.to_string();
            assert!(
                text.contains("userfaultfd") && text.contains(&backend.to_string()),
                "{text}"
            );
        }
        works(&auto);
        works(&heap(Backend::GuardMprotect, 16));
    });
}

#[test]
fn with_the_system_call_alone_refused_auto_works() {
    alone("with_the_system_call_alone_refused_auto_works", || {
        let _watchdog = Watchdog::new("no userfaultfd(2)", 30);
        refuse_userfaultfd(false);
        let auto = Heap::builder().resident_limit(64 << 10).build().unwrap();
        works(&auto);
        match Heap::builder()
            .resident_limit(64 << 10)
            .backend(Backend::Inline)
            .build()
        {
            Ok(inline) => works(&inline),
            Err(error) => assert!(error.to_string().contains("userfaultfd"), "{error}"),
        }
    });
}

/// Virtual memory of this process, bytes.
fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').next().unwrap().parse().unwrap();
    pages * PAGE_SIZE as u64
}

#[test]
fn with_little_address_space_heaps_work_or_say_so() {
    const NAME: &str = "with_little_address_space_heaps_work_or_say_so";
    // Bytes beyond what the process has.
    let rooms: [u64; 7] = [0, 1 << 20, 16 << 20, 100 << 20, 1 << 30, 40 << 30, 1 << 42];
    let Some(role) = role() else {
        let mut worked = 0;
        for room in rooms {
            for backend in ["auto", "inline", "monitor", "guard"] {
                let status = run_alone(NAME, &room.to_string(), &[("ROOM_BACKEND", backend)]);
                assert!(
                    matches!(status.code(), Some(0 | 42)),
                    "{room} bytes, {backend}: {status}"
                );
                worked += usize::from(status.code() == Some(42));
            }
        }
        assert!(worked >= 4, "only {worked} of the heaps worked");
        return;
    };
    // No watchdog here: its thread would need address space. `run_alone` has
    // a limit of its own.
    let backend = match std::env::var("ROOM_BACKEND").unwrap().as_str() {
        "inline" => Backend::Inline,
        "monitor" => Backend::Monitor,
        "guard" => Backend::Guard,
        _ => Backend::Auto,
    };
    let bytes = address_space() + role.parse::<u64>().unwrap();
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: a valid structure.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(rc, 0);
    let heap = match Heap::builder()
        .resident_limit(64 << 10)
        .backend(backend)
        .build()
    {
        Ok(heap) => heap,
        Err(error) => {
            eprintln!("{role} bytes, {backend}: {error}");
            return;
        }
    };
    match heap.slice_from_fn(50_000, |i| word(i, 2)) {
        Ok(data) => {
            assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 2)));
            let boxed = allocator_api2::boxed::Box::new_in(5, heap.clone());
            assert_eq!(*boxed, 5);
            drop((boxed, data));
            // So that the parent can tell it from an error.
            std::process::exit(42);
        }
        Err(error) => {
            assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
            eprintln!("{role} bytes, {backend}: {error}");
        }
    }
}

static LOCKED: OnceLock<Heap> = OnceLock::new();

/// The end of a process that could not go on: its heap kept to the bound.
extern "C" fn on_abort(_: i32) {
    let stats = LOCKED.get().map(Heap::stats).unwrap_or_default();
    let over = stats
        .resident_bytes
        .saturating_sub(stats.resident_limit_bytes);
    let bounded = over > 0 && over <= 68 * PAGE_SIZE && stats.overdrafts >= 68;
    // SAFETY: ends the process.
    unsafe { libc::_exit(if bounded { 77 } else { 78 }) };
}

#[test]
fn with_all_memory_locked_the_limit_is_exceeded_by_so_much_and_no_more() {
    let name = "with_all_memory_locked_the_limit_is_exceeded_by_so_much_and_no_more";
    if role().is_none() {
        let status = run_alone(name, "locked", &[]);
        if status.code() == Some(79) {
            println!("not shown: this machine does not allow to lock 2 MiB of memory");
        } else {
            assert_eq!(status.code(), Some(77), "{status}");
        }
        return;
    }
    let _watchdog = Watchdog::new("locked memory", 50);
    let heap = LOCKED.get_or_init(|| common::heap(Backend::Auto, 256));
    let layout = Layout::from_size_align(512 * PAGE_SIZE, PAGE_SIZE).unwrap();
    let block = heap.allocate(layout).unwrap().cast::<u8>();
    // SAFETY: our own block; every page is locked as it comes in.
    let rc = unsafe { libc::mlock2(block.as_ptr().cast(), layout.size(), 1) };
    if rc != 0 {
        std::process::exit(79);
    }
    // SAFETY: the handler reads counters and ends the process.
    unsafe { libc::signal(libc::SIGABRT, on_abort as *const () as usize) };
    for page in 0..512 {
        // SAFETY: inside the block.
        unsafe { block.add(page * PAGE_SIZE).write_volatile(1) };
    }
}

#[test]
fn small_objects_are_held_to_the_memory_limit() {
    const LIMIT: usize = 8 << 20;
    let heap = Heap::builder()
        .resident_limit(1 << 20)
        .heap_limit(LIMIT)
        .build()
        .unwrap();
    for size in [200_usize, 3000, 20_000] {
        let layout = Layout::from_size_align(size, 8).unwrap();
        let mut random = Random::new(size as u64);
        let mut blocks = Vec::new();
        let error = loop {
            let block = match heap.allocate(layout) {
                Ok(block) => block.cast::<u64>(),
                Err(error) => break error,
            };
            for word in 0..size / 8 {
                // SAFETY: inside the block just allocated, aligned. Nothing
                // here compresses.
                unsafe { block.add(word).write(random.next()) };
            }
            blocks.push(block);
            assert!(blocks.len() * size <= LIMIT, "{size}: never refused");
        };
        assert_eq!(error, Error::OutOfMemory { bytes: size });
        let stats = heap.stats();
        let held = stats.resident_bytes + stats.store_held_bytes + stats.metadata_bytes;
        assert!(held <= LIMIT, "{size}: {held} bytes held: {stats:?}");
        assert!(blocks.len() * size >= LIMIT / 2, "{size}: {}", blocks.len());
        let mut again = Random::new(size as u64);
        for block in &blocks {
            for word in 0..size / 8 {
                // SAFETY: as above.
                assert_eq!(unsafe { block.add(word).read() }, again.next());
            }
        }
        // Freed, they can be had again.
        for block in blocks {
            // SAFETY: allocated above with this layout, used no more.
            unsafe { heap.deallocate(block.cast(), layout) }.unwrap();
        }
        assert_eq!(heap.stats().allocated_bytes, 0);
        let block = heap.allocate(layout).unwrap();
        // SAFETY: as above.
        unsafe { heap.deallocate(block.cast(), layout) }.unwrap();
    }
}

#[test]
fn the_memory_limit_is_kept_at_allocation() {
    const LIMIT: usize = 8 << 20;
    const CHUNK: usize = 256 << 10;
    let heap = Heap::builder()
        .resident_limit(2 << 20)
        .heap_limit(LIMIT)
        .build()
        .unwrap();
    let mut random = Random::new(4);
    let mut chunks = Vec::new();
    let error = loop {
        // Nothing here compresses.
        match heap.slice_from_fn(CHUNK / 8, |_| random.next()) {
            Ok(chunk) => chunks.push(chunk),
            Err(error) => break error,
        }
        let stats = heap.stats();
        let held = stats.resident_bytes + stats.store_held_bytes + stats.metadata_bytes;
        assert!(held <= LIMIT, "{held} bytes held: {stats:?}");
        assert!(chunks.len() * CHUNK <= LIMIT);
    };
    assert_eq!(error, Error::OutOfMemory { bytes: CHUNK });
    assert!(
        chunks.len() * CHUNK >= LIMIT / 2,
        "refused after {} of {LIMIT} bytes",
        chunks.len() * CHUNK
    );
    // The error changed nothing, and freed memory can be had again.
    let mut again = Random::new(4);
    for chunk in &chunks {
        assert!(chunk.iter().all(|&w| w == again.next()));
    }
    chunks.truncate(chunks.len() / 2);
    let layout = Layout::from_size_align(CHUNK, 8).unwrap();
    let block = heap.allocate(layout).unwrap();
    // SAFETY: allocated above, not used.
    unsafe { heap.deallocate(block.cast(), layout) }.unwrap();
}
