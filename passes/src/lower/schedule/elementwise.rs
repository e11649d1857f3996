//! Elementwise nests: every result from loads alone.

use windlass_ir::loops::{Expr, Guard, Index, LoopKind, Nest, Val, Var};

use super::ahead::LINE;
use super::columns::Columns;
use super::split::Split;
use super::{Emit, PARALLEL_ITERATIONS, parallel_first};

/// Elements of one parallel iteration of a one-dimensional domain.
const CHUNK: usize = 8192;

/// Lines of memory that lanes far apart are read from at a time. A cache holds no fewer that are a power of two apart.
const LINES: usize = 8;

/// Bytes of an operand that the first cache holds, in whatever order it is read.
const CACHED: usize = 16 << 10;

/// Bytes of an operand that the second cache holds.
const CACHED_LATER: usize = 256 << 10;

/// Rows of an operand that are read together where results follow its columns.
const ROWS: usize = 32;

/// Loops over the domain, the last dimension as lanes.
pub fn schedule(emit: &mut Emit<'_>) {
    let nest = emit.nest;
    let Some((&lane, outer)) = nest.domain.split_last() else {
        return emit.store_results();
    };
    let large = emit.is_shared();
    if large && outer.is_empty() && lane.extent >= 2 * CHUNK {
        return in_chunks(emit);
    }
    if let Some((along, line)) = contiguous(nest, lane) {
        return in_tiles(emit, lane, along, line);
    }
    if let Some(columns) = Columns::of(emit, lane, outer) {
        return columns.schedule(emit);
    }
    if let Some(row) =
        columns_first(nest, lane).filter(|&row| large && emit.cuts(row, &nest.roots).len() == 2)
    {
        return in_rows(emit, lane, row);
    }
    let outer = if large { parallel_first(outer.to_vec()) } else { outer.to_vec() };
    let parallel = large && !outer.is_empty();
    emit.over_all(&outer, parallel, &nest.roots, &mut |emit| {
        emit.unswitch(&nest.roots, &mut |emit| {
            emit.over_lanes(lane, &nest.roots, &mut |emit| emit.store_results());
        });
    });
}

/// The variable along which the largest operand is contiguous that has each lane in a line of its own, and how many of its
/// elements a line holds.
fn contiguous(nest: &Nest, lane: Var) -> Option<(Var, usize)> {
    let transposed = |val| {
        let Expr::Load { operand, index, .. } = nest.expr(val) else { return None };
        let size = nest.dtype(val).size();
        let bytes = size * nest.operands[*operand as usize].shape.iter().product::<usize>();
        let apart = index[0].coefficient(lane)?.unsigned_abs() as usize * size;
        let along = nest.domain.iter().find(|&&var| index[0].coefficient(var) == Some(1))?;
        (apart >= LINE && bytes > CACHED && along.extent > 1).then_some((bytes, (*along, LINE / size)))
    };
    let found = nest.needed(&nest.roots).into_iter().filter_map(transposed);
    found.max_by_key(|(bytes, _)| *bytes).map(|(_, along)| along)
}

/// Where lanes are far apart in an operand that is contiguous along another variable: a few lanes, all that some lines of
/// each hold, then the next lanes. The more lines in a row, the fewer are waited for; what is stored of them for all lanes
/// stays in the first cache.
fn in_tiles(emit: &mut Emit<'_>, lane: Var, along: Var, line: usize) {
    let nest = emit.nest;
    let roots = &nest.roots;
    let rest: Vec<Var> = nest.domain.iter().copied().filter(|var| ![lane, along].contains(var)).collect();
    let (within, across) = (emit.cuts(along, roots), emit.cuts(lane, roots));
    let tile = |emit: &mut Emit<'_>, first: &Index, count: usize| {
        for stretch in across.windows(2) {
            in_pieces(emit, LoopKind::Serial, stretch, LINES, &mut |emit, start, lanes| {
                // What the vector loop says of the lane ends with it, and other cases are asked about then.
                emit.bind_later(lane, start, lanes);
                emit.unswitch(roots, &mut |emit| {
                    let index = emit.enter(LoopKind::Serial, count);
                    emit.bind(along, first.add(&index));
                    emit.unswitch(roots, &mut |emit| {
                        let index = emit.enter(LoopKind::Vector, lanes);
                        emit.bind(lane, start.add(&index));
                        emit.store_results();
                        emit.leave();
                        emit.bind_later(lane, start, lanes);
                    });
                    emit.leave();
                    emit.bind_later(lane, start, lanes);
                });
            });
        }
    };
    let shared = emit.is_shared();
    let most = rest.iter().map(|var| var.extent).max().unwrap_or(1);
    let lines = along.extent.div_ceil(line);
    // So many that none are left over in the end, which would be code of their own.
    let even = |most: usize| match Split::even(lines, most) {
        Split { size, larger: 0, .. } => line * size,
        _ => line,
    };
    let fitting = CACHED / (LINE * lane.extent);
    if shared && most < PARALLEL_ITERATIONS && most < lines && within.len() == 2 {
        let size = even(fitting.min(lines / PARALLEL_ITERATIONS));
        return in_pieces(emit, LoopKind::Parallel, &within, size, &mut |emit, first, count| {
            emit.over_all(&rest, false, roots, &mut |emit| {
                emit.unswitch(roots, &mut |emit| tile(emit, first, count));
            });
        });
    }
    let rest = if shared { parallel_first(rest) } else { rest };
    emit.over_all(&rest, shared && !rest.is_empty(), roots, &mut |emit| {
        emit.unswitch(roots, &mut |emit| {
            for stretch in within.windows(2) {
                in_pieces(emit, LoopKind::Serial, stretch, even(fitting), &mut |emit, first, count| {
                    tile(emit, first, count);
                });
            }
        });
    });
}

/// The variable that counts the rows of the only large operand, if it is contiguous along the lanes and another variable,
/// outside that one, counts columns, as in packing.
fn columns_first(nest: &Nest, lane: Var) -> Option<Var> {
    let is_large = |&val: &Val| {
        let Expr::Load { operand, .. } = nest.expr(val) else { return false };
        let operand = &nest.operands[*operand as usize];
        operand.dtype.size() * operand.shape.iter().product::<usize>() > CACHED_LATER
    };
    let mut large = nest.needed(&nest.roots).into_iter().filter(is_large);
    let (Some(load), None) = (large.next(), large.next()) else { return None };
    let Expr::Load { index, .. } = nest.expr(load) else { return None };
    let steps: Option<Vec<i64>> = nest.domain.iter().map(|&var| index[0].coefficient(var)).collect();
    let (last, outer) = steps.as_deref()?.split_last()?;
    let (at, &longest) = outer.iter().enumerate().max_by_key(|(_, step)| **step)?;
    let row = nest.domain[at];
    let columns_outside = outer[..at].iter().any(|step| (1..longest).contains(step));
    (nest.domain.last() == Some(&lane) && *last == 1 && columns_outside && row.extent >= 2 * ROWS)
        .then_some(row)
}

/// A few rows at a time, so that memory is read nearly in its order.
fn in_rows(emit: &mut Emit<'_>, lane: Var, row: Var) {
    let roots = &emit.nest.roots;
    let rest: Vec<Var> = emit.nest.domain.iter().copied().filter(|var| ![lane, row].contains(var)).collect();
    in_pieces(emit, LoopKind::Parallel, &[0, row.extent], ROWS, &mut |emit, first, count| {
        emit.over_all(&rest, false, roots, &mut |emit| {
            let index = emit.enter(LoopKind::Serial, count);
            emit.bind(row, first.add(&index));
            emit.unswitch(roots, &mut |emit| {
                emit.over_lanes(lane, roots, &mut |emit| emit.store_results());
            });
            emit.leave();
        });
    });
}

/// Runs `body` with the start and the length of each piece of a stretch: those of `size`, then what is left.
pub fn in_pieces<'n>(
    emit: &mut Emit<'n>,
    kind: LoopKind,
    stretch: &[usize],
    size: usize,
    body: &mut dyn FnMut(&mut Emit<'n>, &Index, usize),
) {
    let (start, len) = (stretch[0], stretch[1] - stretch[0]);
    let (whole, rest) = (len / size, len % size);
    let pieces = if kind == LoopKind::Parallel { len.div_ceil(size) } else { whole };
    if pieces > 0 {
        let piece = emit.enter(kind, pieces);
        let first = piece.mul(size as i64).add_const(start as i64);
        if pieces > whole {
            emit.enter_if(&[Guard::new(piece.clone(), whole)]);
            body(emit, &first, size);
            emit.enter_else();
            body(emit, &first, rest);
            emit.leave();
        } else {
            body(emit, &first, size);
        }
        emit.leave();
    }
    if rest > 0 && pieces == whole {
        body(emit, &Index::constant((start + len - rest) as i64), rest);
    }
}

/// One dimension, cut into chunks for the threads.
fn in_chunks(emit: &mut Emit<'_>) {
    let lane = emit.nest.domain[0];
    in_pieces(emit, LoopKind::Parallel, &[0, lane.extent], CHUNK, &mut |emit, start, count| {
        let index = emit.enter(LoopKind::Vector, count);
        emit.bind(lane, start.add(&index));
        emit.store_results();
        emit.leave();
    });
}
