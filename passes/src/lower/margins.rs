//! Margins: what pads a reduction's result for its only reader is written together with it.
//!
//! A convolution reads a padded image, so that its loops have no conditions. Where another convolution makes that image,
//! it stores its results inside the padded array right away and fills the margins, and no copy is made.

use std::collections::BTreeSet;

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{Buffer, Expr, Guard, Index, KernelBuilder, LoopKind, Nest, Rhs, Val, const_bits};
use windlass_ir::{DType, ScalarFn, Shape, Tensor};

use super::schedule::top_reductions;
use super::units::{Buf, Unit, UnitWork, Units, origins};

/// How a result stands inside a larger array whose other elements are all alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Margins {
    /// The shape of the result.
    inner: Shape,
    /// The shape of the array.
    outer: Shape,
    /// How many elements of the array come before the result's in each dimension.
    before: Shape,
    /// The other elements' bits; those that are written by others have none.
    fill: Option<u64>,
}

/// A part of the margins: rows that are equally far apart, each without gaps.
struct Strip {
    /// How many dimensions of the result count rows.
    dims: usize,
    /// Where a row begins within the part of the array that belongs to one index of those dimensions.
    first: usize,
    /// The elements of a row.
    len: usize,
}

impl Margins {
    /// No margins around a result of this shape.
    pub fn none(shape: &[usize]) -> Margins {
        let shape = Shape::from_slice(shape);
        Margins {
            before: shape.iter().map(|_| 0).collect(),
            inner: shape.clone(),
            outer: shape,
            fill: Some(0),
        }
    }

    /// A result in the first places of an array of this shape, whose others are not its business.
    pub fn among_others(inner: &[usize], outer: &[usize]) -> Margins {
        let [inner, outer] = [inner, outer].map(Shape::from_slice);
        Margins { before: inner.iter().map(|_| 0).collect(), inner, outer, fill: None }
    }

    /// Those of a block of the last dimension, within one index of the first `dims` dimensions.
    pub fn block(&self, dims: usize, lanes: usize) -> Margins {
        let tail = |shape: &Shape| shape[dims..].iter().copied().collect::<Shape>();
        let mut block = Margins {
            inner: tail(&self.inner),
            outer: tail(&self.outer),
            before: tail(&self.before),
            fill: self.fill,
        };
        let (inner, outer) = (block.inner.last_mut(), block.outer.last_mut());
        inner.into_iter().chain(outer).for_each(|extent| *extent = lanes);
        block
    }

    /// Whether the first `dims` dimensions and the last have none.
    pub fn is_only_between(&self, dims: usize) -> bool {
        let last = self.inner.len() - 1;
        (0..dims).chain([last]).all(|dim| self.inner[dim] == self.outer[dim])
    }

    /// The shape of the result.
    pub fn inner(&self) -> &Shape {
        &self.inner
    }

    /// The shape of the array.
    pub fn outer(&self) -> &Shape {
        &self.outer
    }

    /// How many elements of the array come before the result's in each dimension.
    pub fn before(&self) -> &Shape {
        &self.before
    }

    /// The number of elements of the array.
    pub fn elements(&self) -> usize {
        self.outer.iter().product()
    }

    /// Where in the array an element of the result stands.
    pub fn place(&self, flat: &Index) -> Index {
        let inner = Index::unflatten(flat, &self.inner);
        let outer: Vec<Index> =
            inner.iter().zip(&self.before).map(|(index, &before)| index.add_const(before as i64)).collect();
        Index::flatten(&outer, &self.outer)
    }

    /// Where an element of a result stands that may have margins.
    pub fn placed(margins: Option<&Margins>, flat: Index) -> Index {
        margins.map(|margins| margins.place(&flat)).unwrap_or(flat)
    }

    /// Fills one of `parts` parts of the margins of an array that begins at `start`.
    pub fn fill(
        &self,
        builder: &mut KernelBuilder,
        buffer: Buffer,
        dtype: DType,
        [part, start]: [&Index; 2],
        parts: usize,
    ) {
        for Strip { dims, first, len } in self.strips().filter(|_| self.fill.is_some()) {
            let rows: usize = self.inner[..dims].iter().product();
            if rows * len == 0 {
                continue;
            }
            let share = rows.div_ceil(parts);
            let row = Index::var(builder.begin_loop(LoopKind::Serial, share));
            let row = part.mul(share as i64).add(&row);
            let uneven = share * parts != rows;
            if uneven {
                builder.begin_if(&[Guard::new(row.clone(), rows)]);
            }
            let mut outer: Vec<Index> = Index::unflatten(&row, &self.inner[..dims]);
            outer.iter_mut().zip(&self.before).for_each(|(i, &before)| *i = i.add_const(before as i64));
            let row_len: usize = self.outer[dims..].iter().product();
            let row = Index::flatten(&outer, &self.outer[..dims]).mul(row_len as i64);
            self.fill_all(builder, buffer, dtype, &start.add(&row).add_const(first as i64), len);
            if uneven {
                builder.end();
            }
            builder.end();
        }
    }

    /// Fills so many elements of a buffer as if they were margins.
    pub fn fill_all(
        &self,
        builder: &mut KernelBuilder,
        buffer: Buffer,
        dtype: DType,
        start: &Index,
        len: usize,
    ) {
        let fill = builder.define(dtype, Rhs::Const(self.fill.unwrap_or(0)));
        let lane = Index::var(builder.begin_loop(LoopKind::Vector, len));
        builder.store(buffer, start.add(&lane), fill);
        builder.end();
    }

    /// The margins before and behind the result in each dimension.
    fn strips(&self) -> impl Iterator<Item = Strip> {
        (0..self.outer.len()).flat_map(|dim| {
            let step: usize = self.outer[dim + 1..].iter().product();
            let (before, end) = (self.before[dim], self.before[dim] + self.inner[dim]);
            let behind = self.outer[dim] - end;
            [(0, before), (end, behind)].map(|(first, count)| Strip {
                dims: dim,
                first: first * step,
                len: count * step,
            })
        })
    }
}

/// A formula of one result that reduces and has elements, and how its result stands in what is written.
pub fn as_reduction(unit: &Unit) -> Option<(&Nest, Option<&Margins>)> {
    let (nest, margins) = match &unit.work {
        UnitWork::Nest(nest) => (nest, None),
        UnitWork::Padded(nest, margins) => (nest, Some(margins)),
        UnitWork::Copy(_)
        | UnitWork::Kernel(_)
        | UnitWork::Rounds(_)
        | UnitWork::Body(_)
        | UnitWork::Interpret(_) => return None,
    };
    let reduces = nest.roots.len() == 1 && !nest.shape().contains(&0) && !top_reductions(nest).is_empty();
    reduces.then_some((&**nest, margins))
}

/// Lets formulas that reduce write their results with the margins that their only reader wants.
pub fn absorb(units: &mut Units) {
    let uses = units.use_counts();
    let mut producer: SecondaryMap<Buf, Option<usize>> = SecondaryMap::new();
    let mut absorbed: BTreeSet<usize> = BTreeSet::new();
    for at in 0..units.units.len() {
        units.units[at].outs.iter().for_each(|&b| producer[b] = Some(at));
        let Some((operand, margins)) = as_padding(&units.units[at], units) else { continue };
        let buf = units.units[at].ins[operand];
        let Some(maker) = producer[buf].filter(|_| uses[buf] == 1) else { continue };
        let (unit, padding) = (&units.units[maker], &units.units[at]);
        let Some((nest, None)) = as_reduction(unit) else { continue };
        let work = UnitWork::Padded(Box::new(nest.clone()), margins);
        let (outs, origin) = (padding.outs.clone(), origins([unit, padding]));
        producer[outs[0]] = Some(maker);
        units.units[maker] = Unit { work, ins: unit.ins.clone(), outs, origin, flops: unit.flops };
        absorbed.insert(at);
    }
    units.remove(&absorbed);
}

/// The operand that a unit pads, and how, if it does nothing else.
fn as_padding(unit: &Unit, units: &Units) -> Option<(usize, Margins)> {
    let UnitWork::Nest(nest) = &unit.work else { return None };
    let &[root] = nest.roots.as_slice() else { return None };
    let (inside, element, fill) = match nest.expr(root) {
        Expr::Apply(ScalarFn::Select, args) => (args[0], args[1], known_bits(nest, args[2], unit, units)?),
        _ => (root, root, 0),
    };
    let (Expr::Inside(guards) | Expr::Load { guards, .. }) = nest.expr(inside) else { return None };
    let Expr::Load { operand, index, guards: own } = nest.expr(element) else { return None };
    let inner = nest.operands[*operand as usize].shape.clone();
    let outer = nest.shape();
    let same = own.is_empty() || own == guards;
    if inner.len() != outer.len() || inner.contains(&0) || guards.is_empty() || !same {
        return None;
    }
    let mut before = Shape::new();
    for (dim, index) in index.iter().enumerate() {
        let first = index.offset().checked_neg().and_then(|n| usize::try_from(n).ok())?;
        let own = Index::var(nest.domain[dim]).add_const(index.offset());
        let fits = *index == own && first + inner[dim] <= outer[dim];
        let guarded = guards.iter().any(|g| g.index == *index && g.size == inner[dim]);
        if !fits || !(guarded || inner[dim] == outer[dim]) {
            return None;
        }
        before.push(first);
    }
    let own = |guard: &Guard| index.iter().zip(&inner).any(|(i, &n)| guard.index == *i && guard.size == n);
    guards.iter().all(own).then_some((*operand as usize, Margins { inner, outer, before, fill: Some(fill) }))
}

/// The bits of an expression that is the same everywhere, if they are known.
fn known_bits(nest: &Nest, val: Val, unit: &Unit, units: &Units) -> Option<u64> {
    match nest.expr(val) {
        Expr::Const(bits) => Some(*bits),
        Expr::Load { operand, guards, .. } if guards.is_empty() => {
            let tensor =
                units.bufs[unit.ins[*operand as usize]].constant.as_ref().filter(|t| t.len() == 1)?;
            let value = tensor.as_uniform_f64()?;
            let same = Tensor::from_f64s(tensor.dtype(), tensor.shape(), &[value]).bytes() == tensor.bytes();
            same.then(|| const_bits(tensor.dtype(), value))
        }
        _ => None,
    }
}
