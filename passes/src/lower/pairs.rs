//! Pairs: products of small integers, several of them in one instruction.
//!
//! Machines multiply pairs of neighbouring 16-bit integers and add the two products in one instruction
//! ([`ScalarFn::Dot2`]), at twice the rate of floats; some do so with four bytes, unsigned by signed
//! ([`ScalarFn::Dot4`]). So a sum over k of `a[m, k] * b[k, n]` becomes one over words, each of two steps, or of four:
//!
//! ```text
//! y[m, n] = sum(j in 0..k/2) dot2(words_a[m, j], words_b[j, n])
//!     where words_a[m, j] = pack2(a[m, 2j], a[m, 2j + 1])
//! ```
//!
//! Known bytes are stored as words of half the size, whose two bytes become the halves where they are read
//! ([`ScalarFn::Unpack2`]).
//!
//! The words of `a` are its own memory seen as words, on a machine that stores low halves first; those of `b`
//! are a copy, which packing changes further. Sums of integers wrap, so their order does not matter.

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{Expr, Index, Nest, NestBuilder, Reduction, Val, Var};
use windlass_ir::{DType, ScalarFn, Shape};

use super::formula::{flatten_operands, free_vars, merge_loops, split_loops};
use super::schedule::Machine;
use super::schedule::contraction::{Contraction, as_contraction};
use super::schedule::tile::FEW_LANES;
use super::units::{Buf, BufData, Unit, UnitWork, Units};
use super::words;

/// Readers of each element that make a copy of an operand in words worth it.
const READERS_TO_COPY: usize = 16;

/// What a word holds.
struct Form {
    /// How many steps of the sum.
    steps: i64,
    /// The function of two words.
    function: ScalarFn,
    /// What elements of the two operands are in it.
    elements: [DType; 2],
    /// The element types that these hold.
    holds: [&'static [DType]; 2],
    /// Whether words of the second operand are stored in half their bits, where that is known before the run.
    unpacks: bool,
}

const PAIRS: Form = Form {
    steps: 2,
    function: ScalarFn::Dot2,
    elements: [DType::I16; 2],
    holds: [&[DType::I16, DType::I8, DType::U8]; 2],
    unpacks: false,
};

const PAIRS_OF_BYTES: Form =
    Form { elements: [DType::I16, DType::I8], holds: [PAIRS.holds[0], &[DType::I8]], unpacks: true, ..PAIRS };

const FOURS: Form = Form {
    steps: 4,
    function: ScalarFn::Dot4,
    elements: [DType::U8, DType::I8],
    holds: [&[DType::U8], &[DType::I8]],
    unpacks: false,
};

/// Makes products of small integers products of words; `known` are the buffers known before the run.
pub fn pair(units: &mut Units, known: &SecondaryMap<Buf, bool>, machine: &Machine) {
    let forms = if machine.byte_products { &[FOURS, PAIRS][..] } else { &[PAIRS_OF_BYTES, PAIRS] };
    let mut result: Vec<Unit> = Vec::new();
    for mut unit in std::mem::take(&mut units.units) {
        if let UnitWork::Nest(nest) = &unit.work
            && as_contraction(nest).is_some_and(|product| nest.dtype(product.reduce) == DType::I32)
        {
            let nest = merge_loops(split_loops(flatten_operands(nest)));
            if let Some(plan) = forms.iter().find_map(|form| plan(form, &nest, &unit, units, known)) {
                result.extend(apply(&nest, &mut unit, &plan, units));
            }
        }
        result.push(unit);
    }
    units.units = result;
}

/// One factor: its operand, seen as one dimension, and where an element of it is.
struct Factor {
    operand: u32,
    index: Index,
}

/// A product to compute in words.
struct Plan<'f> {
    form: &'f Form,
    reduce: Val,
    /// The factor whose neighbours are steps of the sum, and the one that has lanes.
    a: Factor,
    b: Factor,
    /// The variables of the sum, and the one of them that is paired.
    steps: Vec<Var>,
    paired: Var,
    /// The domain's variables that `b` depends on.
    of_b: Vec<Var>,
}

fn plan<'f>(
    form: &'f Form,
    nest: &Nest,
    unit: &Unit,
    units: &Units,
    known: &SecondaryMap<Buf, bool>,
) -> Option<Plan<'f>> {
    let Contraction { reduce, factors } = as_contraction(nest)?;
    let Expr::Reduce { vars: steps, arg, .. } = nest.expr(reduce) else { return None };
    let Expr::Apply(ScalarFn::Mul, args) = nest.expr(*arg) else { return None };
    let plain = args.iter().zip(factors).all(|(&arg, load)| {
        // Widened, not changed.
        matches!(nest.expr(arg), Expr::Apply(ScalarFn::Cast(DType::I32), of) if of[0] == load)
    });
    let (free, lane) = (free_vars(nest), *nest.domain.last()?);
    let has_lane = |factor: Val| free[factor].contains(&lane);
    let [a, b] = match factors.map(has_lane) {
        [false, true] => factors,
        [true, false] => [factors[1], factors[0]],
        _ => return None,
    };
    let held = [a, b].iter().zip(form.holds).all(|(&load, types)| types.contains(&nest.dtype(load)));
    if !plain || !held || lane.extent < FEW_LANES || !steps.iter().all(|step| free[b].contains(step)) {
        return None;
    }
    let factor = |val: Val| match nest.expr(val) {
        Expr::Load { operand, index, .. } if index[0].values().is_empty() => {
            Some(Factor { operand: *operand, index: index[0].clone() })
        }
        _ => None,
    };
    let extents = |vars: &[Var]| vars.iter().map(|v| v.extent).product::<usize>();
    let of_b: Vec<Var> = nest.domain.iter().copied().filter(|v| free[b].contains(v)).collect();
    let (as_it_is, a, b) = (nest.dtype(a) == form.elements[0], factor(a)?, factor(b)?);
    let elements = |factor: &Factor| units.bufs[unit.ins[factor.operand as usize]].elements();
    let overlaps = extents(&of_b) * extents(steps) > 2 * elements(&b);
    let readers = extents(&nest.domain) * extents(steps) / elements(&a).max(1);
    let kept = known[unit.ins[b.operand as usize]] || !form.unpacks;
    let whole = elements(&a).is_multiple_of(form.steps as usize);
    let pays = whole && (as_it_is || readers >= READERS_TO_COPY);
    let paired = *steps.iter().find(|&&step| {
        step.extent.is_multiple_of(form.steps as usize)
            && a.index.coefficient(step) == Some(1)
            && form.spread(&a.index, step).rem(form.steps) == Index::constant(0)
    })?;
    (kept && !overlaps && pays && elements(&b) > 0).then(|| Plan {
        form,
        reduce,
        a,
        b,
        steps: steps.clone(),
        paired,
        of_b,
    })
}

impl Form {
    /// A variable over words in place of one over elements.
    fn words(&self, var: Var) -> Var {
        Var { extent: var.extent / self.steps as usize, ..var }
    }

    /// An index where the paired variable counts words.
    fn spread(&self, index: &Index, paired: Var) -> Index {
        let word = Index::var(self.words(paired));
        index.substitute(&|var| (var == paired).then(|| word.mul(self.steps)))
    }
}

/// Changes the unit to multiply words, and returns the units that make them.
fn apply(nest: &Nest, unit: &mut Unit, plan: &Plan<'_>, units: &mut Units) -> [Unit; 2] {
    let Plan { form, reduce, a, b, steps, paired, of_b } = plan;
    let [of_a, of_b_words] = form.elements;
    let [from_a, from_b] = [a, b].map(|factor| unit.ins[factor.operand as usize]);
    let len = units.bufs[from_a].elements() / form.steps as usize;
    let words_a = form.pack(units, from_a, &[len], of_a, |at, step| at[0].mul(form.steps).add_const(step));
    // Lanes last, as products want them.
    let word_steps: Vec<Var> = steps.iter().map(|&v| if v == *paired { form.words(v) } else { v }).collect();
    let (lane, batch) = of_b.split_last().expect("it has the lane");
    let vars: Vec<Var> = batch.iter().chain(&word_steps).chain([lane]).copied().collect();
    let shape: Shape = vars.iter().map(|v| v.extent).collect();
    let words_b = form.pack(units, from_b, &shape, of_b_words, |at, step| {
        let place = |var: Var| vars.iter().position(|v| v.id == var.id).map(|i| at[i].clone());
        b.index.substitute(&|var| match var == *paired {
            true => place(var).map(|index| index.mul(form.steps).add_const(step)),
            false => place(var),
        })
    });

    // The product as one more operand of what is computed from it.
    let product = nest.operands.len() as u32;
    let at = nest.domain.iter().map(|&v| Index::var(v)).collect();
    let outer = nest.with_expr(*reduce, Expr::Load { operand: product, index: at, guards: Vec::new() });
    let read: Vec<u32> = (0..product)
        .filter(|&o| {
            let reads = |v| matches!(outer.expr(v), Expr::Load { operand, .. } if *operand == o);
            outer.needed(&outer.roots).into_iter().any(reads)
        })
        .collect();
    let mut builder = NestBuilder::new(&nest.shape());
    for &operand in &read {
        builder.operand(nest.operands[operand as usize].dtype, &nest.operands[operand as usize].shape);
    }
    let op_a = builder.operand(DType::I32, &[len]);
    let op_b = builder.operand(units.bufs[words_b.1].dtype, &shape);
    let domain = builder.domain();
    let roots = builder.inline(&outer, &outer.roots, &domain, &mut |builder, operand, index, guards| {
        if let Some(kept) = read.iter().position(|&o| o == operand) {
            return builder.load_guarded(kept as u32, index, guards);
        }
        let extents: Vec<usize> = word_steps.iter().map(|v| v.extent).collect();
        builder.reduce(Reduction::Sum, &extents, |builder, step| {
            let place = |var: Var| -> Index {
                let of_step = steps.iter().position(|&v| v == var).map(|i| step[i].clone());
                of_step.unwrap_or_else(|| {
                    let i = nest.domain.iter().position(|&v| v == var).expect("nothing else is free");
                    index[i].clone()
                })
            };
            let at_a = a.index.substitute(&|var| match var == *paired {
                true => Some(place(var).mul(form.steps)),
                false => Some(place(var)),
            });
            let at_a = at_a.div(form.steps);
            let at_b: Vec<Index> = batch.iter().chain(steps).chain([lane]).map(|&var| place(var)).collect();
            let (x, y) = (builder.load(op_a, &[at_a]), builder.load(op_b, &at_b));
            let y = if form.unpacks { builder.apply(ScalarFn::Unpack2, &[y]) } else { y };
            builder.apply(form.function, &[x, y])
        })
    });
    unit.work = UnitWork::Nest(Box::new(builder.finish(&roots)));
    let made = [(words_a, from_a), (words_b, from_b)].map(|((nest, to), from)| Unit {
        work: UnitWork::Nest(Box::new(nest)),
        ins: vec![from],
        outs: vec![to],
        origin: unit.origin.iter().map(|o| format!("pairs for {o}").into()).take(1).collect(),
        flops: 0,
    });
    unit.ins = read.iter().map(|&o| unit.ins[o as usize]).chain(made.iter().map(|u| u.outs[0])).collect();
    made
}

impl Form {
    /// A buffer of words of this shape, and how to make them from elements; `index` says where those of the steps of a
    /// word are.
    fn pack(
        &self,
        units: &mut Units,
        from: Buf,
        shape: &[usize],
        element: DType,
        index: impl Fn(&[Index], i64) -> Index,
    ) -> (Nest, Buf) {
        let data = &units.bufs[from];
        let mut builder = NestBuilder::new(shape);
        let operand = builder.operand(data.dtype, &[data.elements()]);
        let at = builder.domain();
        let parts = (0..self.steps).map(|step| builder.load(operand, &[index(&at, step)])).collect();
        // Bytes are packed by their bits.
        let word = words::pack(&mut builder, parts, if element.size() == 1 { DType::I8 } else { element });
        let dtype = builder.dtype(word);
        let to = units.bufs.push(BufData { dtype, shape: shape.into(), constant: None });
        (builder.finish(&[word]), to)
    }
}
