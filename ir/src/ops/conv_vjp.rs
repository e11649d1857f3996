//! The gradients of convolutions, as convolutions.
//!
//! With respect to the operand, the gradient is the transposed convolution of what flows back. With respect
//! to the weight it is the operand convolved with what flows back as if that were a kernel: batch and
//! channels change places, strides and dilations too. The result has its channels last, so that neighbours
//! of a weight's output channels are neighbours in all that is read and written.

use super::vjp::VjpCx;
use super::{Conv, ConvTranspose};
use crate::error::Error;
use crate::graph::Value;

/// Sums of more terms than this are made of parts.
const LONGEST_SUM: usize = 2048;

/// Strides, pads and dilations of a window, the number of groups, and the shapes of the image that the window
/// moves over and of the kernel.
pub(super) struct Geometry<'a> {
    pub strides: &'a [i64],
    pub pads: &'a [i64],
    pub dilations: &'a [i64],
    pub group: i64,
    pub image: &'a [usize],
    pub kernel: &'a [usize],
}

impl Geometry<'_> {
    fn stride(&self, d: usize) -> i64 {
        self.strides.get(d).copied().unwrap_or(1)
    }

    fn dilation(&self, d: usize) -> i64 {
        self.dilations.get(d).copied().unwrap_or(1)
    }

    fn pad(&self, at: usize) -> i64 {
        self.pads.get(at).copied().unwrap_or(0)
    }

    /// The image `[N, C, image..]` whose convolution with `w` `[M, C/group, kernel..]` has the gradient `g`
    /// `[N, M, positions..]`.
    pub fn image_gradient(&self, cx: &mut VjpCx<'_>, g: Value, w: Value) -> Result<Value, Error> {
        let positions = cx.shape(g);
        // What no window reaches at the end of the padded image.
        let rest = |d: usize| {
            let padded = self.image[d] as i64 + self.pad(d) + self.pad(self.image.len() + d);
            let reach = (self.kernel[d] as i64 - 1) * self.dilation(d) + 1;
            padded - reach - (positions[d + 2] as i64 - 1) * self.stride(d)
        };
        let spread = ConvTranspose {
            strides: self.strides.to_vec(),
            pads: self.pads.to_vec(),
            dilations: self.dilations.to_vec(),
            output_padding: (0..self.image.len()).map(rest).collect(),
            group: self.group,
        };
        cx.push(spread, &[g, w])
    }

    /// The weight `[kernel.., C/group, M]` for an image `x` `[N, image.., C]` and the gradient `g`
    /// `[N, positions.., M]`.
    ///
    /// Each element is a sum over all examples and positions. Parts of them are summed by themselves, as groups of
    /// one convolution, and then together, which keeps the rounding error of long sums small.
    pub fn weight_gradient(&self, cx: &mut VjpCx<'_>, x: Value, g: Value) -> Result<Value, Error> {
        let (from, positions, spatial) = (cx.shape(x), cx.shape(g), self.kernel.len());
        let (batch, channels, group) = (from[0], from[spatial + 1], self.group as usize);
        let (own, filters) = (channels / group, positions[spatial + 1] / group);
        let terms: usize = positions[..=spatial].iter().product();
        let parts = (terms.div_ceil(LONGEST_SUM)..=batch).find(|n| batch.is_multiple_of((*n).max(1)));
        let parts = parts.unwrap_or(1).max(1);
        let examples = batch / parts;
        // [N, dims.., channels] as [parts, N / parts, dims.., group, channels of a group].
        let split = |shape: &[usize], own: usize| -> Vec<usize> {
            [parts, examples]
                .into_iter()
                .chain(shape[1..=spatial].iter().copied())
                .chain([group, own])
                .collect()
        };
        let dims: Vec<usize> = (2..spatial + 2).collect();
        let (at_group, at_own) = (spatial + 2, spatial + 3);
        // Images of one channel of each group, examples being their channels: [C/group, image.., group * N].
        let x = cx.reshape(x, &split(&from, own))?;
        let perm: Vec<usize> =
            [at_own].into_iter().chain(dims.iter().copied()).chain([at_group, 0, 1]).collect();
        let x = cx.transpose(x, &perm)?;
        let merged: Vec<usize> =
            [own].into_iter().chain(self.image.iter().copied()).chain([group * batch]).collect();
        let x = cx.reshape(x, &merged)?;
        // Kernels of the size of what flows back: [positions.., N / parts, group * parts * M/group].
        let g = cx.reshape(g, &split(&positions, filters))?;
        let perm: Vec<usize> = dims.iter().copied().chain([1, at_group, 0, at_own]).collect();
        let g = cx.transpose(g, &perm)?;
        let merged: Vec<usize> =
            positions[1..=spatial].iter().copied().chain([examples, group * parts * filters]).collect();
        let g = cx.reshape(g, &merged)?;
        let conv = Conv {
            strides: (0..spatial).map(|d| self.dilation(d)).collect(),
            pads: self.pads.to_vec(),
            dilations: (0..spatial).map(|d| self.stride(d)).collect(),
            group: (group * parts) as i64,
            channels_last: true,
        };
        let mut taps = cx.push(conv, &[x, g])?;
        if parts > 1 {
            let mut apart = cx.shape(taps)[..=spatial].to_vec();
            apart.extend([group, parts, filters]);
            let sums = cx.reshape(taps, &apart)?;
            let sums = cx.sum(sums, &[spatial + 2], false)?;
            apart.truncate(spatial + 1);
            apart.push(group * filters);
            taps = cx.reshape(sums, &apart)?;
        }
        // Positions past the kernel's end, where the last windows left a rest of the image.
        for (d, &n) in self.kernel.iter().enumerate() {
            let found = cx.shape(taps)[d + 1];
            taps = cx.pad(taps, d + 1, 0, n as i64 - found as i64)?;
        }
        let perm: Vec<usize> = (1..=spatial).chain([0, spatial + 1]).collect();
        cx.transpose(taps, &perm)
    }
}

/// The order of dimensions that puts the second one last.
pub(super) fn channels_last(rank: usize) -> Vec<usize> {
    [0].into_iter().chain(2..rank).chain([1]).collect()
}

/// The order of dimensions that puts the last one second.
pub(super) fn channels_first(rank: usize) -> Vec<usize> {
    [0, rank - 1].into_iter().chain(1..rank - 1).collect()
}
