//! Compact weights: right operands that stay in the few bits they are made from.
//!
//! A weight that is known before the first run is a formula over constants, most often `(q - zero) * scale`. It may be
//! computed once ([`mod@super::prepare`]), and is then read as floats. Where a product has few rows, reading it is
//! most of the work, so it is rather read in as few bits as its formula allows and computed again in registers: the
//! formula is cut where its value takes the fewest bits, 4 or 8 or 16 an element, and what stands above the cut
//! becomes part of the product.
//!
//! ```text
//! y[m, n] = sum(b, p, h) x[m, 32 b + 2 p + h] * (f32(nibble(q[n / lanes, b, p, n % lanes], h)) * scale[n / lanes, b, n % lanes])
//! ```
//!
//! The integers lie in panels as [`mod@super::pack`] has them, two steps of the sum to a byte if they fit 4 bits. What
//! else the formula needs (scales, zero points) lies in such panels too, one row of lanes for each block of steps that
//! shares it, so that loops over a block find it in registers. The arithmetic, and so each weight's bits, is that of the formula.

use std::cell::RefCell;
use std::collections::BTreeSet;

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{Expr, Guard, Index, Nest, NestBuilder, Val, Var};
use windlass_ir::{DType, ScalarFn, Shape};

use super::formula::{divisors, flatten_operands, free_vars};
use super::narrow::{Range, ranges};
use super::schedule::Machine;
use super::schedule::contraction::{Contraction, as_contraction};
use super::schedule::tile::{FEW_LANES, tile_bytes};
use super::units::{Buf, BufData, Unit, UnitWork, Units};

/// The most rows that read a weight in few bits. Each row's products take about as long as the conversion, which a
/// tile's rows share; with more of them, reading memory is no longer most of the work.
pub const FEW_ROWS: usize = 4;

/// Bytes of a weight as floats up to which it is kept so: it stays in the first cache with what else the model reads.
pub const CACHED_BYTES: usize = 4 << 10;

/// How many times fewer bytes are to be read at least.
const GAIN: usize = 2;

/// Constants of more elements than this are not searched for their range, unless they are bytes.
const SEARCHED: usize = 64 << 10;

/// How integers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stored {
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
struct Weight {
    formula: Nest,
    /// How many variables stand before the lane.
    batch: usize,
    stored: Stored,
    /// What is stored.
    cut: Val,
    /// What else is read of the values from the root to the cut, and the type in which it is stored.
    sides: Vec<(Val, DType)>,
    /// Bytes read by one run.
    bytes: usize,
}

/// A product that reads its weight in few bits.
pub struct Compact {
    /// Which operand is replaced.
    operand: u32,
    /// The domain's variables that the weight depends on besides the lane, the lane, and the steps of the sum.
    batch: Vec<Var>,
    lane: Var,
    steps: Vec<Var>,
    /// Which step is cut into blocks, and how large these are.
    block: Option<(usize, usize)>,
    lanes: usize,
    weight: Weight,
    /// What the weight is made from.
    made_from: Vec<Buf>,
}

/// How to read the weight of a product in few bits, if it has one for which that pays. `makers` are the units before.
pub fn plan(
    nest: &Nest,
    unit: &Unit,
    units: &Units,
    makers: &[Unit],
    known: &SecondaryMap<Buf, bool>,
    machine: &Machine,
) -> Option<Compact> {
    let Contraction { reduce, factors } = as_contraction(nest)?;
    let (free, lane) = (free_vars(nest), *nest.domain.last()?);
    let mut with_lane = factors.into_iter().filter(|f| free[*f].contains(&lane));
    let factor = with_lane.next()?;
    if with_lane.next().is_some() || lane.extent < FEW_LANES || !nest.dtype(reduce).is_float() {
        return None;
    }
    let (Expr::Load { operand, index, .. }, Expr::Reduce { vars: steps, .. }) =
        (nest.expr(factor), nest.expr(reduce))
    else {
        return None;
    };
    let source = unit.ins[*operand as usize];
    let maker = makers.iter().find(|maker| maker.outs == [source]).filter(|_| known[source])?;
    let UnitWork::Nest(formula) = &maker.work else { return None };
    let loads = |val: Val| matches!(nest.expr(val), Expr::Load { operand: o, .. } if o == operand);
    let once = nest.needed(&nest.roots).into_iter().filter(|&val| loads(val)).count() == 1;
    let (outer, batch): (Vec<Var>, Vec<Var>) =
        nest.domain.iter().copied().filter(|v| *v != lane).partition(|v| !free[factor].contains(v));
    let rows: usize = outer.iter().map(|v| v.extent).product();
    let plain = index[0].values().is_empty() && steps.iter().all(|v| free[factor].contains(v));
    let reduces = formula.exprs.values().any(|(expr, _)| matches!(expr, Expr::Reduce { .. }));
    if !once || rows > FEW_ROWS || !plain || formula.roots.len() != 1 || reduces {
        return None;
    }
    let vars: Vec<Var> = batch.iter().chain([&lane]).chain(steps).copied().collect();
    let formula = flatten_operands(formula);
    let found: Vec<Option<Range>> = maker.ins.iter().map(|&buf| range_of_buf(units, buf)).collect();
    let range = |operand: u32| found[operand as usize];
    let weight = |block| Weight::new(&formula, &index[0], &vars, batch.len(), block, &range);
    let whole = seen_as(&formula, &index[0], &vars, None);
    let steps_at = batch.len() + 1;
    let blocks = (steps_at..vars.len()).flat_map(|at| {
        let sizes = divisors(&whole, whole.domain[at]);
        sizes.into_iter().filter(|size| *size > 1).map(move |size| Some((at, size)))
    });
    let (block, weight) = std::iter::once(None)
        .chain(blocks)
        .filter_map(|block| Some((block, weight(block)?)))
        .min_by_key(|(block, weight)| (weight.bytes, block.is_some()))?;
    let elements: usize = vars.iter().map(|v| v.extent).product();
    let bytes = elements * nest.dtype(factor).size();
    let pays = bytes > CACHED_BYTES && weight.bytes * GAIN <= bytes;
    let lanes = tile_bytes(machine, rows, 1) / nest.dtype(reduce).size();
    pays.then(|| Compact {
        operand: *operand,
        batch,
        lane,
        steps: steps.clone(),
        block: block.map(|(at, size)| (at - steps_at, size)),
        lanes,
        weight,
        made_from: maker.ins.clone(),
    })
}

/// The range of a constant of few elements, or of bytes.
fn range_of_buf(units: &Units, buf: Buf) -> Option<Range> {
    let constant = units.bufs[buf].constant.as_ref()?;
    let searched = constant.dtype().is_int() && (constant.len() <= SEARCHED || constant.dtype().size() == 1);
    if !searched {
        return None;
    }
    fn ends<T: Copy + Ord + Into<i128>>(values: &[T]) -> Option<Range> {
        let first = *values.first()?;
        let (least, greatest) =
            values.iter().fold((first, first), |(least, greatest), &x| (least.min(x), greatest.max(x)));
        Some((least.into(), greatest.into()))
    }
    match constant.dtype() {
        DType::I8 => ends(constant.as_slice::<i8>()),
        DType::U8 => ends(constant.as_slice::<u8>()),
        _ => ends(&constant.to_i128s()),
    }
}

/// A known formula at an index of its result in terms of `vars`, as one over these, where the variable at a position
/// may be cut into blocks of a size.
fn seen_as(formula: &Nest, index: &Index, vars: &[Var], block: Option<(usize, usize)>) -> Nest {
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
    fn new(
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
    fn steps(&self) -> &[Var] {
        &self.formula.domain[self.batch + 1..]
    }

    /// Where a side is at an index of the weight's variables: of those that it depends on, the lane as panel and, last,
    /// place in it.
    fn place(&self, side: Val, at: &[Index], lanes: usize) -> Vec<Index> {
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
    fn pack(&self, lanes: usize) -> Nest {
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
    fn lay_out(&self, (side, dtype): (Val, DType), lanes: usize) -> Nest {
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
    fn rebuild(
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
    fn load(&self, b: &mut NestBuilder, operand: u32, at: &[Index], half: &Index) -> Val {
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

impl Compact {
    /// Changes the unit to read the weight in few bits, and returns the units that store it so.
    pub fn apply(self, nest: &Nest, unit: &mut Unit, units: &mut Units) -> Vec<Unit> {
        let Compact { operand, batch, lane, steps, block, lanes, weight, made_from } = self;
        let nests = std::iter::once(weight.pack(lanes));
        let nests: Vec<Nest> = nests.chain(weight.sides.iter().map(|&s| weight.lay_out(s, lanes))).collect();

        let mut builder = NestBuilder::new(&nest.shape());
        for o in &nest.operands {
            builder.operand(o.dtype, &o.shape);
        }
        let numbers: Vec<u32> =
            nests.iter().map(|made| builder.operand(made.dtype(made.roots[0]), &made.shape())).collect();
        let domain = builder.domain();
        let renamed: RefCell<Vec<(Var, Index)>> =
            RefCell::new(nest.domain.iter().copied().zip(domain.iter().cloned()).collect());
        // The steps with blocks, and halves of a byte, as variables of their own.
        let parts: RefCell<Vec<Index>> = RefCell::default();
        let half: RefCell<Index> = RefCell::new(Index::constant(0));
        let paired = matches!(weight.stored, Stored::Nibbles { .. });
        let roots = builder.inline_binding(
            nest,
            &nest.roots,
            &domain,
            &mut |b, o, index, guards| {
                if o != operand {
                    return b.load_guarded(o, index, guards);
                }
                let (renamed, parts) = (renamed.borrow(), parts.borrow());
                let now = |var: &Var| {
                    let found = renamed.iter().find(|(v, _)| v == var);
                    found.map(|(_, index)| index.clone()).expect("every variable is renamed")
                };
                let outer: Vec<Index> = batch.iter().map(now).collect();
                // In terms of the weight's own variables, whose last step counts elements, not bytes.
                let lane = now(&lane);
                let mut own: Vec<Index> = outer.iter().chain([&lane]).chain(parts.iter()).cloned().collect();
                if paired {
                    let last = own.last_mut().expect("it has steps");
                    *last = last.mul(2).add(&half.borrow());
                }
                let at: Vec<Index> = outer
                    .into_iter()
                    .chain([lane.div(lanes as i64)])
                    .chain(parts.iter().cloned())
                    .chain([lane.rem(lanes as i64)])
                    .collect();
                weight.rebuild(
                    b,
                    weight.formula.roots[0],
                    &mut |b| weight.load(b, numbers[0], &at, &half.borrow()),
                    &mut |b, side| {
                        b.load(numbers[side + 1], &weight.place(weight.sides[side].0, &own, lanes))
                    },
                )
            },
            &mut |b, vars| {
                let mut fresh: Vec<Var> = weight.steps().iter().map(|v| b.fresh_var(v.extent)).collect();
                if paired {
                    let last = fresh.last_mut().expect("it has steps");
                    last.extent /= 2;
                    let var = b.fresh_var(2);
                    *half.borrow_mut() = Index::var(var);
                    fresh.push(var);
                }
                let mut own: Vec<Index> =
                    fresh[..weight.steps().len()].iter().map(|&v| Index::var(v)).collect();
                (*parts.borrow_mut()).clone_from(&own);
                if paired {
                    let last = own.last_mut().expect("it has steps");
                    *last = last.mul(2).add(&half.borrow());
                }
                if let Some((at, size)) = block {
                    let within = own.remove(at + 1);
                    own[at] = own[at].mul(size as i64).add(&within);
                }
                debug_assert_eq!(vars, steps);
                renamed.borrow_mut().extend(vars.iter().copied().zip(own.iter().cloned()));
                (fresh.into_iter().filter(|v| v.extent > 1).collect(), own)
            },
        );
        unit.work = UnitWork::Nest(Box::new(builder.finish(&roots)));
        let origin: Vec<String> = unit.origin.iter().map(|o| format!("pack for {o}")).take(1).collect();
        let mut made: Vec<Unit> = Vec::new();
        for nest in nests {
            let shape = nest.shape();
            let buf = units.bufs.push(BufData { dtype: nest.dtype(nest.roots[0]), shape, constant: None });
            unit.ins.push(buf);
            let work = UnitWork::Nest(Box::new(nest));
            made.push(Unit {
                work,
                ins: made_from.clone(),
                outs: vec![buf],
                origin: origin.clone(),
                flops: 0,
            });
        }
        let kept = without_operand(unit, operand);
        debug_assert!(kept, "nothing else reads the weight");
        made
    }
}

/// Takes out an operand that nothing reads.
fn without_operand(unit: &mut Unit, operand: u32) -> bool {
    let UnitWork::Nest(nest) = &mut unit.work else { return false };
    let mut builder = NestBuilder::new(&nest.shape());
    let kept: Vec<usize> = (0..nest.operands.len()).filter(|&o| o != operand as usize).collect();
    for &o in &kept {
        builder.operand(nest.operands[o].dtype, &nest.operands[o].shape);
    }
    let domain = builder.domain();
    let roots = builder.inline(nest, &nest.roots, &domain, &mut |b, o, index, guards| {
        let o = kept.iter().position(|&k| k == o as usize).expect("it is kept");
        b.load_guarded(o as u32, index, guards)
    });
    **nest = builder.finish(&roots);
    unit.ins.remove(operand as usize);
    true
}
