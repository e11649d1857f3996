//! Chains: formulas that hand rows to each other, run together for a few rows at a time.
//!
//! In attention, a row of scores is a row of `q k`, its softmax the factor of a row of `w v`. None of the
//! three can be merged into another, but nothing needs the whole matrix of scores either:
//!
//! ```text
//! for batch, head, block of queries      parallel
//!   scores[rows, keys] = q[rows] k       on the stack
//!   weights[rows, keys] = softmax        on the stack
//!   y[rows] = weights v
//! ```
//!
//! The rule is about rows: a producer's buffer is rows of some length, and the consumer reads, for each
//! point of its domain, one row alone. Then both run for the same block of rows, the producer restricted
//! to it, as long as what a block needs besides its rows stays in cache. The order of arithmetic is that
//! of the formulas by themselves.

use std::collections::BTreeSet;

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{
    Buffer, Expr, Index, Kernel, KernelBuilder, LoopKind, Nest, NestBuilder, Role, Var,
};

use super::formula::flatten_operands;
use super::margins::{Margins, as_reduction};
use super::parts::{Joining, Operands};
use super::schedule::split::Split;
use super::schedule::{Emit, Machine, are_large, fill};
use super::units::{Buf, Units};

/// Rows between the formulas of a chain that take less than this stay in cache anyway.
const SMALL_BYTES: usize = 32 << 10;

/// Bytes of the stack for rows that are handed on.
const SCRATCH_BYTES: usize = 64 << 10;

/// The most register tiles of rows in a block.
const TILES: usize = 8;

/// The number of the first variable that stands for what loops around a kernel's formulas bind; nests have
/// fewer variables of their own.
pub const PARAMETERS: u32 = 1 << 24;

/// One formula of a chain.
struct Link {
    /// The formula, its operands flat.
    nest: Nest,
    /// What stands around its result; only of the last link.
    margins: Option<Margins>,
    /// The operand that the link before it makes, and the number of the row read in terms of the domain.
    reads: Option<(u32, Index)>,
    /// How many dimensions of the domain count rows; the others are within a row. Not for the last link.
    row_dims: usize,
}

impl Link {
    /// The elements of a row.
    fn row_len(&self) -> usize {
        self.nest.domain[self.row_dims..].iter().map(|v| v.extent).product()
    }
}

/// Replaces units that hand rows to each other by one kernel.
pub fn chain(units: &mut Units, machine: &Machine) {
    let producer = units.makers();
    let mut uses = units.use_counts();
    let mut joining = Joining::new();
    for at in (0..units.units.len()).rev() {
        if joining.has(at) {
            continue;
        }
        let (numbers, links) = links(units, at, &producer, &uses);
        if links.len() < 2 {
            continue;
        }
        let parts = || numbers.iter().map(|&number| &units.units[number]);
        let made = links.iter().map(|link| link.reads.as_ref().map(|(operand, _)| *operand as usize));
        let operands = Operands::of(parts().map(|unit| unit.ins.as_slice()).zip(made));
        if joining.join(units, &numbers, &operands, || Chain::new(links, machine)) {
            parts().flat_map(|unit| &unit.ins).for_each(|&b| uses[b] -= 1);
            operands.bufs.iter().for_each(|&b| uses[b] += 1);
        }
    }
    joining.made(|chain: &Chain, operands| chain.kernel(units, operands, machine)).replace(units);
}

/// The formula of a unit as a link, if it reduces.
fn as_link(units: &Units, unit: usize) -> Option<Link> {
    let (nest, margins) = as_reduction(&units.units[unit])?;
    Some(Link { nest: flatten_operands(nest), margins: margins.cloned(), reads: None, row_dims: 0 })
}

/// The longest chain that ends with a unit, first link first, with the numbers of the units.
fn links(
    units: &Units,
    last: usize,
    producer: &SecondaryMap<Buf, Option<usize>>,
    uses: &SecondaryMap<Buf, u32>,
) -> (Vec<usize>, Vec<Link>) {
    let is_reduction = |unit: usize| as_reduction(&units.units[unit]).is_some();
    let may_be_read = |buf: &Buf| uses[*buf] == 1 && producer[*buf].is_some_and(is_reduction);
    if !units.units[last].ins.iter().any(may_be_read) {
        return Default::default();
    }
    let Some(link) = as_link(units, last) else { return Default::default() };
    let (mut numbers, mut links) = (vec![last], vec![link]);
    'longer: loop {
        let consumer = links.last_mut().expect("there is one");
        let ins = &units.units[numbers[numbers.len() - 1]].ins;
        for (operand, &buf) in ins.iter().enumerate() {
            let Some(unit) = producer[buf].filter(|_| uses[buf] == 1) else { continue };
            let Some(mut link) = as_link(units, unit).filter(|link| link.margins.is_none()) else { continue };
            let found = (1..link.nest.domain.len()).rev().find_map(|row_dims| {
                link.row_dims = row_dims;
                row_read(&consumer.nest, operand as u32, link.row_len())
            });
            let Some(row) = found else { continue };
            // Every link but the last has rows of its own, and must read the row of that number.
            let own = &consumer.nest.domain[..consumer.row_dims];
            let extents: Vec<usize> = own.iter().map(|v| v.extent).collect();
            let own: Vec<Index> = own.iter().map(|&v| Index::var(v)).collect();
            if consumer.row_dims > 0 && row != Index::flatten(&own, &extents) {
                continue;
            }
            consumer.reads = Some((operand as u32, row));
            numbers.push(unit);
            links.push(link);
            continue 'longer;
        }
        numbers.reverse();
        links.reverse();
        return (numbers, links);
    }
}

/// The row of an operand that a nest reads at a point of its domain, if it is one alone.
fn row_read(nest: &Nest, operand: u32, row_len: usize) -> Option<Index> {
    let mut found: Option<Index> = None;
    for val in nest.needed(&nest.roots) {
        let Expr::Load { operand: o, index, guards } = nest.expr(val) else { continue };
        if *o != operand {
            continue;
        }
        let row = index[0].div(row_len as i64);
        let within = index[0].sub(&row.mul(row_len as i64));
        let vars = row.vars();
        let linear = vars.iter().all(|&v| nest.domain.contains(&v) && row.coefficient(v).is_some());
        let apart = !vars.iter().any(|&v| within.mentions(v)) && within.is_within(row_len);
        let same = found.as_ref().is_none_or(|found| *found == row);
        if !guards.is_empty() || !index[0].values().is_empty() || !linear || !apart || !same {
            return None;
        }
        found = Some(row);
    }
    found
}

/// A chain that is worth running together.
struct Chain {
    links: Vec<Link>,
    /// Variables of the last link's domain that choose rows, besides `row`.
    outer: Vec<Var>,
    /// The variable of the last link's domain whose values are neighbouring rows.
    row: Var,
    /// The rows in blocks.
    blocks: Split,
    /// Whether there is work for several threads.
    shared: bool,
}

impl Chain {
    fn new(links: Vec<Link>, machine: &Machine) -> Option<Chain> {
        let (last, makers) = links.split_last()?;
        let (_, read) = last.reads.as_ref()?;
        let vars = read.vars();
        let row =
            vars.iter().copied().filter(|&v| read.coefficient(v) == Some(1)).max_by_key(|v| v.extent)?;
        let outer: Vec<Var> = vars.into_iter().filter(|&v| v != row).collect();
        let row_bytes: usize =
            makers.iter().map(|l| l.row_len() * l.nest.dtype(l.nest.roots[0]).size()).sum();
        let rows: usize = makers[0].nest.domain[..makers[0].row_dims].iter().map(|v| v.extent).product();
        let fits = (SCRATCH_BYTES / row_bytes / machine.tile_rows).min(TILES) * machine.tile_rows;
        if rows * row_bytes < SMALL_BYTES || fits == 0 || row.extent < machine.tile_rows {
            return None;
        }
        let shared = are_large(links.iter().map(|link| &link.nest));
        let blocks = Split::even(row.extent, fits);
        let chain = Chain { links, outer, row, blocks, shared };
        let affine = chain.blocks.sizes().all(|size| {
            (0..chain.links.len()).all(|at| {
                let restricted = chain.restricted(at, size);
                affine_in_rows(&restricted.nest)
            })
        });
        // What a block reads besides its rows, it reads again for each block. A second cache of its own that is twice as large
        // as what products count on still holds it; the rows, handed on by way of memory, would leave it.
        let read_again: usize = chain.links.iter().map(|link| chain.shared_bytes(link)).sum();
        (affine && read_again <= 2 * machine.block_bytes).then_some(chain)
    }

    /// The variables that the loops around the formulas bind: one for each of `outer`, and the first row.
    fn parameters(&self, size: usize) -> Vec<Var> {
        let extents = self.outer.iter().map(|v| v.extent).chain([self.row.extent - size + 1]);
        extents.zip(PARAMETERS..).map(|(extent, id)| Var { id, extent }).collect()
    }

    /// Bytes of operands that every row of a block shares.
    fn shared_bytes(&self, link: &Link) -> usize {
        let nest = &link.nest;
        let chosen: BTreeSet<Var> = match link.row_dims {
            0 => self.outer.iter().copied().chain([self.row]).collect(),
            dims => nest.domain[..dims].iter().copied().collect(),
        };
        let made = link.reads.as_ref().map(|(operand, _)| *operand);
        let bytes = |val| match nest.expr(val) {
            Expr::Load { operand, index, .. } if Some(*operand) != made => {
                let vars = index[0].vars();
                let elements: usize = vars.iter().filter(|v| !chosen.contains(v)).map(|v| v.extent).product();
                elements.min(nest.operands[*operand as usize].shape.iter().product()) * nest.dtype(val).size()
            }
            _ => 0,
        };
        nest.needed(&nest.roots).into_iter().map(bytes).sum()
    }

    /// The formula of a link for a block of rows.
    fn restricted(&self, at: usize, size: usize) -> Restricted {
        let link = &self.links[at];
        let nest = &link.nest;
        let parameters = self.parameters(size);
        let (_, read) = self.links.last().and_then(|l| l.reads.as_ref()).expect("the last link reads rows");
        let kept: Vec<Var> = match link.row_dims {
            0 => nest.domain.iter().copied().filter(|v| *v != self.row && !self.outer.contains(v)).collect(),
            dims => nest.domain[dims..].to_vec(),
        };
        let shape: Vec<usize> = std::iter::once(size).chain(kept.iter().map(|v| v.extent)).collect();
        let made = link.reads.as_ref().map(|(operand, _)| (*operand, self.links[at - 1].row_len()));
        let mut builder = NestBuilder::new(&shape);
        for (operand, number) in nest.operands.iter().zip(0..) {
            // Of the rows that the link before makes there are those of the block alone.
            match made {
                Some((from, row_len)) if from == number => builder.operand(operand.dtype, &[size * row_len]),
                _ => builder.operand(operand.dtype, &operand.shape),
            };
        }
        let own = builder.domain();
        // What the last link's variables are, and the number of the row.
        let in_block = |var: Var| {
            let outer = self.outer.iter().position(|&v| v == var).map(|i| Index::var(parameters[i]));
            let row = || Index::var(parameters[self.outer.len()]).add(&own[0]);
            outer.or_else(|| (var == self.row).then(row))
        };
        let row = read.substitute(&in_block);
        let mut index: Vec<Index> = Vec::new();
        if link.row_dims > 0 {
            let extents: Vec<usize> = nest.domain[..link.row_dims].iter().map(|v| v.extent).collect();
            index = Index::unflatten(&row, &extents);
            index.extend_from_slice(&own[1..]);
        } else {
            let mut rest = own[1..].iter().cloned();
            for &var in &nest.domain {
                index.extend(in_block(var).or_else(|| rest.next()));
            }
        }
        let place = match link.row_dims {
            0 => Margins::placed(link.margins.as_ref(), Index::flatten(&index, &nest.shape())),
            _ => Index::flatten(&own, &shape),
        };
        let roots = builder.inline(nest, &nest.roots, &index, &mut |b, operand, index, guards| match made {
            // From the first of the block's rows on.
            Some((from, row_len)) if from == operand => {
                let first = row.sub(&own[0]).mul(row_len as i64);
                b.load_guarded(operand, &[index[0].sub(&first)], guards)
            }
            _ => b.load_guarded(operand, index, guards),
        });
        Restricted { nest: builder.finish(&roots), place }
    }

    /// The kernel that reads these buffers.
    fn kernel(&self, units: &Units, operands: &Operands, machine: &Machine) -> Kernel {
        let mut builder = KernelBuilder::new("chain");
        let operands = operands.params(&mut builder, units);
        let largest = self.blocks.sizes().max().unwrap_or(0);
        let mut results: Vec<Buffer> = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            let dtype = link.nest.dtype(link.nest.roots[0]);
            let whole = || link.nest.shape().iter().product();
            results.push(match at + 1 == self.links.len() {
                true => {
                    let len = link.margins.as_ref().map_or_else(whole, Margins::elements);
                    builder.buffer("y0", dtype, len, Role::Out)
                }
                false => builder.buffer(&format!("rows{at}"), dtype, largest * link.row_len(), Role::Stack),
            });
        }
        let mut shape: Vec<usize> = self.outer.iter().map(|v| v.extent).collect();
        shape.push(self.blocks.parts);
        let kind = if self.shared { LoopKind::Parallel } else { LoopKind::Serial };
        let iterations = shape.iter().product();
        let iteration = Index::var(builder.begin_loop(kind, iterations));
        if let Some((last, margins)) = self.links.last().and_then(|l| Some((l, l.margins.as_ref()?))) {
            let (y, dtype) = (results[self.links.len() - 1], last.nest.dtype(last.nest.roots[0]));
            margins.fill(&mut builder, y, dtype, [&iteration, &Index::constant(0)], iterations);
        }
        let mut bound = Index::unflatten(&iteration, &shape);
        let block = bound.pop().expect("one more");
        let mut builder = self.blocks.part(builder, &block, &mut |builder, first, size| {
            let values: Vec<Index> = bound.iter().cloned().chain([first]).collect();
            self.block(builder, size, &values, &operands, &results, machine)
        });
        builder.end();
        builder.finish()
    }

    /// The formulas one after another for a block of rows.
    fn block(
        &self,
        mut builder: KernelBuilder,
        size: usize,
        values: &[Index],
        operands: &[Vec<Option<Buffer>>],
        results: &[Buffer],
        machine: &Machine,
    ) -> KernelBuilder {
        for at in 0..self.links.len() {
            let Restricted { nest, place } = self.restricted(at, size);
            let made = |buffer: &Option<Buffer>| buffer.unwrap_or_else(|| results[at - 1]);
            let ins = operands[at].iter().map(made).collect();
            let mut emit = Emit::within(builder, &nest, ins, vec![results[at]], place);
            for (&parameter, value) in self.parameters(size).iter().zip(values) {
                emit.bind(parameter, value.clone());
            }
            fill(&mut emit, machine);
            builder = emit.into_builder();
        }
        builder
    }
}

/// A formula for a block of rows: its domain counts rows first.
struct Restricted {
    nest: Nest,
    /// Where its result is stored.
    place: Index,
}

/// Whether every load moves by a constant from row to row.
fn affine_in_rows(nest: &Nest) -> bool {
    nest.needed(&nest.roots).into_iter().all(|val| match nest.expr(val) {
        Expr::Load { index, .. } => index[0].coefficient(nest.domain[0]).is_some(),
        _ => true,
    })
}
