//! `attention`: softmax of scaled products of queries and keys, times values.

use super::{Iota, Lowered, MatMul, OpDef, Reshape, Softmax, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Late, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, broadcast_dims, strides};

/// What the second result shows, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// There is no second result.
    None,
    /// Scaled products of queries and keys.
    Product,
    /// Products after the soft cap.
    Capped,
    /// Capped products with the mask applied.
    Masked,
    /// Probabilities.
    Softmax,
}

impl Keyword for Scores {
    const ALL: &'static [(&'static str, Scores)] = &[
        ("none", Scores::None),
        ("product", Scores::Product),
        ("capped", Scores::Capped),
        ("masked", Scores::Masked),
        ("softmax", Scores::Softmax),
    ];
}

/// Attention over heads: `q` `[B, H, S, D]`, `k` `[B, G, T, D]`, `v` `[B, G, T, E]` and an optional mask
/// that broadcasts to `[B, H, S, T]` give `[B, H, S, E]`. With fewer key heads than query heads, each
/// serves H/G neighbouring query heads.
///
/// A score is `scale * sum(q * k)`, capped to `softcap * tanh(score / softcap)` if `softcap` is not 0. A
/// key is left out where the mask is false or -inf, where it lies more than `left` before or `right`
/// after the query's position, and with `is_causal` after it; else a mask of floats is added. Query `i`
/// has position `i + offset`. A query with no key left gives 0. f16 and bf16 are computed in f32 and
/// rounded once.
///
/// - (C1) q, k and v are floats of one type and rank 4, with B, D and T in common;
/// - (C2) the heads of k and v are equal and divide those of q;
/// - (C3) the mask is bool or of the type of q and broadcasts to the scores;
/// - (C4) the offset is empty or one integer; `left` and `right` are -1 (no bound) or more.
///
/// ONNX: `Attention` (23..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// The factor of the products; 0 means 1 / sqrt(D).
    pub scale: f64,
    /// Scores stay within this; 0 means they are not capped.
    pub softcap: f64,
    /// Whether keys after the query are left out.
    pub is_causal: bool,
    /// How many keys before the query are seen; -1 for all.
    pub left: i64,
    /// How many keys after the query are seen; -1 for all.
    pub right: i64,
    /// The position of the first query among the keys; empty means 0.
    pub offset: Late,
    /// The second result.
    pub scores: Scores,
}

impl Attention {
    /// All keys, scaled by 1 / sqrt(D).
    pub fn plain() -> Attention {
        Attention {
            scale: 0.0,
            softcap: 0.0,
            is_causal: false,
            left: -1,
            right: -1,
            offset: Late::default(),
            scores: Scores::None,
        }
    }

    fn scale(&self, size: usize) -> f64 {
        if self.scale == 0.0 { 1.0 / (size as f64).sqrt() } else { self.scale }
    }

    /// The keys that a query at position 0 sees, as bounds on their position.
    fn span(&self) -> (Option<i64>, Option<i64>) {
        let bound = |n: i64| (n >= 0).then_some(n);
        let right = match self.is_causal {
            true => Some(bound(self.right).unwrap_or(0).min(0)),
            false => bound(self.right),
        };
        (bound(self.left).map(|n| -n), right)
    }

    fn offset(&self) -> i64 {
        self.offset.known().first().copied().unwrap_or(0)
    }
}

impl OpDef for Attention {
    const NAMES: &'static [&'static str] = &["attention"];

    fn with_name(_: &str) -> Attention {
        Attention::plain()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("scale", Slot::Float(&mut self.scale))?;
        codec.attr("softcap", Slot::Float(&mut self.softcap))?;
        codec.attr("is_causal", Slot::Bool(&mut self.is_causal))?;
        codec.attr("left", Slot::Int(&mut self.left))?;
        codec.attr("right", Slot::Int(&mut self.right))?;
        codec.attr("offset", Slot::Late(&mut self.offset))?;
        codec.attr("scores", Slot::Keyword(&mut self.scores))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        let offset_at = match self.offset {
            Late::Known(_) => usize::MAX,
            Late::Operand(i) => i as usize,
        };
        let operands: Vec<&TensorType> =
            ins.iter().enumerate().filter(|(i, _)| *i != offset_at).map(|(_, ty)| *ty).collect();
        arity(&operands, 3..=4)?;
        let (q, k, v) = (operands[0], operands[1], operands[2]);
        for ty in [q, k, v] {
            let fits = ty.dtype.is_float() && ty.dtype == q.dtype && ty.rank() == 4;
            require!(fits, "C1", "{q}, {k} and {v} are not floats of one type and rank 4");
        }
        let same = |a: &TensorType, b: &TensorType, d: usize| a.dims[d].may_equal(&b.dims[d]);
        let common = same(q, k, 0) && same(q, v, 0) && same(q, k, 3) && same(k, v, 2);
        require!(common, "C1", "{q}, {k} and {v} differ in batch, length or size");
        require!(same(k, v, 1), "C2", "{k} and {v} have different heads");
        if let (Some(h), Some(g)) = (q.dims[1].as_fixed(), k.dims[1].as_fixed()) {
            require!(g > 0 && h % g == 0, "C2", "{g} key heads do not divide {h} query heads");
        }
        let scores: Vec<Dim> = [&q.dims[0], &q.dims[1], &q.dims[2], &k.dims[2]].map(Dim::clone).into();
        if let Some(mask) = operands.get(3) {
            let fits = mask.dtype == DType::Bool || mask.dtype == q.dtype;
            let broadcasts = broadcast_dims(&scores, &mask.dims)
                .is_some_and(|dims| dims.len() == 4 && dims.iter().zip(&scores).all(|(a, b)| a.may_equal(b)));
            require!(fits && broadcasts, "C3", "{mask} does not mask scores of {q} and {k}");
        }
        let single = self.offset.as_known().is_none_or(|ints| ints.len() <= 1);
        let bounded = self.left >= -1 && self.right >= -1;
        require!(
            single && bounded,
            "C4",
            "offset {:?}, left {}, right {}",
            self.offset,
            self.left,
            self.right
        );
        let mut outs =
            vec![TensorType::new(q.dtype, [&q.dims[0], &q.dims[1], &q.dims[2], &v.dims[3]].map(Dim::clone))];
        if self.scores != Scores::None {
            outs.push(TensorType::new(q.dtype, scores));
        }
        Ok(outs)
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (q, k, v) = (&ins[0], &ins[1], &ins[2]);
        let (heads, queries, size) = (q.shape()[1], q.shape()[2], q.shape()[3]);
        let (groups, keys, width) = (k.shape()[1], k.shape()[2], v.shape()[3]);
        let (qs, ks, vs) = (q.to_f64s(), k.to_f64s(), v.to_f64s());
        let mask = ins.get(3).map(|mask| {
            let steps: Shape = strides(mask.shape())
                .iter()
                .zip(mask.shape())
                .map(|(&s, &n)| if n == 1 { 0 } else { s })
                .collect();
            (mask.to_f64s(), mask.dtype() == DType::Bool, steps)
        });
        let masked = |at: [usize; 4], score: f64| {
            let Some((mask, is_bool, steps)) = &mask else { return score };
            let value = mask[position(&at[4 - steps.len()..], steps)];
            match is_bool {
                true => {
                    if value != 0.0 {
                        score
                    } else {
                        f64::NEG_INFINITY
                    }
                }
                false => {
                    if value == f64::NEG_INFINITY {
                        value
                    } else {
                        score + value
                    }
                }
            }
        };
        let (first, last) = self.span();
        let mut result = Vec::new();
        let mut shown = Vec::new();
        for at in points(&q.shape()[..3]) {
            let (batch, head, query) = (at[0], at[1], at[2]);
            let group = batch * groups + head / (heads / groups);
            let from = ((batch * heads + head) * queries + query) * size;
            let mut row = Vec::with_capacity(keys);
            for key in 0..keys {
                let at_key = (group * keys + key) * size;
                let product: f64 = (0..size).map(|d| qs[from + d] * ks[at_key + d]).sum();
                let product = product * self.scale(size);
                let capped = match self.softcap {
                    0.0 => product,
                    cap => cap * libm::tanh(product / cap),
                };
                let distance = key as i64 - (query as i64).saturating_add(self.offset());
                let seen = first.is_none_or(|b| distance >= b) && last.is_none_or(|b| distance <= b);
                let score = match seen {
                    true => masked([batch, head, query, key], capped),
                    false => f64::NEG_INFINITY,
                };
                match self.scores {
                    Scores::None | Scores::Softmax => {}
                    Scores::Product => shown.push(product),
                    Scores::Capped => shown.push(capped),
                    Scores::Masked => shown.push(score),
                }
                row.push(score);
            }
            let largest = row.iter().fold(f64::NEG_INFINITY, |m, &s| if s > m || s.is_nan() { s } else { m });
            if largest == f64::NEG_INFINITY {
                row.fill(0.0);
            } else {
                row.iter_mut().for_each(|s| *s = libm::exp(*s - largest));
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|s| *s /= sum);
            }
            if self.scores == Scores::Softmax {
                shown.extend(&row);
            }
            for e in 0..width {
                result.push((0..keys).map(|key| row[key] * vs[(group * keys + key) * width + e]).sum());
            }
        }
        let shape = [q.shape()[0], heads, queries, width];
        let mut outs = vec![Tensor::from_f64s(q.dtype(), &shape, &result)];
        if self.scores != Scores::None {
            outs.push(Tensor::from_f64s(q.dtype(), &[q.shape()[0], heads, queries, keys], &shown));
        }
        Ok(outs)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        if cx.rank(0) != 4 || cx.ty(0).shape().contains(&0) {
            return Ok(Vmap::OneByOne);
        }
        let mut ins = Vec::new();
        for i in 0..3 {
            ins.push((cx.with_batch(i)?, Some(0)));
        }
        if let Some(&mask) = cx.ins.get(3) {
            let shape = cx.ty(3).shape();
            // The same for the whole batch of an example, and for all examples.
            let shared = !cx.batched[3] && (shape.len() < 4 || shape[0] == 1);
            ins.push(match shared {
                true => (mask, None),
                false => {
                    let mask = cx.with_batch(3)?;
                    let missing = std::iter::repeat_n(1, 4 - shape.len());
                    let mut full: Vec<usize> = missing.chain(shape.iter().copied()).collect();
                    let apart = cx.over_batch(&full);
                    full[0] = cx.ty(0).shape()[0];
                    let to = cx.over_batch(&full);
                    let mask = cx.builder.reshape(mask, &apart)?;
                    (cx.builder.broadcast(mask, &to)?, Some(0))
                }
            });
        }
        cx.merged_values(self.clone(), &ins, &vec![0; cx.outs.len()])
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        Lowered::graph(ins, |b, ins| self.decomposed(b, ins))
    }
}

impl Attention {
    fn decomposed(&self, b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
        let dtype = b.ty(ins[0]).dtype;
        let (q_shape, k_shape, v_shape) = (b.ty(ins[0]).shape(), b.ty(ins[1]).shape(), b.ty(ins[2]).shape());
        let (batch, heads, queries, size) = (q_shape[0], q_shape[1], q_shape[2], q_shape[3]);
        let (groups, keys, width) = (k_shape[1], k_shape[2], v_shape[3]);
        let wide = dtype.accumulator();
        let (mut q, mut k, mut v) = (b.cast(ins[0], wide)?, b.cast(ins[1], wide)?, b.cast(ins[2], wide)?);
        // The query heads that share a key head become one more batch dimension.
        let shared = heads != groups;
        let per_group = heads / groups.max(1);
        if shared {
            q = b.push1(Reshape::to(&[batch, groups, per_group, queries, size]), &[q])?;
            k = b.push1(Reshape::to(&[batch, groups, 1, keys, size]), &[k])?;
            v = b.push1(Reshape::to(&[batch, groups, 1, keys, width]), &[v])?;
        }
        let scores_shape = [batch, heads, queries, keys];
        let product = b.push1(MatMul { trans_a: false, trans_b: true }, &[q, k])?;
        let scale = b.scalar(wide, self.scale(size));
        let mut score = b.map(ScalarFn::Mul, &[product, scale])?;
        if shared {
            score = b.push1(Reshape::to(&scores_shape), &[score])?;
        }
        let product = score;
        if self.softcap != 0.0 {
            let cap = b.scalar(wide, self.softcap);
            score = b.map(ScalarFn::Div, &[score, cap])?;
            score = b.map(ScalarFn::Tanh, &[score])?;
            score = b.map(ScalarFn::Mul, &[score, cap])?;
        }
        let capped = score;
        let lowest = b.scalar(wide, f64::NEG_INFINITY);
        if let Some(&mask) = ins.get(3) {
            score = match b.ty(mask).dtype {
                DType::Bool => b.map(ScalarFn::Select, &[mask, score, lowest])?,
                _ => {
                    let mask = b.cast(mask, wide)?;
                    let sum = b.map(ScalarFn::Add, &[score, mask])?;
                    let excluded = b.map(ScalarFn::Eq, &[mask, lowest])?;
                    b.map(ScalarFn::Select, &[excluded, lowest, sum])?
                }
            };
        }
        let (first, last) = self.span();
        for (bound, is_outside) in [(first, ScalarFn::Lt), (last, ScalarFn::Gt)] {
            let Some(bound) = bound else { continue };
            let (edge, past) = self.edge(b, bound, queries, keys)?;
            let outside = b.map(is_outside, &[past, edge])?;
            score = b.map(ScalarFn::Select, &[outside, lowest, score])?;
        }
        let masked = ins.len() > 3 || first.is_some() || last.is_some();
        let softmax = b.push1(Softmax { masked, ..Softmax::along(-1) }, &[score])?;
        let mut weights = softmax;
        if shared {
            weights = b.push1(Reshape::to(&[batch, groups, per_group, queries, keys]), &[weights])?;
        }
        let mut result = b.push1(MatMul::default(), &[weights, v])?;
        if shared {
            result = b.push1(Reshape::to(&[batch, heads, queries, width]), &[result])?;
        }
        let mut outs = Values::from_slice(&[b.cast(result, dtype)?]);
        let shown = match self.scores {
            Scores::None => return Ok(outs),
            Scores::Product => product,
            Scores::Capped => capped,
            Scores::Masked => score,
            Scores::Softmax => softmax,
        };
        outs.push(b.cast(shown, dtype)?);
        Ok(outs)
    }

    /// The position of the bound of each query `[S, 1]` and of each key `[1, T]`.
    fn edge(
        &self,
        b: &mut Builder,
        bound: i64,
        queries: usize,
        keys: usize,
    ) -> Result<(Value, Value), Error> {
        let iota = |shape: [usize; 2], axis| Iota {
            shape: vec![shape[0] as i64, shape[1] as i64].into(),
            axis,
            dtype: DType::I64,
        };
        let rows = b.push1(iota([queries, 1], 0), &[])?;
        let columns = b.push1(iota([1, keys], 1), &[])?;
        let shift = b.constant(Tensor::scalar(bound.saturating_add(self.offset())));
        Ok((b.map(ScalarFn::Add, &[rows, shift])?, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    fn operands(dtype: DType, heads: usize, groups: usize) -> Vec<Tensor> {
        vec![
            sample(dtype, &[2, heads, 3, 4], 1),
            sample(dtype, &[2, groups, 5, 4], 2),
            sample(dtype, &[2, groups, 5, 6], 3),
        ]
    }

    fn bools(shape: &[usize], seed: u64) -> Tensor {
        let values: Vec<f64> =
            sample(DType::F32, shape, seed).to_f64s().iter().map(|&x| f64::from(u8::from(x > 0.0))).collect();
        Tensor::from_f64s(DType::Bool, shape, &values)
    }

    #[test]
    fn equal_scores_average_the_values() {
        let q = Tensor::zeros(DType::F32, &[1, 1, 1, 2]);
        let k = sample(DType::F32, &[1, 1, 2, 2], 1);
        let v = Tensor::new(&[1, 1, 2, 1], &[1f32, 5.]);
        assert_eq!(check(Attention::plain(), &[q, k, v])[0].to_f64s(), [3.0]);
    }

    #[test]
    fn heads_types_and_caps_agree_with_the_decomposition() {
        for dtype in [DType::F16, DType::F32, DType::F64] {
            for (heads, groups) in [(2, 2), (4, 2), (3, 1)] {
                check(Attention::plain(), &operands(dtype, heads, groups));
                let op = Attention { softcap: 2.0, scale: 0.3, ..Attention::plain() };
                check(op, &operands(dtype, heads, groups));
            }
        }
    }

    #[test]
    fn masks_windows_and_offsets_agree_with_the_decomposition() {
        let with = |mask: Tensor| [operands(DType::F32, 4, 2), vec![mask]].concat();
        for op in [
            Attention::plain(),
            Attention { is_causal: true, ..Attention::plain() },
            Attention { is_causal: true, offset: vec![2].into(), ..Attention::plain() },
            Attention { is_causal: true, offset: vec![-2].into(), ..Attention::plain() },
            Attention { left: 1, right: 0, ..Attention::plain() },
            Attention { right: 1, offset: vec![1].into(), ..Attention::plain() },
        ] {
            check(op.clone(), &operands(DType::F32, 4, 2));
            for scores in [Scores::Product, Scores::Capped, Scores::Masked, Scores::Softmax] {
                let op = Attention { scores, ..op.clone() };
                check(op.clone(), &with(bools(&[3, 5], 5)));
                check(op.clone(), &with(sample(DType::F32, &[2, 1, 3, 5], 4)));
            }
        }
    }

    #[test]
    fn a_query_without_keys_gives_zero() {
        let mask = Tensor::from_f64s(DType::F32, &[3, 5], &[f64::NEG_INFINITY; 15]);
        let ins = [operands(DType::F32, 2, 2), vec![mask]].concat();
        assert!(check(Attention::plain(), &ins)[0].to_f64s().iter().all(|&x| x == 0.0));
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |op: Attention, ins: &[TensorType]| {
            op.infer(&ins.iter().collect::<Vec<_>>()).unwrap_err().constraint
        };
        let (q, k) = (f32(&[1, 4, 3, 2]), f32(&[1, 2, 5, 2]));
        assert_eq!(violated(Attention::plain(), &[q.clone(), k.clone(), f32(&[1, 2, 4, 2])]), "C1");
        assert_eq!(violated(Attention::plain(), &[f32(&[1, 3, 3, 2]), k.clone(), k.clone()]), "C2");
        assert_eq!(violated(Attention::plain(), &[q.clone(), k.clone(), k.clone(), f32(&[2, 3, 5])]), "C3");
        let op = Attention { left: -2, ..Attention::plain() };
        assert_eq!(violated(op, &[q, k.clone(), k]), "C4");
    }
}
