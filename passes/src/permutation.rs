//! Orders of dimensions.

use smallvec::SmallVec;
use windlass_ir::Dim;

/// A permutation as `transpose` takes it: dimension `d` of the result is dimension `perm[d]` of the operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Permutation(SmallVec<[usize; 6]>);

impl Permutation {
    /// The one that leaves everything in place.
    pub fn identity(rank: usize) -> Permutation {
        (0..rank).collect()
    }

    /// From channels-first to channels-last: `[n, c, spatial..]` becomes `[n, spatial.., c]`.
    pub fn to_channels_last(rank: usize) -> Permutation {
        std::iter::once(0).chain(2..rank).chain(std::iter::once(1)).take(rank).collect()
    }

    /// Where each dimension comes from.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Where dimension `d` of the result comes from.
    pub fn source(&self, d: usize) -> usize {
        self.0[d]
    }

    /// Whether everything stays in place.
    pub fn is_identity(&self) -> bool {
        self.0.iter().copied().eq(0..self.rank())
    }

    /// The permutation that undoes this one.
    pub fn inverse(&self) -> Permutation {
        let mut inverse: SmallVec<[usize; 6]> = self.0.iter().map(|_| 0).collect();
        for (d, &source) in self.0.iter().enumerate() {
            inverse[source] = d;
        }
        Permutation(inverse)
    }

    /// First this one, then `next`.
    pub fn then(&self, next: &Permutation) -> Permutation {
        next.0.iter().map(|&d| self.0[d]).collect()
    }

    /// Whether applying it to an operand of these dimensions moves no element: those larger than 1
    /// stay in order.
    pub fn moves_nothing(&self, operand: &[Dim]) -> bool {
        let moved = self.0.iter().filter(|&&d| operand[d] != Dim::Fixed(1));
        moved.is_sorted()
    }

    /// The permutation left when the result's dimensions marked are removed, along with those they
    /// come from.
    pub fn without(&self, removed: &[bool]) -> Permutation {
        let kept: SmallVec<[usize; 6]> =
            self.0.iter().zip(removed).filter(|(_, r)| !**r).map(|(&source, _)| source).collect();
        kept.iter().map(|&source| kept.iter().filter(|&&other| other < source).count()).collect()
    }
}

impl FromIterator<usize> for Permutation {
    fn from_iter<I: IntoIterator<Item = usize>>(order: I) -> Permutation {
        Permutation(order.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perm(order: &[usize]) -> Permutation {
        order.iter().copied().collect()
    }

    #[test]
    fn laws() {
        let p = perm(&[2, 0, 3, 1]);
        assert!(p.then(&p.inverse()).is_identity() && p.inverse().then(&p).is_identity());
        assert_eq!(Permutation::to_channels_last(4), perm(&[0, 2, 3, 1]));
        assert_eq!(Permutation::to_channels_last(2), perm(&[0, 1]));
        assert_eq!(p.without(&[false, true, false, false]), perm(&[1, 2, 0]));
        let dims = |sizes: &[usize]| sizes.iter().map(|&n| Dim::Fixed(n)).collect::<Vec<_>>();
        assert!(perm(&[0, 2, 3, 1]).moves_nothing(&dims(&[2, 5, 1, 1])));
        assert!(!perm(&[0, 2, 3, 1]).moves_nothing(&dims(&[2, 5, 2, 1])));
    }
}
