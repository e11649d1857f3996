//! Row-wise nests: reductions first, then what depends on them, for each row.
//!
//! A reduction along contiguous memory keeps partial results in lanes, element `i` in lane
//! `i % lanes`, and folds them in halves. The lane count depends on the row's length alone.

use std::collections::BTreeSet;

use windlass_ir::loops::{Expr, Nest, Val, Var};

use super::kept::{Pass, Rows};
use super::{Emit, parallel_first};

/// Partial results of a long reduction: 8 vectors of 128 bits or 2 of 512, enough to hide the latency
/// of addition.
pub const LANES: usize = 32;

/// For each row: its reductions, then its results.
pub fn schedule(emit: &mut Emit<'_>, reductions: &[Val]) {
    let nest = emit.nest;
    let mut depends: BTreeSet<Var> = BTreeSet::new();
    reductions.iter().for_each(|&r| depends.extend(emit.free(r).iter().copied()));
    let (outer, inner): (Vec<Var>, Vec<Var>) = nest.domain.iter().partition(|v| depends.contains(v));
    let large = emit.is_shared() && !outer.is_empty();
    let outer = if large { parallel_first(outer) } else { outer };
    // A reduction with one variable and the results along one are passes over the same row.
    let mut passes: Vec<Pass> = Vec::new();
    let mut pass = |var: Option<Var>, roots: Vec<Val>| {
        var.map(|var| {
            passes.push(Pass { var, roots });
            passes.len() - 1
        })
    };
    let reductions: Vec<(Val, Option<Var>, Option<usize>)> = reductions
        .iter()
        .map(|&reduction| {
            let along = lanes_along(emit, reduction);
            let alone = along.filter(|_| emit.reduce_vars(reduction).len() == 1);
            (reduction, along, pass(alone, arguments(nest, reduction)))
        })
        .collect();
    let last = pass(Some(&inner).filter(|inner| inner.len() == 1).map(|inner| inner[0]), nest.roots.clone());
    let kept = Rows::new(emit, &passes);
    emit.over_all(&outer, large, &nest.roots, &mut |emit| {
        for &(reduction, along, pass) in &reductions {
            match along {
                None => drop(emit.value(reduction)),
                Some(along) => {
                    let lanes = match along.extent {
                        n if n >= LANES => LANES,
                        n => 1 << n.max(1).ilog2(),
                    };
                    emit.reduce_in_lanes(reduction, along, lanes, &mut |emit| {
                        pass.into_iter().for_each(|pass| kept.visit(emit, pass, along));
                    });
                }
            }
        }
        emit.unswitch(&nest.roots, &mut |emit| match inner.split_last() {
            None => emit.store_results(),
            Some((&lane, between)) => emit.over_all(between, false, &nest.roots, &mut |emit| {
                emit.unswitch(&nest.roots, &mut |emit| {
                    emit.over_lanes(lane, &nest.roots, &mut |emit| {
                        last.into_iter().for_each(|pass| kept.visit(emit, pass, lane));
                        emit.store_results();
                    });
                });
            }),
        });
    });
}

/// What a reduction combines.
fn arguments(nest: &Nest, reduction: Val) -> Vec<Val> {
    match nest.expr(reduction) {
        Expr::Reduce { arg, .. } => vec![*arg],
        _ => Vec::new(),
    }
}

/// The variable of a reduction over whose values it is computed in lanes, if its argument is made of vectors along one.
fn lanes_along(emit: &Emit<'_>, reduction: Val) -> Option<Var> {
    let vars = emit.reduce_vars(reduction);
    vars.iter().rev().copied().find(|&v| is_vector_along(emit.nest, reduction, v))
}

/// Whether lanes along `var` read neighbours (or the same element) in every load, and nothing inside
/// is a loop of its own.
fn is_vector_along(nest: &Nest, reduction: Val, var: Var) -> bool {
    let Expr::Reduce { arg, .. } = nest.expr(reduction) else { return false };
    let free = crate::lower::formula::free_vars(nest);
    let mut some = false;
    let every = nest.needed(&[*arg]).into_iter().all(|val| match nest.expr(val) {
        Expr::Load { index, .. } => match index[0].coefficient(var) {
            Some(0) => index[0].values().iter().all(|v| !free[*v].contains(&var)),
            Some(1) => {
                some = true;
                true
            }
            _ => false,
        },
        Expr::Reduce { .. } => !free[val].contains(&var),
        Expr::Const(_) | Expr::Index(_) | Expr::Inside(_) | Expr::Apply(..) => true,
    });
    every && some
}
