//! Borders: which steps of a sum of products only read the zeros around an image.
//!
//! A convolution reads an image with zeros around it, so that its loops have no conditions. Where the image is small, or
//! the kernel's taps are far apart, much of what it multiplies is zeros: of a 3x3 kernel whose taps are 18 apart, over an
//! image of 33x33, three products in five. Then the sum is told where its factor is not zero, and its schedule leaves out
//! what a whole tile need not add ([`Expr::Reduce`]).
//!
//! Which sums are left out depends on tiles, and the bits must not. A sum to which zeros are added differs from one to
//! which they are not in two cases. It may be -0 in place of 0, if all products are too small for its type: so 0 is
//! added to the finished sum. And infinity times 0 is not 0: so the other factor must be known, and finite.

use cranelift_entity::{EntityRef, PrimaryMap, SecondaryMap};
use smallvec::{SmallVec, smallvec};
use windlass_ir::loops::{Atom, Expr, Guard, Index, Nest, Val, Var};
use windlass_ir::{DType, ScalarFn, Tensor};

use super::schedule::contraction::as_contraction;
use super::units::{Buf, Unit, UnitWork, Units};

/// What can be left out is worth a test in the loops where it is at least one part in so many.
const WORTH: f64 = 10.0;

/// So many values of an index are counted; images with longer sides have small borders.
const MOST_COUNTED: usize = 1 << 13;

/// Tells sums of products where their factors are not zero.
pub fn mark(units: &mut Units) {
    let mut zeros: SecondaryMap<Buf, Option<Vec<Guard>>> = SecondaryMap::new();
    let mut domains: SecondaryMap<Buf, Vec<Var>> = SecondaryMap::new();
    let mut makers: SecondaryMap<Buf, Option<usize>> = SecondaryMap::new();
    for at in 0..units.units.len() {
        let unit = &units.units[at];
        unit.outs.iter().for_each(|&buf| makers[buf] = Some(at));
        let UnitWork::Nest(nest) = &unit.work else { continue };
        if let Some(guards) = outside_is_zero(nest, unit, units) {
            zeros[unit.outs[0]] = Some(guards);
            domains[unit.outs[0]] = nest.domain.clone();
        }
        let Some(contraction) = as_contraction(nest) else { continue };
        let found = contraction.factors.iter().enumerate().find_map(|(side, &factor)| {
            let Expr::Load { operand, index, .. } = nest.expr(factor) else { return None };
            let buf = unit.ins[*operand as usize];
            let (guards, domain) = (zeros[buf].as_ref()?, &domains[buf]);
            let at = |var: Var| Some(&index[domain.iter().position(|own| *own == var)?]);
            let within: Vec<Guard> = guards
                .iter()
                .map(|guard| Guard::new(guard.index.substitute(&at), guard.size))
                .filter(|guard| !is_innermost(nest, contraction.reduce, &guard.index))
                .collect();
            let share: f64 = within.iter().map(share_within).product();
            (share <= 1.0 - 1.0 / WORTH).then_some((within, contraction.factors[1 - side]))
        });
        let Some((within, other)) = found else { continue };
        let Expr::Load { operand, .. } = nest.expr(other) else { continue };
        let is_float = nest.dtype(contraction.reduce).is_float();
        if is_float && largest_in(units, &makers, unit.ins[*operand as usize]).is_none() {
            continue;
        }
        let marked = with_guards(nest, contraction.reduce, within);
        units.units[at].work = UnitWork::Nest(Box::new(marked));
    }
}

/// Whether an index is of taps that are neighbours in memory: their loop is one with that over channels, and leaves out
/// nothing.
fn is_innermost(nest: &Nest, reduce: Val, index: &Index) -> bool {
    let Expr::Reduce { vars, .. } = nest.expr(reduce) else { return false };
    match vars.as_slice() {
        [.., taps, channels] => index.mentions(*channels) || index.coefficient(*taps) == Some(1),
        _ => true,
    }
}

/// The guards without which every element of the only result is 0.
fn outside_is_zero(nest: &Nest, unit: &Unit, units: &Units) -> Option<Vec<Guard>> {
    let &[root] = nest.roots.as_slice() else { return None };
    let guards = match nest.expr(root) {
        Expr::Load { guards, .. } => guards,
        Expr::Apply(ScalarFn::Select, args) => match nest.expr(args[0]) {
            Expr::Inside(guards) if is_zero(nest, args[2], unit, units) => guards,
            _ => return None,
        },
        _ => return None,
    };
    let plain = |guard: &Guard| {
        guard.index.values().is_empty() && guard.index.vars().iter().all(|var| nest.domain.contains(var))
    };
    (!guards.is_empty() && guards.iter().all(plain)).then(|| guards.clone())
}

/// Whether an expression is 0 whatever the run, and not -0.
fn is_zero(nest: &Nest, val: Val, unit: &Unit, units: &Units) -> bool {
    match nest.expr(val) {
        Expr::Const(bits) => *bits == 0,
        Expr::Load { operand, .. } => units.bufs[unit.ins[*operand as usize]]
            .constant
            .as_ref()
            .is_some_and(|tensor| tensor.len() == 1 && tensor.bytes().iter().all(|&byte| byte == 0)),
        _ => false,
    }
}

/// The part of its variables' values for which a guard holds; 1 where that is not counted.
pub fn share_within(guard: &Guard) -> f64 {
    let vars = guard.index.vars();
    let count: usize = vars.iter().map(|var| var.extent).product();
    if !(1..=MOST_COUNTED).contains(&count) || !guard.index.values().is_empty() {
        return 1.0;
    }
    let holds = |number: &usize| {
        let mut rest = *number;
        let mut next = |var: &Var| {
            let value = rest % var.extent;
            rest /= var.extent;
            (*var, value as i64)
        };
        let values: SmallVec<[(Var, i64); 4]> = vars.iter().map(&mut next).collect();
        (0..guard.size as i64).contains(&value_of(&guard.index, &values))
    };
    (0..count).filter(holds).count() as f64 / count as f64
}

/// An index of variables that have values.
fn value_of(index: &Index, values: &[(Var, i64)]) -> i64 {
    let of_atom = |atom: &Atom| match atom {
        Atom::Var(own) => values.iter().find(|(var, _)| var == own).map_or(0, |(_, value)| *value),
        Atom::Div(of, by) => value_of(of, values).div_euclid(*by),
        Atom::Mod(of, by) => value_of(of, values).rem_euclid(*by),
        Atom::Value(..) => unreachable!("asked about before"),
    };
    index.terms().iter().map(|(atom, factor)| factor * of_atom(atom)).sum::<i64>() + index.offset()
}

/// The nest with guards of a reduction, and 0 added to what it gives.
fn with_guards(nest: &Nest, reduce: Val, guards: Vec<Guard>) -> Nest {
    let mut exprs: PrimaryMap<Val, (Expr, DType)> = PrimaryMap::with_capacity(nest.exprs.len() + 2);
    let mut moved: SecondaryMap<Val, Val> = SecondaryMap::with_default(Val::new(0));
    for (val, (expr, dtype)) in &nest.exprs {
        let mut expr = expr.map_values(&|val| moved[val]);
        if let Expr::Reduce { within, .. } = &mut expr
            && val == reduce
        {
            within.clone_from(&guards);
        }
        let mut copy = exprs.push((expr, *dtype));
        if val == reduce && dtype.is_float() {
            let zero = exprs.push((Expr::Const(0), *dtype));
            copy = exprs.push((Expr::Apply(ScalarFn::Add, smallvec![copy, zero]), *dtype));
        }
        moved[val] = copy;
    }
    let roots = nest.roots.iter().map(|&root| moved[root]).collect();
    Nest { exprs, roots, ..nest.clone() }
}

/// A bound of the magnitudes in a buffer that is known before the run, and has no infinity or NaN.
fn largest_in(units: &Units, makers: &SecondaryMap<Buf, Option<usize>>, buf: Buf) -> Option<f64> {
    if let Some(constant) = &units.bufs[buf].constant {
        return largest_of(constant);
    }
    let unit = &units.units[makers[buf]?];
    let UnitWork::Nest(nest) = &unit.work else { return None };
    let &[root] = nest.roots.as_slice() else { return None };
    largest_at(nest, root, &|operand| largest_in(units, makers, unit.ins[operand as usize]))
}

fn largest_of(tensor: &Tensor) -> Option<f64> {
    let magnitude = |value: f64| value.is_finite().then(|| value.abs());
    match tensor.dtype() {
        // Those of infinity and NaN are above all others' bits. Files align nothing.
        DType::F32 => {
            let (words, _) = tensor.raw_bytes().as_chunks::<4>();
            let bits = words.iter().map(|&word| f32::from_ne_bytes(word).abs().to_bits());
            magnitude(f32::from_bits(bits.fold(0, u32::max)).into())
        }
        dtype if dtype.is_float() => {
            tensor.to_f64s().into_iter().try_fold(0.0, |most: f64, value| Some(most.max(magnitude(value)?)))
        }
        _ => None,
    }
}

/// A bound of an expression of floats, as far as products, sums, choices and conversions go.
fn largest_at(nest: &Nest, val: Val, loaded: &impl Fn(u32) -> Option<f64>) -> Option<f64> {
    let of = |val: Val| largest_at(nest, val, loaded);
    let bound = match nest.expr(val) {
        Expr::Load { operand, .. } => return loaded(*operand),
        Expr::Const(0) => 0.0,
        Expr::Apply(ScalarFn::Select, args) => of(args[1])?.max(of(args[2])?),
        Expr::Apply(ScalarFn::Mul, args) => of(args[0])? * of(args[1])?,
        Expr::Apply(ScalarFn::Add | ScalarFn::Sub, args) => of(args[0])? + of(args[1])?,
        Expr::Apply(ScalarFn::Cast(_), args) => of(args[0])?,
        _ => return None,
    };
    let most = match nest.dtype(val) {
        DType::F32 => f32::MAX.into(),
        DType::F64 => f64::MAX,
        _ => return None,
    };
    // Half of that, so that no rounding reaches infinity.
    (bound <= most / 2.0).then_some(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_counted_through_quotients() {
        let [pixel, tap] = [10, 2].map(|extent| Var { id: extent as u32, extent });
        let row = Index::var(pixel).div(2).add(&Index::var(tap)).add_const(-1);
        assert_eq!(share_within(&Guard { index: row.clone(), size: 4 }), 0.8);
        assert_eq!(share_within(&Guard { index: row.rem(4), size: 4 }), 1.0);
        let long = Var { id: 0, extent: MOST_COUNTED + 1 };
        assert_eq!(share_within(&Guard { index: Index::var(long), size: 1 }), 1.0);
    }

    #[test]
    fn magnitudes_are_finite_or_not_known() {
        let of = |values: &[f32]| largest_of(&Tensor::new(&[values.len()], values));
        assert_eq!(of(&[0.5, -2.0, 1.0]), Some(2.0));
        assert_eq!(of(&[0.0, -0.0]), Some(0.0));
        assert_eq!(of(&[1.0, f32::NEG_INFINITY]), None);
        assert_eq!(of(&[1.0, -f32::NAN]), None);
        assert_eq!(largest_of(&Tensor::from_f64s(DType::F16, &[2], &[1.0, -3.0])), Some(3.0));
        assert_eq!(largest_of(&Tensor::from_f64s(DType::F64, &[2], &[1.0, f64::NAN])), None);
        assert_eq!(largest_of(&Tensor::new(&[1], &[1i32])), None);
    }
}
