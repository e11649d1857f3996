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
//! The integers, or the bf16 where that is what is stored, lie in panels as [`mod@super::pack`] has them, two steps of
//! the sum to a byte if they fit 4 bits. What else the formula needs (scales, zero points) lies in such panels too, one
//! row of lanes for each block of steps that shares it, so that loops over a block find it in registers. The arithmetic,
//! and so each weight's bits, is that of the formula.

mod weight;

use std::cell::RefCell;

use cranelift_entity::SecondaryMap;
use windlass_ir::DType;
use windlass_ir::loops::{Expr, Index, Nest, NestBuilder, Val, Var};

use self::weight::{Stored, Weight, seen_as};
use crate::lower::formula::{divisors, flatten_operands, free_vars};
use crate::lower::narrow::Range;
use crate::lower::pack::origin;
use crate::lower::schedule::Machine;
use crate::lower::schedule::contraction::{Contraction, as_contraction};
use crate::lower::schedule::tile::{FEW_LANES, tile_bytes};
use crate::lower::units::{Buf, BufData, Unit, UnitWork, Units};

/// The most rows that read a weight in few bits. Each row's products take about as long as the conversion, which a
/// tile's rows share; with more of them, reading memory is no longer most of the work.
pub const FEW_ROWS: usize = 4;

/// Bytes of a weight as floats up to which it is kept so: it stays in the first cache with what else the model reads.
pub const CACHED_BYTES: usize = 4 << 10;

/// How many times fewer bytes are to be read at least.
const GAIN: usize = 2;

/// Constants of more elements than this are not searched for their range, unless they are bytes.
const SEARCHED: usize = 64 << 10;

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
        let mut made: Vec<Unit> = Vec::new();
        for nest in nests {
            let shape = nest.shape();
            let buf = units.bufs.push(BufData { dtype: nest.dtype(nest.roots[0]), shape, constant: None });
            unit.ins.push(buf);
            let work = UnitWork::Nest(Box::new(nest));
            made.push(Unit { work, ins: made_from.clone(), outs: vec![buf], origin: origin(unit), flops: 0 });
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
