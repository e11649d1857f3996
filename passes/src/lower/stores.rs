//! Stores: what is made of a kernel's result element by element is made where the kernel stores it.
//!
//! Kernels that ops write out as loops are no formulas, which others could be merged with. But a formula that reads each
//! element of a kernel's result for one element of its own can be computed of the value about to be stored: the ReLU after
//! the last transform of a Winograd convolution costs no trip through memory.

use std::collections::BTreeSet;

use cranelift_entity::SecondaryMap;
use rustc_hash::FxHashMap;
use windlass_ir::loops::{
    Block, Buffer, Expr, Guard, Index, Kernel, KernelBuilder, LoopKind, Nest, Redirect, Rhs, Role, Stmt, Val,
    visit_accesses,
};

use super::formula::{flatten_operands, reads_own_places};
use super::parts::Operands;
use super::schedule::top_reductions;
use super::units::{Buf, Unit, UnitWork, Units};

/// Merges formulas into the kernels that make their operands.
pub fn merge(units: &mut Units) {
    let makers = units.makers_for_one();
    let mut dead: BTreeSet<usize> = BTreeSet::new();
    for at in 0..units.units.len() {
        let Some((nest, operand, maker)) = merged(units, at, &makers) else { continue };
        let unit = unit(units, [maker, at], &nest, operand);
        units.units[at] = unit;
        dead.insert(maker);
    }
    units.remove(&dead);
}

/// The formula of a unit that can be merged into a kernel, its operand that the kernel makes, and which unit that is.
fn merged(
    units: &Units,
    at: usize,
    makers: &SecondaryMap<Buf, Option<usize>>,
) -> Option<(Nest, usize, usize)> {
    let unit = &units.units[at];
    let UnitWork::Nest(nest) = &unit.work else { return None };
    if nest.roots.len() != 1 || !top_reductions(nest).is_empty() {
        return None;
    }
    let len: usize = nest.shape().iter().product();
    (0..unit.ins.len()).find_map(|operand| {
        let buf = unit.ins[operand];
        let maker = makers[buf].filter(|_| units.bufs[buf].elements() == len)?;
        let (kernel, result) = as_stores(&units.units[maker])?;
        let fits = reads_own_places(nest, |o| o as usize == operand) && only_stores(kernel, result);
        fits.then(|| (flatten_operands(nest), operand, maker))
    })
}

/// A kernel of one result, and that.
fn as_stores(unit: &Unit) -> Option<(&Kernel, Buffer)> {
    let UnitWork::Kernel(kernel) = &unit.work else { return None };
    let (result, _) = kernel.params().last().filter(|(_, data)| data.role == Role::Out)?;
    (unit.outs.len() == 1).then_some((kernel, result))
}

/// Whether a kernel stores to a buffer in lanes alone, and does not read it again.
fn only_stores(kernel: &Kernel, buffer: Buffer) -> bool {
    fn in_lanes(block: &Block, buffer: Buffer) -> bool {
        block.iter().all(|stmt| match stmt {
            Stmt::For { kind: LoopKind::Vector, .. } => true,
            Stmt::For { body, .. } => in_lanes(body, buffer),
            Stmt::If { then, otherwise, .. } => in_lanes(then, buffer) && in_lanes(otherwise, buffer),
            Stmt::Store { buffer: to, .. } => *to != buffer,
            Stmt::Let(_) | Stmt::Prefetch { .. } => true,
        })
    }
    let mut is_read = false;
    visit_accesses(&kernel.body, &mut |from, _, writes| is_read |= from == buffer && !writes);
    !is_read && in_lanes(&kernel.body, buffer)
}

/// A kernel and the formula of its result, by their numbers, as one unit.
fn unit(units: &Units, numbers: [usize; 2], nest: &Nest, operand: usize) -> Unit {
    let parts = numbers.map(|number| &units.units[number]);
    let (kernel, result) = as_stores(parts[0]).expect("it was asked before");
    let mut builder = KernelBuilder::new("stores");
    let shared = Operands::of([(&*parts[0].ins, None), (&*parts[1].ins, Some(operand))]);
    let mut operands = shared.params(&mut builder, units).into_iter();
    let own = operands.next().into_iter().flatten().flatten();
    let ins = operands.next().unwrap_or_default();
    let len = nest.shape().iter().product();
    let to = builder.buffer("y0", nest.dtype(nest.roots[0]), len, Role::Out);
    let params: FxHashMap<Buffer, Buffer> =
        kernel.params().map(|(buffer, _)| buffer).zip(own.chain([to])).collect();
    debug_assert_eq!(params[&result], to);
    builder.splice(kernel, &kernel.body, &[], &mut Merged { params, nest, ins, to });
    units.joined(&numbers, shared.bufs, builder.finish())
}

/// Stores a formula of each value.
struct Merged<'n> {
    /// What the kernel's parameters are now.
    params: FxHashMap<Buffer, Buffer>,
    nest: &'n Nest,
    /// The formula's operands, but for the kernel's result.
    ins: Vec<Option<Buffer>>,
    to: Buffer,
}

impl Redirect for Merged<'_> {
    fn place(&mut self, buffer: Buffer, index: &Index) -> (Buffer, Index) {
        (self.params[&buffer], index.clone())
    }

    fn store(&mut self, builder: &mut KernelBuilder, buffer: Buffer, index: Index, val: Val) {
        debug_assert_eq!(buffer, self.to, "there is one result");
        let nest = self.nest;
        let at = Index::unflatten(&index, &nest.shape());
        let mut made: FxHashMap<Val, Val> = FxHashMap::default();
        for own in nest.needed(&nest.roots) {
            let (expr, dtype) = &nest.exprs[own];
            let position = |var| nest.domain.iter().position(|&v| v == var).map(|position| &at[position]);
            let place = |index: &Index| index.map(&position, &|val| made[&val]);
            let hold = |guards: &[Guard]| -> Vec<Guard> {
                guards.iter().map(|guard| Guard::new(place(&guard.index), guard.size)).collect()
            };
            let rhs = match expr {
                Expr::Load { operand, index, guards } => match self.ins[*operand as usize] {
                    None => {
                        made.insert(own, val);
                        continue;
                    }
                    Some(buffer) => Rhs::Load { buffer, index: place(&index[0]), guards: hold(guards) },
                },
                Expr::Const(bits) => Rhs::Const(*bits),
                Expr::Index(index) => Rhs::Index(place(index)),
                Expr::Inside(guards) => Rhs::Inside(hold(guards)),
                Expr::Apply(f, args) => Rhs::Apply(*f, args.iter().map(|arg| made[arg]).collect()),
                Expr::Reduce { .. } => unreachable!("it takes no sums"),
            };
            made.insert(own, builder.define(*dtype, rhs));
        }
        builder.store(self.to, index, made[&nest.roots[0]]);
    }
}
