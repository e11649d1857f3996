//! What several passes over a row compute alike: the first pass keeps it, and the others read it.
//!
//! A softmax sums `exp(x[k] - max)` over a row and then divides each `exp(x[j] - max)` by the sum. The two are one
//! expression of different variables, and exponentials are dear.

use windlass_ir::loops::{Buffer, Expr, Guard, Index, Nest, Val, Var};

use super::Emit;
use crate::lower::formula::Vars;

/// Bytes of a row that is kept: the first-level cache has room for it beside the row itself.
const ROW_BYTES: usize = 16 << 10;

/// The same in loops inside others, which share the stack with what those keep there.
const NESTED_BYTES: usize = 8 << 10;

/// One pass over a row: its variable, and what it computes.
pub struct Pass {
    pub var: Var,
    pub roots: Vec<Val>,
}

/// An expression that is kept, as each pass writes it.
struct Kept {
    /// The first is the pass that keeps it.
    places: Vec<(usize, Val)>,
    buffer: Buffer,
}

/// All that is kept of a row.
pub struct Rows(Vec<Kept>);

impl Rows {
    /// Finds what the passes have in common and makes room for it.
    pub fn new(emit: &mut Emit<'_>, passes: &[Pass]) -> Rows {
        let nest = emit.nest;
        let is_dear = |val: Val| matches!(nest.expr(val), Expr::Apply(f, _) if !f.is_primitive());
        let mut rows = Rows(Vec::new());
        if passes.len() < 2 || !nest.exprs.keys().any(is_dear) {
            return rows;
        }
        let mut room = if emit.stands_alone() { ROW_BYTES } else { NESTED_BYTES };
        for (at, pass) in passes.iter().enumerate() {
            let of_row = |val: Val| emit.free(val).contains(&pass.var);
            let mut found: Vec<Vec<(usize, Val)>> = Vec::new();
            let mut covered: Vec<Val> = Vec::new();
            for val in nest.needed(&pass.roots).into_iter().rev().filter(|&val| of_row(val)) {
                let inside = nest.needed(&[val]);
                let dear = inside.iter().any(|&val| of_row(val) && is_dear(val));
                if !dear || covered.contains(&val) || rows.has(at, val) {
                    continue;
                }
                let mut places = vec![(at, val)];
                for (later, other) in passes.iter().enumerate().skip(at + 1) {
                    let same = |&v: &Val| alike(nest, &|val| emit.free(val), (val, pass.var), (v, other.var));
                    places.extend(nest.needed(&other.roots).into_iter().find(same).map(|v| (later, v)));
                }
                let bytes = pass.var.extent * nest.dtype(val).size();
                if places.len() > 1 && bytes <= room {
                    room -= bytes;
                    covered.extend(inside);
                    found.push(places);
                }
            }
            for places in found {
                let buffer = emit.scratch(places[0].1, pass.var.extent);
                rows.0.push(Kept { places, buffer });
            }
        }
        rows
    }

    fn has(&self, pass: usize, val: Val) -> bool {
        self.0.iter().any(|kept| kept.places.contains(&(pass, val)))
    }

    /// In the loop over a pass's variable, before anything is computed: keeps what others will read, and says where
    /// what others kept is.
    pub fn visit(&self, emit: &mut Emit<'_>, pass: usize, var: Var) {
        for Kept { places, buffer } in &self.0 {
            let Some(&(_, val)) = places.iter().find(|(at, _)| *at == pass) else { continue };
            let index = emit.index(&Index::var(var));
            match places[0].0 == pass {
                true => emit.keep(val, *buffer, index),
                false => emit.place_result(val, *buffer, index),
            }
        }
    }
}

/// Whether two expressions are the same but for the variable of the row.
fn alike<'f>(
    nest: &Nest,
    free: &dyn Fn(Val) -> &'f Vars,
    (a, from): (Val, Var),
    (b, to): (Val, Var),
) -> bool {
    let varies = [free(a).contains(&from), free(b).contains(&to)];
    if varies == [false; 2] {
        return a == b;
    }
    let same_index = |a: &Index, b: &Index| {
        let known = a.values().is_empty() && b.values().is_empty() && from.extent == to.extent;
        known && a.substitute(&|var| (var == from).then(|| Index::var(to))) == *b
    };
    let same_guards = |a: &[Guard], b: &[Guard]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.size == b.size && same_index(&a.index, &b.index))
    };
    let same_type = nest.dtype(a) == nest.dtype(b);
    same_type
        && varies == [true; 2]
        && match (nest.expr(a), nest.expr(b)) {
            (
                Expr::Load { operand: x, index: i, guards: g },
                Expr::Load { operand: y, index: j, guards: h },
            ) => x == y && same_index(&i[0], &j[0]) && same_guards(g, h),
            (Expr::Index(i), Expr::Index(j)) => same_index(i, j),
            (Expr::Inside(g), Expr::Inside(h)) => same_guards(g, h),
            (Expr::Apply(f, args), Expr::Apply(g, others)) => {
                let mut pairs = args.iter().zip(others);
                f == g
                    && args.len() == others.len()
                    && pairs.all(|(&a, &b)| alike(nest, free, (a, from), (b, to)))
            }
            _ => false,
        }
}
