//! Counts cut into parts: of nearly equal size, or of one size but for the last.

use windlass_ir::loops::{Guard, Index, KernelBuilder, LoopKind};

use super::Emit;

/// A count of things cut into parts whose sizes differ by at most one.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// How many.
    pub parts: usize,
    /// The size of all parts but the first `larger`, which have one more.
    pub size: usize,
    /// How many have one more.
    pub larger: usize,
}

impl Split {
    /// As few parts as possible of at most this size.
    pub fn of(count: usize, most: usize) -> Split {
        let parts = count.div_ceil(most.max(1)).max(1);
        Split { parts, size: count / parts, larger: count % parts }
    }

    /// Parts of one size, of at most this and at least half of it, if that divides the count: code for another size is
    /// not needed then. Else as [`Split::of`].
    pub fn even(count: usize, most: usize) -> Split {
        let size =
            (most.div_ceil(2).max(1)..=most).rev().find(|&size| count > 0 && count.is_multiple_of(size));
        size.map_or_else(|| Split::of(count, most), |size| Split { parts: count / size, size, larger: 0 })
    }

    /// Whether all parts of [`Split::even`] are of one size.
    pub fn is_even(count: usize, most: usize) -> bool {
        Split::even(count, most).larger == 0
    }
}

impl Split {
    /// The sizes that parts have.
    pub fn sizes(&self) -> impl Iterator<Item = usize> + use<> {
        let Split { size, larger, parts } = *self;
        let larger_size = (larger > 0).then_some(size + 1);
        larger_size.into_iter().chain((larger < parts && size > 0).then_some(size))
    }

    /// Runs `body` with the start and size of part `part`, in an `if` where sizes differ.
    pub fn part(
        &self,
        mut builder: KernelBuilder,
        part: &Index,
        body: &mut dyn FnMut(KernelBuilder, Index, usize) -> KernelBuilder,
    ) -> KernelBuilder {
        let Split { size, larger, .. } = *self;
        if larger > 0 {
            builder.begin_if(&[Guard::new(part.clone(), larger)]);
            builder = body(builder, part.mul(size as i64 + 1), size + 1);
            builder.begin_else();
        }
        if size > 0 {
            builder = body(builder, part.mul(size as i64).add_const(larger as i64), size);
        }
        if larger > 0 {
            builder.end();
        }
        builder
    }
}

/// A count of things cut into parts of one size, but for the last, which may have fewer.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    count: usize,
    /// How many.
    pub parts: usize,
    /// The size of all but the last.
    pub size: usize,
}

impl Chunks {
    /// As few parts as possible of at most this size, and of about one size.
    pub fn of(count: usize, most: usize) -> Chunks {
        let wanted = count.div_ceil(most.max(1)).max(1);
        let size = count.div_ceil(wanted).max(1);
        Chunks { count, parts: count.div_ceil(size).max(1), size }
    }

    /// Runs `body` for each thing of a part, with its number in the part and among all: one loop whatever the part's
    /// size, so that the code inside stands once.
    pub fn over<'n>(
        self,
        emit: &mut Emit<'n>,
        part: &Index,
        body: &mut dyn FnMut(&mut Emit<'n>, &Index, &Index),
    ) {
        let own = emit.enter(LoopKind::Serial, self.size);
        let number = part.mul(self.size as i64).add(&own);
        let uneven = self.parts * self.size != self.count;
        if uneven {
            emit.enter_if(&[Guard::new(number.clone(), self.count)]);
        }
        body(emit, &own, &number);
        if uneven {
            emit.leave();
        }
        emit.leave();
    }
}

/// Runs `body` with the start and size of part `part` of a split, in an `if` where sizes differ.
pub fn with_part<'n>(
    emit: &mut Emit<'n>,
    split: Split,
    part: &Index,
    body: &mut dyn FnMut(&mut Emit<'n>, Index, usize),
) {
    if split.larger == 0 {
        return body(emit, part.mul(split.size as i64), split.size);
    }
    emit.enter_if(&[Guard::new(part.clone(), split.larger)]);
    body(emit, part.mul(split.size as i64 + 1), split.size + 1);
    emit.enter_else();
    if split.size > 0 {
        body(emit, part.mul(split.size as i64).add_const(split.larger as i64), split.size);
    }
    emit.leave();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_one_size_where_one_divides_the_count() {
        for (count, most, expected) in [
            (1152, 256, (6, 192, 0)),
            (128, 48, (4, 32, 0)),
            (96, 48, (2, 48, 0)),
            (30, 48, (1, 30, 0)),
            (197, 48, (5, 39, 2)),
            (7, 1, (7, 1, 0)),
            (0, 4, (1, 0, 0)),
        ] {
            let Split { parts, size, larger } = Split::even(count, most);
            assert_eq!((parts, size, larger), expected, "{count} by {most}");
            assert_eq!(parts * size + larger, count);
        }
    }
}
