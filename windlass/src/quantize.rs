//! Quantization after training: convolutions and matrix products of bytes, with ranges found on examples.
//!
//! The result is a graph in QDQ form: what goes into a product is quantized to u8, with one scale, and dequantized; its
//! weight is i8 with a scale for each output channel. The compiler runs such a product in integers, and ONNX has the
//! same operators.
//!
//! ```
//! use windlass::quantize::{Ranges, quantize};
//! use windlass::{Builder, DType, Options, Session, Tensor, TensorType, ops};
//!
//! let mut b = Builder::new("product");
//! let x = b.input("x", TensorType::fixed(DType::F32, &[1, 4]));
//! let w = b.constant(Tensor::new(&[4, 2], &[0.5f32, -1.0, 0.25, 0.75, -0.125, 0.0, 1.0, 0.5]));
//! let y = b.push1(ops::MatMul::default(), &[x, w])?;
//! b.output("y", y);
//! let graph = b.finish()?;
//! let sample = Tensor::new(&[1, 4], &[-1f32, 0.5, 0.25, 1.0]);
//! let quantized = quantize(&graph, &[vec![sample.clone()]], Ranges::MinMax, &Options::default())?;
//! let exact = Session::new(graph, Options::default())?.run([("x", sample.clone())])?;
//! let found = Session::new(quantized, Options::default())?.run([("x", sample)])?;
//! for (a, b) in exact["y"].to_f64s().iter().zip(found["y"].to_f64s()) {
//!     assert!((a - b).abs() < 0.02);
//! }
//! # Ok::<(), windlass::Error>(())
//! ```

use std::collections::BTreeMap;

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::{Node, Value, Values};
use windlass_ir::ops::{DequantizeLinear, QuantizeLinear, Reduce, ReduceKind};
use windlass_ir::{Builder, DType, Graph, Op, Tensor};
use windlass_passes::Stage;
use windlass_passes::graph::dce;

use crate::error::Error;
use crate::nn::sampling::take;
use crate::options::Options;
use crate::session::Session;

/// How the range of what goes into a product follows from examples. It always holds 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Ranges {
    /// From the smallest to the largest value.
    #[default]
    MinMax,
    /// The middle part that has so many of a hundred values; those outside become its ends.
    Percentile(f64),
}

/// Parts that the range of all values is cut into to find a percentile.
const BINS: usize = 2048;

/// A product whose weight is a constant.
struct Product {
    node: Node,
    x: Value,
    weight: Tensor,
    /// The dimension of the weight along which output channels lie.
    channels: usize,
}

/// The graph with its products of f32 activations and constant weights in QDQ form. Each sample has all inputs of the
/// graph, in order.
pub fn quantize(
    graph: &Graph,
    samples: &[Vec<Tensor>],
    ranges: Ranges,
    options: &Options,
) -> Result<Graph, Error> {
    let products: Vec<Product> = graph.nodes().filter_map(|(node, _)| Product::of(graph, node)).collect();
    let mut found: BTreeMap<Value, (f64, f64)> = products.iter().map(|p| (p.x, (0.0, 0.0))).collect();
    if samples.is_empty() || found.is_empty() {
        return Ok(graph.clone());
    }
    let values: Vec<Value> = found.keys().copied().collect();
    // The graphs that are run for their ranges have other outputs.
    let options = &Options { in_place: Vec::new(), ..options.clone() };
    let ends = copied(graph, &values, |b, x| {
        let axes: Vec<i64> = (0..b.ty(x).rank() as i64).collect();
        let end = |b: &mut Builder, kind| b.push1(Reduce::over(kind, &axes, false), &[x]);
        Ok([end(b, ReduceKind::Min)?, end(b, ReduceKind::Max)?].to_vec())
    })?;
    let session = Session::new(ends, options.clone())?;
    for sample in samples {
        let outs = session.run(sample.clone())?.into_tensors();
        for (ends, range) in outs.chunks_exact(2).zip(found.values_mut()) {
            let end = |x: &Tensor| x.to_f64s()[0];
            *range = (range.0.min(end(&ends[0])), range.1.max(end(&ends[1])));
        }
    }
    if let Ranges::Percentile(percent) = ranges {
        let whole = copied(graph, &values, |_, x| Ok(vec![x]))?;
        let session = Session::new(whole, options.clone())?;
        let mut counts = vec![vec![0u64; BINS]; values.len()];
        for sample in samples {
            for ((x, range), counts) in
                session.run(sample.clone())?.iter().zip(found.values()).zip(&mut counts)
            {
                count(x.1, *range, counts);
            }
        }
        for (range, counts) in found.values_mut().zip(&counts) {
            *range = middle(*range, counts, percent / 100.0);
        }
    }
    rewritten(graph, &products, &found)
}

impl Product {
    fn of(graph: &Graph, node: Node) -> Option<Product> {
        let data = graph.node(node);
        if !matches!(*data.op, Op::Conv(_) | Op::MatMul(_)) {
            return None;
        }
        let (x, weight) = (data.ins[0], graph.as_constant(data.ins[1])?);
        let rank = weight.rank();
        let channels = match &*data.op {
            Op::Conv(op) => {
                if op.channels_last {
                    rank - 1
                } else {
                    0
                }
            }
            Op::MatMul(op) => rank.checked_sub(if op.trans_b { 2 } else { 1 })?,
            _ => return None,
        };
        let floats = weight.dtype() == DType::F32 && graph.ty(x).dtype == DType::F32;
        let computed = graph.as_constant(x).is_none() && rank >= 2;
        (floats && computed).then(|| Product { node, x, weight: weight.clone(), channels })
    }

    /// The weight as bytes, and the scale of each output channel.
    fn bytes(&self) -> (Tensor, Tensor) {
        let shape = self.weight.shape();
        let values = self.weight.to_f64s();
        let inner: usize = shape[self.channels + 1..].iter().product();
        let channel = |i: usize| i / inner % shape[self.channels];
        let mut largest = vec![0.0f64; shape[self.channels]];
        for (i, value) in values.iter().enumerate() {
            largest[channel(i)] = largest[channel(i)].max(value.abs());
        }
        let scales: Vec<f32> = largest
            .iter()
            .map(|&m| if m > 0.0 && m.is_finite() { (m / 127.0) as f32 } else { 1.0 })
            .collect();
        let byte = |i: usize| (values[i] / f64::from(scales[channel(i)])).round_ties_even() as i8;
        (Tensor::from_fn::<i8>(shape, byte), Tensor::new(&[scales.len()], &scales))
    }
}

/// The graph with other outputs: what `of` makes of some of its values.
fn copied(
    graph: &Graph,
    values: &[Value],
    mut of: impl FnMut(&mut Builder, Value) -> Result<Vec<Value>, windlass_ir::Error>,
) -> Result<Graph, Error> {
    let mut copy = Copy::new(graph);
    for (_, data) in graph.nodes() {
        let ins = copy.operands(&data.ins);
        let outs = copy.b.push(data.op.clone(), &ins, data.name.clone())?;
        copy.note(&data.outs, &outs);
    }
    let mut count = 0;
    for value in values {
        let value = copy.operands(&[*value])[0];
        for out in of(&mut copy.b, value)? {
            copy.b.output(&format!("value.{count}"), out);
            count += 1;
        }
    }
    Ok(copy.b.finish()?)
}

/// A graph copied node by node.
struct Copy {
    b: Builder,
    map: SecondaryMap<Value, Option<Value>>,
}

impl Copy {
    fn new(graph: &Graph) -> Copy {
        let mut copy =
            Copy { b: Builder::new(&graph.name), map: SecondaryMap::with_capacity(graph.value_count()) };
        for (name, value) in graph.inputs() {
            copy.map[*value] = Some(copy.b.input(name, graph.ty(*value).clone()));
        }
        copy
    }

    fn operands(&self, ins: &[Value]) -> Values {
        ins.iter().map(|&v| self.map[v].expect("operands are copied before their users")).collect()
    }

    fn note(&mut self, old: &[Value], new: &[Value]) {
        old.iter().zip(new).for_each(|(&old, &new)| self.map[old] = Some(new));
    }
}

/// Adds to how many values lie in each part of a range.
fn count(x: &Tensor, (low, high): (f64, f64), counts: &mut [u64]) {
    let width = (high - low).max(f64::MIN_POSITIVE) / BINS as f64;
    for value in x.to_f64s() {
        let bin = ((value - low) / width) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
}

/// The smallest part of a range, in bins and with 0 in it, that leaves out at most half of the rest on either side.
fn middle((low, high): (f64, f64), counts: &[u64], share: f64) -> (f64, f64) {
    let total: u64 = counts.iter().sum();
    let outside = (total as f64 * (1.0 - share.clamp(0.0, 1.0)) / 2.0) as u64;
    let skipped = |counts: &mut dyn Iterator<Item = &u64>| {
        let mut sum = 0;
        counts
            .take_while(|&&n| {
                sum += n;
                sum <= outside
            })
            .count()
    };
    let width = (high - low) / BINS as f64;
    let below = skipped(&mut counts.iter());
    let above = skipped(&mut counts.iter().rev());
    ((low + below as f64 * width).min(0.0), (high - above as f64 * width).max(0.0))
}

fn rewritten(
    graph: &Graph,
    products: &[Product],
    ranges: &BTreeMap<Value, (f64, f64)>,
) -> Result<Graph, Error> {
    let mut copy = Copy::new(graph);
    let mut dequantized: BTreeMap<Value, Value> = BTreeMap::new();
    let mut products = products.iter().peekable();
    for (node, data) in graph.nodes() {
        let mut ins = copy.operands(&data.ins);
        if let Some(product) = products.next_if(|product| product.node == node) {
            copy.b.set_name(data.name.clone());
            ins[0] = match dequantized.get(&product.x) {
                Some(&value) => value,
                None => {
                    let value = activation(&mut copy.b, ins[0], ranges[&product.x])?;
                    dequantized.insert(product.x, value);
                    value
                }
            };
            let (bytes, scales) = product.bytes();
            let (bytes, scales) = (copy.b.constant(bytes), copy.b.constant(scales));
            let axis = product.channels as i64;
            ins[1] =
                copy.b.push1(DequantizeLinear { axis, block_size: 0, to: DType::F32 }, &[bytes, scales])?;
            copy.b.set_name(None);
        }
        let outs = copy.b.push(data.op.clone(), &ins, data.name.clone())?;
        copy.note(&data.outs, &outs);
    }
    for (name, value) in graph.outputs() {
        let value = copy.operands(&[*value])[0];
        copy.b.output(name, value);
    }
    // The weights as they were are read no more.
    let stages = [Stage::Pass(&dce::PASS)];
    Ok(windlass_passes::run(&copy.b.finish()?, &stages, &windlass_passes::Options::default())?.0)
}

/// A value quantized to u8 and back.
fn activation(b: &mut Builder, x: Value, (low, high): (f64, f64)) -> Result<Value, Error> {
    let width = high - low;
    let scale = if width > 0.0 && width.is_finite() { (width / 255.0) as f32 } else { 1.0 };
    let zero = (-low / f64::from(scale)).round_ties_even().clamp(0.0, 255.0) as u8;
    let (scale, zero) = (b.constant(Tensor::scalar(scale)), b.constant(Tensor::scalar(zero)));
    let x = b.push1(QuantizeLinear { axis: 1, block_size: 0, to: DType::U8 }, &[x, scale, zero])?;
    Ok(b.push1(DequantizeLinear { axis: 1, block_size: 0, to: DType::F32 }, &[x, scale, zero])?)
}

impl crate::nn::Model {
    /// The network for so many examples at a time as a graph of bytes, with ranges found on the first of these
    /// examples, so many at a time; those that do not fill the last are not looked at.
    pub fn quantized(&self, x: &Tensor, batch: usize, ranges: Ranges) -> Result<Graph, Error> {
        let count = x.shape().first().copied().unwrap_or(0);
        let batches = (0..count / batch.max(1)).map(|i| (i * batch..(i + 1) * batch).collect::<Vec<usize>>());
        let samples: Vec<Vec<Tensor>> =
            batches.map(|numbers| Ok(vec![take(x, &numbers)?])).collect::<Result<_, Error>>()?;
        quantize(&self.graph(batch)?, &samples, ranges, self.options())
    }
}
