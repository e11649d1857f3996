//! Nests: what each element of an op's results is, as a formula.
//!
//! A nest has an output domain `i0, i1, ..` and a graph of expressions over loads (at any index
//! map), scalar functions, and reductions, which bind variables of their own:
//!
//! ```text
//! softmax over rows:  y[i0, i1] = exp(x[i0, i1] - m) / sum(i3 in 0..n) exp(x[i0, i3] - m)
//!                     where m = max(i2 in 0..n) x[i0, i2]
//! ```
//!
//! Expressions are pure and total, so they may be moved, duplicated or dropped freely. They are
//! hash-consed: building the same expression twice gives the same [`Val`]. How far out of the loops
//! an expression can be computed follows from the variables it depends on; nothing else places it.
//! Fusing is substitution: [`NestBuilder::inline`] copies a producer's formula to a consumer's index.
//!
//! Constraints, kept by the builder and checked in debug builds:
//! - (N1) a load's index has the operand's rank, and each part lies within the operand wherever all of
//!   the load's guards hold;
//! - (N2) scalar functions get operands of the types they take;
//! - (N3) a reduction's variables occur in no other reduction and are not output variables;
//! - (N4) every root has the free variables of the output domain only;
//! - (N5) some root depends on every expression.

use std::hash::BuildHasher;

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{PrimaryMap, SecondaryMap};
use hashbrown::HashTable;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use super::{Guard, Index, Val, Var};
use crate::dtype::DType;
use crate::scalar::ScalarFn;
use crate::types::Shape;

/// How a reduction combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reduction {
    /// Addition, from 0. A sum of products is accumulated by fma.
    Sum,
    /// Multiplication, from 1.
    Prod,
    /// Maximum, from -inf or the smallest integer; NaN if any element is.
    Max,
    /// Minimum, from inf or the largest integer; NaN if any element is.
    Min,
    /// Maximum of floats where nobody asks for more than its magnitude: it may be any of them if one is NaN, and 0 of either
    /// sign. Processors compare and choose in one instruction; a maximum that heeds NaN takes them several.
    Greatest,
}

impl Reduction {
    /// The scalar function that combines two partial results.
    pub fn combine(self) -> ScalarFn {
        match self {
            Reduction::Sum => ScalarFn::Add,
            Reduction::Prod => ScalarFn::Mul,
            Reduction::Max | Reduction::Greatest => ScalarFn::Max,
            Reduction::Min => ScalarFn::Min,
        }
    }

    /// The bits of the value that leaves every other unchanged.
    pub fn identity(self, dtype: DType) -> u64 {
        let value = match (self, dtype.is_float()) {
            (Reduction::Sum, _) => return 0,
            (Reduction::Prod, _) => 1.0,
            (Reduction::Max | Reduction::Greatest, true) => f64::NEG_INFINITY,
            (Reduction::Min, true) => f64::INFINITY,
            (Reduction::Max | Reduction::Greatest, false) => return dtype.int_range().0 as u64 & mask(dtype),
            (Reduction::Min, false) => return dtype.int_range().1 as u64 & mask(dtype),
        };
        const_bits(dtype, value)
    }

    /// The spelling in text.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Sum => "sum",
            Reduction::Prod => "prod",
            Reduction::Max => "max",
            Reduction::Min => "min",
            Reduction::Greatest => "greatest",
        }
    }
}

fn mask(dtype: DType) -> u64 {
    u64::MAX >> (64 - 8 * dtype.size())
}

/// The bits of `value` rounded to an element type, zero-extended.
pub fn const_bits(dtype: DType, value: f64) -> u64 {
    let tensor = crate::Tensor::from_f64s(dtype, &[], &[value]);
    let mut bits = [0u8; 8];
    bits[..dtype.size()].copy_from_slice(tensor.bytes());
    u64::from_le_bytes(bits)
}

/// One expression of a nest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// An element of an operand; 0 where a guard does not hold.
    Load {
        /// Which operand.
        operand: u32,
        /// Where, one index per dimension.
        index: Vec<Index>,
        /// Conditions under which the index is inside the operand.
        guards: Vec<Guard>,
    },
    /// A constant of the expression's type, by its bits.
    Const(u64),
    /// An index as an i64.
    Index(Index),
    /// Whether all the guards hold.
    Inside(Vec<Guard>),
    /// A scalar function.
    Apply(ScalarFn, SmallVec<[Val; 3]>),
    /// `arg` combined over all values of the variables, the last varying fastest.
    Reduce {
        /// How.
        kind: Reduction,
        /// The variables it binds.
        vars: Vec<Var>,
        /// What is combined.
        arg: Val,
        /// Where one of these does not hold, the step changes nothing, and may be left out.
        within: Vec<Guard>,
    },
}

/// An operand or result: element type and shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
}

/// A formula for the elements of one or more results over one domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Nest {
    /// What it reads.
    pub operands: Vec<Operand>,
    /// The output domain, outermost first: also the shape of every result.
    pub domain: Vec<Var>,
    /// The expressions with their types, operands before users.
    pub exprs: PrimaryMap<Val, (Expr, DType)>,
    /// The value of each result at the domain's variables.
    pub roots: Vec<Val>,
}

impl Nest {
    /// The shape of the results.
    pub fn shape(&self) -> Shape {
        self.domain.iter().map(|v| v.extent).collect()
    }

    /// An expression.
    pub fn expr(&self, val: Val) -> &Expr {
        &self.exprs[val].0
    }

    /// The type of an expression.
    pub fn dtype(&self, val: Val) -> DType {
        self.exprs[val].1
    }
}

/// As many expressions as most formulas have.
pub(super) const EXPRESSIONS: usize = 14;

/// Builds a [`Nest`].
///
/// ```
/// use windlass_ir::loops::{NestBuilder, Reduction};
/// use windlass_ir::{DType, ScalarFn};
///
/// // The squared length of each row of a 3x4 matrix.
/// let mut n = NestBuilder::new(&[3]);
/// let x = n.operand(DType::F32, &[3, 4]);
/// let i = n.domain();
/// let length = n.reduce(Reduction::Sum, &[4], |n, k| {
///     let x = n.load(x, &[i[0].clone(), k[0].clone()]);
///     n.apply(ScalarFn::Mul, &[x, x])
/// });
/// let nest = n.finish(&[length]);
/// assert_eq!(nest.shape().as_slice(), &[3]);
/// ```
#[derive(Clone, Debug)]
pub struct NestBuilder {
    nest: Nest,
    /// The expressions with their hashes, to be found by these.
    interned: HashTable<(u64, Val)>,
    next_var: u32,
}

impl NestBuilder {
    /// A nest over a domain of this shape.
    pub fn new(shape: &[usize]) -> NestBuilder {
        let domain: Vec<Var> =
            shape.iter().enumerate().map(|(id, &extent)| Var { id: id as u32, extent }).collect();
        let next_var = domain.len() as u32;
        let nest = Nest {
            operands: Vec::new(),
            domain,
            exprs: PrimaryMap::with_capacity(EXPRESSIONS),
            roots: Vec::new(),
        };
        NestBuilder { nest, interned: HashTable::with_capacity(EXPRESSIONS), next_var }
    }

    /// Declares the next operand and returns its number.
    pub fn operand(&mut self, dtype: DType, shape: &[usize]) -> u32 {
        self.nest.operands.push(Operand { dtype, shape: Shape::from_slice(shape) });
        self.nest.operands.len() as u32 - 1
    }

    /// The domain's variables as indices.
    pub fn domain(&self) -> Vec<Index> {
        self.nest.domain.iter().map(|&v| Index::var(v)).collect()
    }

    /// The type of an expression.
    pub fn dtype(&self, val: Val) -> DType {
        self.nest.dtype(val)
    }

    /// The operand's shape.
    pub fn shape_of(&self, operand: u32) -> Shape {
        self.nest.operands[operand as usize].shape.clone()
    }

    /// A fresh variable, for a reduction.
    pub fn fresh_var(&mut self, extent: usize) -> Var {
        self.next_var += 1;
        Var { id: self.next_var - 1, extent }
    }

    fn intern(&mut self, expr: Expr, dtype: DType) -> Val {
        let expr = (expr, dtype);
        let hash = FxBuildHasher.hash_one(&expr);
        let is_same = |&(_, val): &(u64, Val)| self.nest.exprs[val] == expr;
        if let Some(&(_, known)) = self.interned.find(hash, is_same) {
            return known;
        }
        let val = self.nest.exprs.push(expr);
        self.interned.insert_unique(hash, (hash, val), |&(hash, _)| hash);
        val
    }

    /// An element of an operand. The index must be inside it.
    pub fn load(&mut self, operand: u32, index: &[Index]) -> Val {
        self.load_guarded(operand, index, &[])
    }

    /// An element of an operand, or 0 where a guard fails. Where they hold the index must be inside.
    pub fn load_guarded(&mut self, operand: u32, index: &[Index], guards: &[Guard]) -> Val {
        let Operand { dtype, shape } = &self.nest.operands[operand as usize];
        let dtype = *dtype;
        debug_assert_eq!(index.len(), shape.len(), "(N1) the index has the operand's rank");
        let mut kept: Vec<Guard> = Vec::new();
        for guard in guards {
            match guard.as_known() {
                Some(true) => {}
                Some(false) => return self.constant_bits(dtype, 0),
                None if kept.contains(guard) => {}
                None => kept.push(guard.clone()),
            }
        }
        debug_assert!(
            !kept.is_empty() || index.iter().zip(shape).all(|(i, &n)| i.is_within(n) || n == 0),
            "(N1) {index:?} is not inside {shape:?}"
        );
        self.intern(Expr::Load { operand, index: index.to_vec(), guards: kept }, dtype)
    }

    /// A constant, rounded to the type.
    pub fn constant(&mut self, dtype: DType, value: f64) -> Val {
        self.constant_bits(dtype, const_bits(dtype, value))
    }

    /// A constant by its bits.
    pub fn constant_bits(&mut self, dtype: DType, bits: u64) -> Val {
        self.intern(Expr::Const(bits), dtype)
    }

    /// An index as an i64 value.
    pub fn index_value(&mut self, index: &Index) -> Val {
        match index.as_constant() {
            Some(c) => self.constant_bits(DType::I64, c as u64),
            None => self.intern(Expr::Index(index.clone()), DType::I64),
        }
    }

    /// Whether all the guards hold, as a bool.
    pub fn inside(&mut self, guards: &[Guard]) -> Val {
        if guards.iter().any(|g| g.as_known() == Some(false)) {
            return self.constant_bits(DType::Bool, 0);
        }
        let unknown: Vec<Guard> = guards.iter().filter(|g| g.as_known().is_none()).cloned().collect();
        match unknown.is_empty() {
            true => self.constant_bits(DType::Bool, 1),
            false => self.intern(Expr::Inside(unknown), DType::Bool),
        }
    }

    /// A scalar function.
    ///
    /// # Panics
    /// If the operands are not of the types it takes (N2).
    pub fn apply(&mut self, f: ScalarFn, args: &[Val]) -> Val {
        let types: SmallVec<[DType; 3]> = args.iter().map(|&a| self.dtype(a)).collect();
        let dtype = f.result_type(&types).unwrap_or_else(|message| panic!("(N2) {message}"));
        if let ScalarFn::Cast(to) = f
            && let Some(simpler) = self.simpler_cast(args[0], to)
        {
            return simpler;
        }
        if f == ScalarFn::Select
            && let Expr::Const(condition) = *self.nest.expr(args[0])
        {
            return if condition != 0 { args[1] } else { args[2] };
        }
        self.intern(Expr::Apply(f, SmallVec::from_slice(args)), dtype)
    }

    /// A conversion without one that it makes needless, if there is one.
    fn simpler_cast(&mut self, val: Val, to: DType) -> Option<Val> {
        let middle = self.dtype(val);
        if middle == to {
            return Some(val);
        }
        let Expr::Apply(ScalarFn::Cast(_), args) = self.nest.expr(val) else { return None };
        let (x, from) = (args[0], self.dtype(args[0]));
        if !middle.is_int() || !to.is_int() {
            return None;
        }
        let (low, high) = middle.int_range();
        let holds = |other: DType| {
            let (least, greatest) = other.int_range();
            low <= least && greatest <= high
        };
        (from.is_int() && holds(from)).then(|| self.cast(x, to))
    }

    /// Converts to another type.
    pub fn cast(&mut self, val: Val, to: DType) -> Val {
        self.apply(ScalarFn::Cast(to), &[val])
    }

    /// Combines `body` over fresh variables of these extents.
    pub fn reduce(
        &mut self,
        kind: Reduction,
        extents: &[usize],
        body: impl FnOnce(&mut NestBuilder, &[Index]) -> Val,
    ) -> Val {
        let vars: Vec<Var> = extents.iter().map(|&n| self.fresh_var(n)).collect();
        let indices: Vec<Index> = vars.iter().map(|&v| Index::var(v)).collect();
        let arg = body(self, &indices);
        let dtype = self.dtype(arg);
        if vars.iter().any(|v| v.extent == 0) {
            return self.constant_bits(dtype, kind.identity(dtype));
        }
        let vars: Vec<Var> = vars.into_iter().filter(|v| v.extent != 1).collect();
        match vars.is_empty() {
            true => arg,
            false => self.intern(Expr::Reduce { kind, vars, arg, within: Vec::new() }, dtype),
        }
    }

    /// Copies results of another nest, at `index` instead of its domain.
    ///
    /// `load` gives the value of an element of an operand of that nest: a load of an operand of this
    /// one, or again an inlined formula. Reductions get fresh variables.
    pub fn inline(
        &mut self,
        source: &Nest,
        roots: &[Val],
        index: &[Index],
        load: &mut impl FnMut(&mut NestBuilder, u32, &[Index], &[Guard]) -> Val,
    ) -> Vec<Val> {
        self.inline_binding(source, roots, index, load, &mut |b, vars| {
            let fresh: Vec<Var> = vars.iter().map(|v| b.fresh_var(v.extent)).collect();
            let indices = fresh.iter().map(|&v| Index::var(v)).collect();
            (fresh, indices)
        })
    }

    /// Like [`Self::inline`], but `bind` says which variables a reduction gets, and what the variables
    /// it had become in terms of those.
    pub fn inline_binding(
        &mut self,
        source: &Nest,
        roots: &[Val],
        index: &[Index],
        load: &mut impl FnMut(&mut NestBuilder, u32, &[Index], &[Guard]) -> Val,
        bind: &mut impl FnMut(&mut NestBuilder, &[Var]) -> (Vec<Var>, Vec<Index>),
    ) -> Vec<Val> {
        debug_assert_eq!(index.len(), source.domain.len());
        // Few, so that looking through them is as fast as a map.
        let mut vars: Vec<(Var, Index)> = source.domain.iter().copied().zip(index.iter().cloned()).collect();
        let mut bound_by: FxHashMap<Val, Vec<Var>> = FxHashMap::default();
        let needed = source.needed(roots);
        for &val in &needed {
            if let Expr::Reduce { vars: bound, .. } = source.expr(val) {
                let (fresh, indices) = bind(self, bound);
                vars.extend(bound.iter().copied().zip(indices));
                bound_by.insert(val, fresh);
            }
        }
        let mut copies: SecondaryMap<Val, PackedOption<Val>> =
            SecondaryMap::with_capacity(source.exprs.len());
        let copied = |copies: &SecondaryMap<Val, PackedOption<Val>>, val: Val| {
            copies[val].expect("operands come before their users")
        };
        for &val in &needed {
            let (expr, dtype) = &source.exprs[val];
            let replace = |var| vars.iter().find(|(v, _)| *v == var).map(|(_, index)| index);
            let map = |index: &Index| index.map(&replace, &|v| copied(&copies, v));
            let map_guards = |guards: &[Guard]| -> Vec<Guard> {
                guards.iter().map(|g| Guard::new(map(&g.index), g.size)).collect()
            };
            let copy = match expr {
                Expr::Load { operand, index, guards } => {
                    let index: Vec<Index> = index.iter().map(map).collect();
                    let guards = map_guards(guards);
                    load(self, *operand, &index, &guards)
                }
                Expr::Const(bits) => self.constant_bits(*dtype, *bits),
                Expr::Index(index) => {
                    let index = map(index);
                    self.index_value(&index)
                }
                Expr::Inside(guards) => {
                    let guards = map_guards(guards);
                    self.inside(&guards)
                }
                Expr::Apply(f, args) => {
                    let args: SmallVec<[Val; 3]> = args.iter().map(|&a| copied(&copies, a)).collect();
                    self.apply(*f, &args)
                }
                Expr::Reduce { kind, arg, within, .. } => {
                    let vars = bound_by.remove(&val).expect("bound above");
                    let (kind, arg, within) = (*kind, copied(&copies, *arg), map_guards(within));
                    match vars.is_empty() {
                        true => arg,
                        false => self.intern(Expr::Reduce { kind, vars, arg, within }, *dtype),
                    }
                }
            };
            copies[val] = copy.into();
        }
        roots.iter().map(|&root| copied(&copies, root)).collect()
    }

    /// The nest with these results, without expressions that none of them needs.
    pub fn finish(self, roots: &[Val]) -> Nest {
        Nest { roots: roots.to_vec(), ..self.nest }.pruned()
    }
}
