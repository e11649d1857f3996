//! What a model computes: layers one after another, any function of a network under construction, or a graph.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use windlass_frontend::nn::layers::Layer;
use windlass_frontend::nn::{GraphBody, Net, Variable};
use windlass_ir::{DType, Dim, Error, Graph, Limits, Tensor, TensorType, Value};

use super::error::TrainingError;
use crate::model::Model as Loaded;

type Part = dyn Fn(&mut Net, &[Value]) -> Result<Vec<Value>, Error> + Send + Sync;

/// A network: a function of inputs whose first dimension is that of the examples.
#[derive(Clone)]
pub struct Network {
    inputs: Vec<Input>,
    /// The outputs' names.
    outputs: Vec<String>,
    body: Body,
}

/// An input of a network.
#[derive(Clone)]
struct Input {
    name: String,
    /// The element type, or `None` for that of the variables.
    dtype: Option<DType>,
    /// The dimensions, that of the examples first.
    dims: Vec<Dim>,
}

#[derive(Clone)]
enum Body {
    /// Functions, each of the results of the one before.
    Parts(Vec<Arc<Part>>),
    Graph(GraphBody),
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs: Vec<String> = self.inputs.iter().map(|i| format!("{} {:?}", i.name, i.dims)).collect();
        write!(f, "Network of {} to {}", inputs.join(", "), self.outputs.join(", "))
    }
}

impl Network {
    /// Layers one after another, for examples of this shape: `Sequential`.
    pub fn sequential(shape: &[usize]) -> Network {
        Network::of_inputs(&[("x", shape)], &["prediction"], Vec::new())
    }

    /// A function that builds the network on its input, for examples of this shape: Keras's functional networks.
    pub fn functional(
        shape: &[usize],
        body: impl Fn(&mut Net, Value) -> Result<Value, Error> + Send + Sync + 'static,
    ) -> Network {
        let part: Arc<Part> = Arc::new(move |net, ins| Ok(vec![body(net, ins[0])?]));
        Network::of_inputs(&[("x", shape)], &["prediction"], vec![part])
    }

    /// A function that builds the network on several inputs, for examples of these shapes, and gives as many results as
    /// there are names of outputs.
    pub fn functional_of(
        inputs: &[(&str, &[usize])],
        outputs: &[&str],
        body: impl Fn(&mut Net, &[Value]) -> Result<Vec<Value>, Error> + Send + Sync + 'static,
    ) -> Network {
        Network::of_inputs(inputs, outputs, vec![Arc::new(body)])
    }

    /// A graph, whose weights are trained under their own names ([`GraphBody`] says which constants are weights).
    ///
    /// The first dimension of each input is that of the examples: named, it takes batches of any size; fixed, of that size
    /// only. A graph that has them along another one is refused. Everything is computed as in inference: running statistics of a `batch_norm` stay as they are, unless
    /// [`Self::with_batch_statistics`] asks for those of the batches, and dropout is none.
    pub fn from_graph(graph: &Graph) -> Result<Network, crate::Error> {
        let body = GraphBody::new(graph)?;
        let mut inputs = Vec::new();
        let first: Vec<&Dim> = body.inputs().filter_map(|(_, ty)| ty.dims.first()).collect();
        let is_batch = |dim: &&Dim| match dim {
            Dim::Named(name) => first.contains(dim) || name.to_ascii_lowercase().contains("batch"),
            Dim::Fixed(_) | Dim::Unknown => false,
        };
        for (name, ty) in body.inputs() {
            let input = || name.to_string();
            if ty.rank() == 0 {
                return Err(TrainingError::NoExamples { input: input(), ty: ty.clone() }.into());
            }
            if let Some(dim) = ty.dims[1..].iter().find(is_batch) {
                let dim = dim.to_string();
                return Err(TrainingError::NotFirst { input: input(), ty: ty.clone(), dim }.into());
            }
            let dims = ty.dims.to_vec();
            inputs.push(Input { name: name.to_string(), dtype: Some(ty.dtype), dims });
        }
        if body.variables().is_empty() {
            return Err(TrainingError::NoWeights.into());
        }
        let outputs = body.outputs().map(|(name, _)| name.to_string()).collect();
        Ok(Network { inputs, outputs, body: Body::Graph(body) })
    }

    /// The graph of a model file, `.onnx` or `.wir`, as [`Self::from_graph`].
    pub fn open(path: impl AsRef<Path>, limits: &Limits) -> Result<Network, crate::Error> {
        Network::from_graph(&Loaded::load(path, limits)?.graph)
    }

    /// The graph of an ONNX file's bytes, as [`Self::from_graph`].
    pub fn from_onnx(bytes: &[u8], limits: &Limits) -> Result<Network, crate::Error> {
        let bytes = windlass_frontend::onnx::Bytes::copy_from_slice(bytes);
        Network::from_graph(&windlass_frontend::onnx::from_bytes(bytes, limits)?.graph)
    }

    fn of_inputs(inputs: &[(&str, &[usize])], outputs: &[&str], parts: Vec<Arc<Part>>) -> Network {
        let input = |&(name, shape): &(&str, &[usize])| {
            let example = shape.iter().map(|&size| Dim::Fixed(size));
            let dims = std::iter::once(Dim::named("batch")).chain(example).collect();
            Input { name: name.to_string(), dtype: None, dims }
        };
        Network {
            inputs: inputs.iter().map(input).collect(),
            outputs: outputs.iter().map(|name| name.to_string()).collect(),
            body: Body::Parts(parts),
        }
    }

    /// With inputs of another element type than the variables, such as the numbers of words.
    pub fn with_input_type(mut self, dtype: DType) -> Network {
        self.inputs.iter_mut().for_each(|input| input.dtype = Some(dtype));
        self
    }

    /// With an input of another element type than the variables.
    pub fn with_type_of(mut self, input: &str, dtype: DType) -> Network {
        self.inputs.iter_mut().filter(|own| own.name == input).for_each(|own| own.dtype = Some(dtype));
        self
    }

    /// With a layer more, on the first result.
    #[expect(clippy::should_implement_trait, reason = "Keras's name for it; nothing is summed")]
    pub fn add(mut self, layer: impl Layer + Send + Sync + 'static) -> Network {
        let part: Arc<Part> = Arc::new(move |net, ins| Ok(vec![layer.apply(net, ins[0])?]));
        match &mut self.body {
            Body::Parts(parts) => parts.push(part),
            Body::Graph(body) => {
                let body = body.clone();
                let graph: Arc<Part> = Arc::new(move |net, ins| body.apply(net, ins));
                self.body = Body::Parts(vec![graph, part]);
            }
        }
        self.outputs.truncate(1);
        self
    }

    /// With weights of a graph that gradients do not change: those whose names are chosen.
    pub fn with_frozen(mut self, is_frozen: impl Fn(&str) -> bool) -> Network {
        if let Body::Graph(body) = &mut self.body {
            body.freeze(is_frozen);
        }
        self
    }

    /// With the statistics of the batch in training for each `batch_norm` of a graph, of which the running ones keep this
    /// part at each step.
    pub fn with_batch_statistics(mut self, momentum: f64) -> Network {
        if let Body::Graph(body) = &mut self.body {
            body.follow_statistics(momentum);
        }
        self
    }

    /// The inputs' names and types, for variables of this type. The first dimension is that of the examples.
    pub fn inputs(&self, dtype: DType) -> impl ExactSizeIterator<Item = (&str, TensorType)> {
        let ty =
            move |input: &Input| TensorType::new(input.dtype.unwrap_or(dtype), input.dims.iter().cloned());
        self.inputs.iter().map(move |input| (input.name.as_str(), ty(input)))
    }

    /// The outputs' names.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// The types of a graph's outputs; those of layers are known once they are built.
    pub fn output_types(&self) -> Vec<TensorType> {
        match &self.body {
            Body::Parts(_) => Vec::new(),
            Body::Graph(body) => body.outputs().map(|(_, ty)| ty.clone()).collect(),
        }
    }

    /// The variables of a graph; layers make theirs when they are built.
    pub fn variables(&self) -> &[Variable] {
        self.graph_variables().unwrap_or_default()
    }

    /// The number of examples that it takes at a time, and the input that says so, if it is not any.
    pub fn fixed_batch(&self) -> Option<(&str, usize)> {
        self.inputs.iter().find_map(|input| Some((input.name.as_str(), input.dims[0].as_fixed()?)))
    }

    /// The type of the first input for so many examples, for variables of this type.
    pub fn input_type(&self, batch: usize, dtype: DType) -> TensorType {
        self.types(batch, dtype).swap_remove(0)
    }

    /// The types of the inputs for so many examples, for variables of this type.
    pub(super) fn types(&self, batch: usize, dtype: DType) -> Vec<TensorType> {
        let with_batch = |(_, mut ty): (&str, TensorType)| {
            ty.dims[0] = Dim::Fixed(ty.dims[0].as_fixed().unwrap_or(batch));
            ty
        };
        self.inputs(dtype).map(with_batch).collect()
    }

    /// The variables of a graph; layers' are known once they are built.
    pub(super) fn graph_variables(&self) -> Option<&[Variable]> {
        match &self.body {
            Body::Parts(_) => None,
            Body::Graph(body) => Some(body.variables()),
        }
    }

    /// The graph with these values for its weights, if it is one.
    pub(super) fn graph_with(&self, values: &[Tensor]) -> Option<Result<Graph, Error>> {
        match &self.body {
            Body::Parts(_) => None,
            Body::Graph(body) => Some(body.with_values(values)),
        }
    }

    /// Adds the network to one under construction.
    pub fn apply(&self, net: &mut Net, ins: &[Value]) -> Result<Vec<Value>, Error> {
        match &self.body {
            Body::Parts(parts) => parts.iter().try_fold(ins.to_vec(), |values, part| part(net, &values)),
            Body::Graph(body) => body.apply(net, ins),
        }
    }
}
