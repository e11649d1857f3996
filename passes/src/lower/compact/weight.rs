//! A weight as a formula: where it is cut, what is stored of it, and how it is made again of that.

use std::collections::BTreeSet;

use windlass_ir::loops::{Expr, Guard, Index, Nest, NestBuilder, Val, Var};
use windlass_ir::{DType, ScalarFn, Shape};

use crate::lower::formula::free_vars;
use crate::lower::narrow::{Range, ranges};

/// How the values at the cut are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// Two steps of the sum in a byte, the first in its low bits; signed ones with 8 added to them, since processors
    /// take longer to spread a sign than to subtract.
    Nibbles { signed: bool },
    /// As elements of this type.
    Whole(DType),
}

impl Stored {
    /// The form of the fewest bits that holds values of a type and of a range.
    fn of((least, greatest): Range, dtype: DType, paired: bool) -> Stored {
        let fits = |low: i128, high: i128| low <= least && greatest <= high;
        let holds = |dtype: &DType| fits(dtype.int_range().0, dtype.int_range().1);
        match paired {
            true if fits(0, 15) => Stored::Nibbles { signed: false },
            true if fits(-8, 7) => Stored::Nibbles { signed: true },
            _ => Stored::Whole(
                [DType::U8, DType::I8, DType::U16, DType::I16].into_iter().find(holds).unwrap_or(dtype),
            ),
        }
    }

    /// Bits of an element.
    fn bits(self) -> usize {
        match self {
            Stored::Nibbles { .. } => 4,
            Stored::Whole(dtype) => 8 * dtype.size(),
        }
    }
}

/// The weight of a product as a formula over the product's own variables: those outside a panel, the lane, then the
/// steps of the sum, of which one may be cut into blocks.
pub struct Weight {
    pub formula: Nest,
    /// How many variables stand before the lane.
    pub batch: usize,
    pub stored: Stored,
    /// What is stored.
    pub cut: Val,
    /// What else is read of the values from the root to the cut, and the type in which it is stored.
    pub sides: Vec<(Val, DType)>,
    /// Bytes read by one run.
    pub bytes: usize,
}

/// A known formula at an index of its result in terms of `vars`, as one over these, where the variable at a position
/// may be cut into blocks of a size.
pub fn seen_as(formula: &Nest, index: &Index, vars: &[Var], block: Option<(usize, usize)>) -> Nest {
    let mut shape: Shape = vars.iter().map(|v| v.extent).collect();
    if let Some((at, size)) = block {
        shape[at] /= size;
        shape.insert(at + 1, size);
    }
    let mut builder = NestBuilder::new(&shape);
    for operand in &formula.operands {
        builder.operand(operand.dtype, &operand.shape);
    }
    let mut domain = builder.domain();
    if let Some((at, size)) = block {
        let within = domain.remove(at + 1);
        domain[at] = domain[at].mul(size as i64).add(&within);
    }
    let flat = index.substitute(&|var| vars.iter().position(|v| *v == var).map(|at| domain[at].clone()));
    let at = Index::unflatten(&flat, &formula.shape());
    let roots = builder.inline(formula, &formula.roots, &at, &mut |b, operand, at, guards| {
        b.load_guarded(operand, at, guards)
    });
    builder.finish(&roots)
}

impl Weight {
    pub fn new(
        formula: &Nest,
        index: &Index,
        vars: &[Var],
        batch: usize,
        block: Option<(usize, usize)>,
        range: &impl Fn(u32) -> Option<Range>,
    ) -> Option<Weight> {
        let formula = seen_as(formula, index, vars, block);
        let paired = formula.domain.len() > batch + 1
            && formula.domain.last().is_some_and(|step| step.extent.is_multiple_of(2));
        let (free, ranges) = (free_vars(&formula), ranges(&formula, range));
        let elements = |val: Val| free[val].iter().map(|v| v.extent).product::<usize>();
        let all: usize = formula.domain.iter().map(|v| v.extent).product();
        let stored = |val: Val| match formula.dtype(val) {
            // The high half of an f32, so that making one is a shift.
            DType::BF16 => Some(Stored::Whole(DType::BF16)),
            dtype if dtype.is_int() => ranges[val].map(|range| Stored::of(range, dtype, paired)),
            _ => None,
        };
        // From the root down to the values that differ from element to element, as long as that is one.
        let mut path: Vec<Val> = vec![formula.roots[0]];
        loop {
            let last = *path.last().expect("the root at least");
            let Expr::Apply(_, args) = formula.expr(last) else { break };
            let mut full = args.iter().copied().filter(|&arg| 2 * elements(arg) > all);
            let (Some(next), None) = (full.next(), full.next()) else { break };
            path.push(next);
        }
        let least = path.iter().filter_map(|&val| stored(val)).min_by_key(|stored| stored.bits())?;
        let at = path.iter().position(|&val| stored(val).is_some_and(|s| s.bits() == least.bits()))?;
        let (cut, stored) = (path[at], stored(path[at])?);
        // Functions that processors lack, and conversions to halves, take longer than reading floats.
        let slow = |&val: &Val| match formula.expr(val) {
            Expr::Apply(f, _) => !f.is_primitive() || matches!(formula.dtype(val), DType::F16 | DType::BF16),
            _ => false,
        };
        if path[..at].iter().any(slow) {
            return None;
        }
        let mut sides: BTreeSet<Val> = BTreeSet::new();
        for pair in path[..=at].windows(2) {
            let Expr::Apply(_, args) = formula.expr(pair[0]) else { unreachable!("it has an operand") };
            let read = |&&arg: &&Val| arg != pair[1] && !matches!(formula.expr(arg), Expr::Const(_));
            sides.extend(args.iter().filter(read));
        }
        let sides: Vec<(Val, DType)> = sides
            .into_iter()
            .map(|side| {
                let dtype = formula.dtype(side);
                let range = ranges[side].filter(|_| dtype.is_int());
                let whole = range.map(|range| Stored::of(range, dtype, false));
                (side, if let Some(Stored::Whole(narrow)) = whole { narrow } else { dtype })
            })
            .collect();
        let of_sides: usize = sides.iter().map(|(side, dtype)| elements(*side) * dtype.size()).sum();
        let bytes = (all * stored.bits()).div_ceil(8) + of_sides;
        Some(Weight { batch, stored, cut, sides, bytes, formula })
    }

    /// Where the lane is among the variables.
    fn lane(&self) -> Var {
        self.formula.domain[self.batch]
    }

    /// The steps of the sum.
    pub fn steps(&self) -> &[Var] {
        &self.formula.domain[self.batch + 1..]
    }

    /// Where a side is at an index of the weight's variables: of those that it depends on, the lane as panel and, last,
    /// place in it.
    pub fn place(&self, side: Val, at: &[Index], lanes: usize) -> Vec<Index> {
        let free = &free_vars(&self.formula)[side];
        let lane = &at[self.batch];
        let mut place: Vec<Index> = Vec::new();
        for (var, index) in self.formula.domain.iter().zip(at).filter(|(var, _)| free.contains(var)) {
            place.push(if *var == self.lane() { lane.div(lanes as i64) } else { index.clone() });
        }
        place.extend(free.contains(&self.lane()).then(|| lane.rem(lanes as i64)));
        place
    }

    /// An expression at an index, its loads 0 in lanes beyond the last.
    fn value(&self, b: &mut NestBuilder, val: Val, at: &[Index]) -> Val {
        let column = Guard::new(at[self.batch].clone(), self.lane().extent);
        b.inline(&self.formula, &[val], at, &mut |b, operand, index, guards| {
            let all: Vec<Guard> = guards.iter().chain([&column]).cloned().collect();
            b.load_guarded(operand, index, &all)
        })[0]
    }

    /// A nest over a domain of this shape that reads what the weight is made from.
    fn builder(&self, shape: &[usize]) -> NestBuilder {
        let mut builder = NestBuilder::new(shape);
        for operand in &self.formula.operands {
            builder.operand(operand.dtype, &operand.shape);
        }
        builder
    }

    /// The shape of what is stored: batch, panels, steps, lanes.
    fn shape(&self, lanes: usize) -> Shape {
        let extents = |vars: &[Var]| vars.iter().map(|v| v.extent).collect::<Vec<usize>>();
        let mut shape: Shape = extents(&self.formula.domain[..self.batch]).into();
        shape.push(self.lane().extent.div_ceil(lanes));
        shape.extend(extents(self.steps()));
        if let Stored::Nibbles { .. } = self.stored {
            *shape.last_mut().expect("it has steps") /= 2;
        }
        shape.push(lanes);
        shape
    }

    /// What is stored, from what it is made from.
    pub fn pack(&self, lanes: usize) -> Nest {
        let shape = self.shape(lanes);
        let mut b = self.builder(&shape);
        let domain = b.domain();
        let (inner, outer) = domain.split_last().expect("it has lanes");
        let mut at = outer.to_vec();
        at[self.batch] = at[self.batch].mul(lanes as i64).add(inner);
        let root = match self.stored {
            Stored::Whole(dtype) => {
                let value = self.value(&mut b, self.cut, &at);
                b.cast(value, dtype)
            }
            Stored::Nibbles { signed } => {
                let step = at.pop().expect("it has steps");
                let [low, high] = [0, 1].map(|half| {
                    let at: Vec<Index> = at.iter().cloned().chain([step.mul(2).add_const(half)]).collect();
                    let value = self.value(&mut b, self.cut, &at);
                    let value = b.cast(value, DType::U8);
                    let eight = b.constant(DType::U8, 8.0);
                    if signed { b.apply(ScalarFn::Add, &[value, eight]) } else { value }
                });
                let (mask, four) = (b.constant(DType::U8, 15.0), b.constant(DType::U8, 4.0));
                let (low, high) =
                    (b.apply(ScalarFn::And, &[low, mask]), b.apply(ScalarFn::Shl, &[high, four]));
                b.apply(ScalarFn::Or, &[low, high])
            }
        };
        b.finish(&[root])
    }

    /// A side in panels.
    pub fn lay_out(&self, (side, dtype): (Val, DType), lanes: usize) -> Nest {
        let free = &free_vars(&self.formula)[side];
        let of_side: Vec<Var> = self.formula.domain.iter().copied().filter(|v| free.contains(v)).collect();
        let panels = self.lane().extent.div_ceil(lanes);
        let mut shape: Shape =
            of_side.iter().map(|v| if *v == self.lane() { panels } else { v.extent }).collect();
        shape.extend(free.contains(&self.lane()).then_some(lanes));
        let mut b = self.builder(&shape);
        let domain = b.domain();
        let at = |var: &Var| match of_side.iter().position(|v| v == var) {
            Some(i) if *var == self.lane() => domain[i].mul(lanes as i64).add(&domain[of_side.len()]),
            Some(i) => domain[i].clone(),
            None => Index::constant(0),
        };
        let at: Vec<Index> = self.formula.domain.iter().map(at).collect();
        let value = self.value(&mut b, side, &at);
        let root = b.cast(value, dtype);
        b.finish(&[root])
    }

    /// The weight from what is stored, which `stored` loads, and its sides, which `side` does by their number.
    pub fn rebuild(
        &self,
        b: &mut NestBuilder,
        val: Val,
        stored: &mut dyn FnMut(&mut NestBuilder) -> Val,
        side: &mut dyn FnMut(&mut NestBuilder, usize) -> Val,
    ) -> Val {
        if val == self.cut {
            let value = stored(b);
            return b.cast(value, self.formula.dtype(val));
        }
        if let Some(number) = self.sides.iter().position(|(side, _)| *side == val) {
            let value = side(b, number);
            return b.cast(value, self.formula.dtype(val));
        }
        match self.formula.expr(val) {
            Expr::Const(bits) => b.constant_bits(self.formula.dtype(val), *bits),
            Expr::Apply(f, args) => {
                let args: Vec<Val> = args.iter().map(|&arg| self.rebuild(b, arg, stored, side)).collect();
                b.apply(*f, &args)
            }
            _ => unreachable!("what is above the cut applies functions"),
        }
    }

    /// The integer at a position of what is stored: the byte in i32, and which of its halves.
    pub fn load(&self, b: &mut NestBuilder, operand: u32, at: &[Index], half: &Index) -> Val {
        let value = b.load(operand, at);
        let Stored::Nibbles { signed } = self.stored else { return value };
        let word = b.cast(value, DType::I32);
        let [mask, four, eight] = [15.0, 4.0, 8.0].map(|value| b.constant(DType::I32, value));
        let (low, high) = (b.apply(ScalarFn::And, &[word, mask]), b.apply(ScalarFn::Shr, &[word, four]));
        let first = b.inside(&[Guard::new(half.clone(), 1)]);
        let value = b.apply(ScalarFn::Select, &[first, low, high]);
        if signed { b.apply(ScalarFn::Sub, &[value, eight]) } else { value }
    }
}
