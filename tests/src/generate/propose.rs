//! What each op wants: the one table of the generator.
//!
//! A row names attributes as IR text does; flags and keywords it does not name are chosen at random.
//! Ops without a row fall through to [`Growing::anything`].

mod choices;
mod scalar;
mod windows;

use windlass_ir::{DType, ScalarFn};

use super::values::Values;
use super::{Growing, Precision, Proposal, Wanted};

pub(super) use self::choices::Set;
use Precision::{Approximate, Exact, Sums};
use Set::{Bool, Float, Floats, Int, Ints, Text};
use Wanted::New;

fn is_number(dtype: DType) -> bool {
    dtype != DType::Bool
}

fn is_float(dtype: DType) -> bool {
    dtype.is_float()
}

fn any(_: DType) -> bool {
    true
}

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
                let last = self.rng.flag();
                let mut shape = [vec![1 + self.rng.below(2), groups * per], self.shape(0, 2)].concat();
                if last {
                    shape[1..].rotate_left(1);
                }
                let channel = New(dtype, vec![groups * per], Values::Any);
                let mut sets = vec![("epsilon", Float(0.125)), ("channels_last", Bool(last))];
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
                let sets = vec![("size", size), ("channels_last", Bool(self.rng.flag()))];
                (self.op(name, sets), vec![x], Approximate, false)
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
}
