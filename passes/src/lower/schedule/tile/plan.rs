//! Whether and how a nest is tiled.

use windlass_ir::loops::{Atom, Expr, Index, Nest, Val, Var};

use crate::lower::formula::free_vars;
use crate::lower::schedule::Machine;
use crate::lower::schedule::ahead;
use crate::lower::schedule::contraction::{Contraction, as_choice, as_product, made_factors};
use crate::lower::schedule::split::Split;

/// How a nest is tiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The reductions, in order of dependency.
    pub(super) reductions: Vec<Val>,
    /// The domain variable whose values are lanes.
    pub(super) lane: Var,
    /// Domain variables whose values are rows of the tile, outermost first.
    pub(super) rows: Vec<Var>,
    /// Domain variables outside the tile.
    pub(super) batch: Vec<Var>,
    /// Domain variables that no reduction depends on.
    pub(super) inner: Vec<Var>,
    /// The most rows of a tile.
    pub(super) tile_rows: usize,
    /// The most rows of a tile if all have as many.
    pub(super) even_rows: usize,
    /// The lanes of a tile.
    pub(super) lanes: usize,
    /// The lanes of a vector, of the narrowest reduction.
    pub(super) vector: usize,
    /// The load of a product's packed operand.
    pub(super) packed: Option<Val>,
    /// Whether operands may be read past the last lane, up to a whole tile: then the last vector is a whole one.
    pub(super) padded: bool,
    /// Whether a factor is made from integers at each step, for all rows of a tile and several steps at once.
    pub(super) computed: bool,
    /// The innermost variable of the reduction, if it chooses how a factor is made.
    pub(super) choice: Option<Var>,
    /// What rows share of the factors if that is more than a load, such as a conversion: made once for all of them.
    pub(super) made: Vec<Val>,
    /// Loads of the epilogue that are asked for before the reduction.
    pub(super) streamed: Vec<Val>,
}

impl Plan {
    /// How far apart rows of so many lanes are kept: each begins with a vector of its own.
    pub fn pitch(&self, lanes: usize) -> usize {
        lanes.next_multiple_of(self.vector)
    }
}

/// A variable of its own for lanes within a tile; no nest has as many variables.
const LANE: u32 = u32::MAX;

/// A load's index with the lane variable split into panel and lane.
pub fn split_lane(index: &Index, lane: Var, lanes: usize) -> (Index, Var) {
    let within = Var { id: LANE, extent: lanes };
    let panel = Var { id: LANE - 1, extent: lane.extent.div_ceil(lanes) };
    let split = Index::var(panel).mul(lanes as i64).add(&Index::var(within));
    (index.substitute(&|v| (v == lane).then(|| split.clone())), within)
}

/// How to tile the nest, if its reductions can be computed in lanes along the last dimension.
pub fn plan(nest: &Nest, reductions: &[Val], machine: &Machine) -> Option<Plan> {
    let free = free_vars(nest);
    let lane = *nest.domain.last()?;
    let depends: Vec<Var> = reductions.iter().flat_map(|&r| free[r].iter().copied()).collect();
    if !depends.contains(&lane) || reductions.iter().any(|&r| !free[r].contains(&lane)) {
        return None;
    }
    let (contraction, computed) = as_product(nest).unzip();
    let computed = computed.unwrap_or(false);
    let choice = if computed { as_choice(nest, reductions[0]) } else { None };
    let size = reductions.iter().map(|&r| nest.dtype(r).size()).max()?;
    let vars_outside = |keep: &[Var]| -> Vec<Var> {
        nest.domain.iter().copied().filter(|v| *v != lane && !keep.contains(v)).collect()
    };
    let inner: Vec<Var> = vars_outside(&depends);
    // The factor that fewer rows share is the one held in vectors.
    let reused = |factor: Val| vars_outside(&free[factor]);
    let shared = match contraction {
        Some(Contraction { factors, .. }) if inner.is_empty() => factors
            .into_iter()
            .filter(|f| free[*f].contains(&lane))
            .max_by_key(|&f| reused(f).iter().map(|v| v.extent).product::<usize>()),
        _ => None,
    };
    let rows = shared.map(reused).unwrap_or_default();
    let row_count: usize = rows.iter().map(|v| v.extent).product();
    let rows = if row_count > 1 { rows } else { Vec::new() };
    let is_laid_out = |lanes: usize| {
        reductions.len() == 1 && shared.is_some_and(|load| is_packed(nest, load, reductions[0], lane, lanes))
    };
    let narrower = NARROWER.iter().find(|tile| is_laid_out(tile.bytes / size));
    let narrower = narrower.filter(|_| machine.has_narrower_tiles());
    let (most_rows, bytes) = match narrower {
        Some(tile) => (tile.rows, tile.bytes),
        None if contraction.is_none() && !has_guards(nest, reductions) => {
            let others = vars_outside(&[]).iter().map(|v| v.extent).product::<usize>();
            let parts = PARTS.div_ceil(others.max(1));
            (1, lone_bytes(lane.extent * size, parts, reductions.len(), machine))
        }
        None => (machine.tile_rows, tile_bytes(machine, row_count, reductions.len())),
    };
    let lanes = (bytes / size).max(1);
    if !is_vector(nest, reductions, lane, lanes.min(lane.extent)) {
        return None;
    }
    // Few lanes against a long contiguous reduction: rows with folded lanes use the vectors better.
    if lane.extent < FEW_LANES && row_count < FEW_LANES {
        return None;
    }
    let padded =
        reductions.len() == 1 && lane.extent % lanes != 0 && may_pad(nest, reductions[0], lane, lanes);
    let lanes = if padded { lanes } else { lanes.min(lane.extent) };
    let chains = chains(nest, reductions, lanes.min(lane.extent) * size, machine);
    let (rows, tile_rows) = match rows.is_empty() {
        true if contraction.is_none() && inner.is_empty() && chains > 1 => {
            (vars_outside(&[]).pop().into_iter().collect(), chains)
        }
        true => (rows, 1),
        false => (rows, most_rows),
    };
    let in_rows: Vec<Var> = rows.iter().chain(&inner).copied().collect();
    let batch = vars_outside(&in_rows);
    let packed = shared.filter(|&load| is_packed(nest, load, reductions[0], lane, lanes));
    let is_streamed = machine.prefetches && inner.is_empty();
    let streamed = if is_streamed { ahead::streamed(nest, lane, machine) } else { Vec::new() };
    let is_shared =
        |val: &Val| free[*val].contains(&lane) && rows.iter().all(|row| !free[*val].contains(row));
    let mut made = if computed || rows.is_empty() { Vec::new() } else { made_factors(nest, reductions[0]) };
    made.retain(is_shared);
    let narrowest = reductions.iter().map(|&r| nest.dtype(r).size()).min()?;
    let vector = machine.vector_bytes / narrowest;
    // What is made for a step is in registers too.
    let even_rows =
        narrower.filter(|_| !computed && made.is_empty()).map_or(tile_rows, |tile| tile.even_rows);
    let reductions = reductions.to_vec();
    Some(Plan {
        reductions,
        lane,
        rows,
        batch,
        inner,
        tile_rows,
        even_rows,
        lanes,
        vector,
        packed,
        padded,
        computed,
        choice,
        made,
        streamed,
    })
}

/// Below this many lanes, and as many rows, a tile is not worth it.
pub const FEW_LANES: usize = 4;

/// Bytes of lanes in one row of a tile: the machine's for tiles of several rows; with a single row there
/// is more room, shared by the reductions.
pub fn tile_bytes(machine: &Machine, row_count: usize, reductions: usize) -> usize {
    match (row_count, reductions) {
        (0 | 1, 1) => 128,
        (_, 1) => machine.tile_row_bytes,
        (_, 2) => 64,
        _ => 32,
    }
}

/// Bytes of lanes, of so many in all, of reductions that read each element once: the more of them, the longer the pieces of
/// memory that are read, but so many parts are left for threads.
fn lone_bytes(all: usize, parts: usize, reductions: usize, machine: &Machine) -> usize {
    let most = most_chains(machine) * machine.vector_bytes / reductions;
    let part = all.div_ceil(parts).next_multiple_of(machine.vector_bytes);
    most.min(part).max(tile_bytes(machine, 1, reductions))
}

/// The fewest parts that threads share.
const PARTS: usize = 4;

/// A tile that is narrower than the machine's usual one.
struct Narrower {
    /// The most rows.
    rows: usize,
    /// The most rows if all tiles have as many: what registers there are for sums beside a row's vectors of the right
    /// operand and a broadcast of the left.
    even_rows: usize,
    /// Bytes of a row.
    bytes: usize,
}

/// Those of a machine with vectors of 512 bits.
const NARROWER: [Narrower; 3] = [
    Narrower { rows: 12, even_rows: 15, bytes: 64 },
    Narrower { rows: 12, even_rows: 14, bytes: 128 },
    Narrower { rows: 8, even_rows: 9, bytes: 192 },
];

/// With more rows than these, reading a right operand from memory does not show.
pub const FEW_ROWS: usize = 48;

/// The bytes of a row of the panels in which a product's right operand is laid out that is known before the run.
///
/// Where a few rows more than a tile's are multiplied, tiles are higher and narrower. So fewer of them pass over a panel,
/// and the first, which reads it from memory, asks for it at the pace of the arithmetic. Only whole panels are as fast. A row
/// of fewer columns than the usual tile's has a panel no wider than it needs, so that a cache holds more steps of it. Where
/// the usual tile's rows do not divide those that there are, or its columns, a narrower tile's may: all are of one size then.
pub fn packed_row_bytes(machine: &Machine, row_count: usize, row_bytes: usize) -> usize {
    let [_, higher, high] = &NARROWER;
    let whole = |bytes: usize| row_bytes.is_multiple_of(bytes);
    if let Some(tile) = NARROWER.iter().find(|tile| row_bytes <= tile.bytes)
        && machine.has_narrower_tiles()
    {
        return tile.bytes;
    }
    match row_count {
        _ if !machine.has_narrower_tiles() || row_count <= machine.tile_rows => {}
        _ if row_count <= high.rows && whole(high.bytes) => return high.bytes,
        _ if row_count <= higher.rows && whole(higher.bytes) => return higher.bytes,
        _ if row_count <= FEW_ROWS && whole(high.bytes) => return high.bytes,
        _ if whole(machine.tile_row_bytes) && Split::is_even(row_count, machine.tile_rows) => {}
        _ => {
            let is_even = |tile: &&Narrower| whole(tile.bytes) && Split::is_even(row_count, tile.even_rows);
            if let Some(tile) = [high, higher].into_iter().find(is_even) {
                return tile.bytes;
            }
            if whole(high.bytes) && !whole(machine.tile_row_bytes) {
                return high.bytes;
            }
        }
    }
    tile_bytes(machine, row_count, 1)
}

/// How many vectors of results are made side by side, so that the processor need not wait for the last step of one. There
/// are twice as many registers of 512 bits.
fn most_chains(machine: &Machine) -> usize {
    if machine.vector_bytes >= 64 { 8 } else { 4 }
}

/// Whether some elements that reductions read are not there, which each vector has to ask.
fn has_guards(nest: &Nest, reductions: &[Val]) -> bool {
    let guarded = |val: &Val| matches!(nest.expr(*val), Expr::Load { guards, .. } if !guards.is_empty());
    nest.needed(reductions).iter().any(guarded)
}

/// How many rows of so many bytes, which share no factor, are worth making side by side.
fn chains(nest: &Nest, reductions: &[Val], bytes: usize, machine: &Machine) -> usize {
    match reductions.len() == 1 && !has_guards(nest, reductions) {
        true => most_chains(machine) / bytes.div_ceil(machine.vector_bytes).max(1),
        false => 1,
    }
}

/// Whether every load in the reductions reads neighbours, or the same element, along the lanes, and some
/// load reads neighbours.
fn is_vector(nest: &Nest, reductions: &[Val], lane: Var, lanes: usize) -> bool {
    let free = free_vars(nest);
    let mut some = false;
    let every = nest.needed(reductions).into_iter().all(|val| match nest.expr(val) {
        Expr::Load { index, .. } => {
            let (index, within) = split_lane(&index[0], lane, lanes);
            let gathered = index.values().iter().any(|v| free[*v].contains(&lane));
            let step = if gathered { None } else { index.coefficient(within) };
            // Elements that are two apart, or each read by several lanes, are picked out of vectors.
            some |= matches!(step, Some(1 | 2));
            matches!(step, Some(0..=2)) || !gathered && is_repeated(&index, within)
        }
        Expr::Reduce { .. } => reductions.contains(&val) || !free[val].contains(&lane),
        Expr::Const(_) | Expr::Index(_) | Expr::Inside(_) | Expr::Apply(..) => true,
    });
    every && some
}

/// Whether several neighbouring lanes read each element, and the elements are neighbours within a vector.
fn is_repeated(index: &Index, lane: Var) -> bool {
    let mut with_lane = index.terms().iter().filter(|(atom, _)| match atom {
        Atom::Var(var) => *var == lane,
        Atom::Div(of, _) | Atom::Mod(of, _) => of.mentions(lane),
        Atom::Value(..) => false,
    });
    let (Some((Atom::Div(of, repeat), step)), None) = (with_lane.next(), with_lane.next()) else {
        return false;
    };
    of.as_var() == Some(lane) && (1..=*repeat).contains(step)
}

/// Whether a load reads the steps of the reduction one behind another, each as wide as a tile.
fn is_packed(nest: &Nest, load: Val, reduction: Val, lane: Var, lanes: usize) -> bool {
    let (Expr::Load { index, .. }, Expr::Reduce { vars, .. }) = (nest.expr(load), nest.expr(reduction))
    else {
        return false;
    };
    let (index, _) = split_lane(&index[0], lane, lanes);
    let mut step = lanes;
    vars.iter().rev().all(|&var| {
        let follows = index.coefficient(var) == Some(step as i64);
        step *= var.extent;
        follows
    })
}

/// Whether whole tiles may be accumulated although the last has lanes that are not stored: no load
/// then leaves its operand.
fn may_pad(nest: &Nest, reduction: Val, lane: Var, lanes: usize) -> bool {
    nest.needed(&[reduction]).into_iter().all(|val| match nest.expr(val) {
        Expr::Load { operand, index, guards } => {
            let len: usize = nest.operands[*operand as usize].shape.iter().product();
            let (index, _) = split_lane(&index[0], lane, lanes);
            guards.is_empty() && index.values().is_empty() && index.is_within(len)
        }
        Expr::Const(_) | Expr::Index(_) | Expr::Inside(_) | Expr::Apply(..) | Expr::Reduce { .. } => true,
    })
}
