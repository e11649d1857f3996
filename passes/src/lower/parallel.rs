//! Independent pieces of work on all of the machine's threads.

use std::hash::Hash;
use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustc_hash::FxHashMap;

/// The fewest items that are worth another thread: a formula takes about as long as a thread takes to start.
pub const ITEMS_A_THREAD: usize = 8;

/// What two pieces of work give, done at the same time if the first is worth a thread.
pub fn join<A: Send, B>(
    is_worth_it: bool,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B,
) -> (A, B) {
    if !is_worth_it {
        return (first(), second());
    }
    thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        (first.join().unwrap_or_else(|panic| resume_unwind(panic)), second)
    })
}

/// What `work` gives for each item, in order.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < 2 * ITEMS_A_THREAD {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done: Vec<(usize, R)> = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, work(item)));
        }
    };
    // Asking reads files.
    static OF_MACHINE: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    let threads = (*OF_MACHINE).min(items.len() / ITEMS_A_THREAD);
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut done = run();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What `work` gives for the items that differ, and which of these each item is like; none where there is no item.
pub fn map_distinct<'t, T: 't + Eq + Hash + Sync, R: Send>(
    items: impl Iterator<Item = Option<&'t T>>,
    work: impl Fn(&T) -> R + Sync,
) -> (Vec<R>, Vec<Option<usize>>) {
    let mut distinct: Vec<&T> = Vec::new();
    let mut seen: FxHashMap<&T, usize> = FxHashMap::default();
    let mut number_of = |item| {
        *seen.entry(item).or_insert_with(|| {
            distinct.push(item);
            distinct.len() - 1
        })
    };
    let numbers = items.map(|item| item.map(&mut number_of)).collect();
    (map(&distinct, |item| work(item)), numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order() {
        for count in [0, 1, 15, 16, 1000] {
            let items: Vec<usize> = (0..count).collect();
            assert!(map(&items, |item| item * item).into_iter().eq(items.iter().map(|item| item * item)));
        }
    }

    #[test]
    fn what_is_alike_is_done_once() {
        let items = [Some(3), None, Some(1), Some(3)];
        let calls = AtomicUsize::new(0);
        let (results, numbers) = map_distinct(items.iter().map(Option::as_ref), |item| {
            calls.fetch_add(1, Ordering::Relaxed);
            item * 2
        });
        assert_eq!((results, numbers), (vec![6, 2], vec![Some(0), None, Some(1), Some(0)]));
        assert_eq!(calls.into_inner(), 2);
    }
}
