//! Questions about a nest's formulas, and rewrites that keep their meaning: free variables, flat
//! operands, merged loops.

use std::collections::BTreeSet;

use cranelift_entity::PrimaryMap;
use smallvec::SmallVec;
use windlass_ir::loops::{Atom, Expr, Guard, Index, Nest, NestBuilder, Val, Var};
use windlass_ir::strides;

/// A few variables, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vars(SmallVec<[Var; 4]>);

impl Vars {
    fn insert(&mut self, var: Var) {
        if self.0.last().is_none_or(|last| *last < var) {
            self.0.push(var);
        } else if let Err(at) = self.0.binary_search(&var) {
            self.0.insert(at, var);
        }
    }
}

impl std::ops::Deref for Vars {
    type Target = [Var];

    fn deref(&self) -> &[Var] {
        &self.0
    }
}

/// The variables each expression depends on, without those its reductions bind.
pub fn free_vars(nest: &Nest) -> PrimaryMap<Val, Vars> {
    let mut free: PrimaryMap<Val, Vars> = PrimaryMap::with_capacity(nest.exprs.len());
    for (expr, _) in nest.exprs.values() {
        let mut vars = Vars::default();
        visit_indices(expr, &mut |index| index.visit_vars(&mut |var| vars.insert(var)));
        expr.visit_operands(&mut |v| match vars.is_empty() {
            true => vars = free[v].clone(),
            false => free[v].iter().for_each(|&var| vars.insert(var)),
        });
        if let Expr::Reduce { vars: bound, .. } = expr {
            vars.0.retain(|var| !bound.contains(var));
        }
        free.push(vars);
    }
    free
}

/// Every index in an expression.
pub fn visit_indices(expr: &Expr, visit: &mut impl FnMut(&Index)) {
    match expr {
        Expr::Load { index, guards, .. } => {
            index.iter().for_each(&mut *visit);
            guards.iter().for_each(|g| visit(&g.index));
        }
        Expr::Index(index) => visit(index),
        Expr::Inside(guards) => guards.iter().for_each(|g| visit(&g.index)),
        Expr::Const(_) | Expr::Apply(..) | Expr::Reduce { .. } => {}
    }
}

/// The flat position of an index in a row-major operand of this shape.
///
/// Dimensions of size 0 are never read, so their stride does not matter.
fn flat_index(index: &[Index], shape: &[usize]) -> Index {
    let mut flat = Index::constant(0);
    for (i, step) in index.iter().zip(strides(shape)) {
        flat.add_multiple(i, step as i64);
    }
    flat
}

/// Whether each element of some operands is read at its own place in the nest's domain alone.
pub fn reads_own_places(nest: &Nest, is_of: impl Fn(u32) -> bool) -> bool {
    let domain: Vec<Index> = nest.domain.iter().map(|&v| Index::var(v)).collect();
    let own = Index::flatten(&domain, &nest.shape());
    nest.needed(&nest.roots).iter().all(|&val| match nest.expr(val) {
        Expr::Load { operand, index, guards } if is_of(*operand) => {
            guards.is_empty() && flat_index(index, &nest.operands[*operand as usize].shape) == own
        }
        _ => true,
    })
}

/// The same nest with every operand seen as one dimension.
pub fn flatten_operands(nest: &Nest) -> Nest {
    if nest.operands.iter().all(|operand| operand.shape.len() == 1) {
        return nest.clone();
    }
    let mut builder = NestBuilder::new(&nest.shape());
    for operand in &nest.operands {
        builder.operand(operand.dtype, &[operand.shape.iter().product()]);
    }
    let domain = builder.domain();
    let roots = builder.inline(nest, &nest.roots, &domain, &mut |b, operand, index, guards| {
        let flat = flat_index(index, &nest.operands[operand as usize].shape);
        b.load_guarded(operand, &[flat], guards)
    });
    builder.finish(&roots)
}

/// Which reduction variables are given in place of a reduction's own, see [`NestBuilder::inline_binding`].
type Bind<'a> = &'a mut dyn FnMut(&mut NestBuilder, &[Var]) -> (Vec<Var>, Vec<Index>);

/// The nest over another domain: `index` gives the old domain's variables in terms of the new one's.
fn over_domain(nest: &Nest, shape: &[usize], index: impl Fn(&[Index]) -> Vec<Index>, bind: Bind<'_>) -> Nest {
    let mut builder = NestBuilder::new(shape);
    for operand in &nest.operands {
        builder.operand(operand.dtype, &operand.shape);
    }
    let index = index(&builder.domain());
    let load = &mut |b: &mut NestBuilder, operand: u32, index: &[Index], guards: &[Guard]| {
        b.load_guarded(operand, index, guards)
    };
    let roots = builder.inline_binding(nest, &nest.roots, &index, load, &mut |b, vars| bind(b, vars));
    builder.finish(&roots)
}

fn fresh(b: &mut NestBuilder, vars: &[Var]) -> (Vec<Var>, Vec<Index>) {
    let fresh: Vec<Var> = vars.iter().map(|v| b.fresh_var(v.extent)).collect();
    let indices = fresh.iter().map(|&v| Index::var(v)).collect();
    (fresh, indices)
}

/// How many divisions, moduli and terms the indices hold: what merging must not raise.
fn index_cost(nest: &Nest) -> usize {
    fn cost(index: &Index) -> usize {
        let atom = |atom: &Atom| match atom {
            Atom::Var(_) | Atom::Value(..) => 1,
            Atom::Div(x, _) | Atom::Mod(x, _) => 1000 + cost(x),
        };
        index.terms().iter().map(|(a, _)| atom(a)).sum()
    }
    let needed = nest.needed(&nest.roots);
    let mut total = 0;
    for val in needed {
        visit_indices(nest.expr(val), &mut |index| total += cost(index));
    }
    total
}

/// Whether maps that have no division now need none if the two of each of these pairs of neighbouring variables become
/// one. Only then is building the merged nest worth it; where there are divisions, its maps tell.
fn may_merge(nest: &Nest, pairs: &[(Var, Var)]) -> bool {
    // Maps do not mention what has one value.
    if pairs.iter().any(|(outer, inner)| outer.extent <= 1 || inner.extent <= 1) {
        return true;
    }
    let (mut plain, mut same) = (true, true);
    for val in nest.needed(&nest.roots) {
        visit_indices(nest.expr(val), &mut |index| {
            for &(outer, inner) in pairs {
                match (index.coefficient(outer), index.coefficient(inner)) {
                    (Some(outer), Some(own)) => same &= outer == own.wrapping_mul(inner.extent as i64),
                    _ => plain = false,
                }
            }
        });
    }
    same || !plain
}

/// Merges neighbouring domain variables, and neighbouring variables of a reduction, wherever the index
/// maps stay as simple: `x[8*i + j]` for i, j over 4 and 8 becomes `x[k]` for k over 32.
///
/// Operands must be flat. The domain's row-major order, in which results are stored, stays.
pub fn merge_loops(nest: Nest) -> Nest {
    let mut nest = nest;
    let mut at = nest.domain.len().saturating_sub(1);
    while at > 0 {
        at -= 1;
        if !may_merge(&nest, &[(nest.domain[at], nest.domain[at + 1])]) {
            continue;
        }
        let mut shape = nest.shape();
        let inner = shape.remove(at + 1);
        let merged_extent = shape[at] * inner;
        shape[at] = merged_extent;
        let split = |domain: &[Index]| {
            let mut index = domain.to_vec();
            index.insert(at + 1, domain[at].rem(inner.max(1) as i64));
            index[at] = domain[at].div(inner.max(1) as i64);
            index
        };
        let merged = over_domain(&nest, &shape, split, &mut fresh);
        if index_cost(&merged) <= index_cost(&nest) {
            nest = merged;
        }
    }
    merge_reductions(nest)
}

/// Splits domain variables that index maps divide, where that makes the maps simpler: `x[i / 32, i % 32]`
/// for i over 384 becomes `x[h, d]`. A result reshaped from several dimensions into one has such maps.
///
/// Operands must be flat. The domain's row-major order, in which results are stored, stays.
pub fn split_loops(nest: Nest) -> Nest {
    split_first_loops(nest, 0)
}

/// Splits all variables but so many of the last.
pub fn split_first_loops(nest: Nest, but: usize) -> Nest {
    let mut nest = nest;
    'again: loop {
        for at in 0..nest.domain.len().saturating_sub(but) {
            for divisor in divisors(&nest, nest.domain[at]) {
                let mut shape = nest.shape();
                shape[at] /= divisor;
                shape.insert(at + 1, divisor);
                let join = |domain: &[Index]| {
                    let mut index = domain.to_vec();
                    let inner = index.remove(at + 1);
                    index[at] = index[at].mul(divisor as i64).add(&inner);
                    index
                };
                let split = over_domain(&nest, &shape, join, &mut fresh);
                if index_cost(&split) < index_cost(&nest) {
                    nest = split;
                    continue 'again;
                }
            }
        }
        return nest;
    }
}

/// What a variable alone is divided by in index maps, of the divisors of its extent.
pub fn divisors(nest: &Nest, var: Var) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for val in nest.needed(&nest.roots) {
        visit_indices(nest.expr(val), &mut |index| {
            for (atom, _) in index.terms() {
                if let Atom::Div(x, c) | Atom::Mod(x, c) = atom
                    && x.as_var() == Some(var)
                    && let Ok(c) = usize::try_from(*c)
                    && c < var.extent
                    && var.extent.is_multiple_of(c)
                {
                    found.insert(c);
                }
            }
        });
    }
    found
}

fn merge_reductions(mut nest: Nest) -> Nest {
    // Position `at` of every reduction that has it is merged with the next, if that is no worse.
    let longest = |nest: &Nest| {
        let len = |(expr, _): &(Expr, _)| if let Expr::Reduce { vars, .. } = expr { vars.len() } else { 0 };
        nest.exprs.values().map(len).max().unwrap_or(0)
    };
    let mut at = longest(&nest).saturating_sub(1);
    while at > 0 {
        at -= 1;
        let needed = nest.needed(&nest.roots);
        let pairs: SmallVec<[(Var, Var); 4]> = needed
            .iter()
            .filter_map(|&val| match nest.expr(val) {
                Expr::Reduce { vars, .. } => Some((*vars.get(at)?, *vars.get(at + 1)?)),
                _ => None,
            })
            .collect();
        if !may_merge(&nest, &pairs) {
            continue;
        }
        let shape = nest.shape();
        let merged = over_domain(&nest, &shape, <[Index]>::to_vec, &mut |b, vars| {
            if vars.len() <= at + 1 {
                return fresh(b, vars);
            }
            let inner = vars[at + 1].extent.max(1);
            let mut kept = vars.to_vec();
            kept.remove(at + 1);
            kept[at].extent *= vars[at + 1].extent;
            let (kept, mut indices) = fresh(b, &kept);
            indices.insert(at + 1, indices[at].rem(inner as i64));
            indices[at] = indices[at].div(inner as i64);
            (kept, indices)
        });
        if index_cost(&merged) <= index_cost(&nest) {
            nest = merged;
        }
    }
    nest
}

/// An estimate of the arithmetic of one evaluation of an expression, reductions excluded: 1 a machine
/// operation, more for functions that expand.
pub fn own_cost(expr: &Expr) -> u64 {
    match expr {
        Expr::Load { guards, .. } => 1 + guards.len() as u64,
        Expr::Const(_) => 0,
        Expr::Index(_) => 1,
        Expr::Inside(guards) => guards.len() as u64,
        Expr::Apply(f, _) if f.is_primitive() => 1,
        Expr::Apply(..) => 15,
        Expr::Reduce { .. } => 1,
    }
}

/// Operations for one point of the domain, each reduction counted as often as it runs.
pub fn point_cost(nest: &Nest, roots: &[Val]) -> u64 {
    let free = free_vars(nest);
    let needed = nest.needed(roots);
    // How often a value is computed: the product of the reduction variables it depends on.
    let mut total = 0u64;
    for &val in &needed {
        let bound = free[val].iter().filter(|v| !nest.domain.contains(v));
        let runs: u64 = bound.map(|v| v.extent as u64).product();
        let runs = match nest.expr(val) {
            Expr::Reduce { vars, .. } => vars.iter().map(|v| v.extent as u64).product::<u64>() * runs,
            _ => runs,
        };
        total = total.saturating_add(own_cost(nest.expr(val)).saturating_mul(runs));
    }
    total
}

/// The operand that the nest is a copy of in the same row-major order; it may have others that it does not read.
pub fn as_identity(nest: &Nest) -> Option<u32> {
    let [root] = nest.roots.as_slice() else { return None };
    let Expr::Load { operand, index, guards } = nest.expr(*root) else { return None };
    let from = &nest.operands[*operand as usize];
    let domain: Vec<Index> = nest.domain.iter().map(|&v| Index::var(v)).collect();
    let shape = nest.shape();
    let same_len = from.shape.iter().product::<usize>() == shape.iter().product::<usize>();
    let same = guards.is_empty() && same_len && flat_index(index, &from.shape) == flat_index(&domain, &shape);
    same.then_some(*operand)
}
