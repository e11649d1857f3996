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
    pub fn weight_gradient(&self, cx: &mut VjpCx<'_>, x: Value, g: Value) -> Result<Value, Error> {
        let (from, spatial) = (cx.shape(x), self.kernel.len());
        let (batch, channels, group) = (from[0], from[spatial + 1], self.group as usize);
        let own = channels / group;
        // Images of one channel of each group, the examples being their channels: [C/group, image.., group * N].
        let split: Vec<usize> = from[..=spatial].iter().copied().chain([group, own]).collect();
        let x = cx.reshape(x, &split)?;
        let perm: Vec<usize> = [spatial + 2].into_iter().chain(1..=spatial + 1).chain([0]).collect();
        let x = cx.transpose(x, &perm)?;
        let merged: Vec<usize> =
            [own].into_iter().chain(self.image.iter().copied()).chain([group * batch]).collect();
        let x = cx.reshape(x, &merged)?;
        // Kernels of the size of what flows back: [positions.., N, M].
        let perm: Vec<usize> = (1..=spatial).chain([0, spatial + 1]).collect();
        let g = cx.transpose(g, &perm)?;
        let conv = Conv {
            strides: (0..spatial).map(|d| self.dilation(d)).collect(),
            pads: self.pads.to_vec(),
            dilations: (0..spatial).map(|d| self.stride(d)).collect(),
            group: self.group,
            channels_last: true,
        };
        let mut taps = cx.push(conv, &[x, g])?;
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
