//! Sliding windows: what convolution and pooling share.

use crate::error::Violation;
use crate::loops::{Guard, Index};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::types::{Dim, Shape};

/// How a window moves over the spatial dimensions; one entry a dimension in each list.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub strides: Shape,
    pub dilations: Shape,
    /// Padding before each dimension.
    pub begin: Shape,
    /// Padding after each dimension.
    pub end: Shape,
}

/// Attributes beyond this are no window: their products would not fit an index.
const LARGEST: i64 = 1 << 31;

impl Window {
    /// From attributes, where an empty list means 1 everywhere (0 for pads). Violates (C1).
    pub fn new(
        spatial: usize,
        strides: &[i64],
        pads: &[i64],
        dilations: &[i64],
    ) -> Result<Window, Violation> {
        let list = |name: &str, list: &[i64], len: usize, lowest: i64| {
            require!(
                list.is_empty() || list.len() == len,
                "C1",
                "{name} has {} entries for {spatial} spatial dimensions",
                list.len()
            );
            let fits = list.iter().all(|&n| (lowest..LARGEST).contains(&n));
            require!(fits, "C1", "{name} {list:?} has an entry below {lowest} or absurdly large");
            Ok(match list.is_empty() {
                true => std::iter::repeat_n(lowest as usize, len).collect::<Shape>(),
                false => list.iter().map(|&n| n as usize).collect(),
            })
        };
        let pads = list("pads", pads, 2 * spatial, 0)?;
        Ok(Window {
            strides: list("strides", strides, spatial, 1)?,
            dilations: list("dilations", dilations, spatial, 1)?,
            begin: pads[..spatial].into(),
            end: pads[spatial..].into(),
        })
    }

    /// The number of positions along dimension `d`. Violates (C2) if the window does not fit.
    ///
    /// With `ceil`, a last window that hangs over the end counts if it starts inside the operand or
    /// the padding before it.
    pub fn output_dim(&self, d: usize, input: &Dim, kernel: &Dim, ceil: bool) -> Result<Dim, Violation> {
        let (stride, dilation) = (self.strides[d], self.dilations[d]);
        let padding = self.begin[d] + self.end[d];
        let Some(kernel) = kernel.as_fixed() else { return Ok(Dim::Unknown) };
        require!(
            (1..LARGEST as usize).contains(&kernel),
            "C2",
            "the window has {kernel} taps along dimension {d}"
        );
        let reach = (kernel - 1).saturating_mul(dilation).saturating_add(1);
        let Some(input) = input.as_fixed() else {
            // Same-size windows keep a size whatever it is.
            return Ok(match stride == 1 && padding + 1 == reach {
                true => input.clone(),
                false => Dim::Unknown,
            });
        };
        let padded = input.saturating_add(padding);
        require!(
            reach <= padded,
            "C2",
            "a window of {reach} does not fit {input} + {padding} along dimension {d}"
        );
        let span = padded - reach;
        let mut count = if ceil { span.div_ceil(stride) } else { span / stride } + 1;
        if ceil && (count - 1) * stride >= input + self.begin[d] {
            count -= 1;
        }
        Ok(Dim::Fixed(count))
    }

    /// The operand's position that tap `tap` of output `out` reads along each dimension, if inside.
    pub fn source(&self, out: &[usize], tap: &[usize], input: &[usize]) -> Option<Shape> {
        let at = |d: usize| {
            let padded = out[d] * self.strides[d] + tap[d] * self.dilations[d];
            padded.checked_sub(self.begin[d]).filter(|&i| i < input[d])
        };
        (0..input.len()).map(at).collect()
    }

    /// For one tap, every (output offset, operand offset) that lies inside the operand.
    pub fn pairs(
        &self,
        tap: &[usize],
        (output, output_strides): (&[usize], &[usize]),
        (input, input_strides): (&[usize], &[usize]),
    ) -> Vec<(usize, usize)> {
        points(output)
            .filter_map(|out| {
                let source = self.source(&out, tap, input)?;
                Some((position(&out, output_strides), position(&source, input_strides)))
            })
            .collect()
    }

    /// The index map of a tap: the operand's position along each dimension, and what must hold for it
    /// to be inside.
    pub fn index(&self, out: &[Index], tap: &[Index], input: &[usize]) -> (Vec<Index>, Vec<Guard>) {
        let at = |d: usize| {
            let padded = out[d].mul(self.strides[d] as i64).add(&tap[d].mul(self.dilations[d] as i64));
            padded.add_const(-(self.begin[d] as i64))
        };
        let index: Vec<Index> = (0..input.len()).map(at).collect();
        let guards = index.iter().zip(input).map(|(i, &n)| Guard::new(i.clone(), n)).collect();
        (index, guards)
    }
}
