//! What the expressions of a nest are computed from.

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{EntityRef, PrimaryMap, SecondaryMap};
use smallvec::{SmallVec, smallvec};

use super::nest::EXPRESSIONS;
use super::{Expr, Guard, Index, Nest, Val};
use crate::dtype::DType;

impl Nest {
    /// The expressions that some depend on, themselves included, operands first. The nest's roots depend on all.
    pub fn needed(&self, roots: &[Val]) -> SmallVec<[Val; EXPRESSIONS]> {
        match roots == self.roots {
            true => self.exprs.keys().collect(),
            false => self.reached(roots),
        }
    }

    /// The expressions that some depend on, found by walking from one to the next.
    fn reached(&self, roots: &[Val]) -> SmallVec<[Val; EXPRESSIONS]> {
        let mut needed: SmallVec<[bool; 64]> = smallvec![false; self.exprs.len()];
        roots.iter().for_each(|root| needed[root.index()] = true);
        for (val, (expr, _)) in self.exprs.iter().rev() {
            if needed[val.index()] {
                expr.visit_operands(&mut |v| needed[v.index()] = true);
            }
        }
        self.exprs.keys().filter(|&v| needed[v.index()]).collect()
    }

    /// The nest with an expression in place of another of the same type.
    pub fn with_expr(&self, val: Val, expr: Expr) -> Nest {
        let mut nest = self.clone();
        nest.exprs[val].0 = expr;
        nest.pruned()
    }

    /// The nest without expressions that no root depends on (N5).
    pub fn pruned(mut self) -> Nest {
        let needed = self.reached(&self.roots);
        if needed.len() == self.exprs.len() {
            return self;
        }
        let mut numbers: SecondaryMap<Val, PackedOption<Val>> = SecondaryMap::new();
        let mut kept: PrimaryMap<Val, (Expr, DType)> = PrimaryMap::with_capacity(needed.len());
        let number = |numbers: &SecondaryMap<Val, PackedOption<Val>>, val: Val| {
            numbers[val].expect("operands come before their users")
        };
        for val in needed {
            let (expr, dtype) = &self.exprs[val];
            numbers[val] = kept.push((expr.map_values(&|val| number(&numbers, val)), *dtype)).into();
        }
        self.exprs = kept;
        self.roots.iter_mut().for_each(|root| *root = number(&numbers, *root));
        self
    }
}

impl Expr {
    /// The same expression of other values.
    pub fn map_values(&self, rename: &impl Fn(Val) -> Val) -> Expr {
        let guards = |guards: &[Guard]| -> Vec<Guard> {
            guards.iter().map(|guard| Guard::new(guard.index.map_values(rename), guard.size)).collect()
        };
        match self {
            Expr::Load { operand, index, guards: own } => Expr::Load {
                operand: *operand,
                index: index.iter().map(|index| index.map_values(rename)).collect(),
                guards: guards(own),
            },
            Expr::Const(bits) => Expr::Const(*bits),
            Expr::Index(index) => Expr::Index(index.map_values(rename)),
            Expr::Inside(own) => Expr::Inside(guards(own)),
            Expr::Apply(f, args) => Expr::Apply(*f, args.iter().map(|&arg| rename(arg)).collect()),
            Expr::Reduce { kind, vars, arg, within } => {
                Expr::Reduce { kind: *kind, vars: vars.clone(), arg: rename(*arg), within: guards(within) }
            }
        }
    }

    /// Every value this one is computed from, including those in indices.
    pub fn visit_operands(&self, visit: &mut impl FnMut(Val)) {
        let mut index = |i: &Index| i.visit_extents(&mut |val, _| visit(val));
        match self {
            Expr::Load { index: parts, guards, .. } => {
                parts.iter().for_each(&mut index);
                guards.iter().for_each(|g| index(&g.index));
            }
            Expr::Const(_) => {}
            Expr::Index(i) => index(i),
            Expr::Inside(guards) => guards.iter().for_each(|g| index(&g.index)),
            Expr::Apply(_, args) => args.iter().for_each(|&a| visit(a)),
            Expr::Reduce { arg, .. } => visit(*arg),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::NestBuilder;
    use crate::scalar::ScalarFn;

    #[test]
    fn what_no_root_needs_is_left_out() {
        let mut n = NestBuilder::new(&[4]);
        let x = n.operand(DType::F32, &[4]);
        let y = n.operand(DType::F32, &[4]);
        let at = n.domain();
        let (dead, x) = (n.load(y, &at), n.load(x, &at));
        let two = n.constant(DType::F32, 2.0);
        let _ = n.apply(ScalarFn::Exp, &[dead]);
        let twice = n.apply(ScalarFn::Mul, &[x, two]);
        let root = n.apply(ScalarFn::Neg, &[twice]);
        let nest = n.finish(&[root]);
        assert_eq!(nest.needed(&nest.roots).len(), 4);
        assert_eq!(nest.exprs.len(), 4);
        let product = nest.needed(&nest.roots)[2];
        assert!(matches!(nest.expr(product), Expr::Apply(ScalarFn::Mul, _)));
        assert_eq!(nest.needed(&[product]).len(), 3);

        let less = nest.with_expr(product, Expr::Const(0));
        assert_eq!(less.exprs.len(), 2);
        assert!(matches!(less.expr(less.roots[0]), Expr::Apply(ScalarFn::Neg, _)));
    }
}
