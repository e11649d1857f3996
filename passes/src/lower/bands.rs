//! Bands: kernels over the same things, and the formula between them, run together for a few of the things at a time.
//!
//! Winograd's form of a convolution transforms the tiles of an image, takes products at each position of a tile, and
//! transforms back. The arrays between are twice the image each, or more, but nothing needs all of either:
//!
//! ```text
//! for block of tiles                               parallel
//!   from[positions, tiles, channels] = transform   on the stack
//!   to[positions, tiles, channels] = from weights  on the stack
//!   y = transform
//! ```
//!
//! The rule is about one dimension of the arrays between. Iteration `i` of the first kernel's parallel loop stores slice `i`
//! of its result alone, the formula computes slice `i` of its own from slice `i`, and iteration `i` of the second kernel's
//! loads slice `i` alone. Then all three run for the same block of slices, as long as what a block needs besides them is
//! worth reading again for each. The order of arithmetic is that of the parts by themselves.

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{
    Block, Buffer, Index, Kernel, KernelBuilder, LoopKind, Nest, NestBuilder, Redirect, Role, Var,
    visit_accesses,
};

use super::chain::PARAMETERS;
use super::formula::flatten_operands;
use super::margins::as_reduction;
use super::parts::{Joining, Operands};
use super::schedule::split::Split;
use super::schedule::{Emit, Machine, PARALLEL_ITERATIONS, fill};
use super::sliced::Sliced;
use super::units::{Buf, BufData, Unit, UnitWork, Units};

/// Bytes of the stack for slices that are handed on. What kernels keep there themselves comes to it.
const SCRATCH_BYTES: usize = 240 << 10;

/// The fewest slices that what all of them share is worth reading for.
const LEAST_SLICES: usize = 4;

/// Replaces units that hand slices to each other by one kernel.
pub fn join(units: &mut Units, machine: &Machine) {
    let makers = units.makers_for_one();
    let mut joining = Joining::new();
    for at in 0..units.units.len() {
        let Some(band) = Band::new(units, at, &makers, machine) else { continue };
        if band.numbers.iter().any(|&number| joining.has(number)) {
            continue;
        }
        let (numbers, operands) = (band.numbers, band.operands(units));
        joining.join(units, &numbers, &operands, || Some(band));
    }
    joining.made(|band: &Band<'_>, operands| band.kernel(units, operands, machine)).replace(units);
}

/// A kernel's parallel loop.
struct Outer<'u> {
    kernel: &'u Kernel,
    var: Var,
    body: &'u Block,
    params: Vec<Buffer>,
}

impl<'u> Outer<'u> {
    fn of(unit: &'u Unit) -> Option<Outer<'u>> {
        let UnitWork::Kernel(kernel) = &unit.work else { return None };
        let (var, _, body) = kernel.as_parallel()?;
        if kernel.params().any(|(_, data)| data.role == Role::InOut) {
            return None;
        }
        Some(Outer { kernel, var, body, params: kernel.params().map(|(buffer, _)| buffer).collect() })
    }

    /// The array that a parameter is, if each iteration uses one slice of it alone, that of its number.
    fn sliced(&self, param: usize, data: &BufData) -> Option<Sliced> {
        let dims = (0..data.shape.len()).filter(|&dim| data.shape[dim] == self.var.extent);
        let mut arrays = dims.map(|dim| Sliced::new(&data.shape, dim));
        arrays.find(|array| {
            let mut alone = true;
            visit_accesses(self.body, &mut |buffer, index, _| {
                alone &= buffer != self.params[param] || array.is_in_slice(index, self.var);
            });
            alone
        })
    }

    /// Writes out so many iterations from the first of a block on. One of the buffers that the parameters are now has
    /// the slices of the block alone.
    fn splice(
        &self,
        builder: &mut KernelBuilder,
        params: &[Buffer],
        start: &Index,
        (between, array): (Buffer, &Sliced),
        size: usize,
    ) {
        let own = Index::var(builder.begin_loop(LoopKind::Serial, size));
        let in_block = Var { id: PARAMETERS, extent: size };
        let bound = [(self.var, start.add(&own)), (in_block, own)];
        let mut block = BlockOf { outer: self, params, between, array, in_block, size };
        builder.splice(self.kernel, self.body, &bound, &mut block);
        builder.end();
    }
}

/// A block of a kernel's iterations, by which one of the arrays has the slices of the block alone.
struct BlockOf<'b> {
    outer: &'b Outer<'b>,
    /// The buffers that the parameters are now.
    params: &'b [Buffer],
    between: Buffer,
    array: &'b Sliced,
    /// The number of the iteration in the block.
    in_block: Var,
    size: usize,
}

impl Redirect for BlockOf<'_> {
    fn place(&mut self, buffer: Buffer, index: &Index) -> (Buffer, Index) {
        let param = self.outer.params.iter().position(|&param| param == buffer).expect("it is a parameter");
        match self.params[param] {
            now if now == self.between => {
                (now, self.array.place(index, &Index::var(self.in_block), self.size))
            }
            now => (now, index.clone()),
        }
    }
}

/// Two kernels and a formula between them that are worth running together.
struct Band<'u> {
    /// The numbers of the units: the first kernel, the formula, the second kernel.
    numbers: [usize; 3],
    first: Outer<'u>,
    second: Outer<'u>,
    /// The formula, its operands flat.
    nest: Nest,
    /// The variable of its domain that counts slices.
    var: Var,
    /// The operand of the formula, and of the second kernel, that the part before it makes.
    made: [usize; 2],
    /// The arrays between.
    between: [Sliced; 2],
    /// The slices in blocks.
    blocks: Split,
}

impl<'u> Band<'u> {
    /// The band that ends with a unit. `makers` are those of buffers with one reader.
    fn new(
        units: &'u Units,
        last: usize,
        makers: &SecondaryMap<Buf, Option<usize>>,
        machine: &Machine,
    ) -> Option<Band<'u>> {
        let unit = &units.units[last];
        (0..unit.ins.len()).find_map(|read| {
            let middle = makers[unit.ins[read]]?;
            let (nest, None) = as_reduction(&units.units[middle])? else { return None };
            let second = Outer::of(unit)?;
            let to = second.sliced(read, &units.bufs[unit.ins[read]])?;
            let nest = flatten_operands(nest);
            let var = to.counted_by(&nest)?;
            let ins = &units.units[middle].ins;
            let (number, operand, first, from) = (0..ins.len()).find_map(|operand| {
                let number = makers[ins[operand]]?;
                let unit = &units.units[number];
                let first = Outer::of(unit).filter(|_| unit.outs.len() == 1)?;
                let from = first.sliced(unit.ins.len(), &units.bufs[ins[operand]])?;
                from.is_read_by(&nest, operand, var).then_some((number, operand, first, from))
            })?;
            let bytes = |buf: Buf, array: &Sliced| array.elements(1) * units.bufs[buf].dtype.size();
            let bytes = bytes(ins[operand], &from) + bytes(unit.ins[read], &to);
            let blocks = blocks(var.extent, bytes, machine)?;
            let (numbers, made, between) = ([number, middle, last], [operand, read], [from, to]);
            Some(Band { numbers, first, second, nest, var, made, between, blocks })
        })
    }

    /// The formula for a block of slices, and where its result is stored.
    fn restricted(&self, size: usize) -> (Nest, Index) {
        let at = self.nest.domain.iter().position(|v| *v == self.var).expect("it counts slices");
        let mut shape = self.nest.shape();
        shape[at] = size;
        let mut builder = NestBuilder::new(&shape);
        let [from, _] = &self.between;
        for (number, operand) in self.nest.operands.iter().enumerate() {
            match number == self.made[0] {
                true => builder.operand(operand.dtype, &[from.elements(size)]),
                false => builder.operand(operand.dtype, &operand.shape),
            };
        }
        let own = builder.domain();
        let place = Index::flatten(&own, &shape);
        let mut index = own.clone();
        index[at] = Index::var(self.start(size)).add(&own[at]);
        let roots = builder.inline(&self.nest, &self.nest.roots, &index, &mut |b, operand, index, guards| {
            match operand as usize == self.made[0] {
                true => b.load(operand, &[from.place(&index[0], &own[at], size)]),
                false => b.load_guarded(operand, index, guards),
            }
        });
        (builder.finish(&roots), place)
    }

    /// The variable that is a block's first slice.
    fn start(&self, size: usize) -> Var {
        Var { id: PARAMETERS, extent: self.var.extent - size + 1 }
    }

    /// What the three read.
    fn operands(&self, units: &Units) -> Operands {
        let made = [None, Some(self.made[0]), Some(self.made[1])];
        Operands::of(self.numbers.iter().map(|&number| &*units.units[number].ins).zip(made))
    }

    /// The three as one kernel.
    fn kernel(&self, units: &Units, operands: &Operands, machine: &Machine) -> Kernel {
        let mut builder = KernelBuilder::new("band");
        let parts = self.numbers.map(|number| &units.units[number]);
        let operands = operands.params(&mut builder, units);
        let most = self.blocks.sizes().max().unwrap_or(0);
        let between: Vec<Buffer> = ["from", "to"]
            .into_iter()
            .zip(parts)
            .zip(&self.between)
            .map(|((name, unit), array)| {
                let dtype = units.bufs[unit.outs[0]].dtype;
                builder.buffer(name, dtype, array.elements(most), Role::Stack)
            })
            .collect();
        let outs: Vec<Buffer> = parts[2]
            .outs
            .iter()
            .enumerate()
            .map(|(i, &buf)| {
                let data = &units.bufs[buf];
                builder.buffer(&format!("y{i}"), data.dtype, data.elements(), Role::Out)
            })
            .collect();
        let block = Index::var(builder.begin_loop(LoopKind::Parallel, self.blocks.parts));
        let given = |operands: &[Option<Buffer>], made| -> Vec<Buffer> {
            operands.iter().map(|buffer| buffer.unwrap_or(made)).collect()
        };
        let firsts: Vec<Buffer> = given(&operands[0], between[0]).into_iter().chain([between[0]]).collect();
        let seconds: Vec<Buffer> = given(&operands[2], between[1]).into_iter().chain(outs).collect();
        let mut builder = self.blocks.part(builder, &block, &mut |mut builder, start, size| {
            let [from, to] = &self.between;
            self.first.splice(&mut builder, &firsts, &start, (between[0], from), size);
            let (nest, place) = self.restricted(size);
            let ins = given(&operands[1], between[0]);
            let mut emit = Emit::within(builder, &nest, ins, vec![between[1]], place);
            emit.bind(self.start(size), start.clone());
            fill(&mut emit, machine);
            let mut builder = emit.into_builder();
            self.second.splice(&mut builder, &seconds, &start, (between[1], to), size);
            builder
        });
        builder.end();
        builder.finish()
    }
}

/// The blocks of so many slices, of which each takes so many bytes, if they are worth it.
fn blocks(count: usize, bytes: usize, machine: &Machine) -> Option<Split> {
    let most = (SCRATCH_BYTES / bytes.max(1)).min(count.div_ceil(PARALLEL_ITERATIONS));
    let pays = count * bytes > 2 * machine.block_bytes && most >= LEAST_SLICES;
    pays.then(|| Split::even(count, most))
}
