//! Preparation: what depends on constants alone is computed once, before the first run.
//!
//! Weights are scaled, transposed and packed by units like any others. This part takes them out of the
//! units that run each time, and what they compute becomes further constants of the program. Large results that take
//! many times the memory of what they are made from are left to each run.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::hash::BuildHasher;

use cranelift_entity::SecondaryMap;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::formula::as_identity;
use super::schedule::top_reductions;
use super::units::{Buf, Unit, UnitWork, Units};

/// How many times larger than what it is made from a result may be and still be kept: halves of bytes made into f32.
const WIDENING: usize = 8;

/// Bytes that it may be larger beyond that.
const GROWTH: usize = 64 << 10;

/// The buffers that are known before the first run, or the first round of a body: constants, what a body captures, and
/// what is prepared from them.
pub fn known_bufs(units: &Units) -> SecondaryMap<Buf, bool> {
    let mut known: SecondaryMap<Buf, bool> = SecondaryMap::new();
    for (buf, data) in units.bufs.iter() {
        known[buf] = data.constant.is_some();
    }
    units.captured.iter().for_each(|&buf| known[buf] = true);
    for unit in &units.units {
        if is_prepared(unit, units, &known) {
            unit.outs.iter().for_each(|&b| known[b] = true);
        }
    }
    known
}

/// Whether a unit depends on known buffers alone, and its result is worth keeping: one much larger than
/// what it is made from, such as a broadcast, is cheaper to compute again than to read, unless it takes sums.
fn is_prepared(unit: &Unit, units: &Units, known: &SecondaryMap<Buf, bool>) -> bool {
    let pure = match &unit.work {
        UnitWork::Interpret(op) => op.is_pure(),
        UnitWork::Nest(_)
        | UnitWork::Copy(_)
        | UnitWork::Padded(..)
        | UnitWork::Kernel(_)
        | UnitWork::Rounds(_)
        | UnitWork::Body(_) => true,
    };
    let bytes = |bufs: &[Buf]| -> usize {
        bufs.iter().map(|&b| units.bufs[b].elements().saturating_mul(units.bufs[b].dtype.size())).sum()
    };
    let sums = || matches!(&unit.work, UnitWork::Nest(nest) if !top_reductions(nest).is_empty());
    let small = || bytes(&unit.outs) <= bytes(&unit.ins).saturating_mul(WIDENING).saturating_add(GROWTH);
    pure && !unit.ins.is_empty() && unit.ins.iter().all(|&b| known[b]) && (small() || sums())
}

/// A result of at least so many bytes, which no cache keeps from one run to the next, is made in every run if what it is
/// made from takes half of its memory or less. That takes longer than reading it.
pub const REMADE: usize = 16 << 20;

/// Takes the units that are prepared out. Their results that the others read are from then on
/// [`Units::prepared`], in the order in which they are outputs of the units returned.
pub fn split(units: &mut Units) -> Option<Units> {
    let known = known_bufs(units);
    let mut is_output: SecondaryMap<Buf, bool> = SecondaryMap::new();
    units.outputs.iter().for_each(|(_, b)| is_output[*b] = true);
    share(units, |buf| known[buf] && !is_output[buf]);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for unit in std::mem::take(&mut units.units) {
        if unit.outs.iter().any(|&b| !known[b] || is_output[b]) {
            after.push(unit);
        } else if let UnitWork::Nest(nest) = &unit.work
            && let Some(operand) = as_identity(nest)
            && let Some(tensor) = &units.bufs[unit.ins[operand as usize]].constant
        {
            // The same bytes under another shape.
            let out = unit.outs[0];
            units.bufs[out].constant = Some(tensor.reshaped(&units.bufs[out].shape));
        } else {
            before.push(unit);
        }
    }
    units.units = after;
    let mut prepare = Units { bufs: units.bufs.clone(), units: before, ..Units::default() };
    declare(&mut prepare, units);
    if units.prepared.is_empty() {
        return None;
    }
    prepare.units = in_order_of_need(prepare.units, units);
    // Nothing else needs what they are made from.
    let keep: Vec<Buf> = units.units.iter().flat_map(|u| u.ins.iter().copied()).collect();
    let mut kept: SecondaryMap<Buf, bool> = SecondaryMap::new();
    keep.into_iter().for_each(|b| kept[b] = true);
    units.bufs.iter_mut().filter(|(b, _)| !kept[*b]).for_each(|(_, data)| data.constant = None);
    Some(prepare)
}

/// Makes one unit of formulas that prepare the same of the same: weights that several layers share are laid out once.
fn share(units: &mut Units, is_prepared: impl Fn(Buf) -> bool) {
    let mut first: FxHashMap<(u64, Vec<Buf>), Vec<usize>> = FxHashMap::default();
    let mut renamed: SecondaryMap<Buf, Option<Buf>> = SecondaryMap::new();
    let mut dead: BTreeSet<usize> = BTreeSet::new();
    for at in 0..units.units.len() {
        let ins = &mut units.units[at].ins;
        ins.iter_mut().for_each(|buf| *buf = renamed[*buf].unwrap_or(*buf));
        let unit = &units.units[at];
        let (UnitWork::Nest(nest) | UnitWork::Copy(nest)) = &unit.work else { continue };
        if !unit.outs.iter().all(|&buf| is_prepared(buf)) {
            continue;
        }
        let like = first.entry((FxBuildHasher.hash_one(nest), unit.ins.clone())).or_default();
        let is_same = |other: &&usize| {
            let other = &units.units[**other];
            let types = |unit: &Unit| unit.outs.iter().map(|&buf| units.bufs[buf].ty()).collect::<Vec<_>>();
            other.work == unit.work && types(other) == types(unit)
        };
        match like.iter().find(is_same) {
            Some(&other) => {
                let outs = unit.outs.iter().zip(&units.units[other].outs);
                outs.for_each(|(&from, &to)| renamed[from] = Some(to));
                dead.insert(at);
            }
            None => like.push(at),
        }
    }
    units.remove(&dead);
}

/// Lets each run make the large results that are made of much less, which is prepared in their place.
pub fn give_back(prepare: &mut Units, units: &mut Units) {
    let bytes = |buf: &Buf| units.bufs[*buf].elements().saturating_mul(units.bufs[*buf].dtype.size());
    let grows = |unit: &Unit| {
        let from: usize = unit.ins.iter().map(bytes).sum();
        let to: usize = unit.outs.iter().map(bytes).sum();
        to >= REMADE && from <= to / 2 && unit.outs.iter().all(|out| units.prepared.contains(out))
    };
    let mut read: SecondaryMap<Buf, bool> = SecondaryMap::new();
    prepare.units.iter().flat_map(|unit| &unit.ins).for_each(|&buf| read[buf] = true);
    let all = std::mem::take(&mut prepare.units).into_iter();
    let (back, kept): (Vec<Unit>, Vec<Unit>) =
        all.partition(|unit| grows(unit) && !unit.outs.iter().any(|&out| read[out]));
    prepare.units = kept;
    if back.is_empty() {
        return;
    }
    for unit in back {
        for &buf in &unit.ins {
            units.bufs[buf].constant = prepare.bufs[buf].constant.clone();
        }
        let reads = |other: &Unit| other.ins.iter().any(|buf| unit.outs.contains(buf));
        let at = units.units.iter().position(reads).unwrap_or(units.units.len());
        units.units.insert(at, unit);
    }
    declare(prepare, units);
}

/// Makes outputs of what the units that prepare make and the others read, in the order in which they do.
fn declare(prepare: &mut Units, units: &mut Units) {
    let mut made: SecondaryMap<Buf, bool> = SecondaryMap::new();
    prepare.units.iter().flat_map(|u| &u.outs).for_each(|&b| made[b] = true);
    units.prepared.clear();
    for &buf in units.units.iter().flat_map(|u| &u.ins) {
        if made[buf] && !units.prepared.contains(&buf) {
            units.prepared.push(buf);
        }
    }
    prepare.outputs = units.prepared.iter().enumerate().map(|(i, &b)| (format!("prepared{i}"), b)).collect();
}

/// A result of at least this part of all is prepared before the others.
const LARGE: usize = 4;

/// The units that prepare each result together, in the order in which the run reads the results, so that it can begin
/// while they are prepared. Large results come first: while one of them and what it is made from are both in memory,
/// little else is yet.
fn in_order_of_need(before: Vec<Unit>, units: &Units) -> Vec<Unit> {
    let mut maker: SecondaryMap<Buf, Option<usize>> = SecondaryMap::new();
    for (at, unit) in before.iter().enumerate() {
        unit.outs.iter().for_each(|&b| maker[b] = Some(at));
    }
    let bytes = |buf: Buf| units.bufs[buf].elements().saturating_mul(units.bufs[buf].dtype.size());
    let all = units.prepared.iter().fold(0usize, |sum, &buf| sum.saturating_add(bytes(buf)));
    // They stand in the order in which they are read.
    let mut results = units.prepared.clone();
    results.sort_by_key(|&buf| Reverse(Some(bytes(buf)).filter(|&bytes| bytes >= all / LARGE)));
    let mut order: Vec<usize> = Vec::with_capacity(before.len());
    let mut ordered = vec![false; before.len()];
    for result in results {
        // What it is made from stands before it in the present order.
        let (mut needed, mut left) = (BTreeSet::new(), vec![result]);
        while let Some(buf) = left.pop() {
            if let Some(at) = maker[buf].filter(|&at| !ordered[at])
                && needed.insert(at)
            {
                left.extend(&before[at].ins);
            }
        }
        needed.iter().for_each(|&at| ordered[at] = true);
        order.extend(needed);
    }
    let mut before: Vec<Option<Unit>> = before.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| before[at].take()).collect()
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::loops::{Place, Step};
    use windlass_ir::ops::{Broadcast, DequantizeLinear, MatMul};
    use windlass_ir::{DType, ScalarFn, Tensor};

    use crate::lower::{LowerOptions, lower};
    use crate::testing::graph;

    #[test]
    fn quantized_weights_of_many_rows_are_widened_before_the_first_run() {
        let g = graph(&[&[64, 300]], |b, x| {
            let weights = b.constant(Tensor::new(&[300, 300], &[3i8; 90_000]));
            let scale = b.constant(Tensor::scalar(0.5f32));
            let op = DequantizeLinear { axis: 0, block_size: 0, to: DType::F32 };
            let weights = b.push1(op, &[weights, scale])?;
            Ok(smallvec![b.push1(MatMul { trans_a: false, trans_b: false }, &[x[0], weights])?])
        });
        let program = lower(&g, &LowerOptions::default()).unwrap();
        assert!(program.prepare.is_some());
        assert_eq!(program.kernels.len(), 1);
    }

    #[test]
    fn weights_are_prepared_in_the_order_of_need_large_ones_first() {
        let sizes = [32, 48, 80, 64, 32, 600, 48];
        let g = graph(&[&[64, 32]], |b, x| {
            let mut y = x[0];
            for pair in sizes.windows(2) {
                let weights = b.constant(Tensor::new(&[pair[0], pair[1]], &vec![0.5f32; pair[0] * pair[1]]));
                y = b.push1(MatMul { trans_a: false, trans_b: false }, &[y, weights])?;
            }
            Ok(smallvec![y])
        });
        let program = lower(&g, &LowerOptions::default()).unwrap();
        let prepare = program.prepare.as_ref().unwrap();
        let reads = |step: &Step| match step.args[0] {
            Place::Constant(constant) => prepare.constants[constant as usize].shape().iter().product(),
            _ => 0usize,
        };
        let found: Vec<usize> = prepare.steps.iter().map(reads).collect();
        assert_eq!(found, [600 * 48, 32 * 600, 32 * 48, 48 * 80, 80 * 64, 64 * 32]);
    }

    #[test]
    fn weights_of_several_layers_are_laid_out_once() {
        let g = graph(&[&[64, 96]], |b, x| {
            let weights = b.constant(Tensor::new(&[96, 96], &[0.5f32; 96 * 96]));
            let mut y = x[0];
            for _ in 0..3 {
                y = b.push1(MatMul { trans_a: false, trans_b: true }, &[y, weights])?;
                y = b.map(ScalarFn::Tanh, &[y])?;
            }
            Ok(smallvec![y])
        });
        let prepare = lower(&g, &LowerOptions::default()).unwrap().prepare.unwrap();
        assert_eq!((prepare.steps.len(), prepare.outputs.len()), (1, 1));
    }

    #[test]
    fn broadcasts_are_computed_again() {
        let g = graph(&[&[300, 300]], |b, x| {
            let row = b.constant(Tensor::new(&[300], &[3f32; 300]));
            let row = b.map(ScalarFn::Exp, &[row])?;
            let rows = b.push1(Broadcast::to(&[300, 300]), &[row])?;
            Ok(smallvec![b.map(ScalarFn::Add, &[x[0], rows])?])
        });
        let program = lower(&g, &LowerOptions::default()).unwrap();
        let prepared: usize = program
            .prepare
            .iter()
            .flat_map(|p| &p.outputs)
            .map(|(_, ty)| ty.shape().iter().product::<usize>())
            .sum();
        assert!(prepared <= 300, "{prepared} elements are prepared");
    }
}
