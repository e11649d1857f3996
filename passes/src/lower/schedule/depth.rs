//! Long reductions, cut into blocks that are worked off one after another.

use windlass_ir::loops::{Buffer, Guard, Index, LoopKind, Val, Var};

use super::Emit;
use super::contraction::as_contraction;
use super::split::{Split, with_part};

/// How the variables of a long reduction are cut into blocks.
pub struct Depth {
    /// Variables outside the blocks, outermost first.
    outer: Vec<Var>,
    /// The variable that is cut, and into what.
    cut: Option<(Var, Split)>,
    /// Variables inside a block.
    pub inner: Vec<Var>,
    reduce: Val,
}

/// Reductions of up to this many times what fits are not cut.
const UNCUT: usize = 2;

/// Fewer tiles than this do not use a block often enough.
const TILES_PER_BLOCK: usize = 4;

impl Depth {
    /// Blocks of at most about `fits` steps, if there are many more and several tiles use each.
    pub fn of(emit: &Emit<'_>, reduce: Val, tiles: usize, steps: usize, fits: usize) -> Depth {
        let vars = emit.reduce_vars(reduce);
        let worth = as_contraction(emit.nest).is_some() && steps > UNCUT * fits && tiles >= TILES_PER_BLOCK;
        if !worth {
            return Depth { outer: Vec::new(), cut: None, inner: vars, reduce };
        }
        // The innermost variables that fit together stay inside; the next one is cut.
        let (mut at, mut within) = (vars.len(), 1);
        while within * vars[at - 1].extent <= fits {
            at -= 1;
            within *= vars[at].extent;
        }
        let var = vars[at - 1];
        let split = Split::even(var.extent, fits / within);
        Depth { outer: vars[..at - 1].to_vec(), cut: Some((var, split)), inner: vars[at..].to_vec(), reduce }
    }

    /// Whether there are several blocks.
    pub fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// The most steps of a block.
    pub fn steps(&self) -> usize {
        let cut = self.cut.map_or(1, |(_, split)| split.size + usize::from(split.larger > 0));
        cut * self.inner.iter().map(|v| v.extent).product::<usize>()
    }

    /// The variables inside the block that comes so many later, with their first values.
    pub fn first_steps(&self, part: Option<&Part>, later: &Index) -> Vec<(Var, Index)> {
        let cut =
            part.map(|Part { cut: (var, start, size), .. }| (*var, start.add(&later.mul(*size as i64))));
        cut.into_iter().chain(self.inner.iter().map(|&var| (var, Index::constant(0)))).collect()
    }

    /// Runs `body` for each block, with where sums wait between blocks if there are several. They take
    /// `room` elements.
    pub fn over_blocks<'n>(
        &self,
        emit: &mut Emit<'n>,
        room: usize,
        body: &mut dyn FnMut(&mut Emit<'n>, Option<Part>),
    ) {
        let Some((var, split)) = self.cut else { return body(emit, None) };
        let buffer = emit.scratch(self.reduce, room);
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let mut ends = |index: &Index, extent: usize| {
            first.push(Guard::new(index.clone(), 1));
            last.push(Guard::new(index.add_const(1 - extent as i64), 1));
        };
        for &outer in &self.outer {
            let index = emit.enter(LoopKind::Serial, outer.extent);
            ends(&index, outer.extent);
            emit.bind(outer, index);
        }
        let block = emit.enter(LoopKind::Serial, split.parts);
        ends(&block, split.parts);
        with_part(emit, split, &block, &mut |emit, start, size| {
            let offset = Index::constant(0);
            let (first, last) = (first.clone(), last.clone());
            body(emit, Some(Part { buffer, offset, first, last, cut: (var, start, size) }));
        });
        emit.leave();
        self.outer.iter().for_each(|_| emit.leave());
    }
}

/// One block of a long reduction.
#[derive(Clone)]
pub struct Part {
    /// Where sums wait between blocks, and from which element on this tile's.
    pub buffer: Buffer,
    pub offset: Index,
    /// What holds in the first block, and in the last.
    pub first: Vec<Guard>,
    pub last: Vec<Guard>,
    /// The variable that is cut, its first value in this block, and how many.
    pub cut: (Var, Index, usize),
}

impl Part {
    pub fn at(self, offset: Index) -> Part {
        Part { offset, ..self }
    }
}
