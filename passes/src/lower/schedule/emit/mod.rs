//! Writing a nest's expressions into a kernel at the outermost loop where they are known.
//!
//! A schedule opens loops and says what each variable of the nest is in terms of loop variables
//! ([`Emit::bind`]). Asking for an expression's [`Emit::value`] then defines it in the outermost open
//! block in which everything it depends on is known, once. So loop-invariant code is never inside the
//! loop, whichever schedule asks for it.

mod loops;
mod reduce;

use cranelift_entity::PrimaryMap;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use windlass_ir::loops::{
    Buffer, Expr, Guard, Index, Kernel, KernelBuilder, LoopKind, Nest, Rhs, Role, Val, Var,
};
use windlass_ir::{DType, ScalarFn};

use crate::lower::formula::{Vars, free_vars};
use crate::lower::margins::Margins;

/// The value of an expression, a finished reduction's most often, held in a register buffer, one element a lane.
#[derive(Clone, Debug)]
struct Tile {
    buffer: Buffer,
    /// Where this lane's element is.
    index: Index,
}

/// What is known of guards that must all hold.
enum Settled {
    Holds,
    Fails,
    /// These are left to be tested when running.
    Open(Vec<Guard>),
}

/// A kernel under construction from a nest.
pub struct Emit<'n> {
    /// The formulas; operands are flat.
    pub nest: &'n Nest,
    /// The kernel so far.
    pub builder: KernelBuilder,
    free: PrimaryMap<Val, Vars>,
    ins: Vec<Buffer>,
    outs: Vec<Buffer>,
    /// What each variable of the nest is now, and how deep the block is in which that holds.
    bound: FxHashMap<Var, (Index, usize)>,
    /// How deep the block of each kernel value is.
    val_depth: FxHashMap<Val, usize>,
    /// What is already computed, per open block.
    scopes: Vec<FxHashMap<Val, Val>>,
    tiles: FxHashMap<Val, Tile>,
    /// Guards (over kernel variables) that the open `if`s decide, with the depth of the block.
    assumed: Vec<(Guard, bool, usize)>,
    /// Values are never defined further out than this: a parallel loop stands alone.
    outermost: usize,
    /// How many `if`s [`Self::unswitch`] has opened.
    bodies: usize,
    /// The flat index of each result, in terms of the nest's variables.
    place: Index,
    /// Whether the loops stand inside others, so that none of them is parallel.
    nested: bool,
    /// What stands around the result and is not yet written.
    margins: Option<&'n Margins>,
}

impl<'n> Emit<'n> {
    /// An empty kernel with the nest's operands and results as parameters. With margins, there is one result, inside
    /// them.
    pub fn new(nest: &'n Nest, margins: Option<&'n Margins>, name: &str) -> Emit<'n> {
        let mut builder = KernelBuilder::new(name);
        let ins = nest
            .operands
            .iter()
            .enumerate()
            .map(|(i, operand)| {
                builder.buffer(&format!("x{i}"), operand.dtype, operand.shape.iter().product(), Role::In)
            })
            .collect();
        let len = margins.map_or_else(|| nest.shape().iter().product(), Margins::elements);
        let outs = nest
            .roots
            .iter()
            .enumerate()
            .map(|(i, &root)| builder.buffer(&format!("y{i}"), nest.dtype(root), len, Role::Out))
            .collect();
        let domain: Vec<Index> = nest.domain.iter().map(|&v| Index::var(v)).collect();
        let place = Margins::placed(margins, Index::flatten(&domain, &nest.shape()));
        Emit { nested: false, margins, ..Emit::within(builder, nest, ins, outs, place) }
    }

    /// Loops inside the open blocks of a kernel: from these buffers to those, each result at `place`.
    /// Variables that the nest does not bind itself are to be [bound](Self::bind) first.
    pub fn within(
        builder: KernelBuilder,
        nest: &'n Nest,
        ins: Vec<Buffer>,
        outs: Vec<Buffer>,
        place: Index,
    ) -> Emit<'n> {
        let depth = builder.depth();
        Emit {
            nest,
            builder,
            free: free_vars(nest),
            ins,
            outs,
            bound: FxHashMap::default(),
            val_depth: FxHashMap::default(),
            scopes: vec![FxHashMap::default(); depth + 1],
            tiles: FxHashMap::default(),
            assumed: Vec::new(),
            outermost: depth,
            bodies: 0,
            place,
            nested: true,
            margins: None,
        }
    }

    /// Whether there is enough work to share between threads, and threads to share it.
    pub fn is_shared(&self) -> bool {
        !self.nested && super::are_large([self.nest])
    }

    /// Whether the loops stand inside no others.
    pub fn stands_alone(&self) -> bool {
        !self.nested
    }

    /// The variables an expression depends on.
    pub fn free(&self, val: Val) -> &Vars {
        &self.free[val]
    }

    /// Opens a loop and returns its variable as an index.
    pub fn enter(&mut self, kind: LoopKind, extent: usize) -> Index {
        if kind != LoopKind::Parallel {
            self.fill_margins(&Index::constant(0), 1);
        }
        let var = self.builder.begin_loop(kind, extent);
        self.scopes.push(FxHashMap::default());
        if kind == LoopKind::Parallel {
            self.outermost = self.builder.depth();
            self.fill_margins(&Index::var(var), extent);
        }
        Index::var(var)
    }

    /// Writes one of `parts` parts of what stands around the result, if that is still to be written: before the first
    /// loop, or in each iteration of a parallel one.
    fn fill_margins(&mut self, part: &Index, parts: usize) {
        if let Some(margins) = self.margins.take() {
            let dtype = self.nest.dtype(self.nest.roots[0]);
            margins.fill(&mut self.builder, self.outs[0], dtype, [part, &Index::constant(0)], parts);
        }
    }

    /// Closes the innermost loop or `if`.
    pub fn leave(&mut self) {
        let depth = self.builder.depth();
        self.builder.end();
        self.scopes.pop();
        self.assumed.retain(|(_, _, at)| *at < depth);
        self.bound.retain(|_, (_, at)| *at < depth);
    }

    /// Opens the block that runs where the guards (over kernel variables) hold.
    pub fn enter_if(&mut self, guards: &[Guard]) {
        self.builder.begin_if(guards);
        self.scopes.push(FxHashMap::default());
        let depth = self.builder.depth();
        self.assumed.extend(guards.iter().map(|g| (g.clone(), true, depth)));
    }

    /// Closes that block and opens the one for where they do not.
    pub fn enter_else(&mut self) {
        let depth = self.builder.depth();
        self.builder.begin_else();
        *self.scopes.last_mut().expect("a block is open") = FxHashMap::default();
        let (kept, decided): (Vec<_>, Vec<_>) = self.assumed.drain(..).partition(|(_, _, at)| *at < depth);
        self.assumed = kept;
        // That one of several fails says nothing about each.
        if let [(guard, _, at)] = decided.as_slice() {
            self.assumed.push((guard.clone(), false, *at));
        }
    }

    /// Says what a variable of the nest is, in terms of kernel variables, until the innermost block
    /// closes.
    pub fn bind(&mut self, var: Var, index: Index) {
        self.bound.insert(var, (index, self.builder.depth()));
    }

    /// Like [`Self::bind`], for a variable that may have been something else in the same block: what was computed from
    /// that is forgotten.
    pub fn bind_anew(&mut self, var: Var, index: Index) {
        let free = &self.free;
        self.scopes.iter_mut().for_each(|scope| scope.retain(|&val, _| !free[val].contains(&var)));
        self.bind(var, index);
    }

    /// The nest's index in terms of kernel variables and values.
    pub fn index(&mut self, index: &Index) -> Index {
        let values: SmallVec<[(Val, Val); 2]> =
            index.values().into_iter().map(|v| (v, self.value(v))).collect();
        let value = |val| values.iter().find(|(v, _)| *v == val).expect("every value is known").1;
        index.map(&|v| Some(&self.bound.get(&v).expect("every variable is bound").0), &value)
    }

    /// How deep the block is in which an index of the nest is known.
    fn depth_of(&mut self, index: &Index) -> usize {
        let vals = index.values().into_iter().map(|v| self.value_at(v).1).max().unwrap_or(0);
        let mut depth = vals.max(self.outermost);
        index.visit_vars(&mut |v| depth = depth.max(self.bound[&v].1));
        depth
    }

    /// What is known of guards that must all hold, and how deep the block is in which that is so.
    fn settle(&mut self, guards: &[Guard]) -> (Settled, usize) {
        let mut open = Vec::new();
        let mut depth = self.outermost;
        for guard in guards {
            let own_depth = self.depth_of(&guard.index);
            let guard = Guard::new(self.index(&guard.index), guard.size);
            let assumed =
                self.assumed.iter().find(|(known, _, _)| *known == guard).map(|(_, v, at)| (*v, *at));
            match (guard.as_known(), assumed) {
                (Some(false), _) => return (Settled::Fails, own_depth),
                (None, Some((false, at))) => return (Settled::Fails, at.max(own_depth)),
                (Some(true), _) => depth = depth.max(own_depth),
                (None, Some((true, at))) => depth = depth.max(at).max(own_depth),
                (None, None) => {
                    depth = depth.max(own_depth);
                    open.push(guard);
                }
            }
        }
        (if open.is_empty() { Settled::Holds } else { Settled::Open(open) }, depth)
    }

    fn define(&mut self, depth: usize, dtype: DType, rhs: Rhs) -> Val {
        let val = self.builder.define_at(depth, dtype, rhs);
        self.val_depth.insert(val, depth);
        val
    }

    /// An expression's value, defined where it is first known.
    pub fn value(&mut self, val: Val) -> Val {
        self.value_at(val).0
    }

    /// An expression's value, and how deep the block is in which it is that. The value itself may be
    /// defined further out, where a condition decided here chose it.
    fn value_at(&mut self, val: Val) -> (Val, usize) {
        let known =
            self.scopes.iter().enumerate().find_map(|(depth, scope)| Some((*scope.get(&val)?, depth)));
        if let Some(known) = known {
            return known;
        }
        let (expr, dtype) = &self.nest.exprs[val];
        let dtype = *dtype;
        let made = match expr {
            _ if let Some(Tile { buffer, index }) = self.tiles.get(&val).cloned() => {
                let depth = self.builder.depth();
                self.define(depth, dtype, Rhs::Load { buffer, index, guards: Vec::new() })
            }
            Expr::Load { operand, index, guards } => match self.settle(guards) {
                (Settled::Fails, depth) => self.define(depth, dtype, Rhs::Const(0)),
                (settled, decided) => {
                    let depth = self.depth_of(&index[0]).max(decided);
                    let index = self.index(&index[0]);
                    let guards = if let Settled::Open(guards) = settled { guards } else { Vec::new() };
                    let buffer = self.ins[*operand as usize];
                    self.define(depth, dtype, Rhs::Load { buffer, index, guards })
                }
            },
            Expr::Const(bits) => self.define(self.outermost, dtype, Rhs::Const(*bits)),
            Expr::Index(index) => {
                let depth = self.depth_of(index);
                let index = self.index(index);
                self.define(depth, dtype, Rhs::Index(index))
            }
            Expr::Inside(guards) => match self.settle(guards) {
                (Settled::Fails, depth) => self.define(depth, dtype, Rhs::Const(0)),
                (Settled::Holds, depth) => self.define(depth, dtype, Rhs::Const(1)),
                (Settled::Open(guards), depth) => self.define(depth, dtype, Rhs::Inside(guards)),
            },
            Expr::Apply(ScalarFn::Select, args) if let Some((known, depth)) = self.known_bool(args[0]) => {
                // A condition decided here makes the other branch dead.
                let (chosen, at) = self.value_at(if known { args[1] } else { args[2] });
                let depth = depth.max(at);
                self.scopes[depth].insert(val, chosen);
                return (chosen, depth);
            }
            Expr::Apply(f, args) => {
                let mut depth = self.outermost;
                let mut made: SmallVec<[Val; 3]> = SmallVec::new();
                for &arg in args {
                    let (arg, at) = self.value_at(arg);
                    depth = depth.max(at);
                    made.push(arg);
                }
                self.define(depth, dtype, Rhs::Apply(*f, made))
            }
            Expr::Reduce { .. } => self.reduce_serially(val),
        };
        let depth = self.val_depth[&made];
        self.scopes[depth].insert(val, made);
        (made, depth)
    }

    /// Whether a condition is decided by the open `if`s or by the ranges of the variables, and how deep
    /// the block is in which it is.
    fn known_bool(&mut self, val: Val) -> Option<(bool, usize)> {
        match self.nest.expr(val) {
            Expr::Inside(guards) => match self.settle(guards) {
                (Settled::Fails, depth) => Some((false, depth)),
                (Settled::Holds, depth) => Some((true, depth)),
                (Settled::Open(_), _) => None,
            },
            Expr::Const(bits) => Some((*bits != 0, self.outermost)),
            Expr::Load { .. } | Expr::Index(_) | Expr::Apply(..) | Expr::Reduce { .. } => None,
        }
    }

    /// A scalar function in the innermost block.
    fn apply(&mut self, f: ScalarFn, args: &[Val]) -> Val {
        let val = self.builder.apply(f, args);
        self.val_depth.insert(val, self.builder.depth());
        val
    }

    fn load(&mut self, buffer: Buffer, index: Index) -> Val {
        let val = self.builder.load(buffer, index);
        self.val_depth.insert(val, self.builder.depth());
        val
    }

    /// A register buffer for partial results of a reduction, or for values that are needed again.
    pub fn register_tile(&mut self, val: Val, len: usize) -> Buffer {
        let name = format!("acc{}", self.builder.fresh_var(0).id);
        self.builder.buffer(&name, self.nest.dtype(val), len, Role::Register)
    }

    /// A buffer on the stack for partial results of a reduction, or for values that are needed again.
    pub fn scratch(&mut self, val: Val, len: usize) -> Buffer {
        let name = format!("part{}", self.builder.fresh_var(0).id);
        self.builder.buffer(&name, self.nest.dtype(val), len, Role::Stack)
    }

    /// Copies an element from one buffer to another.
    pub fn copy(&mut self, from: Buffer, at: Index, to: Buffer, place: Index) {
        let val = self.load(from, at);
        self.builder.store(to, place, val);
    }

    /// Opens an unrolled loop, unless there is but one row.
    pub fn enter_rows(&mut self, rows: usize) -> Index {
        if rows == 1 { Index::constant(0) } else { self.enter(LoopKind::Unroll, rows) }
    }

    /// Closes what [`Self::enter_rows`] opened.
    pub fn leave_rows(&mut self, rows: usize) {
        if rows != 1 {
            self.leave();
        }
    }

    /// Asks for an element that comes so many behind the one that a load reads.
    pub fn prefetch(&mut self, load: Val, behind: &Index) {
        let Expr::Load { operand, index, .. } = self.nest.expr(load) else { panic!("{load} is no load") };
        let index = self.index(&index[0]).add(behind);
        self.builder.prefetch(self.ins[*operand as usize], index);
    }

    /// Says where the value of an expression is found from now on.
    pub fn place_result(&mut self, val: Val, buffer: Buffer, index: Index) {
        self.tiles.insert(val, Tile { buffer, index });
    }

    /// Lets the value of an expression be computed again.
    pub fn forget(&mut self, val: Val) {
        self.tiles.remove(&val);
    }

    /// Puts the value of an expression into a buffer.
    pub fn keep(&mut self, val: Val, buffer: Buffer, index: Index) {
        let val = self.value(val);
        self.builder.store(buffer, index, val);
    }

    /// Stores every result at the domain's present position. All are known before the first is stored, which may be where
    /// an operand of another was.
    pub fn store_results(&mut self) {
        let place = self.place.clone();
        let flat = self.index(&place);
        let vals: Vec<Val> = self.nest.roots.iter().map(|&root| self.value(root)).collect();
        for (i, val) in vals.into_iter().enumerate() {
            self.builder.store(self.outs[i], flat.clone(), val);
        }
    }

    /// The kernel under construction.
    pub fn into_builder(self) -> KernelBuilder {
        self.builder
    }

    /// The finished kernel.
    pub fn finish(self) -> Kernel {
        self.builder.finish()
    }
}
