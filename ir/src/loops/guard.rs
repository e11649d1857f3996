//! Conditions on positions: an index within bounds.

use super::{Atom, Index};

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

impl Index {
    /// The same where all of these guards hold, without the divisions that they decide: `(80 i + j) / 240` is 0 where `i` is
    /// below 3 and `j` in `0..80`, whatever the extent of `j`.
    pub fn under(&self, guards: &[Guard]) -> Index {
        let is_divided = |(atom, _): &(Atom, i64)| matches!(atom, Atom::Div(..) | Atom::Mod(..));
        if guards.is_empty() || !self.terms().iter().any(is_divided) {
            return self.clone();
        }
        let mut result = Index::constant(self.offset());
        for (atom, c) in self.terms() {
            match atom {
                Atom::Var(var) => result.add_multiple(&Index::var(*var), *c),
                Atom::Value(val, extent) => result.add_multiple(&Index::value(*val, *extent), *c),
                Atom::Div(x, divisor) => {
                    let x = x.under(guards);
                    let quotient = x.quotient_under(*divisor, guards).map(Index::constant);
                    result.add_multiple(&quotient.unwrap_or_else(|| x.div(*divisor)), *c);
                }
                Atom::Mod(x, divisor) => {
                    let x = x.under(guards);
                    let quotient = x.quotient_under(*divisor, guards);
                    let rest = quotient.map(|q| x.add_const(q.wrapping_mul(-divisor)));
                    result.add_multiple(&rest.unwrap_or_else(|| x.rem(*divisor)), *c);
                }
            }
        }
        result
    }

    /// The quotient, if it is one number wherever a guard holds.
    fn quotient_under(&self, divisor: i64, guards: &[Guard]) -> Option<i64> {
        guards.iter().find_map(|Guard { index, size }| {
            let (of_guard, step) = index.terms().first()?;
            let (_, coefficient) = self.terms().iter().find(|(atom, _)| atom == of_guard)?;
            let times = (coefficient.checked_rem(*step)? == 0).then_some(coefficient / step)?;
            let (low, high) = self.sub(&index.mul(times)).range();
            let guarded = times.checked_mul(i64::try_from(*size).ok()? - 1)?;
            let first = low.checked_add(guarded.min(0))?.div_euclid(divisor);
            (high.checked_add(guarded.max(0))?.div_euclid(divisor) == first).then_some(first)
        })
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
    fn guards_decide_divisions() {
        let (group, panel, lane) = (var(0, 3), var(1, 2), var(2, 64));
        let column = panel.mul(64).add(&lane);
        let at = group.mul(80).add(&column);
        let guards = [Guard::new(column.clone(), 80)];
        assert_eq!(at.div(240).under(&guards), Index::constant(0));
        assert_eq!(at.rem(240).mul(20).add_const(7).under(&guards), at.mul(20).add_const(7));
        assert_eq!(at.add_const(480).rem(240).under(&guards), at);
        // Not where the guard leaves several quotients, or says nothing of what is divided.
        assert_eq!(at.div(239).under(&guards), at.div(239));
        assert_eq!(at.div(240).under(&[Guard::new(lane.clone(), 32)]), at.div(240));
        assert_eq!(at.div(240).under(&[]), at.div(240));
        // Also of what is subtracted.
        let down = column.mul(-1).add_const(79);
        assert_eq!(down.div(80).under(&guards), Index::constant(0));
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
