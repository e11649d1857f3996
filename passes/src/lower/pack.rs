//! Packing: laying out the right operand of a contraction so that each register tile reads it in order.
//!
//! An operand `b[k, n]` becomes `[n / lanes, k, n % lanes]`, panels as wide as a tile, the last one
//! filled up with zeros, by a unit of its own. That of a constant runs once (see [`mod@super::prepare`]);
//! other operands are packed at each run, where the reuse pays for it. The contraction's index map
//! changes accordingly, and nothing else needs to know.
//!
//! A left operand whose steps are whole pages apart is laid out anew too, step behind step: in a cache, numbers that far
//! apart push each other out.
//!
//! A constant whose rows a single row of the left operand meets from the first element to the last is read best as it
//! is. It is copied all the same: large pages of memory are read faster than the small ones of a file.

use std::cell::RefCell;

use cranelift_entity::{PrimaryMap, SecondaryMap};
use windlass_ir::loops::{Expr, Guard, Index, Nest, NestBuilder, Origin, Val, Var};
use windlass_ir::{ScalarFn, Shape};

use super::borders::share_within;
use super::compact;
use super::formula::{Vars, flatten_operands, free_vars, merge_loops, split_first_loops};
use super::parallel;
use super::prepare::known_bufs;
use super::schedule::contraction::{Contraction, as_contraction};
use super::schedule::rows::LANES;
use super::schedule::tile::{FEW_LANES, FEW_ROWS, packed_row_bytes, tile_bytes};
use super::schedule::{Machine, repeats};
use super::units::{Buf, BufData, Unit, UnitWork, Units};

/// Rows that read an operand of unit stride again before packing it while running pays.
const ROWS_TO_PACK: usize = 32;

/// What the rows of an operand fill up with whole vectors are multiples of, wherever it is compiled.
const VECTOR_BYTES: usize = 32;

/// Rows that read a strided operand again before packing it while running pays.
const ROWS_TO_TRANSPOSE: usize = 4;

/// Bytes between steps that are in each other's way in a cache, or a multiple of them.
const PAGE: usize = 4096;

/// So many of them do not stay there.
const STEPS_IN_THE_WAY: usize = 128;

/// Columns that read a left operand again before laying it out while running pays.
const COLUMNS_TO_TRANSPOSE: usize = 128;

/// Packs where it pays, and counts the arithmetic of contractions.
pub fn pack(units: &mut Units, machine: &Machine) {
    let known = known_bufs(units);
    let mut result: Vec<Unit> = Vec::new();
    let formulas = units.units.iter().map(|unit| match &unit.work {
        UnitWork::Nest(nest) => Some(&**nest),
        _ => None,
    });
    let (contractions, numbers) =
        parallel::map_distinct(formulas, |nest| as_contraction(nest).is_some().then(|| split(nest)));
    for (mut unit, number) in std::mem::take(&mut units.units).into_iter().zip(numbers) {
        if let Some(mut nest) = number.and_then(|number| contractions[number].clone()) {
            unit.flops += contraction_flops(&nest);
            let compact = compact::plan(&nest, &unit, units, &result, &known, machine);
            if let Some(compact) = compact.filter(|_| !known[unit.outs[0]]) {
                result.extend(compact.apply(&nest, &mut unit, units));
                result.push(unit);
                continue;
            }
            if let Some(packing) = plan_rows(&nest) {
                result.extend(apply(&nest, &mut unit, packing, units, UnitWork::Nest));
                if let UnitWork::Nest(changed) = &unit.work {
                    nest = split(changed);
                }
            }
            match plan(&nest, &unit, units, &known, machine) {
                Some(Layout::InOrder(operand)) => {
                    result.push(copy(&mut unit, operand, units));
                    unit.work = UnitWork::Nest(Box::new(nest));
                }
                Some(Layout::Panels(packing)) => {
                    // What is prepared is fused once more, which would undo the packing for a product of constants.
                    let form = if known[unit.outs[0]] { UnitWork::Copy } else { UnitWork::Nest };
                    result.extend(apply(&nest, &mut unit, packing, units, form));
                }
                None => unit.work = UnitWork::Nest(Box::new(nest)),
            }
        }
        result.push(unit);
    }
    units.units = result;
}

/// A contraction with the loops that its index maps divide split.
fn split(nest: &Nest) -> Nest {
    let nest = flatten_operands(nest);
    let stay = usize::from(repeats(&nest));
    merge_loops(split_first_loops(nest, stay))
}

/// Two for each multiplication and addition, but for those of the zeros around an image where they may be left out. Sums
/// that hold for all values of a variable are computed once for them.
fn contraction_flops(nest: &Nest) -> u64 {
    let Some(Contraction { reduce, .. }) = as_contraction(nest) else { return 0 };
    let Expr::Reduce { vars, arg, within, .. } = nest.expr(reduce) else { return 0 };
    let products = match nest.expr(*arg) {
        Expr::Apply(ScalarFn::Dot2, _) => 2.0,
        Expr::Apply(ScalarFn::Dot4, _) => 4.0,
        _ => 1.0,
    };
    let chosen = &free_vars(nest)[reduce];
    let steps: u64 = chosen.iter().chain(vars).map(|v| v.extent as u64).product();
    let share: f64 = within.iter().map(share_within).product();
    (2.0 * products * steps as f64 * share) as u64
}

/// How an operand is laid out anew.
enum Layout {
    /// As it is, in memory of its own.
    InOrder(u32),
    /// In panels.
    Panels(Packing),
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

fn plan(
    nest: &Nest,
    unit: &Unit,
    units: &Units,
    known: &SecondaryMap<Buf, bool>,
    machine: &Machine,
) -> Option<Layout> {
    let contraction = as_contraction(nest)?;
    let free = free_vars(nest);
    let lane = *nest.domain.last()?;
    if lane.extent < FEW_LANES {
        return plan_few(nest, &contraction, &free).map(Layout::Panels);
    }
    let strided = |val: Val| match nest.expr(val) {
        Expr::Load { operand, index, .. } => {
            known[unit.ins[*operand as usize]] && index[0].coefficient(lane) != Some(1)
        }
        _ => false,
    };
    // Where lanes have factors of their own, as channels of a depthwise convolution, what is known is put in their order.
    let mut with_lane = contraction.factors.into_iter().filter(|f| free[*f].contains(&lane));
    let (factor, is_shared) = match (with_lane.next()?, with_lane.next()) {
        (factor, None) => (factor, true),
        (one, Some(other)) => ([one, other].into_iter().find(|&factor| strided(factor))?, false),
    };
    let Expr::Load { operand, index, .. } = nest.expr(factor) else { return None };
    let Expr::Reduce { vars: steps, .. } = nest.expr(contraction.reduce) else { return None };
    let batch: Vec<Var> =
        nest.domain.iter().copied().filter(|v| *v != lane && free[factor].contains(v)).collect();
    let affine = index[0].values().is_empty()
        && batch.iter().chain(steps).chain([&lane]).all(|&v| index[0].coefficient(v).is_some());
    // An operand without elements is never read: some other dimension of the product is 0.
    let empty = units.bufs[unit.ins[*operand as usize]].elements() == 0;
    if empty || !is_read_once(nest, *operand) || !affine || !steps.iter().all(|v| free[factor].contains(v)) {
        return None;
    }
    let is_row = |v: &&Var| free[contraction.reduce].contains(v) && !free[factor].contains(v);
    let row_count: usize = nest.domain.iter().filter(is_row).map(|v| v.extent).product();
    let constant = known[unit.ins[*operand as usize]];
    let size = nest.dtype(contraction.reduce).size();
    let lanes = match (is_shared, constant) {
        (true, true) => packed_row_bytes(machine, row_count, lane.extent * size) / size,
        (true, false) => tile_bytes(machine, row_count, 1) / size,
        (false, _) => lane.extent,
    };
    let neighbours = index[0].coefficient(lane) == Some(1);
    let step_count: usize = steps.iter().map(|v| v.extent).product();
    let packed_len = batch.iter().map(|v| v.extent).product::<usize>() * lane.extent * step_count;
    let overlaps = packed_len > 2 * units.bufs[unit.ins[*operand as usize]].elements();
    // Rows that end within a vector leave lanes to be done one by one, which panels fill up with zeros.
    let ragged = !(lane.extent * nest.dtype(factor).size()).is_multiple_of(VECTOR_BYTES);
    // Few rows wait for an operand that comes from memory, and longest where it lies in pieces.
    let in_pieces = steps.last().is_some_and(|&step| index[0].coefficient(step) != Some(lane.extent as i64));
    let pays = match (constant, neighbours) {
        (true, true) => lane.extent > lanes || in_pieces && row_count <= FEW_ROWS,
        (true, false) => true,
        (false, true) => {
            let large = lane.extent * step_count >= 1 << 15;
            row_count >= ROWS_TO_PACK && (large || ragged) && !overlaps
        }
        (false, false) => row_count >= ROWS_TO_TRANSPOSE,
    };
    // A single row reads rows of the right operand, which are sums of their own, from the first element to the last. Where
    // many results are made of each sum, neighbours of them are sums in lanes.
    let follow = |var: &Var| index[0].coefficient(*var) == Some(1) && var.extent >= LANES;
    let alone = nest.domain.iter().all(|var| free[contraction.reduce].contains(var));
    let in_order = constant && row_count == 1 && alone && steps.last().is_some_and(follow);
    pays.then(|| match in_order {
        true => Layout::InOrder(*operand),
        false => {
            Layout::Panels(Packing { factor, operand: *operand, lane, lanes, batch, steps: steps.clone() })
        }
    })
}

/// The right operand, if it has so few columns that each result is a sum in lanes, of steps that are neighbours on the left
/// alone: the steps of each column become neighbours. As lanes are summed in an order of their own, it does not matter
/// whether the operand is known.
fn plan_few(nest: &Nest, contraction: &Contraction, free: &PrimaryMap<Val, Vars>) -> Option<Packing> {
    let lane = *nest.domain.last()?;
    let [left, factor] = match contraction.factors.map(|factor| free[factor].contains(&lane)) {
        [false, true] => contraction.factors,
        [true, false] => [contraction.factors[1], contraction.factors[0]],
        _ => return None,
    };
    let (Expr::Load { operand, index, .. }, Expr::Load { index: of_left, .. }) =
        (nest.expr(factor), nest.expr(left))
    else {
        return None;
    };
    let Expr::Reduce { vars: steps, .. } = nest.expr(contraction.reduce) else { return None };
    let last = *steps.last().filter(|last| last.extent >= FEW_LANES)?;
    let batch: Vec<Var> =
        nest.domain.iter().copied().filter(|v| *v != lane && free[factor].contains(v)).collect();
    let affine = index[0].values().is_empty()
        && batch.iter().chain(steps).chain([&lane]).all(|&v| index[0].coefficient(v).is_some());
    let along = of_left[0].coefficient(last) == Some(1) && index[0].coefficient(last) != Some(1);
    let is_row = |var: &&Var| free[contraction.reduce].contains(var) && !free[factor].contains(var);
    let row_count: usize = nest.domain.iter().filter(is_row).map(|var| var.extent).product();
    let pays = row_count >= ROWS_TO_TRANSPOSE && affine && along && is_read_once(nest, *operand);
    pays.then(|| Packing { factor, operand: *operand, lane, lanes: 1, batch, steps: steps.clone() })
}

/// Whether one load alone reads an operand.
fn is_read_once(nest: &Nest, operand: u32) -> bool {
    let reads = |val: &Val| matches!(nest.expr(*val), Expr::Load { operand: of, .. } if *of == operand);
    nest.needed(&nest.roots).into_iter().filter(reads).count() == 1
}

/// The left operand, if its steps are in each other's way: it becomes rows of steps.
fn plan_rows(nest: &Nest) -> Option<Packing> {
    let contraction = as_contraction(nest)?;
    let free = free_vars(nest);
    let columns = nest.domain.last()?;
    let factor = contraction.factors.into_iter().find(|f| !free[*f].contains(columns))?;
    let Expr::Load { operand, index, guards } = nest.expr(factor) else { return None };
    let Expr::Reduce { vars: steps, .. } = nest.expr(contraction.reduce) else { return None };
    let once = is_read_once(nest, *operand);
    let apart = |var: &Var| index[0].coefficient(*var).map(|step| step.unsigned_abs() as usize);
    let rows: Vec<Var> = nest.domain.iter().copied().filter(|v| free[factor].contains(v)).collect();
    let affine = index[0].values().is_empty() && rows.iter().chain(steps).all(|var| apart(var).is_some());
    let last = steps.last()?;
    let pages = apart(last)? * nest.dtype(factor).size();
    let in_the_way = pages > 0 && pages.is_multiple_of(PAGE) && last.extent >= STEPS_IN_THE_WAY;
    let lane = *rows.iter().find(|var| apart(var) == Some(1))?;
    let others: usize = nest.domain.iter().filter(|v| !rows.contains(v)).map(|v| v.extent).product();
    if !(once && affine && guards.is_empty() && in_the_way && others >= COLUMNS_TO_TRANSPOSE) {
        return None;
    }
    let batch = rows.into_iter().filter(|var| *var != lane).collect();
    Some(Packing { factor, operand: *operand, lane, lanes: 1, batch, steps: steps.clone() })
}

/// Reads a constant from memory of its own, whose pages are large, rather than from where the model has it.
fn copy(unit: &mut Unit, operand: u32, units: &mut Units) -> Unit {
    let source = unit.ins[operand as usize];
    let data = BufData { constant: None, ..units.bufs[source].clone() };
    let mut builder = NestBuilder::new(&data.shape);
    let from = builder.operand(data.dtype, &data.shape);
    let element = builder.load(from, &builder.domain());
    let copied = units.bufs.push(data);
    unit.ins[operand as usize] = copied;
    let work = UnitWork::Copy(Box::new(builder.finish(&[element])));
    Unit { work, ins: vec![source], outs: vec![copied], origin: origin(unit), flops: 0 }
}

/// What a unit that lays out an operand of another is for.
pub fn origin(unit: &Unit) -> Origin {
    unit.origin.iter().map(|o| format!("pack for {o}").into()).take(1).collect()
}

/// Changes the unit to read a packed operand, and returns the unit that packs it.
fn apply(
    nest: &Nest,
    unit: &mut Unit,
    packing: Packing,
    units: &mut Units,
    form: fn(Box<Nest>) -> UnitWork,
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
    let work = form(Box::new(packer));
    Some(Unit { work, ins: vec![source], outs: vec![packed], origin: origin(unit), flops: 0 })
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
