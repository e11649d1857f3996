//! Conditions on positions: an index within bounds.

use super::Index;

/// The condition `0 <= index < size`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Guard {
    /// What is tested.
    pub index: Index,
    /// The number of values that pass.
    pub size: usize,
}

impl Guard {
    /// `0 <= index < size`, in the coarsest terms: `32 i + j` is in `0..64` where `i` is in `0..2`, whatever j below 32.
    pub fn new(index: Index, size: usize) -> Guard {
        let Ok(count) = i64::try_from(size) else { return Guard { index, size } };
        let factors = index.terms().iter().map(|(_, c)| c.abs()).filter(|c| *c > 1 && count % c == 0);
        let coarser = factors.filter_map(|c| Some((c, index.as_plain_quotient(c)?))).max_by_key(|(c, _)| *c);
        match coarser {
            Some((c, index)) => Guard { index, size: (count / c) as usize },
            None => Guard { index, size },
        }
    }

    /// Whether it is known to hold (or not to) whatever the variables are.
    pub fn as_known(&self) -> Option<bool> {
        let (low, high) = self.index.range();
        if low >= 0 && high < self.size as i64 {
            return Some(true);
        }
        (high < 0 || low >= self.size as i64).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::Var;

    fn var(id: u32, extent: usize) -> Index {
        Index::var(Var { id, extent })
    }

    #[test]
    fn guards_are_coarse() {
        let (panel, lane) = (var(0, 4), var(1, 32));
        let channel = panel.mul(32).add(&lane);
        assert_eq!(Guard::new(channel.clone(), 64), Guard::new(panel.clone(), 2));
        assert_eq!(Guard::new(channel.add_const(-64), 64), Guard::new(panel.add_const(-2), 2));
        // Where it matters which lane it is, the lane stays.
        assert!(Guard::new(channel.clone(), 72).index.mentions(Var { id: 1, extent: 32 }));
        assert!(Guard::new(channel.add_const(1), 64).index.mentions(Var { id: 1, extent: 32 }));
    }
}
