//! What each op wants: the one table of the generator.
//!
//! A row names attributes as IR text does; flags and keywords it does not name are chosen at random.
//! Ops without a row fall through to [`Growing::anything`].

use windlass_ir::attrs::{AttrError, Slot};
use windlass_ir::ops::MaxPoolGrad;
use windlass_ir::{DType, Late, Op, ScalarFn, Tensor, TypeRule, eval_op};

use super::values::{Values, is_dyadic};
use super::{Growing, MOST_ELEMENTS, Precision, Proposal, Wanted};

/// An attribute's value.
pub(super) enum Set {
    Int(i64),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Float(f64),
    Bool(bool),
    Text(String),
    Word(&'static str),
    DType(DType),
    Tensor(Tensor),
}

use Precision::{Approximate, Exact, Sums};
use Set::{Bool, Float, Floats, Int, Ints, Text};
use Wanted::New;

const FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

fn is_number(dtype: DType) -> bool {
    dtype != DType::Bool
}

fn is_float(dtype: DType) -> bool {
    dtype.is_float()
}

fn any(_: DType) -> bool {
    true
}

/// A value with its element type and shape.
pub(super) type Main = (Wanted, DType, Vec<usize>);

impl Growing<'_> {
    /// An op of this name with operands that may suit it.
    pub(super) fn propose(&mut self, name: &str) -> Option<Proposal> {
        if let Some(f) = ScalarFn::from_name(name, DType::F32) {
            return self.elementwise(f);
        }
        let (op, wanted, precision, jumps) = match name {
            "constant" => {
                let (dtype, shape) = (self.dtype(any), self.shape(0, 3));
                let value = Values::Any.sample(&mut self.rng, dtype, &shape);
                (self.op(name, vec![("value", Set::Tensor(value))]), vec![], Exact, false)
            }
            "shape_of" | "flatten" => {
                let (x, _, shape) = self.main(any, 0, 4, false);
                let rank = shape.len() as i64;
                let axis = Int(self.rng.between(-rank, rank));
                let sets = if name == "flatten" { vec![("axis", axis)] } else { vec![] };
                (self.op(name, sets), vec![x], Exact, false)
            }
            "reduce_sum" | "reduce_mean" | "reduce_prod" | "reduce_max" | "reduce_min" => {
                let (x, _, shape) = self.main(is_number, 0, 4, false);
                let axes = self.axes(shape.len());
                let precision = match name {
                    "reduce_max" | "reduce_min" => Exact,
                    "reduce_mean" => Approximate,
                    _ => Sums,
                };
                (self.op(name, vec![("axes", Ints(axes))]), vec![x], precision, false)
            }
            "matmul" if self.rng.one_in(3) => return self.few_rows(),
            "matmul" => {
                let dtype = self.dtype(is_number);
                let [m, k, n] = [self.size(), self.size(), self.size()];
                let (a, b) = (self.rng.flag(), self.rng.flag());
                let batch = self.shape(0, 2);
                let other = self.broadcasting(&batch);
                let matrix = |batch: &[usize], rows, columns, swap| {
                    let last = if swap { [columns, rows] } else { [rows, columns] };
                    [batch, &last].concat()
                };
                let (x, w) = (matrix(&batch, m, k, a), matrix(&other, k, n, b));
                let columns = w.len() - if b { 2 } else { 1 };
                let ins = self.factors(dtype, [x, w], columns);
                (self.op(name, vec![("trans_a", Bool(a)), ("trans_b", Bool(b))]), ins, Sums, false)
            }
            "if" | "loop" | "scan" => return self.control(name),
            "rnn" | "gru" | "lstm" | "rnn_steps" | "gru_steps" | "lstm_steps" => return self.recurrent(name),
            "grid_sample" => {
                let dtype = self.dtype(is_float);
                let (spatial, _) = self.window();
                let batch = 1 + self.rng.below(2);
                let x = [&[batch, 1 + self.rng.below(3)], &spatial[..]].concat();
                let out: Vec<usize> = spatial.iter().map(|_| 1 + self.rng.below(3)).collect();
                let grid = [&[batch], &out[..], &[spatial.len()]].concat();
                let ins = vec![New(dtype, x, Values::Any), New(dtype, grid, Values::Within(-1.25, 1.25))];
                (self.op(name, vec![]), ins, Approximate, true)
            }
            "quantize_linear" | "dequantize_linear" => {
                let (float, int) = (self.dtype(is_float), *self.rng.choose(&[DType::I8, DType::U8]));
                let (shape, down) = (self.shape(0, 3), name == "quantize_linear");
                let (from, to) = if down { (float, int) } else { (int, float) };
                let zero = New(int, vec![], Values::Any);
                let scale = New(float, vec![], Values::Exactly(vec![0.25]));
                let ins =
                    [vec![New(from, shape, Values::Any), scale], vec![zero; self.rng.below(2)]].concat();
                (self.op(name, vec![("to", Set::DType(to))]), ins, Exact, true)
            }
            "dynamic_quantize_linear" => {
                let x = self.main(|d| d == DType::F32, 0, 3, true).0;
                (self.op(name, vec![]), vec![x], Approximate, true)
            }
            "nll_loss" | "softmax_cross_entropy" => {
                let dtype = self.dtype(is_float);
                let (batch, classes) = (1 + self.rng.below(3), 1 + self.rng.below(4));
                let spatial = self.shape(0, 1);
                let x = [&[batch, classes], &spatial[..]].concat();
                let target = [&[batch], &spatial[..]].concat();
                let target = New(self.index_type(), target, Values::Within(0.0, classes as f64 - 1.0));
                let weight = New(dtype, vec![classes], Values::Within(0.5, 2.0));
                let ins =
                    [vec![New(dtype, x, Values::Any), target], vec![weight; self.rng.below(2)]].concat();
                (self.op(name, vec![]), ins, Approximate, false)
            }
            "conv" | "conv_transpose" => return self.conv(name),
            "winograd_weight" | "winograd_input" | "winograd_output" => return self.winograd(name),
            "max_pool" | "average_pool" | "lp_pool" | "max_pool_indices" => return self.pool(name),
            "max_pool_grad" => return self.pool_grad(),
            "transpose" => {
                let (x, _, shape) = self.main(any, 0, 4, false);
                let perm = self.rng.shuffled(shape.len()).into_iter().map(|i| i as i64).collect();
                (self.op(name, vec![("perm", Ints(perm))]), vec![x], Exact, false)
            }
            "reshape" => {
                let (x, _, shape) = self.main(any, 0, 4, false);
                let sizes = self.other_shape(&shape);
                (
                    self.op(name, vec![("shape", Ints(sizes)), ("copy_zero", Bool(false))]),
                    vec![x],
                    Exact,
                    false,
                )
            }
            "broadcast" => {
                let target = self.shape(0, 3);
                let from = self.broadcasting(&target);
                let dtype = self.dtype(any);
                let sizes = self.broadcasting(&target);
                let sizes = sizes.into_iter().map(|n| n as i64).collect();
                let x = New(dtype, from, Values::Any);
                (self.op(name, vec![("shape", Ints(sizes))]), vec![x], Exact, false)
            }
            "unsqueeze" => {
                let (x, _, shape) = self.main(any, 0, 3, false);
                let count = self.rng.below(3);
                let axes = self.distinct_axes(shape.len() + count, count);
                (self.op(name, vec![("axes", Ints(axes))]), vec![x], Exact, false)
            }
            "squeeze" => {
                let mut shape = self.shape(0, 2);
                for _ in 0..self.rng.below(3) {
                    shape.insert(self.rng.below(shape.len() + 1), 1);
                }
                let ones: Vec<i64> = (0..shape.len())
                    .filter(|&d| shape[d] == 1)
                    .map(|d| self.axis_from_end(d, shape.len()))
                    .collect();
                let axes = ones.into_iter().filter(|_| self.rng.flag()).collect();
                let x = New(self.dtype(any), shape, Values::Any);
                (self.op(name, vec![("axes", Ints(axes))]), vec![x], Exact, false)
            }
            "slice" => {
                let (x, _, shape) = self.main(any, 1, 4, false);
                let axes = self.axes(shape.len());
                let bound = |g: &mut Self| match g.rng.below(8) {
                    0 => i64::MAX,
                    1 => i64::MIN,
                    _ => g.rng.between(-6, 6),
                };
                let starts = axes.iter().map(|_| bound(self)).collect();
                let ends = axes.iter().map(|_| bound(self)).collect();
                let steps = axes.iter().map(|_| *self.rng.choose(&[1, 1, 2, -1, -3])).collect();
                let sets = vec![
                    ("starts", Ints(starts)),
                    ("ends", Ints(ends)),
                    ("axes", Ints(axes)),
                    ("steps", Ints(steps)),
                ];
                (self.op(name, sets), vec![x], Exact, false)
            }
            "pad" => {
                let (x, dtype, shape) = self.main(any, 0, 3, false);
                let axes = self.axes(shape.len());
                let pads = (0..2 * axes.len()).map(|_| self.rng.between(-1, 3)).collect();
                let pads = if axes.is_empty() { vec![1; 2 * shape.len()] } else { pads };
                let fill = New(dtype, vec![], Values::Any);
                (self.op(name, vec![("pads", Ints(pads)), ("axes", Ints(axes))]), vec![x, fill], Exact, false)
            }
            "concat" => {
                let (x, dtype, shape) = self.main(any, 1, 3, false);
                let axis = self.rng.below(shape.len());
                let mut ins = vec![x];
                for _ in 0..self.rng.below(4) {
                    let mut other = shape.clone();
                    other[axis] = self.size();
                    ins.push(New(dtype, other, Values::Any));
                }
                let axis = self.axis_from_end(axis, shape.len());
                (self.op(name, vec![("axis", Int(axis))]), ins, Exact, false)
            }
            "gather" | "gather_elements" => {
                let (x, _, shape) = self.main(any, 1, 3, false);
                let axis = self.rng.below(shape.len());
                let mut at = shape.clone();
                at[axis] = self.size();
                let at = if name == "gather" { self.shape(0, 2) } else { at };
                let indices = New(self.index_type(), at, Values::Index(shape[axis]));
                let axis = self.axis_from_end(axis, shape.len());
                (self.op(name, vec![("axis", Int(axis))]), vec![x, indices], Exact, false)
            }
            "gather_nd" => {
                let (x, _, shape) = self.main(any, 1, 4, false);
                let batch = self.rng.below(shape.len());
                let tuple = 1 + self.rng.below(shape.len() - batch);
                let leading = self.shape(0, 1);
                let at = [&shape[..batch], &leading, &[tuple]].concat();
                let least = shape[batch..batch + tuple].iter().copied().min().unwrap_or(0);
                let indices = New(self.index_type(), at, Values::Index(least));
                (self.op(name, vec![("batch_dims", Int(batch as i64))]), vec![x, indices], Exact, false)
            }
            "scatter_elements" => {
                let (x, dtype, shape) = self.main(any, 1, 3, false);
                let axis = self.rng.below(shape.len());
                let mut at = shape.clone();
                at[axis] = self.size().min(4);
                let indices = New(self.index_type(), at.clone(), Values::Index(shape[axis]));
                let axis = self.axis_from_end(axis, shape.len());
                let ins = vec![x, indices, New(dtype, at, Values::Any)];
                (self.op(name, vec![("axis", Int(axis))]), ins, Sums, false)
            }
            "scatter_nd" => {
                let (x, dtype, shape) = self.main(any, 1, 3, false);
                let tuple = 1 + self.rng.below(shape.len());
                let leading = self.shape(0, 1);
                let least = shape[..tuple].iter().copied().min().unwrap_or(0);
                let indices = New(self.index_type(), [&leading, &[tuple][..]].concat(), Values::Index(least));
                let updates = New(dtype, [&leading, &shape[tuple..]].concat(), Values::Any);
                (self.op(name, vec![]), vec![x, indices, updates], Sums, false)
            }
            "tile" => {
                let (x, _, shape) = self.main(any, 0, 3, false);
                let repeats = shape.iter().map(|_| self.rng.between(0, 3)).collect();
                (self.op(name, vec![("repeats", Ints(repeats))]), vec![x], Exact, false)
            }
            "range" => {
                let dtype = self.dtype(is_number);
                let one = |low, high| New(dtype, vec![], Values::Within(low, high));
                (self.op(name, vec![]), vec![one(0.0, 3.0), one(2.0, 9.0), one(1.0, 2.0)], Exact, true)
            }
            "iota" => {
                let shape = self.shape(1, 3);
                let axis = Int(self.axis(shape.len()));
                let sizes = shape.into_iter().map(|n| n as i64).collect();
                let dtype = Set::DType(self.dtype(is_number));
                (
                    self.op(name, vec![("shape", Ints(sizes)), ("axis", axis), ("dtype", dtype)]),
                    vec![],
                    Exact,
                    false,
                )
            }
            "one_hot" => {
                let shape = self.shape(0, 2);
                let depth = self.rng.below(5);
                let axis = Int(self.axis(shape.len() + 1));
                let of =
                    self.dtype(|d| d == DType::I64 || d == DType::F32 || d == DType::U8 || d == DType::I32);
                let ins = vec![New(of, shape, Values::Any), New(self.dtype(any), vec![2], Values::Any)];
                (self.op(name, vec![("depth", Ints(vec![depth as i64])), ("axis", axis)]), ins, Exact, true)
            }
            "trilu" => {
                let (x, _, _) = self.main(any, 2, 4, false);
                let k = New(DType::I64, vec![], Values::Within(-3.0, 3.0));
                let ins = if self.rng.flag() { vec![x, k] } else { vec![x] };
                (self.op(name, vec![]), ins, Exact, false)
            }
            "cumulative_sum" | "cumulative_prod" => {
                let (x, _, shape) = self.main(is_number, 1, 3, false);
                let axis = self.axis(shape.len());
                (self.op(name, vec![("axis", Ints(vec![axis]))]), vec![x], Sums, false)
            }
            "arg_max" | "arg_min" | "hardmax" => {
                let of = if name == "hardmax" { is_float } else { is_number };
                let (x, _, shape) = self.main(of, 1, 3, true);
                let axis = self.axis(shape.len());
                (self.op(name, vec![("axis", Int(axis))]), vec![x], Exact, true)
            }
            "top_k" => {
                let (x, _, shape) = self.main(is_number, 1, 3, true);
                let axis = self.rng.below(shape.len());
                let k = self.rng.below(shape[axis] + 1) as i64;
                let axis = self.axis_from_end(axis, shape.len());
                (self.op(name, vec![("k", Ints(vec![k])), ("axis", Int(axis))]), vec![x], Exact, true)
            }
            "non_zero" => (self.op(name, vec![]), vec![self.main(any, 0, 3, true).0], Exact, true),
            "compress" => {
                let (x, _, shape) = self.main(any, 1, 3, false);
                let axis = self.rng.below(shape.len());
                let len = self.rng.below(shape[axis] + 1);
                let condition = New(DType::Bool, vec![len], Values::Any);
                let axis = self.axis_from_end(axis, shape.len());
                (self.op(name, vec![("axis", Int(axis))]), vec![x, condition], Exact, false)
            }
            "reverse_sequence" => {
                let (x, _, shape) = self.main(any, 2, 3, false);
                let order = self.rng.shuffled(shape.len());
                let (batch, time) = (order[0], order[1]);
                let lengths = Values::Within(0.0, shape[time] as f64);
                let lengths = New(self.index_type(), vec![shape[batch]], lengths);
                let sets = vec![
                    ("batch_axis", Int(batch as i64)),
                    ("time_axis", Int(time as i64 - shape.len() as i64)),
                ];
                (self.op(name, sets), vec![x, lengths], Exact, false)
            }
            "resize" => {
                let (x, dtype, shape) = self.main(any, 1, 3, false);
                let axes = self.axes(shape.len());
                let count = if axes.is_empty() { shape.len() } else { axes.len() };
                let sizes = (0..count).map(|_| self.rng.between(1, 6)).collect();
                let scales = (0..count).map(|_| *self.rng.choose(&[0.5, 1.0, 2.0, 3.0, 1.5])).collect();
                let mut sets = vec![("axes", Ints(axes)), ("antialias", Bool(self.rng.one_in(4)))];
                sets.push(if self.rng.flag() { ("sizes", Ints(sizes)) } else { ("scales", Floats(scales)) });
                let precision = if dtype.is_float() { Approximate } else { Exact };
                (self.op(name, sets), vec![x], precision, false)
            }
            "softmax" | "log_softmax" | "lp_norm" => {
                let (x, _, shape) = self.main(is_float, 1, 4, false);
                let mut sets = vec![("axis", Int(self.axis(shape.len())))];
                match name {
                    "lp_norm" => sets.push(("p", Int(self.rng.between(1, 2)))),
                    "log_softmax" => sets.push(("masked", Bool(false))),
                    _ => {}
                }
                (self.op(name, sets), vec![x], Approximate, false)
            }
            "layer_norm" | "rms_norm" => {
                let (x, dtype, shape) = self.main(is_float, 1, 4, true);
                let axis = self.rng.below(shape.len());
                let affine = New(dtype, shape[axis..].to_vec(), Values::Any);
                let ins = [vec![x], vec![affine; self.rng.below(3)]].concat();
                let axis = self.axis_from_end(axis, shape.len());
                (self.op(name, vec![("axis", Int(axis)), ("epsilon", Float(0.125))]), ins, Approximate, false)
            }
            "group_norm" | "instance_norm" => {
                let dtype = self.dtype(is_float);
                let (groups, per) = (1 + self.rng.below(3), 1 + self.rng.below(2));
                let shape = [vec![1 + self.rng.below(2), groups * per], self.shape(0, 2)].concat();
                let channel = New(dtype, vec![groups * per], Values::Any);
                let mut sets = vec![("epsilon", Float(0.125))];
                if name == "group_norm" {
                    sets.push(("num_groups", Int(groups as i64)));
                }
                let ins = vec![New(dtype, shape, Values::Any), channel.clone(), channel];
                (self.op(name, sets), ins, Approximate, false)
            }
            "batch_norm" => {
                let (x, dtype, shape) = self.main(is_float, 2, 4, false);
                let last = self.rng.flag();
                let count = shape[if last { shape.len() - 1 } else { 1 }];
                let channel = |values| New(dtype, vec![count], values);
                let variance = channel(Values::Within(0.5, 4.0));
                let ins = vec![x, channel(Values::Any), channel(Values::Any), channel(Values::Any), variance];
                (self.op(name, vec![("channels_last", Bool(last))]), ins, Approximate, false)
            }
            "lrn" => {
                let (x, _, _) = self.main(is_float, 2, 4, false);
                let size = Int(self.rng.between(1, 4));
                (self.op(name, vec![("size", size)]), vec![x], Approximate, false)
            }
            "gelu" | "silu" => {
                (self.op(name, vec![]), vec![self.main(is_float, 0, 4, false).0], Approximate, false)
            }
            "attention" => {
                let dtype = self.dtype(is_float);
                let (batch, heads, share) = (self.size(), 1 + self.rng.below(2), 1 + self.rng.below(2));
                let [queries, keys, depth, width] = [self.size(), self.size(), self.size(), self.size()];
                let tensor = |sizes: [usize; 4]| New(dtype, sizes.to_vec(), Values::Within(-2.0, 2.0));
                let q = tensor([batch, heads * share, queries, depth]);
                let mut ins =
                    vec![q, tensor([batch, heads, keys, depth]), tensor([batch, heads, keys, width])];
                if self.rng.flag() {
                    let mask = self.broadcasting(&[batch, heads * share, queries, keys]);
                    ins.push(New(*self.rng.choose(&[DType::Bool, dtype]), mask, Values::Any));
                }
                (self.op(name, vec![("scale", Float(0.5))]), ins, Approximate, false)
            }
            "einsum" => {
                let dtype = self.dtype(is_number);
                let [i, j, k] = [self.size(), self.size(), self.size()];
                let rows: [(&str, Vec<Vec<usize>>); 6] = [
                    ("ij,jk->ik", vec![vec![i, j], vec![j, k]]),
                    ("...ij->...ji", vec![vec![2, i, j]]),
                    ("ii->i", vec![vec![i, i]]),
                    ("bij,bkj", vec![vec![2, i, j], vec![2, k, j]]),
                    ("i,j,ij->", vec![vec![i], vec![j], vec![i, j]]),
                    ("i...,...->i...", vec![vec![i, j], vec![j]]),
                ];
                let (equation, shapes) = self.rng.choose(&rows).clone();
                let ins = shapes.into_iter().map(|s| New(dtype, s, Values::Any)).collect();
                (self.op(name, vec![("equation", Text(equation.to_string()))]), ins, Sums, false)
            }
            "det" => {
                let (dtype, n) = (self.dtype(is_float), self.rng.below(4));
                let shape = [self.shape(0, 1), vec![n, n]].concat();
                (
                    self.op(name, vec![]),
                    vec![New(dtype, shape, Values::Within(-1.0, 1.0))],
                    Approximate,
                    false,
                )
            }
            "dft" => {
                let (dtype, parts) = (self.dtype(is_float), 1 + self.rng.below(2));
                let shape = [self.shape(0, 1), vec![2 + self.rng.below(70), parts]].concat();
                let ins = vec![New(dtype, shape, Values::Any)];
                (
                    self.op(name, vec![("axis", Ints(vec![-2])), ("length", Ints(vec![]))]),
                    ins,
                    Approximate,
                    false,
                )
            }
            "dft_pass" => {
                let dtype = *self.rng.choose(&[DType::F32, DType::F64]);
                let radix = *self.rng.choose(&[2, 3, 4, 5, 7, 8, 11]);
                let (turns, inner) = (self.size(), 1 + self.rng.below(6));
                let part = New(dtype, vec![self.size(), radix, turns, inner], Values::Any);
                let turn = New(dtype, vec![radix - 1, turns], Values::Within(-1.0, 1.0));
                let ins = [vec![part; 2], vec![turn; 2 * self.rng.below(2)]].concat();
                (self.op(name, vec![]), ins, Approximate, true)
            }
            "non_max_suppression" => {
                let (batch, boxes) = (self.size(), self.size());
                let tensor = |shape: Vec<usize>| New(DType::F32, shape, Values::Any);
                let scores = tensor(vec![batch, 1 + self.rng.below(2), boxes]);
                let ins = vec![
                    tensor(vec![batch, boxes, 4]),
                    scores,
                    New(DType::I64, vec![], Values::Within(0.0, 4.0)),
                    New(DType::F32, vec![], Values::Exactly(vec![0.5])),
                ];
                (self.op(name, vec![]), ins, Exact, true)
            }
            "roi_align" => {
                let (dtype, regions) = (self.dtype(is_float), self.size());
                let x = vec![1, 1 + self.rng.below(2), 2 + self.rng.below(3), 2 + self.rng.below(3)];
                let ins = vec![
                    New(dtype, x, Values::Any),
                    New(dtype, vec![regions, 4], Values::Within(0.0, 3.0)),
                    New(DType::I64, vec![regions], Values::Within(0.0, 0.0)),
                ];
                let sets = vec![
                    ("output_height", Int(1 + self.rng.below(2) as i64)),
                    ("output_width", Int(1 + self.rng.below(3) as i64)),
                    ("sampling_ratio", Int(self.rng.below(3) as i64)),
                    ("spatial_scale", Float(0.5)),
                ];
                (self.op(name, sets), ins, Approximate, true)
            }
            "col2im" => {
                let dtype = self.dtype(is_number);
                let [n, k] = [2 + self.rng.below(4), 1 + self.rng.below(2)];
                let x = vec![self.size(), k * k * (1 + self.rng.below(2)), (n - k + 1) * (n - k + 1)];
                let square = |n: usize| Ints(vec![n as i64; 2]);
                let sets = vec![("image_shape", square(n)), ("block_shape", square(k))];
                (self.op(name, sets), vec![New(dtype, x, Values::Any)], Sums, false)
            }
            "deform_conv" => {
                let dtype = self.dtype(is_float);
                let (batch, channels, features) = (self.size(), 1 + self.rng.below(2), 1 + self.rng.below(3));
                let [n, k] = [2 + self.rng.below(3), 1 + self.rng.below(2)];
                let ins = vec![
                    New(dtype, vec![batch, channels, n, n], Values::Any),
                    New(dtype, vec![features, channels, k, k], Values::Any),
                    New(dtype, vec![batch, 2 * k * k, n - k + 1, n - k + 1], Values::Within(-1.5, 1.5)),
                ];
                let sets = vec![
                    ("group", Int(1)),
                    ("offset_group", Int(1)),
                    ("bias", Bool(false)),
                    ("mask", Bool(false)),
                ];
                (self.op(name, sets), ins, Approximate, true)
            }
            _ => return self.anything(name),
        };
        Some(Proposal { op, wanted, precision, jumps })
    }

    /// A scalar function over operands that broadcast, in a domain where it is smooth.
    fn elementwise(&mut self, f: ScalarFn) -> Option<Proposal> {
        use ScalarFn as F;
        let filter: fn(DType) -> bool = match f.rule() {
            TypeRule::Float | TypeRule::FloatTest => is_float,
            TypeRule::Number => is_number,
            TypeRule::Bits => |d| !d.is_float(),
            TypeRule::Int => DType::is_int,
            TypeRule::Halves => |d| matches!(d, DType::I8 | DType::I16),
            TypeRule::Words => |d| d == DType::I32,
            TypeRule::Bytes => |d| d == DType::I16,
            TypeRule::Compare | TypeRule::Select | TypeRule::Convert => any,
        };
        let jumps = matches!(
            f,
            F::Floor | F::Ceil | F::Trunc | F::Round | F::Sign | F::Rem | F::Mod | F::Cast(_) | F::Bitcast(_)
        ) || f.rule() == TypeRule::Compare;
        // Which values each operand may have where the function is defined and not steep.
        let domain = |dtype: DType| -> [Values; 3] {
            let first = |values| [values, Values::Any, Values::Any];
            match f {
                F::Div | F::Rem | F::Mod if dtype.is_float() => {
                    [Values::Any, Values::Magnitude(0.5, 8.0), Values::Any]
                }
                F::Pow if dtype.is_float() => {
                    [Values::Within(0.5, 3.0), Values::Within(-2.0, 2.0), Values::Any]
                }
                F::Pow => [Values::Within(0.0, 4.0), Values::Within(0.0, 3.0), Values::Any],
                F::Sqrt => first(Values::Within(0.25, 64.0)),
                F::Exp | F::Expm1 | F::Sinh | F::Cosh => first(Values::Within(-4.0, 4.0)),
                F::Log => first(Values::Within(0.25, 64.0)),
                F::Log1p => first(Values::Within(-0.5, 64.0)),
                F::Tan => first(Values::Within(-1.25, 1.25)),
                F::Sin | F::Cos => first(Values::Within(-64.0, 64.0)),
                F::Asin | F::Acos | F::Atanh => first(Values::Within(-0.875, 0.875)),
                F::Acosh => first(Values::Within(1.25, 64.0)),
                // No rule gives the sign of a sum that is zero.
                F::Bitcast(_) if dtype.is_float() => first(Values::Magnitude(0.0625, 4096.0)),
                F::Clamp => [Values::Any, Values::Within(0.0, 1.0), Values::Within(1.0, 3.0)],
                F::Shl | F::Shr => [Values::Any, Values::Within(0.0, 5.0), Values::Any],
                _ => [Values::Any, Values::Any, Values::Any],
            }
        };
        let precision = match f {
            F::Exp
            | F::Expm1
            | F::Log
            | F::Log1p
            | F::Sin
            | F::Cos
            | F::Tan
            | F::Asin
            | F::Acos
            | F::Atan => Approximate,
            F::Sinh | F::Cosh | F::Tanh | F::Asinh | F::Acosh | F::Atanh | F::Erf | F::Sigmoid | F::Pow => {
                Approximate
            }
            F::Rem | F::Mod => Approximate,
            _ => Exact,
        };
        let (main, dtype, shape) = self.main(filter, 0, 4, jumps);
        let domain = domain(dtype);
        let fits = match &main {
            Wanted::Entry(i) => domain[0].hold(&self.entries[*i].tensor),
            New(..) | Wanted::Dequantized(..) | Wanted::InBlocks(..) => false,
        };
        let first = if fits { main } else { New(dtype, shape.clone(), domain[0].clone()) };
        let mut wanted = vec![first];
        for values in &domain[1..f.arity()] {
            wanted.push(New(dtype, self.broadcasting(&shape), values.clone()));
        }
        let f = match f {
            F::Cast(_) => F::Cast(self.dtype(any)),
            F::Bitcast(_) => F::Bitcast(self.dtype(|to| to.size() == dtype.size())),
            F::Select => {
                wanted[0] = New(DType::Bool, self.broadcasting(&shape), Values::Any);
                f
            }
            _ => f,
        };
        // The operands broadcast together in any order.
        if f.arity() == 2 && domain[0] == domain[1] && self.rng.flag() {
            wanted.swap(0, 1);
        }
        let op = Op::from(windlass_ir::ops::Elementwise { f });
        Some(Proposal { op, wanted, precision, jumps })
    }

    fn conv(&mut self, name: &str) -> Option<Proposal> {
        let dtype = self.dtype(is_number);
        let (group, per_in) = (1 + self.rng.below(3), 1 + self.rng.below(4));
        let per_out = *self.rng.choose(&[1, 2, 2, 5]);
        let (spatial, [kernel, strides, dilations, pads]) = self.window();
        let transposed = name == "conv_transpose";
        let last = !transposed && self.rng.flag();
        let (channels, features) = (group * per_in, group * per_out);
        let batch = self.rng.below(3);
        let (x, w) = match last {
            true => (
                [vec![batch], spatial.clone(), vec![channels]].concat(),
                [kernel, vec![per_in, features]].concat(),
            ),
            false => (
                [vec![batch, channels], spatial.clone()].concat(),
                [if transposed { vec![channels, per_out] } else { vec![features, per_in] }, kernel].concat(),
            ),
        };
        let out = if last { w.len() - 1 } else { 0 };
        let mut wanted = match transposed {
            true => [x, w].map(|shape| New(dtype, shape, Values::Any)).into(),
            false => self.factors(dtype, [x, w], out),
        };
        if self.rng.flag() {
            wanted.push(New(dtype, vec![features], Values::Any));
        }
        let ints = |sizes: Vec<usize>| Ints(sizes.into_iter().map(|n| n as i64).collect());
        let mut sets = vec![
            ("strides", ints(strides)),
            ("pads", ints(pads)),
            ("dilations", ints(dilations)),
            ("group", Int(group as i64)),
        ];
        if !transposed {
            sets.push(("channels_last", Bool(last)));
        }
        Some(Proposal { op: self.op(name, sets), wanted, precision: Sums, jumps: false })
    }

    /// The factors of a product, now and then dequantized: the weight with scales for `out`, its dimension that the
    /// product keeps.
    fn factors(&mut self, dtype: DType, [x, w]: [Vec<usize>; 2], out: usize) -> Vec<Wanted> {
        if dtype != DType::F32 || self.rng.flag() {
            return vec![New(dtype, x, Values::Any), New(dtype, w, Values::Any)];
        }
        vec![Wanted::Dequantized(x, None), Wanted::Dequantized(w, Some(out))]
    }

    /// A product of few rows with a quantized weight that is large enough to stay so.
    fn few_rows(&mut self) -> Option<Proposal> {
        let rows = 1 + self.rng.below(5);
        let (steps, block) = *self.rng.choose(&[(32, 32), (32, 16), (48, 16), (24, 8), (33, 11), (30, 16)]);
        let columns = 1 + self.rng.below(MOST_ELEMENTS / steps);
        let transposed = self.rng.flag();
        let shape = if transposed { vec![columns, steps] } else { vec![steps, columns] };
        let weight = match self.rng.one_in(3) {
            true => Wanted::Dequantized(shape, Some(usize::from(!transposed))),
            false => Wanted::InBlocks(shape, usize::from(transposed), block),
        };
        let wanted = vec![New(DType::F32, vec![rows, steps], Values::Any), weight];
        let op = self.op("matmul", vec![("trans_b", Bool(transposed))]);
        Some(Proposal { op, wanted, precision: Sums, jumps: false })
    }

    fn pool(&mut self, name: &str) -> Option<Proposal> {
        let jumps = name == "max_pool_indices";
        let dtype = self.dtype(if matches!(name, "average_pool" | "lp_pool") { is_float } else { is_number });
        let (spatial, [kernel, strides, dilations, mut pads]) = self.window();
        // Padding beyond the kernel makes windows of nothing.
        for (i, pad) in pads.iter_mut().enumerate() {
            *pad = (*pad).min(kernel[i % kernel.len().max(1)] - 1);
        }
        let leading = vec![1 + self.rng.below(2), 1 + self.rng.below(3)];
        let ints = |sizes: Vec<usize>| Ints(sizes.into_iter().map(|n| n as i64).collect());
        let mut sets = vec![
            ("kernel_shape", ints(kernel)),
            ("strides", ints(strides)),
            ("pads", ints(pads)),
            ("dilations", ints(dilations)),
        ];
        let mut shape = [leading, spatial].concat();
        if !jumps {
            let last = self.rng.flag();
            sets.push(("channels_last", Bool(last)));
            if last {
                let channels = shape.remove(1);
                shape.push(channels);
            }
        }
        if name == "lp_pool" {
            sets.push(("p", Int(self.rng.between(1, 2))));
        }
        let precision = if name == "max_pool" { Exact } else { Approximate };
        let wanted = vec![New(dtype, shape, Values::Any)];
        Some(Proposal { op: self.op(name, sets), wanted, precision, jumps })
    }

    /// What flows back through max pooling of some image.
    fn pool_grad(&mut self) -> Option<Proposal> {
        let Proposal { op: Op::Pool(pool), wanted, .. } = self.pool("max_pool")? else { return None };
        let New(_, shape, values) = &wanted[0] else { return None };
        let dtype = self.dtype(is_float);
        let x = values.sample(&mut self.rng, dtype, shape);
        let y = eval_op(&Op::from(pool.clone()), std::slice::from_ref(&x)).ok()?.remove(0);
        let pooled = y.shape().to_vec();
        let wanted = vec![
            New(dtype, shape.clone(), Values::Exactly(x.to_f64s())),
            New(dtype, pooled.clone(), Values::Exactly(y.to_f64s())),
            New(dtype, pooled, Values::Any),
        ];
        Some(Proposal { op: MaxPoolGrad { pool }.into(), wanted, precision: Sums, jumps: true })
    }

    /// Spatial sizes, and kernel, strides, dilations and pads that suit them.
    fn window(&mut self) -> (Vec<usize>, [Vec<usize>; 4]) {
        let rank = 1 + self.rng.below(3);
        let mut pick = |sizes: &[usize], count: usize| -> Vec<usize> {
            (0..count).map(|_| *self.rng.choose(sizes)).collect()
        };
        let spatial = pick(&[3, 4, 5, 7], rank);
        let window = [
            pick(&[1, 2, 3], rank),
            pick(&[1, 1, 2, 3], rank),
            pick(&[1, 1, 2], rank),
            pick(&[0, 0, 1, 2], 2 * rank),
        ];
        (spatial, window)
    }

    /// Random operands and attributes, for an op that has no row.
    fn anything(&mut self, name: &str) -> Option<Proposal> {
        let (main, dtype, shape) = self.main(any, 0, 4, true);
        let mut wanted = vec![main];
        for _ in 0..self.rng.below(4) {
            let other = match self.rng.below(4) {
                0 => shape.clone(),
                1 => self.broadcasting(&shape),
                2 => vec![shape.last().copied().unwrap_or(1)],
                _ => self.shape(0, 3),
            };
            let dtype = if self.rng.one_in(3) { self.dtype(any) } else { dtype };
            wanted.push(New(dtype, other, Values::Any));
        }
        if self.rng.one_in(8) {
            wanted.clear();
        }
        let mut op = Op::from_name(name)?;
        let rng = &mut self.rng;
        let mut visit = |_: &'static str, slot: Slot<'_>| {
            if rng.flag() {
                return Ok(());
            }
            let count = rng.below(shape.len() + 2);
            match slot {
                Slot::Int(i) => *i = rng.between(-2, 3),
                Slot::Ints(ints) => *ints = (0..count).map(|_| rng.between(0, 3)).collect(),
                Slot::Float(x) => *x = rng.between(1, 8) as f64 / 4.0,
                Slot::Floats(xs) => *xs = (0..count).map(|_| rng.between(1, 8) as f64 / 4.0).collect(),
                Slot::Bool(flag) => *flag = rng.flag(),
                Slot::Keyword(keyword) => {
                    let words = keyword.words();
                    keyword.set_word(words[rng.below(words.len())]);
                }
                Slot::DType(dtype) => *dtype = *rng.choose(&DType::ALL),
                Slot::Late(late) => *late = Late::Known((0..count).map(|_| rng.between(0, 3)).collect()),
                Slot::Text(_) | Slot::Tensor(_) | Slot::Graph(_) => {}
            }
            Ok(())
        };
        op.attrs(&mut visit).ok()?;
        Some(Proposal { op, wanted, precision: Approximate, jumps: true })
    }

    /// The op of this name with these attributes; other flags and keywords are chosen at random.
    pub(super) fn op(&mut self, name: &str, sets: Vec<(&'static str, Set)>) -> Op {
        let mut op = Op::from_name(name).unwrap_or_else(|| panic!("there is no op {name}"));
        let mut left: Vec<&str> = sets.iter().map(|(name, _)| *name).collect();
        let rng = &mut self.rng;
        let mut visit = |attr: &'static str, slot: Slot<'_>| {
            left.retain(|name| *name != attr);
            let set = sets.iter().find(|(name, _)| *name == attr).map(|(_, set)| set);
            match (slot, set) {
                (Slot::Int(i), Some(Int(value))) => *i = *value,
                (Slot::Ints(ints), Some(Ints(value))) => *ints = value.clone(),
                (Slot::Late(late), Some(Ints(value))) => *late = Late::Known(value.clone()),
                (Slot::Float(x), Some(Float(value))) => *x = *value,
                (Slot::Floats(xs), Some(Floats(value))) => *xs = value.clone(),
                (Slot::Bool(flag), Some(Bool(value))) => *flag = *value,
                (Slot::Text(text), Some(Text(value))) => *text = value.clone(),
                (Slot::DType(dtype), Some(Set::DType(value))) => *dtype = *value,
                (Slot::Tensor(tensor), Some(Set::Tensor(value))) => *tensor = value.clone(),
                (Slot::Keyword(keyword), Some(Set::Word(word))) => {
                    assert!(keyword.set_word(word), "{name} has no {attr} {word}");
                }
                (Slot::Bool(flag), None) => *flag = rng.flag(),
                (Slot::Keyword(keyword), None) => {
                    let words = keyword.words();
                    keyword.set_word(words[rng.below(words.len())]);
                }
                (_, None) => {}
                (_, Some(_)) => {
                    let message = "is of another kind than the generator's table says".to_string();
                    return Err(AttrError { name: attr.to_string(), message });
                }
            }
            Ok(())
        };
        op.attrs(&mut visit).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(left.is_empty(), "{name} has no attributes {left:?}");
        op
    }

    /// A value of the graph of a suitable type and rank, or the wish for a new one.
    pub(super) fn main(
        &mut self,
        dtype: impl Fn(DType) -> bool,
        least: usize,
        most: usize,
        exactly: bool,
    ) -> Main {
        let fits = |e: &super::Entry| {
            let ranks = (least..=most).contains(&e.tensor.rank());
            dtype(e.tensor.dtype()) && ranks && (!exactly || (e.exact && is_dyadic(&e.tensor)))
        };
        let found: Vec<usize> = (0..self.entries.len()).filter(|&i| fits(&self.entries[i])).collect();
        if !found.is_empty() && !self.rng.one_in(3) {
            // Later values are more likely, so that graphs grow deep.
            let pick = self.rng.below(found.len()).max(self.rng.below(found.len()));
            let tensor = &self.entries[found[pick]].tensor;
            return (Wanted::Entry(found[pick]), tensor.dtype(), tensor.shape().to_vec());
        }
        let (dtype, shape) = (self.dtype(dtype), self.shape(least, most));
        (New(dtype, shape.clone(), Values::Any), dtype, shape)
    }

    /// An element type; floats are as likely as all others together.
    pub(super) fn dtype(&mut self, accept: impl Fn(DType) -> bool) -> DType {
        let all: Vec<DType> = DType::ALL.into_iter().filter(|&d| accept(d)).collect();
        let floats: Vec<DType> = FLOATS.into_iter().filter(|&d| accept(d)).collect();
        match !floats.is_empty() && self.rng.flag() {
            true => *self.rng.choose(&floats),
            false => *self.rng.choose(&all),
        }
    }

    fn index_type(&mut self) -> DType {
        *self.rng.choose(&[DType::I32, DType::I64])
    }

    /// A size, seldom 0.
    fn size(&mut self) -> usize {
        *self.rng.choose(&[1, 2, 3, 4, 5, 7, 2, 3, 1, 4, 9, 3, 2, 5, 3, 4, 2, 1, 6, 0])
    }

    fn shape(&mut self, least: usize, most: usize) -> Vec<usize> {
        let rank = self.rng.between(least as i64, most as i64);
        (0..rank).map(|_| self.size()).collect()
    }

    /// A shape that broadcasts to this one.
    fn broadcasting(&mut self, shape: &[usize]) -> Vec<usize> {
        if self.rng.flag() {
            return shape.to_vec();
        }
        let skipped = self.rng.below(shape.len() + 1);
        shape[skipped..].iter().map(|&n| if self.rng.one_in(3) { 1 } else { n }).collect()
    }

    /// Another shape of as many elements, -1 now and then.
    fn other_shape(&mut self, shape: &[usize]) -> Vec<i64> {
        let mut sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        for _ in 0..3 {
            let at = self.rng.below(sizes.len() + 1);
            match self.rng.below(3) {
                0 => sizes.insert(at, 1),
                1 if at + 1 < sizes.len() => {
                    let merged = sizes.remove(at);
                    sizes[at] *= merged;
                }
                2 if at < sizes.len() && sizes[at] % 2 == 0 && sizes[at] > 0 => {
                    sizes[at] /= 2;
                    sizes.insert(at, 2);
                }
                _ => {}
            }
        }
        if !sizes.is_empty() && !sizes.contains(&0) && self.rng.one_in(3) {
            let at = self.rng.below(sizes.len());
            sizes[at] = -1;
        }
        sizes
    }

    /// The axis, counted from the end now and then.
    fn axis_from_end(&mut self, axis: usize, rank: usize) -> i64 {
        if self.rng.flag() { axis as i64 } else { axis as i64 - rank as i64 }
    }

    fn axis(&mut self, rank: usize) -> i64 {
        let axis = self.rng.below(rank);
        self.axis_from_end(axis, rank)
    }

    fn distinct_axes(&mut self, rank: usize, count: usize) -> Vec<i64> {
        let order = self.rng.shuffled(rank);
        order.into_iter().take(count).map(|axis| self.axis_from_end(axis, rank)).collect()
    }

    /// Any number of distinct axes.
    fn axes(&mut self, rank: usize) -> Vec<i64> {
        let count = self.rng.below(rank + 1);
        self.distinct_axes(rank, count)
    }
}
