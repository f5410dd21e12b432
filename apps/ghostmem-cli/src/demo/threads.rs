//! Sharing work out to threads, with nothing but the standard library.
//!
//! The lock in [`Hand`] lives in ordinary memory and is never held while an item is worked on.
//! (A futex inside ghost memory would be a system call on a ghost address.)

use std::sync::{Mutex, PoisonError};

/// Hands out the items of an iterator to whichever thread asks next.
pub(crate) struct Hand<I>(Mutex<I>);

impl<I: Iterator> Hand<I> {
    /// Wraps an iterator.
    pub(crate) fn new(items: I) -> Self {
        Self(Mutex::new(items))
    }

    /// The next item that no other thread has.
    pub(crate) fn next(&self) -> Option<I::Item> {
        // A panic elsewhere ends the whole run; what is handed out until then does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

/// Runs `work(thread)` on `count` threads and returns all results, or one of the errors.
///
/// # Panics
/// A panic of a thread is carried on.
pub(crate) fn on_threads<T: Send, E: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let work = &work;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..count)
            .map(|index| scope.spawn(move || work(index)))
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        let mut items = vec![0u32; 1000];
        let hand = Hand::new(items.iter_mut());
        let done = on_threads(4, |_| {
            let mut count = 0;
            while let Some(item) = hand.next() {
                *item += 1;
                count += 1;
            }
            Ok::<_, ()>(count)
        });
        assert_eq!(done.map(|counts| counts.iter().sum::<u32>()), Ok(1000));
        assert!(items.iter().all(|&item| item == 1));
    }

    #[test]
    fn an_error_of_any_thread_is_returned() {
        assert_eq!(
            on_threads(3, |index| if index == 1 { Err(index) } else { Ok(()) }),
            Err(1)
        );
    }
}
