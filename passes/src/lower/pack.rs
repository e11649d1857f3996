//! Packing: laying out the right operand of a contraction so that each register tile reads it in order.
//!
//! An operand `b[k, n]` becomes `[n / lanes, k, n % lanes]`, panels as wide as a tile, the last one
//! filled up with zeros. For constants this happens when compiling; other operands are packed by a
//! unit of their own where the reuse pays for it. The contraction's index map changes accordingly,
//! and nothing else needs to know.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use windlass_ir::loops::{Expr, Guard, Index, Nest, NestBuilder, Val, Var};
use windlass_ir::{Shape, Tensor, with_element};

use super::formula::{flatten_operands, free_vars, merge_loops, split_loops};
use super::schedule::Machine;
use super::schedule::tile::{Contraction, FEW_LANES, as_contraction, tile_bytes};
use super::units::{Buf, BufData, Unit, UnitWork, Units};

/// Rows that read an operand of unit stride again before packing it while running pays.
const ROWS_TO_PACK: usize = 32;

/// Rows that read a strided operand again before packing it while running pays.
const ROWS_TO_TRANSPOSE: usize = 4;

/// Packs where it pays, and counts the arithmetic of contractions.
pub fn pack(units: &mut Units, machine: &Machine) {
    let mut result: Vec<Unit> = Vec::new();
    let mut jobs: Vec<Job> = Vec::new();
    for mut unit in std::mem::take(&mut units.units) {
        if let UnitWork::Nest(nest) = &unit.work
            && as_contraction(nest).is_some()
        {
            let nest = merge_loops(split_loops(flatten_operands(nest)));
            unit.flops += contraction_flops(&nest);
            match plan(&nest, &unit, units, machine) {
                Some(plan) => result.extend(apply(&nest, &mut unit, plan, units, &mut jobs)),
                None => unit.work = UnitWork::Nest(Box::new(nest)),
            }
        }
        result.push(unit);
    }
    units.units = result;
    for (buf, tensor) in run(jobs) {
        units.bufs[buf].constant = Some(tensor);
    }
}

/// A constant to be packed.
struct Job {
    packed: Buf,
    tensor: Tensor,
    packer: Nest,
}

/// Packs constants on all processors, the largest first.
fn run(mut jobs: Vec<Job>) -> Vec<(Buf, Tensor)> {
    jobs.sort_by_key(|job| (job.tensor.len(), job.packed));
    let queue = Mutex::new(jobs);
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(Job { packed, tensor, packer }) = job else { return };
            let tensor = pack_constant(&tensor, &packer);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((packed, tensor));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Two for each multiplication and addition.
fn contraction_flops(nest: &Nest) -> u64 {
    let Some(Contraction { reduce, .. }) = as_contraction(nest) else { return 0 };
    let Expr::Reduce { vars, .. } = nest.expr(reduce) else { return 0 };
    2 * nest.domain.iter().chain(vars).map(|v| v.extent as u64).product::<u64>()
}

/// An operand to be packed.
struct Packing {
    /// The load of the operand.
    factor: Val,
    /// Which operand it is.
    operand: u32,
    lane: Var,
    lanes: usize,
    /// Domain variables the operand depends on besides the lane.
    batch: Vec<Var>,
    /// The reduction's variables.
    steps: Vec<Var>,
}

fn plan(nest: &Nest, unit: &Unit, units: &Units, machine: &Machine) -> Option<Packing> {
    let contraction = as_contraction(nest)?;
    let free = free_vars(nest);
    let lane = *nest.domain.last()?;
    let mut with_lane = contraction.factors.into_iter().filter(|f| free[*f].contains(&lane));
    let factor = with_lane.next()?;
    if with_lane.next().is_some() || lane.extent < FEW_LANES {
        return None;
    }
    let Expr::Load { operand, index, .. } = nest.expr(factor) else { return None };
    let Expr::Reduce { vars: steps, .. } = nest.expr(contraction.reduce) else { return None };
    let once = nest
        .needed(&nest.roots)
        .into_iter()
        .filter(|&v| matches!(nest.expr(v), Expr::Load { operand: o, .. } if o == operand))
        .count();
    let batch: Vec<Var> =
        nest.domain.iter().copied().filter(|v| *v != lane && free[factor].contains(v)).collect();
    let affine = index[0].values().is_empty()
        && batch.iter().chain(steps).chain([&lane]).all(|&v| index[0].coefficient(v).is_some());
    // An operand without elements is never read: some other dimension of the product is 0.
    let empty = units.bufs[unit.ins[*operand as usize]].elements() == 0;
    if empty || once != 1 || !affine || !steps.iter().all(|v| free[factor].contains(v)) {
        return None;
    }
    let row_count: usize =
        nest.domain.iter().filter(|v| **v != lane && !free[factor].contains(v)).map(|v| v.extent).product();
    let lanes = tile_bytes(machine, row_count, 1) / nest.dtype(contraction.reduce).size();
    let neighbours = index[0].coefficient(lane) == Some(1);
    let step_count: usize = steps.iter().map(|v| v.extent).product();
    let constant = units.bufs[unit.ins[*operand as usize]].constant.is_some();
    let packed_len = batch.iter().map(|v| v.extent).product::<usize>() * lane.extent * step_count;
    let overlaps = packed_len > 2 * units.bufs[unit.ins[*operand as usize]].elements();
    let pays = match (constant, neighbours) {
        (true, true) => lane.extent > lanes,
        (true, false) => true,
        (false, true) => row_count >= ROWS_TO_PACK && lane.extent * step_count >= 1 << 15 && !overlaps,
        (false, false) => row_count >= ROWS_TO_TRANSPOSE,
    };
    pays.then(|| Packing { factor, operand: *operand, lane, lanes, batch, steps: steps.clone() })
}

/// Changes the unit to read a packed operand, and returns the unit that packs it, if that is not done here.
fn apply(
    nest: &Nest,
    unit: &mut Unit,
    packing: Packing,
    units: &mut Units,
    jobs: &mut Vec<Job>,
) -> Option<Unit> {
    let Packing { factor, operand, lane, lanes, batch, steps } = packing;
    let Expr::Load { index, .. } = nest.expr(factor) else { return None };
    let panels = lane.extent.div_ceil(lanes);
    let mut shape: Shape = batch.iter().map(|v| v.extent).collect();
    shape.push(panels);
    shape.extend(steps.iter().map(|v| v.extent));
    shape.push(lanes);
    let source = unit.ins[operand as usize];
    let data = units.bufs[source].clone();
    let packer = pack_nest(&data, &shape, &index[0], lane, lanes, &batch, &steps);
    let packed = units.bufs.push(BufData { dtype: data.dtype, shape: shape.clone(), constant: None });

    let mut builder = NestBuilder::new(&nest.shape());
    for (i, o) in nest.operands.iter().enumerate() {
        match i == operand as usize {
            true => builder.operand(o.dtype, &shape),
            false => builder.operand(o.dtype, &o.shape),
        };
    }
    let domain = builder.domain();
    let renamed: RefCell<Vec<(Var, Index)>> =
        RefCell::new(nest.domain.iter().copied().zip(domain.iter().cloned()).collect());
    let roots = builder.inline_binding(
        nest,
        &nest.roots,
        &domain,
        &mut |b, o, index, guards| {
            if o != operand {
                return b.load_guarded(o, index, guards);
            }
            let renamed = renamed.borrow();
            let now = |var: &Var| {
                renamed
                    .iter()
                    .find(|(v, _)| v == var)
                    .map(|(_, i)| i.clone())
                    .expect("every variable is renamed")
            };
            let mut at: Vec<Index> = batch.iter().map(now).collect();
            at.push(now(&lane).div(lanes as i64));
            at.extend(steps.iter().map(now));
            at.push(now(&lane).rem(lanes as i64));
            b.load(o, &at)
        },
        &mut |b, vars| {
            let fresh: Vec<Var> = vars.iter().map(|v| b.fresh_var(v.extent)).collect();
            let indices: Vec<Index> = fresh.iter().map(|&v| Index::var(v)).collect();
            renamed.borrow_mut().extend(vars.iter().copied().zip(indices.iter().cloned()));
            (fresh, indices)
        },
    );
    unit.work = UnitWork::Nest(Box::new(builder.finish(&roots)));
    unit.ins[operand as usize] = packed;
    if let Some(tensor) = data.constant {
        jobs.push(Job { packed, tensor, packer });
        return None;
    }
    let origin = unit.origin.iter().map(|o| format!("pack for {o}")).take(1).collect();
    let work = UnitWork::Nest(Box::new(packer));
    Some(Unit { work, ins: vec![source], outs: vec![packed], origin, flops: 0 })
}

/// The copy of an operand into panels.
fn pack_nest(
    source: &BufData,
    shape: &[usize],
    index: &Index,
    lane: Var,
    lanes: usize,
    batch: &[Var],
    steps: &[Var],
) -> Nest {
    let mut builder = NestBuilder::new(shape);
    let operand = builder.operand(source.dtype, &[source.elements()]);
    let at = builder.domain();
    let column = at[batch.len()].mul(lanes as i64).add(&at[shape.len() - 1]);
    let from = index.substitute(&|var| {
        let outer = batch.iter().position(|v| *v == var).map(|i| at[i].clone());
        let step = || steps.iter().position(|v| *v == var).map(|i| at[batch.len() + 1 + i].clone());
        outer.or_else(step).or_else(|| (var == lane).then(|| column.clone()))
    });
    let element = builder.load_guarded(operand, &[from], &[Guard::new(column, lane.extent)]);
    builder.finish(&[element])
}

/// Packs a tensor as the formula says.
fn pack_constant(tensor: &Tensor, packer: &Nest) -> Tensor {
    let Expr::Load { index, guards, .. } = packer.expr(packer.roots[0]) else {
        // Nothing is inside: an operand without elements.
        return Tensor::zeros(tensor.dtype(), &packer.shape());
    };
    let step = |i: &Index, v: &Var| i.coefficient(*v).expect("the map is affine");
    let steps: Vec<i64> = packer.domain.iter().map(|v| step(&index[0], v)).collect();
    let limits: Vec<(Vec<i64>, i64, i64)> = guards
        .iter()
        .map(|g| {
            let own = packer.domain.iter().map(|v| step(&g.index, v)).collect();
            (own, g.index.offset(), g.size as i64)
        })
        .collect();
    let shape = packer.shape();
    let lanes = shape[shape.len() - 1];
    let lane_step = steps[shape.len() - 1];
    with_element!(tensor.dtype(), T => {
        let from = tensor.as_slice::<T>();
        let mut packed = Tensor::zeros(tensor.dtype(), &shape);
        let mut at = vec![0i64; shape.len() - 1];
        for row in packed.as_mut_slice::<T>().chunks_exact_mut(lanes) {
            let dot = |steps: &[i64]| at.iter().zip(steps).map(|(i, s)| i * s).sum::<i64>();
            let start = index[0].offset() + dot(&steps);
            // Guards bound the lane from above; rows of the last panel end early.
            let stop = limits.iter().map(|(own, offset, size)| {
                let first = offset + dot(own);
                let along = own[shape.len() - 1].max(1);
                ((size - first + along - 1) / along).clamp(0, lanes as i64) as usize
            });
            let stop = stop.min().unwrap_or(lanes);
            for (lane, slot) in row[..stop].iter_mut().enumerate() {
                *slot = from[(start + lane as i64 * lane_step) as usize];
            }
            for d in (0..at.len()).rev() {
                at[d] += 1;
                if at[d] < shape[d] as i64 {
                    break;
                }
                at[d] = 0;
            }
        }
        packed
    })
}
