//! [`Vault`]: a few secrets in memory that is neither swapped nor dumped and is
//! wiped when they go.
//!
//! # Invariants
//! * A value is written where it stays; it is dropped and its bytes overwritten
//!   with zeros before its place is used again or the mapping goes.
//! * [`Vault::get`] is one atomic add, async-signal-safe, and never waits. A
//!   value cannot be cleared while a guard to it lives.
//!
//! Locking is subject to `RLIMIT_MEMLOCK`; a vault the kernel does not lock works
//! all the same and [says so](Vault::is_locked). The lock is not inherited by a
//! forked child (mlock(2)): [`Vault::lock_again`].

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use crate::error::OsError;
use crate::kernel;
use crate::map::{Access, PAGE_SIZE, Reservation};

/// A value is there.
const FULL: u64 = 1 << 63;
/// A value is being written or wiped. The other bits count readers.
const BUSY: u64 = 1 << 62;
/// Bytes of stack overwritten after a value was made.
const SCRUBBED_BYTES: usize = 16 << 10;

/// Places for `N` secrets.
pub struct Vault<T: Send + Sync, const N: usize> {
    map: Reservation,
    states: [AtomicU64; N],
    is_locked: AtomicBool,
    marker: PhantomData<T>,
}

// SAFETY: it owns values of `T` and hands out `&T`, as a lock for readers would.
unsafe impl<T: Send + Sync, const N: usize> Sync for Vault<T, N> {}

/// A secret being read.
pub struct Secret<'a, T> {
    value: &'a T,
    state: &'a AtomicU64,
}

impl<T: Send + Sync, const N: usize> Vault<T, N> {
    /// A vault with nothing in it.
    ///
    /// # Errors
    /// The kernel's refusal to map it.
    pub fn new() -> Result<Self, OsError> {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };
        let map = Reservation::new(size_of::<T>() * N, PAGE_SIZE, Access::ReadWrite)?;
        map.advise(0, map.len(), libc::MADV_DONTDUMP)?;
        let vault = Self {
            map,
            states: [const { AtomicU64::new(0) }; N],
            is_locked: AtomicBool::new(false),
            marker: PhantomData,
        };
        vault.lock_again();
        Ok(vault)
    }

    /// Locks the vault's memory, again after a fork; whether that worked.
    pub fn lock_again(&self) -> bool {
        // SAFETY: a mapping this value owns; locking changes no contents.
        let rc = unsafe { kernel::mlock(self.map.base() as *const libc::c_void, self.map.len()) };
        self.is_locked.store(rc == 0, Ordering::Relaxed);
        rc == 0
    }

    /// Whether the memory is locked: never written to swap space.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.is_locked.load(Ordering::Relaxed)
    }

    /// Puts what `make` returns into place `index` and overwrites the stack that
    /// made it; `false`, and nothing made, when the place is taken.
    ///
    /// # Panics
    /// When there is no place `index`.
    pub fn put(&self, index: usize, make: impl FnOnce() -> T) -> bool {
        let state = &self.states[index];
        if !Self::take(state, 0) {
            return false;
        }
        write_made(self.at(index), make);
        scrub_stack();
        state.fetch_add(FULL - BUSY, Ordering::Release);
        true
    }

    /// The secret in place `index`, if there is one. Async-signal-safe.
    pub fn get(&self, index: usize) -> Option<Secret<'_, T>> {
        let state = self.states.get(index)?;
        if state.fetch_add(1, Ordering::Acquire) & FULL == 0 {
            state.fetch_sub(1, Ordering::Release);
            return None;
        }
        // SAFETY: the place holds a value, and it stays while this reader is
        // counted.
        let value = unsafe { &*self.at(index) };
        Some(Secret { value, state })
    }

    /// Drops and wipes the secret in place `index`; `false` when there is none, or
    /// somebody reads it.
    ///
    /// # Panics
    /// When there is no place `index`.
    pub fn clear(&self, index: usize) -> bool {
        let state = &self.states[index];
        if !Self::take(state, FULL) {
            return false;
        }
        let at = self.at(index);
        // SAFETY: the place held a value, and `BUSY` keeps everybody else from it.
        unsafe { core::ptr::drop_in_place(at) };
        wipe(at.cast(), size_of::<T>());
        state.fetch_sub(BUSY, Ordering::Release);
        true
    }

    /// Takes a place for writing, if its state is `from`. A `get` that finds it
    /// empty counts itself for a moment, hence more than one try.
    fn take(state: &AtomicU64, from: u64) -> bool {
        (0..1000).any(|_| {
            state
                .compare_exchange(from, BUSY, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        })
    }

    fn at(&self, index: usize) -> *mut T {
        (self.map.base() as *mut T).wrapping_add(index)
    }
}

impl<T: Send + Sync, const N: usize> Drop for Vault<T, N> {
    fn drop(&mut self) {
        for index in 0..N {
            self.clear(index);
        }
    }
}

/// Says nothing of what is in it.
impl<T: Send + Sync, const N: usize> fmt::Debug for Vault<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("places", &N)
            .field("is_locked", &self.is_locked())
            .finish_non_exhaustive()
    }
}

/// Says nothing of what is in it.
impl<T> fmt::Debug for Secret<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl<T> Deref for Secret<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
    }
}

impl<T> Drop for Secret<'_, T> {
    fn drop(&mut self) {
        self.state.fetch_sub(1, Ordering::Release);
    }
}

/// A frame of its own, below the caller's: what it leaves there is scrubbed.
#[inline(never)]
fn write_made<T>(at: *mut T, make: impl FnOnce() -> T) {
    // SAFETY: an aligned place of the vault, marked `BUSY`, that holds no value.
    unsafe { at.write(make()) };
}

/// Overwrites the stack below the caller.
#[inline(never)]
fn scrub_stack() {
    let mut below = core::mem::MaybeUninit::<[u8; SCRUBBED_BYTES]>::uninit();
    wipe(below.as_mut_ptr().cast(), SCRUBBED_BYTES);
}

/// Overwrites `len` writable bytes with zeros that the compiler cannot leave out.
fn wipe(at: *mut u8, len: usize) {
    // SAFETY: callers pass memory of their own that nobody reads any more.
    unsafe { core::ptr::write_bytes(at, 0, len) };
    core::hint::black_box(at);
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cleared_is_dropped_and_zero() {
        let vault: Vault<([u8; 40], std::sync::Arc<()>), 3> = Vault::new().unwrap();
        let counted = std::sync::Arc::new(());
        assert!(vault.get(1).is_none());
        assert!(vault.put(1, || ([7; 40], counted.clone())));
        assert!(!vault.put(1, || panic!("the place is taken")));
        let secret = vault.get(1).unwrap();
        assert_eq!(secret.0, [7; 40]);
        assert!(!vault.clear(1), "somebody reads it");
        drop(secret);
        assert!(vault.clear(1));
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
        let at = vault.at(1).cast::<u8>();
        let len = size_of::<([u8; 40], std::sync::Arc<()>)>();
        // SAFETY: the vault's own zeroed memory, which nobody writes now.
        let bytes = unsafe { core::slice::from_raw_parts(at, len) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        assert!(!vault.clear(1));
        assert!(vault.put(1, || ([8; 40], counted.clone())));
        drop(vault);
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
    }

    #[test]
    fn the_kernel_says_that_it_is_locked_and_left_out_of_dumps() {
        let vault: Vault<[u8; 100], 2> = Vault::new().unwrap();
        if !vault.is_locked() {
            println!("RLIMIT_MEMLOCK does not allow a locked page here");
        }
        let base = format!("{:x}-", vault.map.base());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let from = maps.find(&base).expect("the mapping is listed");
        let flags = maps[from..]
            .lines()
            .find(|l| l.starts_with("VmFlags:"))
            .unwrap();
        assert!(flags.contains(" dd"), "{flags}");
        assert_eq!(flags.contains(" lo"), vault.is_locked(), "{flags}");
    }

    #[test]
    fn readers_and_one_writer_never_meet() {
        let vault: Vault<[u64; 64], 1> = Vault::new().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        if let Some(secret) = vault.get(0) {
                            assert!(secret.iter().all(|&word| word == secret[0] && word != 0));
                        }
                    }
                });
            }
            for round in 1..2000 {
                while !vault.put(0, || [round; 64]) {}
                while !vault.clear(0) {
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
