//! `max_pool_indices`: where the elements that max pooling keeps came from.

use super::conv::Layout;
use super::vmap;
use super::window::Window;
use super::{Lowered, OpDef, Pool, PoolKind, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder, Reduction};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Shape, TensorType, strides};

/// For each window of [`Pool`] with kind `max`: the linear position in `x` `[N, C, spatial..]` of its
/// largest element, i64; the first of several, the first NaN if there is one, -1 if the window holds
/// nothing but padding.
///
/// Positions are row-major, or column-major in the spatial dimensions with `storage_order`.
///
/// - (C1), (C2) of [`super::Conv`], the kernel being `kernel_shape`;
/// - (C3) `x` has rank 2 or more and is a number.
///
/// ONNX: the second result of `MaxPool` (8..).
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPoolIndices {
    /// The windows.
    pub pool: Pool,
    /// Whether the first spatial dimension varies fastest in a position.
    pub storage_order: bool,
}

impl MaxPoolIndices {
    /// The spatial strides of a position.
    fn spatial_strides(&self, spatial: &[usize]) -> Shape {
        if !self.storage_order {
            return strides(spatial);
        }
        let mut product = 1;
        let mut column_major = Shape::new();
        for n in spatial {
            column_major.push(product);
            product *= n;
        }
        column_major
    }

    fn window(&self, spatial: usize) -> Result<Window, Violation> {
        Window::new(spatial, &self.pool.strides, &self.pool.pads, &self.pool.dilations)
    }
}

impl OpDef for MaxPoolIndices {
    const NAMES: &'static [&'static str] = &["max_pool_indices"];

    fn with_name(_: &str) -> MaxPoolIndices {
        MaxPoolIndices { pool: Pool::plain(PoolKind::Max, &[]), storage_order: false }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("kernel_shape", Slot::Ints(&mut self.pool.kernel))?;
        codec.attr("strides", Slot::Ints(&mut self.pool.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pool.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.pool.dilations))?;
        codec.attr("ceil_mode", Slot::Bool(&mut self.pool.ceil_mode))?;
        codec.attr("storage_order", Slot::Bool(&mut self.storage_order))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        require!(ins[0].dtype != DType::Bool, "C3", "{} is not numeric", ins[0]);
        Ok(vec![TensorType::new(DType::I64, self.pool.result_dims(ins[0])?)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let shape = self.infer(&[&x.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let (floats, ints) = (x.to_f64s(), x.to_i128s());
        // Whether the element at `a` takes the place of the one at `b`, which comes first.
        let beats = |a: usize, b: usize| match x.dtype().is_float() {
            true => floats[a] > floats[b] || (floats[a].is_nan() && !floats[b].is_nan()),
            false => ints[a] > ints[b],
        };
        let window = self.window(x.rank() - 2).expect("infer accepted the window");
        let spatial = &x.shape()[2..];
        let volume: usize = spatial.iter().product();
        let (by_rows, wanted) = (strides(spatial), self.spatial_strides(spatial));
        let indices: Vec<i64> = points(&shape)
            .map(|out| {
                let base = (out[0] * x.shape()[1] + out[1]) * volume;
                let mut best: Option<(usize, usize)> = None;
                for tap in points(&self.pool.kernel()) {
                    let Some(source) = window.source(&out[2..], &tap, spatial) else { continue };
                    let at = base + position(&source, &by_rows);
                    if best.is_none_or(|(so_far, _)| beats(at, so_far)) {
                        best = Some((at, base + position(&source, &wanted)));
                    }
                }
                best.map_or(-1, |(_, index)| index as i64)
            })
            .collect();
        Ok(vec![Tensor::new(&shape, &indices)])
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let Vmap::Values(positions) = cx.merged(self.clone(), &[Some(0)], &[0])? else {
            return Ok(Vmap::OneByOne);
        };
        // They count from the first example; -1 stands for none.
        let size: usize = cx.ty(0).shape().iter().product();
        let before = cx.numbers(DType::I64, cx.outs[0].rank() + 1)?;
        let size = cx.builder.constant(Tensor::scalar(size as i64));
        let before = cx.builder.map(ScalarFn::Mul, &[before, size])?;
        let own = cx.builder.map(ScalarFn::Sub, &[positions[0], before])?;
        let none = cx.builder.constant(Tensor::scalar(-1i64));
        let some = cx.builder.map(ScalarFn::Gt, &[positions[0], none])?;
        vmap::one(cx.builder.map(ScalarFn::Select, &[some, own, none])?)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, dtype) = (ins[0].shape(), ins[0].dtype);
        let layout = Layout::new(x.len(), false);
        let window = self.window(x.len() - 2).expect("infer accepted the window");
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(dtype, &x);
        let at = n.domain();
        let load = |n: &mut NestBuilder, tap: &[Index]| {
            let (spatial, guards) = window.index(&at[2..], tap, &x[2..]);
            let index = layout.assemble(at[0].clone(), at[1].clone(), spatial.clone());
            (n.load_guarded(operand, &index, &guards), n.inside(&guards), spatial)
        };
        let largest = n.reduce(Reduction::Max, &self.pool.kernel(), |n, tap| {
            let (value, inside, _) = load(n, tap);
            let lowest = n.constant_bits(dtype, Reduction::Max.identity(dtype));
            n.apply(ScalarFn::Select, &[inside, value, lowest])
        });
        // Row-major positions ascend with the taps, so the smallest that matches is the first.
        let volume: usize = x[2..].iter().product();
        let none = n.constant_bits(DType::I64, i64::MAX as u64);
        let first = n.reduce(Reduction::Min, &self.pool.kernel(), |n, tap| {
            let (value, inside, spatial) = load(n, tap);
            let mut found = n.apply(ScalarFn::Eq, &[value, largest]);
            if dtype.is_float() {
                let nan = n.apply(ScalarFn::IsNan, &[value]);
                found = n.apply(ScalarFn::Or, &[found, nan]);
            }
            let found = n.apply(ScalarFn::And, &[found, inside]);
            let place = n.index_value(&Index::flatten(&spatial, &x[2..]));
            n.apply(ScalarFn::Select, &[found, place, none])
        });
        let constant = |n: &mut NestBuilder, value: usize| n.constant_bits(DType::I64, value as u64);
        let mut place = first;
        if self.storage_order {
            let (by_rows, wanted) = (strides(&x[2..]), self.spatial_strides(&x[2..]));
            let mut rest = first;
            place = constant(&mut n, 0);
            for (&row, &want) in by_rows.iter().zip(&wanted) {
                let (row, want) = (constant(&mut n, row), constant(&mut n, want));
                let digit = n.apply(ScalarFn::Div, &[rest, row]);
                let taken = n.apply(ScalarFn::Mul, &[digit, row]);
                rest = n.apply(ScalarFn::Sub, &[rest, taken]);
                let part = n.apply(ScalarFn::Mul, &[digit, want]);
                place = n.apply(ScalarFn::Add, &[place, part]);
            }
        }
        let base = n.index_value(&at[0].mul(x[1] as i64).add(&at[1]).mul(volume as i64));
        let whole = n.apply(ScalarFn::Add, &[base, place]);
        let empty = n.apply(ScalarFn::Eq, &[first, none]);
        let nowhere = n.constant_bits(DType::I64, u64::MAX);
        let result = n.apply(ScalarFn::Select, &[empty, nowhere, whole]);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    #[test]
    fn positions_count_over_the_whole_operand() {
        let x = Tensor::new(&[1, 1, 2, 3], &[1f32, 5., 2., 5., 0., 9.]);
        let rows = MaxPoolIndices { pool: Pool::plain(PoolKind::Max, &[2, 2]), storage_order: false };
        assert_eq!(check(rows.clone(), std::slice::from_ref(&x))[0].to_ints(), [1, 5]);
        let columns = MaxPoolIndices { storage_order: true, ..rows };
        assert_eq!(check(columns, &[x])[0].to_ints(), [2, 5]);
    }

    #[test]
    fn padding_and_nan() {
        let x = Tensor::new(&[1, 2, 3], &[1f32, f32::NAN, f32::NAN, f32::NEG_INFINITY, -1., -2.]);
        let pool = Pool { pads: vec![2, 1], strides: vec![2], ..Pool::plain(PoolKind::Max, &[2]) };
        let op = MaxPoolIndices { pool, storage_order: false };
        assert_eq!(check(op, &[x])[0].to_ints(), [-1, 1, 2, -1, 4, 5]);
    }

    #[test]
    fn three_dimensions_agree_with_the_formula() {
        let pool = Pool {
            pads: vec![1, 0, 1, 1, 1, 0],
            dilations: vec![1, 2, 1],
            strides: vec![2, 1, 3],
            ..Pool::plain(PoolKind::Max, &[2, 2, 3])
        };
        for storage_order in [false, true] {
            let op = MaxPoolIndices { pool: pool.clone(), storage_order };
            check(op.clone(), &[sample(DType::F32, &[2, 2, 4, 5, 6], 1)]);
            check(op, &[sample(DType::U8, &[2, 2, 4, 5, 6], 1)]);
        }
    }
}
