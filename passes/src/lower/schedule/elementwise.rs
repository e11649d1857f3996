//! Elementwise nests: every result from loads alone.

use windlass_ir::loops::{Guard, Index, LoopKind};

use super::{Emit, parallel_first};

/// Elements of one parallel iteration of a one-dimensional domain.
const CHUNK: usize = 8192;

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
    let outer = if large { parallel_first(outer.to_vec()) } else { outer.to_vec() };
    let parallel = large && !outer.is_empty();
    emit.over_all(&outer, parallel, &nest.roots, &mut |emit| {
        emit.unswitch(&nest.roots, &mut |emit| {
            emit.over_lanes(lane, &nest.roots, &mut |emit| emit.store_results());
        });
    });
}

/// One dimension, cut into chunks for the threads.
fn in_chunks(emit: &mut Emit<'_>) {
    let lane = emit.nest.domain[0];
    let (whole, rest) = (lane.extent / CHUNK, lane.extent % CHUNK);
    let chunk = emit.enter(LoopKind::Parallel, whole);
    let lanes = |emit: &mut Emit<'_>, start: Index, count: usize| {
        let index = emit.enter(LoopKind::Vector, count);
        emit.bind(lane, start.add(&index));
        emit.store_results();
        emit.leave();
    };
    lanes(emit, chunk.mul(CHUNK as i64), CHUNK);
    if rest > 0 {
        emit.enter_if(&[Guard::new(chunk.add_const(1 - whole as i64), 1)]);
        lanes(emit, Index::constant((whole * CHUNK) as i64), rest);
        emit.leave();
    }
    emit.leave();
}
