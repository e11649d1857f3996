//! `grid_sample` by smaller ops, which have gradients: elements gathered and weighted.

use super::grid_sample::Place;
use super::vjp::VjpCx;
use super::{GatherElements, GridSample, Slice};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Value;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::Shape;

/// A sum of gathered elements.
pub(super) struct Gathers<'g> {
    /// The spatial sizes, and the taps along each, as `[.., 1, area]`.
    pub spatial: &'g [usize],
    pub taps: Vec<Vec<Place<Value>>>,
    /// The elements, `[.., C, volume]`, and the shape of what is gathered, `[.., C, area]`.
    pub elements: Value,
    pub gathered: Shape,
}

impl GridSample {
    /// The result, with coordinates of a type.
    pub(super) fn as_gathers(&self, cx: &mut VjpCx<'_>, wide: DType) -> Result<Value, Error> {
        let (x, grid) = (cx.ins[0], cx.ins[1]);
        let (shape, positions, result) = (cx.shape(x), cx.shape(grid), cx.shape(cx.outs[0]));
        let spatial = &shape[2..];
        let area: usize = positions[1..positions.len() - 1].iter().product();
        let grid = cx.builder.cast(grid, wide)?;
        let mut taps = Vec::new();
        for (d, &size) in spatial.iter().enumerate() {
            // The last dimension's coordinate comes first.
            let at = (spatial.len() - 1 - d) as i64;
            let coordinate = cx.push(Slice::along(positions.len() - 1, at, at + 1), &[grid])?;
            let coordinate = cx.reshape(coordinate, &[shape[0], 1, area])?;
            taps.push(self.emit_taps(cx.builder, coordinate, size)?);
        }
        let elements = cx.builder.cast(x, wide)?;
        let elements = cx.reshape(elements, &[shape[0], shape[1], spatial.iter().product()])?;
        let gathered = Shape::from_slice(&[shape[0], shape[1], area]);
        let sum = Gathers { spatial, taps, elements, gathered }.sum(cx)?;
        let sum = cx.builder.cast(sum, cx.builder.ty(x).dtype)?;
        cx.reshape(sum, &result)
    }
}

impl Gathers<'_> {
    /// The sum over all taps.
    pub fn sum(&self, cx: &mut VjpCx<'_>) -> Result<Value, Error> {
        self.sum_from(cx, 0, None, None)
    }

    /// The sum over the taps of dimensions from one on, at a place among those before and where that lies inside.
    fn sum_from(
        &self,
        cx: &mut VjpCx<'_>,
        dimension: usize,
        at: Option<Value>,
        inside: Option<Value>,
    ) -> Result<Value, Error> {
        let Some(taps) = self.taps.get(dimension) else {
            let at = at.expect("there is a spatial dimension");
            let at = cx.broadcast(at, &self.gathered)?;
            let value = cx.push(GatherElements { axis: -1 }, &[self.elements, at])?;
            return match inside {
                Some(inside) => cx.masked(inside, value),
                None => Ok(value),
            };
        };
        let size = self.spatial[dimension] as i64;
        let (zero, last) = (int(cx, 0), int(cx, size - 1));
        let mut sum: Option<Value> = None;
        for tap in taps {
            let raised = cx.map(ScalarFn::Max, &[tap.at, zero])?;
            let mut place = cx.map(ScalarFn::Min, &[raised, last])?;
            if let Some(at) = at {
                let stride = int(cx, size);
                let rows = cx.map(ScalarFn::Mul, &[at, stride])?;
                place = cx.map(ScalarFn::Add, &[rows, place])?;
            }
            let both = match (inside, tap.inside) {
                (Some(a), Some(b)) => Some(cx.map(ScalarFn::And, &[a, b])?),
                (a, b) => a.or(b),
            };
            let mut value = self.sum_from(cx, dimension + 1, Some(place), both)?;
            if let Some(weight) = tap.weight {
                value = cx.map(ScalarFn::Mul, &[weight, value])?;
            }
            sum = Some(match sum {
                Some(sum) => cx.map(ScalarFn::Add, &[sum, value])?,
                None => value,
            });
        }
        Ok(sum.expect("every dimension has a tap"))
    }
}

fn int(cx: &mut VjpCx<'_>, value: i64) -> Value {
    cx.builder.constant(Tensor::scalar(value))
}
