//! The gradients of convolutions, as convolutions.
//!
//! With respect to the operand, the gradient is the transposed convolution of what flows back. With respect
//! to the weight it is the operand convolved with what flows back as if that were a kernel: batch and
//! channels change places, strides and dilations too.

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

    /// The weight `[M, C/group, kernel..]` for an image `x` `[N, C, image..]` and the gradient `g`
    /// `[N, M, positions..]`.
    pub fn weight_gradient(&self, cx: &mut VjpCx<'_>, x: Value, g: Value) -> Result<Value, Error> {
        let (from, positions) = (cx.shape(x), cx.shape(g));
        let (batch, channels, group) = (from[0], from[1], self.group as usize);
        let own = channels / group;
        // Images of one channel of each group: [C/group, group * N, image..].
        let split: Vec<usize> = [batch, group, own].into_iter().chain(from[2..].iter().copied()).collect();
        let rank = split.len();
        let x = cx.reshape(x, &split)?;
        let perm: Vec<usize> = [2, 1, 0].into_iter().chain(3..rank).collect();
        let x = cx.transpose(x, &perm)?;
        let merged: Vec<usize> = [own, group * batch].into_iter().chain(from[2..].iter().copied()).collect();
        let x = cx.reshape(x, &merged)?;
        // Kernels of the size of what flows back: [M, N, positions..].
        let swap: Vec<usize> = [1, 0].into_iter().chain(2..positions.len()).collect();
        let g = cx.transpose(g, &swap)?;
        let conv = Conv {
            strides: (0..self.kernel.len()).map(|d| self.dilation(d)).collect(),
            pads: self.pads.to_vec(),
            dilations: (0..self.kernel.len()).map(|d| self.stride(d)).collect(),
            group: self.group,
            channels_last: false,
        };
        let mut taps = cx.push(conv, &[x, g])?;
        // Positions past the kernel's end, where the last windows left a rest of the image.
        for (d, &n) in self.kernel.iter().enumerate() {
            let found = cx.shape(taps)[d + 2];
            taps = cx.pad(taps, d + 2, 0, n as i64 - found as i64)?;
        }
        cx.transpose(taps, &swap)
    }
}
