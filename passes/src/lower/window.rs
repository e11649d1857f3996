//! Windows: a formula that reduces windows of an image, run together with the formula that makes the image.
//!
//! A depthwise convolution or a pooling reads, for each channel, a few rows of that channel alone. If the image is larger
//! than the second cache, writing it and reading it again takes longer than the arithmetic. So both run for the same
//! channels and rows:
//!
//! ```text
//! for block of rows, block of channels     parallel
//!   for row of the block's windows
//!     image[row, .., channels] = maker     on the stack, in its margins
//!   y[rows, .., channels] = reader
//! ```
//!
//! Rows that windows of two blocks share are made twice. An image that fits as it is, for a block of channels, is made
//! in one go. The order of arithmetic is that of the formulas by themselves.

use std::cmp::Reverse;

use cranelift_entity::SecondaryMap;
use windlass_ir::Shape;
use windlass_ir::loops::{
    Buffer, Expr, Guard, Index, Kernel, KernelBuilder, LoopKind, Nest, NestBuilder, Role, Var,
};

use super::chain::PARAMETERS;
use super::formula::flatten_operands;
use super::margins::{Margins, as_reduction};
use super::parts::{Joining, Operands};
use super::schedule::split::Split;
use super::schedule::tile::{self, tile_bytes};
use super::schedule::{Emit, Machine, are_large, fill, top_reductions};
use super::units::{Buf, BufData, Unit, Units};

/// How much of the image at most may be made twice: one part in so many.
const MADE_TWICE: usize = 5;

/// Replaces such pairs of units by one kernel each.
pub fn join(units: &mut Units, machine: &Machine) {
    let uses = units.use_counts();
    let mut producer: SecondaryMap<Buf, Option<usize>> = SecondaryMap::new();
    let mut joining = Joining::new();
    let is_large = |data: &BufData| data.elements() * data.dtype.size() > 2 * machine.block_bytes;
    for at in 0..units.units.len() {
        units.units[at].outs.iter().for_each(|&b| producer[b] = Some(at));
        let mut join = |operand: usize| {
            let buf = units.units[at].ins[operand];
            let maker = producer[buf].filter(|maker| uses[buf] == 1 && !joining.has(*maker))?;
            let [made, read] = [maker, at].map(|number| &units.units[number]);
            if !is_large(&units.bufs[buf]) || as_reduction(made).is_none() || as_reduction(read).is_none() {
                return None;
            }
            let operands = Operands::of([(&*made.ins, None), (&*read.ins, Some(operand))]);
            let plan = || Pair::new(units, made, read, operand, machine);
            joining.join(units, &[maker, at], &operands, plan).then_some(())
        };
        (0..units.units[at].ins.len()).find_map(&mut join);
    }
    let made = joining.made(|(pair, blocks): &(Pair<'_>, Vec<Block>), operands| {
        pair.kernel(blocks, units, operands, machine)
    });
    made.replace(units);
}

/// How a formula reads windows of rows of an image, channel by channel.
struct Window {
    /// Variables of its domain that choose the image.
    batch: Vec<Var>,
    /// The dimension of the image that counts rows.
    dim: usize,
    /// The variable of its domain that chooses rows.
    row: Var,
    /// How many rows of the image one of its values is from the next.
    stride: usize,
    /// The first row that its first value reads.
    first: usize,
    /// How many rows from the first to the last that one value reads.
    span: usize,
    /// The variable of its domain that is the channel.
    channel: Var,
}

impl Window {
    /// How a nest reads an operand, if it reads windows: one load, of an operand of this shape.
    fn of(nest: &Nest, operand: usize, shape: &[usize]) -> Option<Window> {
        let reads = |expr: &Expr| matches!(expr, Expr::Load { operand: o, .. } if *o as usize == operand);
        let needed = nest.needed(&nest.roots);
        let mut loads = needed.iter().map(|&val| nest.expr(val)).filter(|expr| reads(expr));
        let (Some(Expr::Load { index, guards, .. }), None) = (loads.next(), loads.next()) else {
            return None;
        };
        if !guards.is_empty() || !index[0].values().is_empty() {
            return None;
        }
        let index = Index::unflatten(&index[0], shape);
        let channel = *nest.domain.last()?;
        let (last, outer) = index.split_last()?;
        if *last != Index::var(channel) || channel.extent != shape[outer.len()] {
            return None;
        }
        let mut batch = Vec::new();
        let dim = outer.iter().zip(shape).position(|(index, &extent)| {
            let own = index.as_var().filter(|var| nest.domain.contains(var) && var.extent == extent);
            batch.extend(own);
            own.is_none() && extent != 1
        })?;
        let rows = &outer[dim];
        let of_domain: Vec<Var> = rows.vars().into_iter().filter(|var| nest.domain.contains(var)).collect();
        let &[row] = of_domain.as_slice() else { return None };
        let stride = usize::try_from(rows.coefficient(row)?).ok().filter(|&stride| stride > 0)?;
        let within = rows.sub(&Index::var(row).mul(stride as i64));
        let chosen = |index: &Index| batch.iter().chain([&channel]).any(|&var| index.mentions(var));
        if chosen(rows) || outer[dim + 1..].iter().any(|index| chosen(index) || index.mentions(row)) {
            return None;
        }
        let (first, last) = within.range();
        let span = usize::try_from(last - first).ok()? + 1;
        Some(Window { batch, dim, row, stride, first: usize::try_from(first).ok()?, span, channel })
    }

    /// The rows of the image that so many neighbouring values read.
    fn rows(&self, count: usize) -> usize {
        self.stride * (count - 1) + self.span
    }
}

/// A maker of an image and a reader of its windows that are worth running together.
struct Pair<'u> {
    /// The formulas, their operands flat.
    made: Nest,
    read: Nest,
    /// How the maker's result stands in the image.
    image: Margins,
    /// How the reader's result stands in what is written.
    margins: Option<&'u Margins>,
    /// The reader's operand that is the image.
    operand: usize,
    window: Window,
    /// The reader's rows in blocks.
    blocks: Split,
    /// The channels of a block.
    lanes: usize,
}

/// What is done for a block of so many of the reader's rows.
struct Block {
    size: usize,
    /// Makes a piece of the image.
    making: Part,
    reading: Part,
}

/// A formula for a block.
struct Part {
    nest: Nest,
    /// What the loops around it bind: what chooses the image, the first row, the number of the channels' block,
    /// and the line on the stack.
    parameters: Vec<Var>,
    /// Where its result is stored.
    place: Index,
}

impl<'u> Pair<'u> {
    fn new(
        units: &Units,
        maker: &'u Unit,
        reader: &'u Unit,
        operand: usize,
        machine: &Machine,
    ) -> Option<(Pair<'u>, Vec<Block>)> {
        let written = &units.bufs[maker.outs[0]];
        let size = written.dtype.size();
        let ((made, inside), (read, margins)) = (as_reduction(maker)?, as_reduction(reader)?);
        let image = inside.cloned().unwrap_or_else(|| Margins::none(&written.shape));
        let (made, read) = (flatten_operands(made), flatten_operands(read));
        let window = Window::of(&read, operand, image.outer())?;
        let row_len: usize = image.outer()[window.dim + 1..].iter().product();
        let rows: usize = image.inner()[..=window.dim].iter().product();
        let source_bytes = bytes_of_every_channel(&made).div_ceil(rows);
        let whole = window.rows(window.row.extent);
        let blocks = |lanes: usize| {
            let row_bytes = row_len / window.channel.extent * lanes * size;
            let fits = |&count: &usize| {
                let rows = window.rows(count);
                rows * row_bytes <= machine.kept_bytes && rows * source_bytes <= machine.block_bytes
            };
            let blocks = Split::even(window.row.extent, (1..=window.row.extent).rev().find(fits)?);
            let made = blocks.parts * window.rows(blocks.sizes().max()?);
            (made.saturating_sub(whole) * MADE_TWICE <= whole).then_some((lanes, blocks))
        };
        let most = tile_bytes(machine, row_len, 1) / size;
        let (lanes, blocks) = channels(window.channel.extent, most, machine.vector_bytes / size)
            .into_iter()
            .find_map(blocks)?;
        let pair = Pair { made, read, image, margins, operand, window, blocks, lanes };
        if !pair.image.is_only_between(pair.window.dim) {
            return None;
        }
        let tiled = |part: &Part| tile::plan(&part.nest, &top_reductions(&part.nest), machine).is_some();
        let block = |size| Block { size, making: pair.making(size), reading: pair.reading(size) };
        let blocks: Vec<Block> = blocks.sizes().map(block).collect();
        let pays = blocks.iter().all(|block| tiled(&block.making) && tiled(&block.reading));
        pays.then_some((pair, blocks))
    }

    /// Whether a block reads every row.
    fn is_whole(&self) -> bool {
        self.blocks.parts == 1
    }

    /// The part of the image that is made at once: all of it, or a row.
    fn piece(&self) -> Margins {
        self.image.block(self.window.dim + usize::from(!self.is_whole()), self.lanes)
    }

    /// The shape of what a block of rows reads of the image.
    fn scratch(&self, size: usize) -> Shape {
        let mut shape = self.image.block(self.window.dim, self.lanes).outer().clone();
        if !self.is_whole() {
            shape[0] = self.window.rows(size);
        }
        shape
    }

    /// The parameters for so many first rows, and lines on the stack.
    fn parameters(&self, rows: usize, lines: usize) -> Vec<Var> {
        let blocks = self.window.channel.extent / self.lanes;
        let extents = self.window.batch.iter().map(|v| v.extent).chain([rows, blocks, lines]);
        extents.zip(PARAMETERS..).map(|(extent, id)| Var { id, extent }).collect()
    }

    /// What makes a piece of the image, for a block of so many rows.
    fn making(&self, size: usize) -> Part {
        let piece = self.piece();
        let dim = self.window.dim;
        let mut builder = NestBuilder::new(piece.inner());
        for operand in &self.made.operands {
            builder.operand(operand.dtype, &operand.shape);
        }
        let lines = if self.is_whole() { 1 } else { self.window.rows(size) };
        let parameters = self.parameters(self.image.inner()[dim], lines);
        let mut own = builder.domain();
        let (batch, [row, block, line]) = parameters.split_at(self.window.batch.len()) else {
            unreachable!()
        };
        let place = piece.place(&Index::flatten(&own, piece.inner()));
        let place = Index::var(*line).mul(piece.elements() as i64).add(&place);
        let channel = own.last_mut().expect("channels are a dimension");
        *channel = Index::var(*block).mul(self.lanes as i64).add(channel);
        let mut batch = batch.iter();
        let mut index: Vec<Index> = self.image.inner()[..dim]
            .iter()
            .map(|&extent| match extent {
                1 => Index::constant(0),
                _ => Index::var(*batch.next().expect("a variable for each dimension")),
            })
            .collect();
        if !self.is_whole() {
            index.push(Index::var(*row));
        }
        index.extend(own);
        let flat = Index::flatten(&index, self.image.inner());
        let index = Index::unflatten(&flat, &self.made.shape());
        let roots = builder.inline(&self.made, &self.made.roots, &index, &mut |b, o, index, guards| {
            b.load_guarded(o, index, guards)
        });
        Part { nest: builder.finish(&roots), parameters, place }
    }

    /// What reads the image, for a block of so many rows.
    fn reading(&self, size: usize) -> Part {
        let Window { batch, dim, row, stride, first, channel, .. } = &self.window;
        let parameters = self.parameters(row.extent - size + 1, 1);
        let is_other = |var: &&Var| **var != *row && **var != *channel && !batch.contains(var);
        let others: Vec<Var> = self.read.domain.iter().filter(is_other).copied().collect();
        let extents = others.iter().map(|v| v.extent);
        let shape: Vec<usize> = std::iter::once(size).chain(extents).chain([self.lanes]).collect();
        let mut builder = NestBuilder::new(&shape);
        let scratch = self.scratch(size);
        for (at, operand) in self.read.operands.iter().enumerate() {
            match at == self.operand {
                true => builder.operand(operand.dtype, &[scratch.iter().product()]),
                false => builder.operand(operand.dtype, &operand.shape),
            };
        }
        let own = builder.domain();
        let top = Index::var(parameters[batch.len()]);
        let left = Index::var(parameters[batch.len() + 1]).mul(self.lanes as i64);
        let now = |var: &Var| match batch.iter().chain(&others).position(|v| v == var) {
            Some(at) if at < batch.len() => Index::var(parameters[at]),
            Some(at) => own[at - batch.len() + 1].clone(),
            None if var == row => top.add(&own[0]),
            None => left.add(&own[own.len() - 1]),
        };
        let index: Vec<Index> = self.read.domain.iter().map(now).collect();
        let place = Margins::placed(self.margins, Index::flatten(&index, &self.read.shape()));
        // From the first row that the block reads on.
        let top = match self.is_whole() {
            true => Index::constant(0),
            false => top.mul(*stride as i64).add_const(*first as i64),
        };
        let roots = builder.inline(&self.read, &self.read.roots, &index, &mut |b, o, index, guards| {
            if o as usize != self.operand {
                return b.load_guarded(o, index, guards);
            }
            let mut at = Index::unflatten(&index[0], self.image.outer()).split_off(*dim);
            at[0] = at[0].sub(&top);
            let last = at.len() - 1;
            at[last] = at[last].sub(&left);
            b.load(o, &[Index::flatten(&at, &scratch)])
        });
        Part { nest: builder.finish(&roots), parameters, place }
    }

    /// The kernel that reads these buffers.
    fn kernel(&self, blocks: &[Block], units: &Units, operands: &Operands, machine: &Machine) -> Kernel {
        let mut builder = KernelBuilder::new("window");
        let params = operands.params(&mut builder, units);
        let [sources, others] = params.as_slice() else { unreachable!("two parts") };
        let dtype = self.made.dtype(self.made.roots[0]);
        let most = self.blocks.sizes().max().unwrap_or(0);
        let image = builder.buffer("image", dtype, self.scratch(most).iter().product(), Role::Stack);
        let y_len = self.margins.map_or_else(|| self.read.shape().iter().product(), Margins::elements);
        let y_dtype = self.read.dtype(self.read.roots[0]);
        let y = builder.buffer("y0", y_dtype, y_len, Role::Out);

        let mut shape: Vec<usize> = self.window.batch.iter().map(|v| v.extent).collect();
        shape.extend([self.blocks.parts, self.window.channel.extent / self.lanes]);
        let iterations = shape.iter().product();
        let shared = are_large([&self.made, &self.read]);
        let kind = if shared { LoopKind::Parallel } else { LoopKind::Serial };
        let iteration = Index::var(builder.begin_loop(kind, iterations));
        if let Some(margins) = self.margins {
            margins.fill(&mut builder, y, y_dtype, [&iteration, &Index::constant(0)], iterations);
        }
        let mut chosen = Index::unflatten(&iteration, &shape);
        let (channels, number) = (chosen.pop().expect("two more"), chosen.pop().expect("one more"));
        let mut builder = self.blocks.part(builder, &number, &mut |builder, first, size| {
            let block = blocks.iter().find(|block| block.size == size).expect("every size has a block");
            let values = |row: &Index, line: &Index| -> Vec<Index> {
                chosen.iter().chain([row, &channels, line]).cloned().collect()
            };
            let make = |builder: KernelBuilder, row: &Index, line: &Index| {
                let ins = sources.iter().copied().flatten().collect();
                block.making.emit(builder, ins, image, values(row, line), machine)
            };
            let builder = self.make(builder, size, &first, image, &make);
            let ins = others.iter().map(|buffer| buffer.unwrap_or(image)).collect();
            block.reading.emit(builder, ins, y, values(&first, &Index::constant(0)), machine)
        });
        builder.end();
        builder.finish()
    }

    /// Makes what a block of rows reads of the image: pieces of it by `make`, for a row and a line of the stack.
    fn make(
        &self,
        mut builder: KernelBuilder,
        size: usize,
        first: &Index,
        image: Buffer,
        make: &dyn Fn(KernelBuilder, &Index, &Index) -> KernelBuilder,
    ) -> KernelBuilder {
        let piece = self.piece();
        let dtype = self.made.dtype(self.made.roots[0]);
        let start = Index::constant(0);
        if self.is_whole() {
            piece.fill(&mut builder, image, dtype, [&start, &start], 1);
            return make(builder, &start, &start);
        }
        let row = Index::var(builder.begin_loop(LoopKind::Serial, self.window.rows(size)));
        let start = row.mul(piece.elements() as i64);
        let Window { dim, stride, first: offset, .. } = self.window;
        let above = offset as i64 - self.image.before()[dim] as i64;
        let number = first.mul(stride as i64).add(&row).add_const(above);
        let inside = Guard::new(number.clone(), self.image.inner()[dim]);
        let open = inside.as_known().is_none();
        if open {
            builder.begin_if(&[inside]);
        }
        piece.fill(&mut builder, image, dtype, [&Index::constant(0), &start], 1);
        let mut builder = make(builder, &number, &row);
        if open {
            builder.begin_else();
            self.image.fill_all(&mut builder, image, dtype, &start, piece.elements());
            builder.end();
        }
        builder.end();
        builder
    }
}

impl Part {
    /// Its loops, with these values of the parameters.
    fn emit(
        &self,
        builder: KernelBuilder,
        ins: Vec<Buffer>,
        to: Buffer,
        values: Vec<Index>,
        machine: &Machine,
    ) -> KernelBuilder {
        let mut emit = Emit::within(builder, &self.nest, ins, vec![to], self.place.clone());
        self.parameters.iter().zip(values).for_each(|(&var, value)| emit.bind(var, value));
        fill(&mut emit, machine);
        emit.into_builder()
    }
}

/// How many channels a block may have, of as many as a register tile at most: those that leave the fewest lanes of vectors
/// idle come first, and of those the most.
fn channels(count: usize, most: usize, vector: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = (tile::FEW_LANES..=most).filter(|&size| count.is_multiple_of(size)).collect();
    let vectors = |size: &usize| (count / size) * size.div_ceil(vector);
    sizes.sort_by_key(|size| (vectors(size), Reverse(*size)));
    sizes
}

/// Bytes that a formula reads for one channel and again for every other.
fn bytes_of_every_channel(nest: &Nest) -> usize {
    let bytes = |val| match nest.expr(val) {
        Expr::Load { operand, index, .. } => {
            let vars = index[0].vars();
            let apart = nest.domain.last().is_some_and(|channel| vars.contains(channel));
            let elements: usize = vars.iter().map(|v| v.extent).product();
            let elements = elements.min(nest.operands[*operand as usize].shape.iter().product());
            if apart { 0 } else { elements * nest.dtype(val).size() }
        }
        _ => 0,
    };
    nest.needed(&nest.roots).into_iter().map(bytes).sum()
}
