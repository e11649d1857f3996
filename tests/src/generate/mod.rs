//! Random valid graphs over every op and element type, each from a seed.
//!
//! A graph grows node by node next to the tensors its values have on its inputs, so each node is known
//! to evaluate, and to benign values (see [`values`]). What an op wants is proposed by one table
//! (`propose`), in which an op that has no row gets random operands and attributes until `infer`
//! accepts them: a new op is picked up by itself, and a row only raises how often it succeeds.
//!
//! Shapes include rank 0 and sizes of 0; inputs have named dimensions now and then, attributes that
//! may be late are sometimes operands, and some results have sizes that depend on data.

mod control;
mod propose;
mod recurrent;
mod rng;
mod scan;
pub mod values;
mod winograd;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub use rng::Rng;

use values::{Values, is_benign, is_dyadic, stays_in_range};
use windlass_ir::attrs::Slot;
use windlass_ir::ops::{Constant, DequantizeLinear};
use windlass_ir::{Builder, DType, Dim, Graph, Late, Op, Tensor, TensorType, Value, eval_op};

/// How graphs are to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How many nodes to try for, constants not counted.
    pub nodes: usize,
    /// Whether attributes may be operands and sizes may be unknown before the graph runs.
    pub late: bool,
    /// Whether inputs may have named dimensions.
    pub named: bool,
    /// An op that each graph has, by its name in text.
    pub with: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options { nodes: 12, late: true, named: true, with: None }
    }
}

/// A graph and inputs for it.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The graph.
    pub graph: Graph,
    /// Inputs on which it evaluates.
    pub inputs: Vec<Tensor>,
    /// The outputs found while it grew.
    pub outputs: Vec<Tensor>,
    /// The values that any implementation must give exactly.
    pub exact_values: BTreeSet<Value>,
}

/// Every op's name in text, but for `fail`, which has no values.
pub fn op_names() -> Vec<&'static str> {
    Op::LIST.iter().flat_map(|info| info.names.iter().copied()).filter(|&name| name != "fail").collect()
}

/// The seeds of a test: from 0, `count` of them, unless `WINDLASS_SEED` gives the first one and
/// `WINDLASS_GRAPHS` how many.
///
/// # Panics
/// If one of them is set to something else than a number.
pub fn seeds(count: u64) -> Range<u64> {
    let number = |name: &str| {
        let text = std::env::var_os(name)?.into_string().ok();
        let number = text.as_ref().and_then(|text| text.parse::<u64>().ok());
        Some(number.unwrap_or_else(|| panic!("{name} is not a number: {text:?}")))
    };
    let first = number("WINDLASS_SEED").unwrap_or(0);
    first..first.saturating_add(number("WINDLASS_GRAPHS").unwrap_or(count))
}

/// The command that tries one seed of a test again.
pub fn repeat(seed: u64, test: &str) -> String {
    format!("WINDLASS_SEED={seed} WINDLASS_GRAPHS=1 cargo nextest run -p windlass-tests --test {test}")
}

/// The graph of a seed.
pub fn generate(seed: u64, options: &Options) -> Generated {
    let mut growing = Growing { rng: Rng::new(seed), options, entries: Vec::new(), nodes: Vec::new() };
    let names = op_names();
    if let Some(name) = &options.with {
        growing.grow(name);
    }
    let mut tries = 0;
    while growing.op_count() < options.nodes && tries < 4 * options.nodes {
        let name = *growing.rng.choose(&names);
        growing.grow(name);
        tries += 1;
    }
    growing.finish(seed)
}

/// What may differ between implementations in an op's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precision {
    /// Nothing, if the operands are exact: elements moved, or each rounded correctly once.
    Exact,
    /// Nothing, if the operands are such that sums are exact.
    Sums,
    /// Some units in the last place.
    Approximate,
}

/// An operand that a proposal wants.
#[derive(Clone, Debug)]
enum Wanted {
    /// A value of the graph.
    Entry(usize),
    /// Any value of this type holding such values, or a new one.
    New(DType, Vec<usize>, Values),
    /// New f32s of this shape dequantized from bytes, with a scale for each position of a dimension if one is given:
    /// those of weights, which are constants.
    Dequantized(Vec<usize>, Option<usize>),
    /// A constant of this shape dequantized from bytes, or from halves of them, with a scale for so many neighbours along
    /// a dimension.
    InBlocks(Vec<usize>, usize, usize),
}

/// An op with what it wants.
struct Proposal {
    op: Op,
    wanted: Vec<Wanted>,
    precision: Precision,
    /// Whether small differences in floats may change the result altogether.
    jumps: bool,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Input,
    Node(usize, usize),
}

/// A value of the growing graph, with what it is on the inputs.
#[derive(Clone, Debug)]
struct Entry {
    source: Source,
    ty: TensorType,
    tensor: Tensor,
    exact: bool,
}

struct Growing<'o> {
    rng: Rng,
    options: &'o Options,
    entries: Vec<Entry>,
    /// Each node's op and operands.
    nodes: Vec<(Op, Vec<usize>)>,
}

/// How often a proposal for one op is made before giving up.
const PROPOSALS: usize = 60;

/// The largest tensor.
const MOST_ELEMENTS: usize = 2048;

impl Growing<'_> {
    fn op_count(&self) -> usize {
        self.nodes.iter().filter(|(op, _)| !matches!(op, Op::Constant(_))).count()
    }

    /// Adds a node of this op, if one can be found.
    fn grow(&mut self, name: &str) -> bool {
        (0..PROPOSALS).any(|_| {
            let (entries, nodes) = (self.entries.len(), self.nodes.len());
            let done = self.propose(name).and_then(|proposal| self.accept(proposal)).is_some();
            if !done {
                self.entries.truncate(entries);
                self.nodes.truncate(nodes);
            }
            done
        })
    }

    fn accept(&mut self, proposal: Proposal) -> Option<()> {
        let Proposal { mut op, wanted, precision, jumps } = proposal;
        let ins: Option<Vec<usize>> = wanted.into_iter().map(|wanted| self.operand(wanted, jumps)).collect();
        let mut ins = ins?;
        if self.options.late && self.rng.one_in(3) {
            (op, ins) = self.delay(op, ins);
        }
        let in_types: Vec<&TensorType> = ins.iter().map(|&i| &self.entries[i].ty).collect();
        let types = op.infer(&in_types).ok()?;
        if types.iter().any(|ty| ty.rank() > 6 || fixed_len(ty) > MOST_ELEMENTS) {
            return None;
        }
        let is_known = types.iter().all(|ty| !ty.dims.contains(&Dim::Unknown));
        if !self.options.late && !is_known {
            return None;
        }
        let tensors: Vec<Tensor> = ins.iter().map(|&i| self.entries[i].tensor.clone()).collect();
        let outs = eval_op(&op, &tensors).ok()?;
        if outs.iter().any(|t| t.len() > MOST_ELEMENTS || !is_benign(t)) || !stays_in_range(&op, &tensors) {
            return None;
        }
        let exact_ins = ins.iter().all(|&i| self.entries[i].exact);
        let dyadic = tensors.iter().chain(&outs).all(is_dyadic);
        let node = self.nodes.len();
        for (index, (tensor, ty)) in outs.into_iter().zip(types).enumerate() {
            let exact = match precision {
                _ if !ty.dtype.is_float() => true,
                Precision::Exact => exact_ins,
                Precision::Sums => exact_ins && dyadic,
                Precision::Approximate => false,
            };
            self.entries.push(Entry { source: Source::Node(node, index), ty, tensor, exact });
        }
        self.nodes.push((op, ins));
        Some(())
    }

    /// The value that a proposal gets.
    fn operand(&mut self, wanted: Wanted, exactly: bool) -> Option<usize> {
        Some(match wanted {
            Wanted::Entry(entry) => entry,
            Wanted::Dequantized(shape, axis) => return self.dequantized(&shape, axis),
            Wanted::InBlocks(shape, axis, size) => return self.dequantized_in_blocks(&shape, axis, size),
            Wanted::New(dtype, shape, values) => {
                let fits = |e: &Entry| {
                    e.tensor.dtype() == dtype
                        && e.tensor.shape() == shape
                        && (e.exact || !exactly)
                        && values.hold(&e.tensor)
                };
                let found: Vec<usize> = (0..self.entries.len()).filter(|&i| fits(&self.entries[i])).collect();
                match found.is_empty() || self.rng.one_in(3) {
                    false => *self.rng.choose(&found),
                    true => {
                        let tensor = values.sample(&mut self.rng, dtype, &shape);
                        self.add(tensor)
                    }
                }
            }
        })
    }

    /// Adds a `dequantize_linear` of new bytes.
    fn dequantized(&mut self, shape: &[usize], axis: Option<usize>) -> Option<usize> {
        let dtype = *self.rng.choose(&[DType::I8, DType::U8]);
        let count = axis.map_or(1, |axis| shape[axis]);
        let parameters = if axis.is_some() { vec![count] } else { vec![] };
        let scales = (0..count).map(|_| *self.rng.choose(&[0.25, 0.5, 1.0])).collect();
        let scale = Values::Exactly(scales).sample(&mut self.rng, DType::F32, &parameters);
        let x = Values::Any.sample(&mut self.rng, dtype, shape);
        let mut wanted = match axis {
            Some(_) => vec![self.add_constant(x), self.add_constant(scale)],
            None => vec![self.add(x), self.add(scale)],
        };
        if self.rng.flag() {
            let zero = Values::Any.sample(&mut self.rng, dtype, &parameters);
            wanted.push(if axis.is_some() { self.add_constant(zero) } else { self.add(zero) });
        }
        let axis = axis.map_or(1, |axis| axis as i64);
        self.accept(Proposal {
            op: Op::DequantizeLinear(DequantizeLinear { axis, block_size: 0, to: DType::F32 }),
            wanted: wanted.into_iter().map(Wanted::Entry).collect(),
            precision: Precision::Exact,
            jumps: false,
        })?;
        Some(self.entries.len() - 1)
    }

    /// Adds a `dequantize_linear` of constant bytes in blocks.
    fn dequantized_in_blocks(&mut self, shape: &[usize], axis: usize, size: usize) -> Option<usize> {
        let dtype = *self.rng.choose(&[DType::I8, DType::U8]);
        let low = if dtype == DType::I8 { -8.0 } else { 0.0 };
        let values = if self.rng.flag() { Values::Any } else { Values::Within(low, low + 15.0) };
        let mut parameters = shape.to_vec();
        parameters[axis] = parameters[axis].div_ceil(size);
        let count = parameters.iter().product::<usize>();
        let scales = Values::Exactly((0..count).map(|_| *self.rng.choose(&[0.25, 0.5, 1.0])).collect());
        let mut ins = vec![values.sample(&mut self.rng, dtype, shape)];
        ins.push(scales.sample(&mut self.rng, DType::F32, &parameters));
        match self.rng.below(3) {
            0 => ins.push(values.sample(&mut self.rng, dtype, &parameters)),
            1 => ins.push(values.sample(&mut self.rng, dtype, &[])),
            _ => {}
        }
        let ins: Vec<usize> = ins.into_iter().map(|tensor| self.add_constant(tensor)).collect();
        let (axis, block_size) = (axis as i64, size as i64);
        self.accept(Proposal {
            op: Op::DequantizeLinear(DequantizeLinear { axis, block_size, to: DType::F32 }),
            wanted: ins.into_iter().map(Wanted::Entry).collect(),
            precision: Precision::Exact,
            jumps: false,
        })?;
        Some(self.entries.len() - 1)
    }

    /// A new input, or a constant.
    fn add(&mut self, tensor: Tensor) -> usize {
        if self.rng.one_in(4) { self.add_constant(tensor) } else { self.add_input(tensor) }
    }

    fn add_constant(&mut self, tensor: Tensor) -> usize {
        let op = Op::Constant(Constant { value: tensor.clone() });
        let source = Source::Node(self.nodes.len(), 0);
        self.nodes.push((op, Vec::new()));
        self.entries.push(Entry { source, ty: tensor.ty(), tensor, exact: true });
        self.entries.len() - 1
    }

    fn add_input(&mut self, tensor: Tensor) -> usize {
        let mut ty = tensor.ty();
        if self.options.named {
            for dim in &mut ty.dims {
                // A name stands for one size in the whole graph.
                if let Dim::Fixed(n) = dim
                    && self.rng.one_in(8)
                {
                    *dim = Dim::named(&format!("n{n}"));
                }
            }
        }
        self.entries.push(Entry { source: Source::Input, ty, tensor, exact: true });
        self.entries.len() - 1
    }

    /// The op with some late attributes as operands, if it can be typed like that.
    fn delay(&mut self, op: Op, ins: Vec<usize>) -> (Op, Vec<usize>) {
        let (mut delayed, mut with) = (op.clone(), ins.clone());
        let mut held: Vec<Tensor> = Vec::new();
        let mut visit = |_: &'static str, slot: Slot<'_>| {
            if let Slot::Late(late) = slot
                && let Late::Known(ints) = late
                && !ints.is_empty()
                && self.rng.flag()
            {
                held.push(Tensor::from_ints(ints));
                *late = Late::Operand((ins.len() + held.len() - 1) as u32);
            }
            Ok(())
        };
        if delayed.attrs(&mut visit).is_err() {
            return (op, ins);
        }
        let before = self.entries.len();
        for tensor in held {
            let entry = self.add_input(tensor);
            with.push(entry);
        }
        let types: Vec<&TensorType> = with.iter().map(|&i| &self.entries[i].ty).collect();
        match delayed.infer(&types) {
            Ok(_) => (delayed, with),
            Err(_) => {
                self.entries.truncate(before);
                (op, ins)
            }
        }
    }

    /// The graph: inputs first, what nobody reads as outputs.
    fn finish(mut self, seed: u64) -> Generated {
        if !self.entries.iter().any(|e| matches!(e.source, Source::Node(..))) {
            let tensor = Values::Any.sample(&mut self.rng, DType::F32, &[2, 3]);
            let input = self.add_input(tensor);
            let neg = Op::from_name("neg").expect("neg is an op");
            let proposal = Proposal {
                op: neg,
                wanted: vec![Wanted::Entry(input)],
                precision: Precision::Exact,
                jumps: false,
            };
            self.accept(proposal).expect("neg applies to floats");
        }
        let mut builder = Builder::new(&format!("seed {seed}"));
        let mut values = BTreeMap::new();
        let mut inputs = Vec::new();
        for (i, entry) in self.entries.iter().enumerate().filter(|(_, e)| e.source == Source::Input) {
            // Some names are words, some must be quoted.
            let name = format!("{}{}", if inputs.len() % 5 == 4 { "in:" } else { "in" }, inputs.len());
            values.insert(i, builder.input(&name, entry.ty.clone()));
            inputs.push(entry.tensor.clone());
        }
        let mut read = vec![false; self.entries.len()];
        for (node, (op, ins)) in self.nodes.iter().enumerate() {
            let operands: Vec<_> = ins.iter().map(|i| values[i]).collect();
            let name = (node % 3 == 1).then(|| format!("node {node}").into());
            let results = builder.push(op.clone(), &operands, name);
            let results = results.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            ins.iter().for_each(|&i| read[i] = true);
            for (i, entry) in self.entries.iter().enumerate() {
                if let Source::Node(n, index) = entry.source
                    && n == node
                {
                    values.insert(i, results[index]);
                }
            }
        }
        let mut outputs = Vec::new();
        for (i, entry) in self.entries.iter().enumerate() {
            let is_node = matches!(entry.source, Source::Node(..));
            if is_node && (!read[i] || self.rng.one_in(12)) {
                builder.output(&format!("out{}", outputs.len()), values[&i]);
                outputs.push(entry.tensor.clone());
            }
        }
        let exact_values = self.entries.iter().zip(0..).filter(|(e, _)| e.exact).map(|(_, i)| values[&i]);
        let exact_values = exact_values.collect();
        let graph = builder.finish().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        Generated { graph, inputs, outputs, exact_values }
    }
}

/// The number of elements, counting sizes that are not known as 1.
fn fixed_len(ty: &TensorType) -> usize {
    ty.dims.iter().filter_map(Dim::as_fixed).fold(1, usize::saturating_mul)
}
