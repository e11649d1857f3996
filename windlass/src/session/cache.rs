//! A few compiled forms, the least recently used one dropped first.

use std::sync::{Arc, Mutex, PoisonError};

use windlass_ir::{Tensor, TensorType};

/// A cache of at most `capacity` values, shared by threads.
pub(super) struct Cache<K, V> {
    /// Oldest first.
    entries: Mutex<Vec<(K, Arc<V>)>>,
    capacity: usize,
}

impl<K: PartialEq, V> Cache<K, V> {
    pub(super) fn new(capacity: usize) -> Cache<K, V> {
        Cache { entries: Mutex::new(Vec::new()), capacity: capacity.max(1) }
    }

    /// The value for `key`, made by `make` if there is none yet.
    ///
    /// The lock is not held while `make` runs: two threads that miss at once both make the value, and
    /// keep the first.
    pub(super) fn obtain<E>(&self, key: K, make: impl FnOnce(&K) -> Result<V, E>) -> Result<Arc<V>, E> {
        if let Some(found) = self.find(|known| *known == key) {
            return Ok(found);
        }
        let made = Arc::new(make(&key)?);
        if let Some(found) = self.find(|known| *known == key) {
            return Ok(found);
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.capacity {
            entries.remove(0);
        }
        entries.push((key, made.clone()));
        Ok(made)
    }

    /// The most recently used value.
    pub(super) fn last(&self) -> Option<Arc<V>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.last().map(|(_, value)| value.clone())
    }

    /// The value for the key that `is_it` knows, which becomes the most recently used.
    pub(super) fn find(&self, is_it: impl Fn(&K) -> bool) -> Option<Arc<V>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().rposition(|(key, _)| is_it(key))?;
        entries[at..].rotate_left(1);
        entries.last().map(|(_, value)| value.clone())
    }
}

impl<V> Cache<Vec<TensorType>, V> {
    /// The value for the types of these tensors.
    pub(super) fn obtain_for<E>(
        &self,
        tensors: &[Tensor],
        make: impl FnOnce(&Vec<TensorType>) -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        // Types are only made where they are not known yet.
        match self.find(|types| types.iter().zip(tensors).all(|(ty, tensor)| tensor.is(ty))) {
            Some(found) => Ok(found),
            None => self.obtain(tensors.iter().map(Tensor::ty).collect(), make),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_is_dropped() {
        let cache: Cache<u32, u32> = Cache::new(2);
        let obtain = |key: u32, made: u32| *cache.obtain::<()>(key, |_| Ok(made)).unwrap();
        assert_eq!((obtain(1, 10), obtain(2, 20)), (10, 20));
        assert_eq!(obtain(1, 0), 10);
        assert_eq!(obtain(3, 30), 30);
        assert_eq!((obtain(1, 0), obtain(2, 21)), (10, 21));
    }

    #[test]
    fn a_failure_is_not_kept() {
        let cache: Cache<u32, u32> = Cache::new(2);
        assert_eq!(cache.obtain(1, |_| Err("no")), Err("no"));
        assert_eq!(*cache.obtain::<()>(1, |_| Ok(1)).unwrap(), 1);
    }
}
