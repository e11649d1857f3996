//! Counts cut into parts of nearly equal size.

use windlass_ir::loops::{Guard, Index};

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
