//! Narrowing: storing the factors of integer products in the 16 bits, or 8, that hold them.
//!
//! Quantized values are multiplied as i32. What is stored between units is known to fit fewer bits, from the formula
//! that makes it; stored so, it takes less memory, and neighbours are the operand of one instruction (see
//! [`mod@super::pairs`]). Readers widen what they load.

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{Expr, Nest, NestBuilder, Reduction, Val};
use windlass_ir::{DType, ScalarFn, Tensor};

use super::schedule::Machine;
use super::schedule::contraction::as_contraction;
use super::units::{Buf, Unit, UnitWork, Units};

/// What factors are multiplied as.
const WIDE: DType = DType::I32;

/// The least and the greatest value that there may be.
pub(super) type Range = (i128, i128);

/// Stores factors in fewer bits where that holds them; `known` are the buffers known before the run.
pub fn narrow(units: &mut Units, known: &SecondaryMap<Buf, bool>, machine: &Machine) {
    let narrowed = choose(units, known, machine);
    let needs = |unit: &Unit| unit.ins.iter().chain(&unit.outs).any(|&buf| narrowed[buf].is_some());
    for at in 0..units.units.len() {
        if !needs(&units.units[at]) {
            continue;
        }
        let unit = &mut units.units[at];
        let UnitWork::Nest(nest) = &mut unit.work else { unreachable!("only formulas use what is narrowed") };
        let ins: Vec<Option<DType>> = unit.ins.iter().map(|&buf| narrowed[buf]).collect();
        **nest = retyped(nest, &ins, narrowed[unit.outs[0]]);
    }
    for (buf, data) in units.bufs.iter_mut() {
        let Some(dtype) = narrowed[buf] else { continue };
        data.dtype = dtype;
        if let Some(constant) = &mut data.constant {
            *constant = Tensor::from_i128s(dtype, constant.shape(), &constant.to_i128s());
        }
    }
}

/// The buffers to narrow, and to what.
fn choose(
    units: &Units,
    known: &SecondaryMap<Buf, bool>,
    machine: &Machine,
) -> SecondaryMap<Buf, Option<DType>> {
    let mut wanted: SecondaryMap<Buf, bool> = SecondaryMap::new();
    for unit in units.units.iter().rev() {
        let UnitWork::Nest(nest) = &unit.work else { continue };
        let mut vals = factors(nest);
        if unit.outs.iter().any(|&buf| wanted[buf]) {
            vals.extend(&nest.roots);
        }
        while let Some(val) = vals.pop() {
            if let Expr::Apply(ScalarFn::Select, args) = nest.expr(val) {
                // Of padding and concatenation.
                vals.extend(&args[1..]);
            }
            if let Expr::Load { operand, .. } = nest.expr(val) {
                wanted[unit.ins[*operand as usize]] = true;
            }
        }
    }
    // Only formulas can be made to load and store another type.
    let others = units.inputs.iter().chain(&units.outputs).map(|(_, buf)| *buf);
    others.for_each(|buf| wanted[buf] = false);
    for unit in &units.units {
        let formula = matches!(&unit.work, UnitWork::Nest(nest) if nest.roots.len() == 1);
        if !formula {
            unit.ins.iter().chain(&unit.outs).for_each(|&buf| wanted[buf] = false);
        }
    }
    let mut ranges: SecondaryMap<Buf, Option<Range>> = SecondaryMap::new();
    for (buf, data) in units.bufs.iter().filter(|(_, data)| data.dtype == WIDE) {
        ranges[buf] = data.constant.as_ref().and_then(range_of_constant);
    }
    for unit in &units.units {
        if let UnitWork::Nest(nest) = &unit.work
            && units.bufs[unit.outs[0]].dtype == WIDE
        {
            ranges[unit.outs[0]] = range_of_root(nest, &|operand| ranges[unit.ins[operand as usize]]);
        }
    }
    let types = |buf: Buf| -> &[DType] {
        match (machine.byte_products, known[buf]) {
            (true, _) => &[DType::U8, DType::I8, DType::I16],
            // Products unpack bytes of weights, which takes less memory.
            (false, true) => &[DType::I8, DType::I16],
            (false, false) => &[DType::I16],
        }
    };
    let mut narrowed: SecondaryMap<Buf, Option<DType>> = SecondaryMap::new();
    for (buf, _) in units.bufs.iter().filter(|(buf, data)| wanted[*buf] && data.dtype == WIDE) {
        narrowed[buf] = ranges[buf].and_then(|(least, greatest)| {
            let holds = |dtype: &&DType| {
                let (low, high) = dtype.int_range();
                low <= least && greatest <= high
            };
            types(buf).iter().find(holds).copied()
        });
    }
    narrowed
}

/// The factors of a product of integers.
fn factors(nest: &Nest) -> Vec<Val> {
    match as_contraction(nest) {
        Some(contraction) if nest.dtype(contraction.reduce) == WIDE => contraction.factors.to_vec(),
        _ => Vec::new(),
    }
}

fn range_of_constant(constant: &Tensor) -> Option<Range> {
    let values = constant.to_i128s();
    Some((values.iter().copied().min()?, values.iter().copied().max()?))
}

/// The range of the only result; `loaded` gives that of an operand, if it is known better than from its type.
fn range_of_root(nest: &Nest, loaded: &impl Fn(u32) -> Option<Range>) -> Option<Range> {
    let [root] = nest.roots.as_slice() else { return None };
    ranges(nest, loaded)[*root]
}

/// The range of each expression of integers that the results need, as far as it is known.
pub(super) fn ranges(
    nest: &Nest,
    loaded: &impl Fn(u32) -> Option<Range>,
) -> SecondaryMap<Val, Option<Range>> {
    let mut ranges: SecondaryMap<Val, Option<Range>> = SecondaryMap::new();
    for val in nest.needed(&nest.roots) {
        let dtype = nest.dtype(val);
        let whole = || dtype.is_int().then(|| dtype.int_range());
        let range = match nest.expr(val) {
            Expr::Load { operand, guards, .. } => {
                let range = loaded(*operand).or_else(whole);
                match guards.is_empty() {
                    true => range,
                    false => range.map(|(least, greatest)| (least.min(0), greatest.max(0))),
                }
            }
            Expr::Const(bits) => whole().map(|(low, _)| {
                let unused = 64 - 8 * dtype.size();
                let value =
                    if low < 0 { i128::from((*bits << unused) as i64 >> unused) } else { i128::from(*bits) };
                (value, value)
            }),
            Expr::Apply(f, args) => {
                let operands: Option<Vec<Range>> = args.iter().map(|&arg| ranges[arg]).collect();
                let range = match (*f, operands) {
                    (ScalarFn::Select, _) => ranges[args[1]].zip(ranges[args[2]]).map(|(a, b)| union(a, b)),
                    (_, Some(operands)) => apply(*f, &operands),
                    _ => None,
                };
                // A result that does not fit wraps.
                let fits =
                    |range: &Range| whole().is_some_and(|(low, high)| low <= range.0 && range.1 <= high);
                range.filter(fits).or_else(whole)
            }
            Expr::Reduce { kind: Reduction::Max | Reduction::Min | Reduction::Greatest, arg, .. } => {
                ranges[*arg]
            }
            Expr::Index(_) | Expr::Inside(_) | Expr::Reduce { .. } => whole(),
        };
        ranges[val] = range;
    }
    ranges
}

fn union(a: Range, b: Range) -> Range {
    (a.0.min(b.0), a.1.max(b.1))
}

/// The exact results of a function of integers in these ranges.
fn apply(f: ScalarFn, of: &[Range]) -> Option<Range> {
    let (least, greatest) = of[0];
    Some(match f {
        ScalarFn::Cast(to) if to.is_int() => of[0],
        ScalarFn::Add => (least + of[1].0, greatest + of[1].1),
        ScalarFn::Sub => (least - of[1].1, greatest - of[1].0),
        ScalarFn::Neg => (-greatest, -least),
        ScalarFn::Min => (least.min(of[1].0), greatest.min(of[1].1)),
        ScalarFn::Max => (least.max(of[1].0), greatest.max(of[1].1)),
        ScalarFn::Relu => (least.max(0), greatest.max(0)),
        // No bit is in the result that is not in an operand that is not negative.
        ScalarFn::And => {
            let limits = of.iter().filter(|range| range.0 >= 0).map(|range| range.1);
            (0, limits.min()?)
        }
        ScalarFn::Shr if of[1].0 >= 0 => {
            let (few, many) = (of[1].0.min(64), of[1].1.min(64));
            let smallest = if least < 0 { few } else { many };
            let largest = if greatest < 0 { many } else { few };
            (least >> smallest, greatest >> largest)
        }
        _ => return None,
    })
}

/// The same formula where operands, or the result, are narrow.
fn retyped(nest: &Nest, ins: &[Option<DType>], out: Option<DType>) -> Nest {
    let mut builder = NestBuilder::new(&nest.shape());
    for (operand, narrow) in nest.operands.iter().zip(ins) {
        builder.operand(narrow.unwrap_or(operand.dtype), &operand.shape);
    }
    let domain = builder.domain();
    let root = builder.inline(nest, &nest.roots, &domain, &mut |b, operand, index, guards| {
        let value = b.load_guarded(operand, index, guards);
        if ins[operand as usize].is_some() { b.cast(value, WIDE) } else { value }
    })[0];
    let root = out.map_or(root, |dtype| builder.cast(root, dtype));
    builder.finish(&[root])
}
