//! Which formulas are sums of products, and of what.

use windlass_ir::ScalarFn;
use windlass_ir::loops::{Expr, Nest, Reduction, Val, Var};

/// A sum of products, or of products of pairs: the reduction with its two factors, casts and unpacking aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contraction {
    /// The reduction.
    pub reduce: Val,
    /// The factors' loads.
    pub factors: [Val; 2],
}

/// The nest's only reduction and its argument, if it is a sum.
fn as_sum(nest: &Nest) -> Option<(Val, Val)> {
    let mut reductions =
        nest.needed(&nest.roots).into_iter().filter(|&v| matches!(nest.expr(v), Expr::Reduce { .. }));
    let reduce = reductions.next().filter(|_| reductions.next().is_none())?;
    match nest.expr(reduce) {
        Expr::Reduce { kind: Reduction::Sum, arg, .. } => Some((reduce, *arg)),
        _ => None,
    }
}

/// The nest's only reduction, if it is a sum of products (of pairs) of two unguarded loads.
pub fn as_contraction(nest: &Nest) -> Option<Contraction> {
    let (reduce, arg) = as_sum(nest)?;
    let Expr::Apply(ScalarFn::Mul | ScalarFn::Dot2 | ScalarFn::Dot4, factors) = nest.expr(arg) else {
        return None;
    };
    let load = |mut val: Val| {
        while let Expr::Apply(ScalarFn::Cast(_) | ScalarFn::Unpack2, args) = nest.expr(val) {
            val = args[0];
        }
        match nest.expr(val) {
            Expr::Load { guards, .. } if guards.is_empty() => Some(val),
            _ => None,
        }
    };
    Some(Contraction { reduce, factors: [load(factors[0])?, load(factors[1])?] })
}

/// Like [`as_contraction`], also where factors are made from integers: then these are the formulas.
pub fn as_product(nest: &Nest) -> Option<(Contraction, bool)> {
    if let Some(contraction) = as_contraction(nest) {
        return Some((contraction, false));
    }
    let (reduce, arg) = as_sum(nest)?;
    let Expr::Apply(ScalarFn::Mul, factors) = nest.expr(arg) else { return None };
    let inside = nest.needed(&[arg]);
    let from_integer = |&val: &Val| match nest.expr(val) {
        Expr::Apply(ScalarFn::Cast(to), of) => to.is_float() && nest.dtype(of[0]).is_int(),
        _ => false,
    };
    let guarded = |val: &Val| matches!(nest.expr(*val), Expr::Load { guards, .. } if !guards.is_empty());
    let made = nest.dtype(arg).is_float() && inside.iter().any(from_integer) && !inside.iter().any(guarded);
    made.then_some((Contraction { reduce, factors: [factors[0], factors[1]] }, true))
}

/// What a reduction multiplies, if that is more than a load.
pub fn made_factors(nest: &Nest, reduction: Val) -> Vec<Val> {
    let Expr::Reduce { arg, .. } = nest.expr(reduction) else { return Vec::new() };
    let Expr::Apply(_, factors) = nest.expr(*arg) else { return Vec::new() };
    factors.iter().copied().filter(|&factor| matches!(nest.expr(factor), Expr::Apply(..))).collect()
}

/// Whether the nest is a sum of products.
pub fn is_product(nest: &Nest) -> bool {
    as_product(nest).is_some()
}

/// The innermost variable of a reduction if it chooses between formulas and has few values.
pub fn as_choice(nest: &Nest, reduction: Val) -> Option<Var> {
    let Expr::Reduce { vars, .. } = nest.expr(reduction) else { return None };
    let last = vars.last().filter(|var| var.extent <= MOST_CHOICES)?;
    let chooses = |&val: &Val| match nest.expr(val) {
        Expr::Inside(guards) => guards.iter().any(|guard| guard.index.mentions(*last)),
        _ => false,
    };
    nest.needed(&[reduction]).iter().any(chooses).then_some(*last)
}

/// The most values of a variable for each of which a formula is written out.
const MOST_CHOICES: usize = 8;
