//! Convolutions of one, two and three dimensions, depthwise and transposed ones too.

use windlass_ir::ops::{self, Transpose};
use windlass_ir::{Error, ScalarFn, Value};

use super::dense::Activation;
use super::{Layer, name, setters};
use crate::nn::initializers::Initializer;
use crate::nn::net::Net;
use crate::nn::regularizers::Regularizer;

/// What surrounds an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Padding {
    /// Nothing.
    #[default]
    Valid,
    /// As many zeros as make the result as large as the image, divided by the strides and rounded up; the odd one
    /// comes after.
    Same,
    /// So many before each dimension, then so many after each.
    Explicit(Vec<usize>),
}

impl Padding {
    /// Counts before each dimension, then after each.
    pub(super) fn counts(
        &self,
        image: &[usize],
        kernel: &[usize],
        strides: &[usize],
        dilations: &[usize],
    ) -> Vec<i64> {
        match self {
            Padding::Valid => vec![0; 2 * image.len()],
            Padding::Explicit(counts) => counts.iter().map(|&n| n as i64).collect(),
            Padding::Same => {
                let total = |d: usize| {
                    let reach = (kernel[d] - 1) * dilations[d] + 1;
                    (image[d].div_ceil(strides[d]).saturating_sub(1) * strides[d] + reach)
                        .saturating_sub(image[d])
                };
                let before = (0..image.len()).map(|d| total(d) / 2);
                before
                    .clone()
                    .chain((0..image.len()).map(|d| total(d) - total(d) / 2))
                    .map(|n| n as i64)
                    .collect()
            }
        }
    }
}

/// A convolution of as many dimensions as its kernel has: `x` `[N, image.., channels]`, `kernel`
/// `[kernel.., channels / groups, filters]`.
#[derive(Clone, Debug)]
pub struct Conv {
    name: Option<String>,
    kind: Kind,
    filters: usize,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    groups: usize,
    padding: Padding,
    activation: Activation,
    use_bias: bool,
    kernel_initializer: Initializer,
    kernel_regularizer: Regularizer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    /// `filters` is the number for each channel.
    Depthwise,
    Transposed,
}

setters!(Conv {
    /// The steps of the window.
    strides: Vec<usize>,
    /// The distances of its elements.
    dilations: Vec<usize>,
    /// How many groups of channels do not mix.
    groups: usize,
    /// What surrounds the image.
    padding: Padding,
    /// What is applied to the result.
    activation: Activation,
    /// Whether a bias is added.
    use_bias: bool,
    /// What the kernel holds before training.
    kernel_initializer: Initializer,
    /// What the kernel costs.
    kernel_regularizer: Regularizer,
});

impl Conv {
    /// With so many filters of a shape: that of `Conv1D`, `Conv2D` or `Conv3D`.
    pub fn new(filters: usize, kernel: &[usize]) -> Conv {
        Conv {
            name: None,
            kind: Kind::Plain,
            filters,
            kernel: kernel.to_vec(),
            strides: vec![1; kernel.len()],
            dilations: vec![1; kernel.len()],
            groups: 1,
            padding: Padding::Valid,
            activation: Activation::Linear,
            use_bias: true,
            kernel_initializer: Initializer::GlorotUniform,
            kernel_regularizer: Regularizer::default(),
        }
    }

    /// Each channel by itself, with so many filters: `DepthwiseConv2D`. Its kernel is `[kernel.., channels, filters]`.
    pub fn depthwise(filters: usize, kernel: &[usize]) -> Conv {
        Conv { kind: Kind::Depthwise, ..Conv::new(filters, kernel) }
    }

    /// The transpose of a convolution: `Conv2DTranspose`. Its kernel is `[kernel.., filters, channels]`.
    pub fn transposed(filters: usize, kernel: &[usize]) -> Conv {
        Conv { kind: Kind::Transposed, ..Conv::new(filters, kernel) }
    }

    fn ints(sizes: &[usize]) -> Vec<i64> {
        sizes.iter().map(|&n| n as i64).collect()
    }

    fn transposed_op(&self, net: &mut Net, x: Value, kernel: Value) -> Result<Value, Error> {
        // Keras makes the image `strides` times as large, at least as large as the kernel for `valid`.
        let spatial = self.kernel.len();
        let to_front: Vec<usize> = [0, spatial + 1].into_iter().chain(1..=spatial).collect();
        let reach = |d: usize| (self.kernel[d] - 1) * self.dilations[d] + 1;
        let (pads, output_padding) = match &self.padding {
            Padding::Explicit(pads) => (Conv::ints(pads), vec![0; spatial]),
            Padding::Valid => {
                let rest = |d: usize| self.strides[d].saturating_sub(reach(d)) as i64;
                (vec![0; 2 * spatial], (0..spatial).map(rest).collect())
            }
            Padding::Same => {
                let total = |d: usize| reach(d).saturating_sub(self.strides[d]);
                let rest = |d: usize| self.strides[d].saturating_sub(reach(d)) as i64;
                let before = (0..spatial).map(|d| (total(d) / 2) as i64);
                let after = (0..spatial).map(|d| (total(d) - total(d) / 2) as i64);
                (before.chain(after).collect(), (0..spatial).map(rest).collect())
            }
        };
        let op = ops::ConvTranspose {
            strides: Conv::ints(&self.strides),
            pads,
            dilations: Conv::ints(&self.dilations),
            output_padding,
            group: 1,
        };
        let x = net.push(Transpose::by(&to_front), &[x])?;
        let channels_first: Vec<usize> = [spatial + 1, spatial].into_iter().chain(0..spatial).collect();
        let kernel = net.push(Transpose::by(&channels_first), &[kernel])?;
        let y = net.push(op, &[x, kernel])?;
        let back: Vec<usize> = [0].into_iter().chain(2..spatial + 2).chain([1]).collect();
        net.push(Transpose::by(&back), &[y])
    }
}

impl Layer for Conv {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let kind = match self.kind {
            Kind::Plain => "conv",
            Kind::Depthwise => "depthwise_conv",
            Kind::Transposed => "conv_transpose",
        };
        let name = name(&self.name, net, &format!("{kind}{}d", self.kernel.len()));
        let shape = net.ty(x).shape();
        let channels = shape.last().copied().unwrap_or(1);
        let ends = match self.kind {
            Kind::Plain => [channels / self.groups.max(1), self.filters],
            Kind::Depthwise => [channels, self.filters],
            Kind::Transposed => [self.filters, channels],
        };
        let kernel: Vec<usize> = self.kernel.iter().chain(&ends).copied().collect();
        let mut kernel = net.variable(&name, "kernel", &kernel, &self.kernel_initializer, true)?;
        self.kernel_regularizer.apply(net, kernel)?;
        let results = if self.kind == Kind::Depthwise { channels * self.filters } else { self.filters };
        if self.kind == Kind::Depthwise {
            let shape: Vec<usize> = self.kernel.iter().chain(&[1, results]).copied().collect();
            kernel = net.push(ops::Reshape::to(&shape), &[kernel])?;
        }
        let mut y = match self.kind {
            Kind::Transposed => self.transposed_op(net, x, kernel)?,
            Kind::Plain | Kind::Depthwise => {
                let image = &shape[1..shape.len() - 1];
                let op = ops::Conv {
                    strides: Conv::ints(&self.strides),
                    pads: self.padding.counts(image, &self.kernel, &self.strides, &self.dilations),
                    dilations: Conv::ints(&self.dilations),
                    group: if self.kind == Kind::Depthwise { channels } else { self.groups } as i64,
                    channels_last: true,
                };
                net.push(op, &[x, kernel])?
            }
        };
        if self.use_bias {
            let bias = net.variable(&name, "bias", &[results], &Initializer::Constant(0.0), true)?;
            y = net.map(ScalarFn::Add, &[y, bias])?;
        }
        self.activation.apply(net, y)
    }
}
