//! Scheduling: from a formula to loops.
//!
//! Three schedules cover every nest:
//!
//! - [`elementwise`]: no reductions; loops over the domain, the last dimension as lanes. What rows have in common is made
//!   once for many of them ([`columns`]).
//! - [`rows`]: reductions along contiguous memory; for each row the reductions one after another, in
//!   lanes that are folded, then the row's results (softmax, norms, sums).
//! - [`tile`]: reductions whose results are contiguous; a register tile of rows by lanes accumulates
//!   them (matrix products, convolutions, pooling, sums over outer dimensions).
//!
//! Which one, and every number in it that changes the order of arithmetic, depends on the nest alone,
//! never on the machine: the same model gives the same bits everywhere.

mod ahead;
mod blocks;
mod columns;
pub mod contraction;
mod depth;
mod elementwise;
mod emit;
mod kept;
pub mod knobs;
pub mod rows;
mod skips;
pub mod split;
pub mod tile;

use std::collections::BTreeSet;

use windlass_ir::loops::{Atom, Expr, Kernel, Nest, Val, Var};

pub use emit::Emit;

use self::contraction::as_product;
use crate::lower::formula::{
    divisors, flatten_operands, free_vars, merge_loops, point_cost, split_first_loops,
};
use crate::lower::margins::Margins;

/// What schedules may assume about the machine. Nothing here changes the bits of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Rows of a contraction's register tile.
    pub tile_rows: usize,
    /// Bytes of a row of a contraction's register tile.
    pub tile_row_bytes: usize,
    /// Bytes of a vector.
    pub vector_bytes: usize,
    /// Bytes of a block of a panel of a contraction's right operand, so that as many steps of a tile's
    /// rows stay in the first-level cache.
    pub panel_bytes: usize,
    /// Bytes of right operands that stay in the second-level cache.
    pub block_bytes: usize,
    /// Bytes of the stack for the part of an image that is made and read at once, in the second-level cache.
    pub kept_bytes: usize,
    /// Whether it can be told what will be read soon.
    pub prefetches: bool,
    /// Whether the low half of a word comes first in memory.
    pub little_endian: bool,
    /// Whether it multiplies bytes, four to a word, in one instruction.
    pub byte_products: bool,
}

impl Machine {
    /// A machine with vectors of so many bits, and 16 registers of them, 32 if they have 512: a tile's sums leave room
    /// for a row's vectors of the right operand and one broadcast of the left.
    ///
    /// Processors with vectors of 512 bits read a panel from a second-level cache of a megabyte and more as fast as tiles
    /// use it, and fetch it there by themselves: being told what will be read made products up to 6 % slower.
    pub fn with_vectors(bits: usize) -> Machine {
        let (tile_rows, tile_row_bytes, panel_steps) = match bits {
            512.. => (6, 256, 1024),
            256.. => (6, 64, 256),
            _ => (5, 32, 256),
        };
        Machine {
            tile_rows,
            tile_row_bytes,
            vector_bytes: bits / 8,
            panel_bytes: panel_steps * tile_row_bytes,
            block_bytes: 256 << 10,
            kept_bytes: if bits >= 512 { 256 << 10 } else { 128 << 10 },
            prefetches: bits == 256,
            little_endian: cfg!(target_endian = "little"),
            byte_products: false,
        }
    }

    /// The bytes of sums of a contraction's register tile.
    pub fn sum_bytes(&self) -> usize {
        self.tile_rows * self.tile_row_bytes
    }

    /// The same with vectors of 256 bits, if the columns of a product of floats fill no more: half of each vector of 512
    /// would be idle, and there are processors that take twice as long for one.
    fn for_few_columns(&self, nest: &Nest) -> Option<Machine> {
        let Machine { little_endian, prefetches, .. } = *self;
        let narrower = Machine { little_endian, prefetches, ..Machine::with_vectors(256) };
        let product =
            contraction::as_contraction(nest).filter(|_| self.vector_bytes > narrower.vector_bytes)?;
        let dtype = nest.dtype(product.reduce);
        let columns = nest.domain.last()?.extent;
        let fits = columns >= tile::FEW_LANES && columns * dtype.size() <= narrower.vector_bytes;
        (dtype.is_float() && fits).then_some(narrower)
    }

    /// Whether it has registers for tiles of other shapes than the usual one.
    pub fn has_narrower_tiles(&self) -> bool {
        self.vector_bytes >= 64
    }
}

impl Default for Machine {
    /// Vectors of 128 bits, which every target has.
    fn default() -> Machine {
        Machine::with_vectors(128)
    }
}

/// Work below this many machine operations is not worth starting other threads for.
const PARALLEL_OPERATIONS: u64 = 200_000;

/// Parallel loops aim for at least this many iterations, so that any small number of threads has
/// even work.
pub const PARALLEL_ITERATIONS: usize = 16;

/// The form of a nest that is scheduled: operands flat, loops merged. Nests with one such form have one
/// kernel.
pub fn normalize(nest: &Nest) -> Nest {
    let nest = flatten_operands(nest);
    // The panels of a packed operand stay one variable with their lanes: blocks are made of them.
    match as_product(&nest) {
        Some(_) => merge_loops(nest),
        None => {
            let stay = usize::from(repeats(&nest));
            merge_loops(split_first_loops(nest, stay))
        }
    }
}

/// Whether a few neighbours along the last variable read the same elements of 4 bytes, as of an image made larger, or in small
/// groups of a convolution's channels: the elements of a vector of results are picked out of one vector, and splitting the
/// variable would leave vectors of those few.
pub fn repeats(nest: &Nest) -> bool {
    let Some(&lane) = nest.domain.last() else { return false };
    let words = nest.needed(&nest.roots).into_iter().all(|val| match nest.expr(val) {
        Expr::Load { index, .. } => {
            nest.dtype(val).size() == 4
                && index[0].terms().iter().all(|(atom, _)| match atom {
                    Atom::Div(x, _) => !x.mentions(lane) || x.as_var() == Some(lane),
                    Atom::Mod(x, _) => !x.mentions(lane),
                    Atom::Var(_) | Atom::Value(..) => true,
                })
        }
        Expr::Index(index) => index.coefficient(lane).is_some(),
        Expr::Inside(guards) => guards.iter().all(|guard| guard.index.coefficient(lane).is_some()),
        Expr::Const(_) | Expr::Apply(..) | Expr::Reduce { .. } => true,
    });
    words && divisors(nest, lane).into_iter().any(|size| size < GROUPED)
}

/// So many that read the same fill a vector.
const GROUPED: usize = 16;

/// The loops for a normalized formula, whose result may stand inside a padded array.
pub fn schedule(nest: &Nest, margins: Option<&Margins>, name: &str, machine: &Machine) -> Kernel {
    let mut emit = Emit::new(nest, margins, name);
    let narrower = machine.for_few_columns(nest);
    fill(&mut emit, narrower.as_ref().unwrap_or(machine));
    let vector_bits = narrower.map(|machine| 8 * machine.vector_bytes);
    Kernel { vector_bits, ..emit.finish() }
}

/// Writes the loops of a formula.
pub fn fill(emit: &mut Emit<'_>, machine: &Machine) {
    let nest = emit.nest;
    if nest.shape().contains(&0) {
        return;
    }
    let reductions = top_reductions(nest);
    if reductions.is_empty() {
        return elementwise::schedule(emit);
    }
    match tile::plan(nest, &reductions, machine) {
        Some(plan) => tile::schedule(emit, &plan, machine),
        None => rows::schedule(emit, &reductions),
    }
}

/// The reductions that depend on no other reduction's variables, in order of dependency.
pub fn top_reductions(nest: &Nest) -> Vec<Val> {
    if !nest.exprs.values().any(|(expr, _)| matches!(expr, Expr::Reduce { .. })) {
        return Vec::new();
    }
    let free = free_vars(nest);
    let needed = nest.needed(&nest.roots);
    let bound: BTreeSet<Var> = needed.iter().flat_map(|&val| reduction_vars(nest, val)).copied().collect();
    let is_top = |&val: &Val| {
        matches!(nest.expr(val), Expr::Reduce { .. }) && free[val].iter().all(|var| !bound.contains(var))
    };
    needed.into_iter().filter(is_top).collect()
}

fn reduction_vars(nest: &Nest, val: Val) -> &[Var] {
    match nest.expr(val) {
        Expr::Reduce { vars, .. } => vars,
        _ => &[],
    }
}

/// Whether nests do enough work, together, to share between threads.
pub fn are_large<'n>(nests: impl IntoIterator<Item = &'n Nest>) -> bool {
    let operations = |nest: &Nest| {
        let points: u64 = nest.domain.iter().map(|v| v.extent as u64).product();
        points.saturating_mul(point_cost(nest, &nest.roots))
    };
    nests.into_iter().map(operations).fold(0, u64::saturating_add) >= PARALLEL_OPERATIONS
}

/// Moves the variable best suited to be the parallel loop to the front: the first with enough
/// iterations, else the one with most. The order of loops over a domain is free.
fn parallel_first(mut vars: Vec<Var>) -> Vec<Var> {
    let enough = vars.iter().position(|v| v.extent >= PARALLEL_ITERATIONS);
    let most = || (0..vars.len()).max_by_key(|&i| (vars[i].extent, std::cmp::Reverse(i)));
    if let Some(at) = enough.or_else(most) {
        let var = vars.remove(at);
        vars.insert(0, var);
    }
    vars
}
