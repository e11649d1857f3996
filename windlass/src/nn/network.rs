//! What a model computes: layers one after another, or any function of a network under construction.

use std::fmt;
use std::sync::Arc;

use windlass_frontend::nn::Net;
use windlass_frontend::nn::layers::Layer;
use windlass_ir::{DType, Error, TensorType, Value};

type Body = dyn Fn(&mut Net, Value) -> Result<Value, Error> + Send + Sync;

/// A network on one input.
#[derive(Clone)]
pub struct Network {
    /// The shape of an example.
    shape: Vec<usize>,
    /// The input's element type, or that of the variables.
    dtype: Option<DType>,
    parts: Vec<Arc<Body>>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network of {} parts on {:?}", self.parts.len(), self.shape)
    }
}

impl Network {
    /// Layers one after another, for examples of this shape: `Sequential`.
    pub fn sequential(shape: &[usize]) -> Network {
        Network { shape: shape.to_vec(), dtype: None, parts: Vec::new() }
    }

    /// A function that builds the network on its input, for examples of this shape: Keras's functional networks.
    pub fn functional(
        shape: &[usize],
        body: impl Fn(&mut Net, Value) -> Result<Value, Error> + Send + Sync + 'static,
    ) -> Network {
        Network { parts: vec![Arc::new(body)], ..Network::sequential(shape) }
    }

    /// With inputs of another element type than the variables, such as the numbers of words.
    pub fn with_input_type(mut self, dtype: DType) -> Network {
        self.dtype = Some(dtype);
        self
    }

    /// With a layer more.
    #[expect(clippy::should_implement_trait, reason = "Keras's name for it; nothing is summed")]
    pub fn add(mut self, layer: impl Layer + Send + Sync + 'static) -> Network {
        self.parts.push(Arc::new(move |net, x| layer.apply(net, x)));
        self
    }

    /// The type of so many examples, for variables of this type.
    pub fn input_type(&self, batch: usize, dtype: DType) -> TensorType {
        let shape: Vec<usize> = [batch].iter().chain(&self.shape).copied().collect();
        TensorType::fixed(self.dtype.unwrap_or(dtype), &shape)
    }

    /// Adds the network to one under construction.
    pub fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        self.parts.iter().try_fold(x, |x, part| part(net, x))
    }
}
