//! Whether merging a formula into one that reads it is worth it.

use windlass_ir::loops::{Expr, Index, Nest, Val, Var};

use super::Refusal;
use crate::lower::formula::{free_vars, point_cost};
use crate::lower::schedule::contraction::as_contraction;

/// Machine operations that one element's trip through memory is worth.
const ROUND_TRIP: u64 = 8;

/// The most bytes of a row that is read again while it is in cache.
const ROW_BYTES: u64 = 256 << 10;

/// A block of so many elements is worth the name: two vectors of 32-bit elements where they are of 128 bits.
const BLOCK: usize = 8;

/// Whether merging costs less than it saves.
pub fn worth_merging(source: &Nest, target: &Nest, position: usize, shared: bool) -> Result<(), Refusal> {
    let views = is_view(source);
    if shared && !views {
        return Err(Refusal::OtherReaders);
    }
    let reduces = source.exprs.values().any(|(expr, _)| matches!(expr, Expr::Reduce { .. }));
    if views && !reduces {
        return Ok(());
    }
    let free = free_vars(target);
    let loads: Vec<(Val, &[Index], bool)> = target
        .needed(&target.roots)
        .into_iter()
        .filter_map(|val| match target.expr(val) {
            Expr::Load { operand, index, guards } if *operand as usize == position => {
                Some((val, index.as_slice(), !guards.is_empty()))
            }
            _ => None,
        })
        .collect();
    let points = |vars: &[Var]| vars.iter().map(|v| v.extent as u64).product::<u64>();
    let elements: u64 = source.domain.iter().map(|v| v.extent as u64).product();
    let evaluations: u64 = loads.iter().map(|(val, _, _)| points(&free[*val])).sum();
    if !reduces {
        if in_contraction(target, &loads) {
            return Err(Refusal::ContractionOperand);
        }
        if is_of_pieces(source) && loads.iter().any(|(_, index, _)| are_lanes_apart(target, index, position))
        {
            return Err(Refusal::Apart);
        }
        let cost = point_cost(source, &source.roots);
        let recomputed = cost.saturating_mul(evaluations);
        let stored = (cost + ROUND_TRIP).saturating_mul(elements);
        return if recomputed <= stored { Ok(()) } else { Err(Refusal::Recompute) };
    }
    if shared {
        return Err(Refusal::OtherReaders);
    }
    let [(load, index, false)] = loads.as_slice() else { return Err(Refusal::ReductionOrder) };
    if !free[*load].iter().all(|var| target.domain.contains(var)) {
        return Err(Refusal::ReductionOrder);
    }
    let target_reduces =
        target.needed(&target.roots).iter().any(|&v| matches!(target.expr(v), Expr::Reduce { .. }));
    if !target_reduces && evaluations == elements {
        // In another order its lanes would be far apart.
        return match keeps_order(target, index, &target.operands[position].shape) {
            true => Ok(()),
            false => Err(Refusal::ReductionOrder),
        };
    }
    // A row's statistics, then the row again: the reduction runs once a row if rows are the outer loops.
    let plain = index.iter().all(|i| i.as_constant().is_some() || i.as_var().is_some());
    let row: u64 = source
        .needed(&source.roots)
        .iter()
        .filter_map(|&v| match source.expr(v) {
            Expr::Reduce { vars, .. } => Some(vars.iter().map(|v| v.extent as u64).product::<u64>()),
            _ => None,
        })
        .sum();
    let rows_are_many = elements >= 8 || row * elements <= 4096;
    let small = row.saturating_mul(4) <= ROW_BYTES;
    let same_rows = !target_reduces || {
        let mine = &free[*load];
        let others = target
            .needed(&target.roots)
            .into_iter()
            .filter(|&v| matches!(target.expr(v), Expr::Reduce { .. }));
        others.into_iter().all(|v| free[v] == *mine)
    };
    let contracts = as_contraction(source).is_some() || as_contraction(target).is_some();
    match plain && small && rows_are_many && same_rows && !contracts {
        true => Ok(()),
        false => Err(Refusal::ReductionOrder),
    }
}

/// Whether each element is one of several operands', as of a concatenation.
fn is_of_pieces(nest: &Nest) -> bool {
    let guarded = |val: &Val| matches!(nest.expr(*val), Expr::Load { guards, .. } if !guards.is_empty());
    nest.needed(&nest.roots).iter().filter(|val| guarded(val)).count() > 1
}

/// Whether lanes of reductions read elements of an operand that are apart: each then asks in which piece its element is.
fn are_lanes_apart(target: &Nest, index: &[Index], position: usize) -> bool {
    let needed = target.needed(&target.roots);
    let reduces = needed.iter().any(|&val| matches!(target.expr(val), Expr::Reduce { .. }));
    let flat = Index::flatten(index, &target.operands[position].shape);
    reduces && target.domain.last().is_some_and(|&lane| !matches!(flat.coefficient(lane), Some(0 | 1)))
}

/// Whether the nest is nothing but an index map.
pub fn is_view(nest: &Nest) -> bool {
    nest.roots.iter().all(|&root| matches!(nest.expr(root), Expr::Load { guards, .. } if guards.is_empty()))
}

/// Whether a load is a factor of the target's contraction.
fn in_contraction(target: &Nest, loads: &[(Val, &[Index], bool)]) -> bool {
    as_contraction(target).is_some_and(|c| {
        let Expr::Reduce { arg, .. } = target.expr(c.reduce) else { return false };
        let inside = target.needed(&[*arg]);
        loads.iter().any(|(val, _, _)| inside.contains(val))
    })
}

/// Whether the target reads its operand in the order of its own domain, or in another order of the
/// outer dimensions with the last one kept, or cut into blocks of whole vectors.
fn keeps_order(target: &Nest, index: &[Index], shape: &[usize]) -> bool {
    let domain: Vec<Index> = target.domain.iter().map(|&v| Index::var(v)).collect();
    if Index::flatten(index, shape) == Index::flatten(&domain, &target.shape()) {
        return true;
    }
    let Some(&lane) = target.domain.iter().rev().find(|v| v.extent != 1) else { return false };
    let Some(last) = shape.iter().rposition(|&n| n != 1) else { return false };
    let is_plain = |i: &Index| i.as_constant().is_some() || i.as_var().is_some();
    let rest = |at: usize| index[at].as_var() != Some(lane);
    if !(0..index.len()).filter(|&at| at != last).all(|at| is_plain(&index[at]) && rest(at)) {
        return false;
    }
    let is_block = || {
        lane.extent % BLOCK == 0
            && index[last].values().is_empty()
            && index[last].coefficient(lane) == Some(1)
    };
    index[last].as_var() == Some(lane) || is_block()
}
