//! Networks whose training steps are measured and tested.

use windlass_frontend::nn::layers::{
    Activation, Conv, Dense, GlobalPooling, Layer, LayerNormalization, MultiHeadAttention, Padding,
};
use windlass_frontend::nn::{Loss, Net, Optimizer, Step, Training, WeightedMean};
use windlass_ir::{DType, Error, ScalarFn, TensorType, Value};

/// What a network does to its input.
pub type Body = dyn Fn(&mut Net, Value) -> Result<Value, Error>;

/// Blocks of two 3x3 convolutions beside the identity.
pub fn residual(net: &mut Net, x: Value, blocks: usize, width: usize) -> Result<Value, Error> {
    let conv = |net: &mut Net, x: Value, activation: Activation| {
        Conv::new(width, &[3, 3]).padding(Padding::Same).activation(activation).apply(net, x)
    };
    let mut x = conv(net, x, Activation::Relu)?;
    for _ in 0..blocks {
        let y = conv(net, x, Activation::Relu)?;
        let y = conv(net, y, Activation::Linear)?;
        let sum = net.map(ScalarFn::Add, &[x, y])?;
        x = net.map(ScalarFn::Relu, &[sum])?;
    }
    let x = GlobalPooling::Average.apply(net, x)?;
    Dense::new(10).apply(net, x)
}

/// Layers of attention and of two dense layers, each beside the identity.
pub fn transformer(net: &mut Net, mut x: Value, layers: usize, heads: usize) -> Result<Value, Error> {
    let width = net.ty(x).shape()[2];
    for _ in 0..layers {
        let y = LayerNormalization::default().apply(net, x)?;
        let y = MultiHeadAttention::new(heads, width / heads).apply(net, y)?;
        x = net.map(ScalarFn::Add, &[x, y])?;
        let y = LayerNormalization::default().apply(net, x)?;
        let y = Dense::new(4 * width).activation(Activation::Gelu).apply(net, y)?;
        let y = Dense::new(width).apply(net, y)?;
        x = net.map(ScalarFn::Add, &[x, y])?;
    }
    let x = GlobalPooling::Average.apply(net, x)?;
    Dense::new(10).apply(net, x)
}

/// A step that trains a network on classes.
pub fn step(shape: &[usize], body: &Body) -> Result<Step, Error> {
    let mut net = Net::new("step", DType::F32, true);
    let x = net.input("x", TensorType::fixed(DType::F32, shape));
    let truth = net.input("y", TensorType::fixed(DType::I32, &shape[..1]));
    let prediction = body(&mut net, x)?;
    let training = Training {
        loss: Loss::SparseCategoricalCrossentropy { from_logits: true },
        optimizer: Optimizer::sgd(0.1),
        weighted: WeightedMean::Count,
        privacy: None,
    };
    training.step(net.build(), prediction, truth, None)
}
