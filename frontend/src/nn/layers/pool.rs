//! Pooling over windows and over whole images.

use windlass_ir::ops::{self, PoolKind, ReduceKind};
use windlass_ir::{Error, Value};

use super::conv::Padding;
use super::{Layer, name};
use crate::nn::net::Net;

/// The largest element or the mean of each window of `x` `[N, image.., channels]`.
#[derive(Clone, Debug)]
pub struct Pooling {
    kind: PoolKind,
    window: Vec<usize>,
    strides: Vec<usize>,
    padding: Padding,
}

impl Pooling {
    /// The largest of windows side by side: `MaxPooling1D`, `2D` or `3D`.
    pub fn max(window: &[usize]) -> Pooling {
        Pooling {
            kind: PoolKind::Max,
            window: window.to_vec(),
            strides: window.to_vec(),
            padding: Padding::Valid,
        }
    }

    /// The mean of windows side by side: `AveragePooling1D`, `2D` or `3D`.
    pub fn average(window: &[usize]) -> Pooling {
        Pooling { kind: PoolKind::Average, ..Pooling::max(window) }
    }

    /// With other steps of the window.
    pub fn strides(mut self, strides: Vec<usize>) -> Pooling {
        self.strides = strides;
        self
    }

    /// With a border, which counts for nothing.
    pub fn padding(mut self, padding: Padding) -> Pooling {
        self.padding = padding;
        self
    }
}

impl Layer for Pooling {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        name(&None, net, "pooling");
        let shape = net.ty(x).shape();
        let ones = vec![1; self.window.len()];
        let ints = |sizes: &[usize]| sizes.iter().map(|&n| n as i64).collect::<Vec<i64>>();
        let op = ops::Pool {
            strides: ints(&self.strides),
            pads: self.padding.counts(&shape[1..shape.len() - 1], &self.window, &self.strides, &ones),
            channels_last: true,
            ..ops::Pool::plain(self.kind, &ints(&self.window))
        };
        net.push(op, &[x])
    }
}

/// The largest element or the mean of each channel: `GlobalMaxPooling`, `GlobalAveragePooling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobalPooling {
    /// The largest.
    Max,
    /// The mean.
    Average,
}

impl Layer for GlobalPooling {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        name(&None, net, "pooling");
        let axes: Vec<i64> = (1..net.ty(x).rank() as i64 - 1).collect();
        let kind = if *self == GlobalPooling::Max { ReduceKind::Max } else { ReduceKind::Mean };
        net.push(ops::Reduce::over(kind, &axes, false), &[x])
    }
}
