//! Opening loops so that guards need not be tested inside them.

use std::collections::BTreeSet;

use windlass_ir::ScalarFn;
use windlass_ir::loops::{Expr, Guard, Index, LoopKind, Val, Var};

use super::Emit;

/// Loops are split at guards into at most this many copies of their body. Each copy does one part of
/// the work, as of a concatenation of many tensors, so that copies are small where they are many.
const MOST_COPIES: usize = 96;

/// A variable of its own for lanes whose loop is opened later; no kernel has as many.
const LATER: u32 = u32::MAX;

impl<'n> Emit<'n> {
    /// Says that a variable counts lanes from `start` on, of a loop that is not open yet. Guards that are the same for all
    /// of these can be decided outside it.
    pub fn bind_later(&mut self, var: Var, start: &Index, lanes: usize) {
        self.bind(var, start.add(&Index::var(Var { id: LATER, extent: lanes })));
    }

    /// Runs `body` inside loops over these variables, one in another, the first of them parallel if
    /// asked for.
    ///
    /// A serial loop becomes one for each stretch over which the guards on its variable alone that the
    /// roots depend on do not change, as long as that makes no more than a few copies of the body.
    pub fn over_all(
        &mut self,
        vars: &[Var],
        parallel_first: bool,
        roots: &[Val],
        body: &mut dyn FnMut(&mut Emit<'n>),
    ) {
        self.over_rest(vars, parallel_first, roots, 1, body);
    }

    fn over_rest(
        &mut self,
        vars: &[Var],
        parallel: bool,
        roots: &[Val],
        copies: usize,
        body: &mut dyn FnMut(&mut Emit<'n>),
    ) {
        let Some((&var, rest)) = vars.split_first() else { return body(self) };
        if parallel {
            let index = self.enter(LoopKind::Parallel, var.extent);
            self.bind(var, index);
            self.over_rest(rest, false, roots, copies, body);
            return self.leave();
        }
        let mut cuts = self.cuts(var, roots);
        if copies * (cuts.len() - 1) > MOST_COPIES {
            cuts = vec![0, var.extent];
        }
        let copies = copies * (cuts.len() - 1);
        for pair in cuts.windows(2) {
            let index = self.enter(LoopKind::Serial, pair[1] - pair[0]);
            self.bind(var, index.add_const(pair[0] as i64));
            self.over_rest(rest, false, roots, copies, body);
            self.leave();
        }
    }

    /// Runs `body` with `var` as the lanes of vector loops over all its values, one for each stretch over
    /// which guards on `var` alone do not change.
    pub fn over_lanes(&mut self, var: Var, roots: &[Val], body: &mut dyn FnMut(&mut Emit<'n>)) {
        let cuts = self.cuts(var, roots);
        for pair in cuts.windows(2) {
            let lane = self.enter(LoopKind::Vector, pair[1] - pair[0]);
            self.bind(var, lane.add_const(pair[0] as i64));
            body(self);
            self.leave();
        }
    }

    /// Where guards on `var` alone begin or cease to hold, with 0 and its extent.
    pub fn cuts(&mut self, var: Var, roots: &[Val]) -> Vec<usize> {
        let mut cuts = BTreeSet::from([0, var.extent]);
        self.visit_guards(roots, &mut |guard| {
            let Some(step @ (1 | -1)) = guard.index.coefficient(var) else { return };
            if guard.index.terms().len() != 1 {
                return;
            }
            // 0 <= step * x + offset < size
            let (offset, size) = (guard.index.offset(), guard.size as i64);
            let ends = if step == 1 { [-offset, size - offset] } else { [offset - size + 1, offset + 1] };
            for cut in ends {
                cuts.insert(cut.clamp(0, var.extent as i64) as usize);
            }
        });
        match cuts.len() - 1 {
            0..=MOST_COPIES => cuts.into_iter().collect(),
            _ => vec![0, var.extent],
        }
    }

    fn visit_guards(&self, roots: &[Val], visit: &mut dyn FnMut(&Guard)) {
        for val in self.nest.needed(roots) {
            if let Expr::Load { guards, .. } | Expr::Inside(guards) = self.nest.expr(val) {
                guards.iter().for_each(&mut *visit);
            }
        }
    }

    /// Runs `body` once for each way the guards that variables already bound decide can fall, inside an
    /// `if` on them, so that inner loops need not test them. What a guard makes dead is not asked about
    /// further, so a concatenation of n parts has n bodies.
    pub fn unswitch(&mut self, roots: &[Val], body: &mut dyn FnMut(&mut Emit<'n>)) {
        let mut seen = BTreeSet::new();
        let open = roots.iter().find_map(|&root| self.open_guard(root, &mut seen));
        match open {
            Some(guard) if self.bodies < MOST_COPIES => {
                self.bodies += 1;
                self.enter_if(&[guard]);
                self.unswitch(roots, body);
                self.enter_else();
                self.unswitch(roots, body);
                self.leave();
            }
            _ => body(self),
        }
    }

    /// A guard that the value of an expression depends on, that bound variables decide, and that no open
    /// `if` has decided yet; over kernel variables.
    fn open_guard(&mut self, val: Val, seen: &mut BTreeSet<Val>) -> Option<Guard> {
        if !seen.insert(val) {
            return None;
        }
        match self.nest.expr(val) {
            Expr::Load { index, guards, .. } => match self.peek(guards) {
                (Some(false), _) => None,
                (_, Some(open)) => Some(open),
                (_, None) => index[0].values().into_iter().find_map(|v| self.open_guard(v, seen)),
            },
            Expr::Inside(guards) => self.peek(guards).1,
            Expr::Apply(ScalarFn::Select, args) => {
                if let Some(open) = self.open_guard(args[0], seen) {
                    return Some(open);
                }
                let live = match self.nest.expr(args[0]) {
                    Expr::Inside(guards) => match self.peek(guards).0 {
                        Some(true) => &args[1..2],
                        Some(false) => &args[2..3],
                        None => &args[1..3],
                    },
                    _ => &args[1..3],
                };
                live.iter().find_map(|&v| self.open_guard(v, seen))
            }
            Expr::Apply(_, args) => args.iter().find_map(|&v| self.open_guard(v, seen)),
            Expr::Reduce { arg, .. } => match self.tiles.contains_key(&val) {
                true => None,
                false => self.open_guard(*arg, seen),
            },
            Expr::Const(_) | Expr::Index(_) => None,
        }
    }

    /// Whether guards all hold, if that is known, and the first of them that bound variables decide but
    /// nothing has decided yet.
    fn peek(&mut self, guards: &[Guard]) -> (Option<bool>, Option<Guard>) {
        let mut all = Some(true);
        let mut open = None;
        for guard in guards {
            let ready = guard.index.values().is_empty()
                && guard.index.vars().iter().all(|v| self.bound.contains_key(v));
            if !ready {
                all = None;
                continue;
            }
            let guard = Guard::new(self.index(&guard.index), guard.size);
            if guard.index.vars().iter().any(|var| var.id == LATER) {
                all = None;
                continue;
            }
            let assumed = self.assumed.iter().find(|(known, _, _)| *known == guard).map(|(_, v, _)| *v);
            match guard.as_known().or(assumed) {
                Some(true) => {}
                Some(false) => return (Some(false), None),
                None => {
                    all = None;
                    open.get_or_insert(guard);
                }
            }
        }
        (all, open)
    }
}
