//! A graph as a network: its weights become variables.

use std::collections::BTreeSet;

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::{Def, late_operands};
use windlass_ir::{Builder, DType, Error, Graph, Op, Tensor, TensorType, Value, ops};

use super::initializers::Initializer;
use super::layers::batch_normalized;
use super::net::{Net, Variable};

/// A graph whose weights are variables, under the names that they have in it.
///
/// A weight is a constant with a name (an initializer of ONNX has one), float elements and at least one dimension, that a
/// result depends on other than by a size. Numbers without dimensions are part of a formula. The mean and variance of a
/// [`ops::BatchNorm`] are variables that gradients do not change; so is what [`Self::freeze`] names. Constants within the
/// bodies of control flow stay constants.
#[derive(Clone, Debug)]
pub struct GraphBody {
    /// The graph with the weights as inputs, behind its own.
    graph: Graph,
    /// How many inputs are its own.
    own: usize,
    weights: Vec<Variable>,
    /// What is kept at each step of the running statistics, if they are to follow the batches.
    momentum: Option<f64>,
}

impl GraphBody {
    /// Takes the weights out of a graph.
    pub fn new(graph: &Graph) -> Result<GraphBody, Error> {
        let is_weight = weights(graph);
        let statistics: BTreeSet<Value> = graph
            .nodes()
            .filter(|(_, data)| matches!(*data.op, Op::BatchNorm(_)))
            .flat_map(|(_, data)| data.ins[3..].iter().copied())
            .collect();
        let mut b = Builder::new(&graph.name);
        let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::with_capacity(graph.value_count());
        let mut names: BTreeSet<String> = BTreeSet::new();
        for (name, value) in graph.inputs() {
            names.insert(name.clone());
            map[*value] = Some(b.input(name, graph.ty(*value).clone()));
        }
        let mut variables = Vec::new();
        for (_, data) in graph.nodes() {
            let (Op::Constant(constant), Some(name), value) = (&*data.op, &data.name, data.outs[0]) else {
                continue;
            };
            if !is_weight[value] {
                continue;
            }
            let name = free_name(&mut names, name);
            let ty = constant.value.ty();
            map[value] = Some(b.input(&name, ty.clone()));
            let (initializer, trainable) =
                (Initializer::Tensor(constant.value.clone()), !statistics.contains(&value));
            // What a step changes of a parameter, its own last bit may not show.
            let arithmetic = match ty.dtype {
                DType::F16 | DType::BF16 if trainable => DType::F32,
                dtype => dtype,
            };
            variables.push(Variable { name, ty, arithmetic, initializer, trainable });
        }
        for (_, data) in graph.nodes() {
            if map[data.outs[0]].is_some() {
                continue;
            }
            let ins: Vec<Value> = data.ins.iter().filter_map(|&v| map[v]).collect();
            let outs = b.push(data.op.clone(), &ins, data.name.clone())?;
            data.outs.iter().zip(outs).for_each(|(&old, new)| map[old] = Some(new));
        }
        for (name, value) in graph.outputs() {
            b.output(name, map[*value].expect("results are defined"));
        }
        Ok(GraphBody { graph: b.finish()?, own: graph.inputs().len(), weights: variables, momentum: None })
    }

    /// The inputs, without the weights.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = (&str, &TensorType)> {
        self.graph.inputs()[..self.own].iter().map(|(name, value)| (name.as_str(), self.graph.ty(*value)))
    }

    /// The outputs.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = (&str, &TensorType)> {
        self.graph.outputs().iter().map(|(name, value)| (name.as_str(), self.graph.ty(*value)))
    }

    /// The weights, as variables.
    pub fn variables(&self) -> &[Variable] {
        &self.weights
    }

    /// Keeps gradients from changing the variables whose names are chosen.
    pub fn freeze(&mut self, is_frozen: impl Fn(&str) -> bool) {
        for weight in &mut self.weights {
            weight.trainable &= !is_frozen(&weight.name);
        }
    }

    /// Lets each `batch_norm` use the statistics of the batch in training, and the running ones follow: so much of them is
    /// kept at each step. Without this they stay as they are, in training as afterwards.
    pub fn follow_statistics(&mut self, momentum: f64) {
        self.momentum = Some(momentum);
    }

    /// Adds the graph to a network under construction, for inputs of the types that these have there.
    pub fn apply(&self, net: &mut Net, ins: &[Value]) -> Result<Vec<Value>, Error> {
        let mut values = ins.to_vec();
        for weight in &self.weights {
            let wide = net.add_variable(weight.clone())?;
            values.push(net.builder().cast(wide, weight.ty.dtype)?);
        }
        let types: Vec<TensorType> = values.iter().map(|&value| net.ty(value).clone()).collect();
        let bound = self.graph.with_input_types(&types)?;
        let Some(momentum) = self.momentum.filter(|_| net.is_training()) else {
            return Ok(net.builder().inline(&bound, &values)?.to_vec());
        };
        let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::with_capacity(bound.value_count());
        bound.inputs().iter().zip(&values).for_each(|((_, old), &new)| map[*old] = Some(new));
        for (_, data) in bound.nodes() {
            let ins: Vec<Value> = data.ins.iter().filter_map(|&v| map[v]).collect();
            let outs = match &*data.op {
                Op::BatchNorm(op) if data.ins[3..].iter().all(|&v| matches!(bound.def(v), Def::Input(_))) => {
                    vec![self.normalized(net, op, &ins, momentum)?]
                }
                op => net.builder().push(op.clone(), &ins, data.name.clone())?.to_vec(),
            };
            data.outs.iter().zip(outs).for_each(|(&old, new)| map[old] = Some(new));
        }
        Ok(bound.outputs().iter().filter_map(|(_, value)| map[*value]).collect())
    }

    fn normalized(
        &self,
        net: &mut Net,
        op: &ops::BatchNorm,
        ins: &[Value],
        momentum: f64,
    ) -> Result<Value, Error> {
        let axis = if op.channels_last { net.ty(ins[0]).rank() - 1 } else { 1 };
        batch_normalized(net, (ins[0], axis), [ins[1], ins[2], ins[3], ins[4]], (momentum, op.epsilon, false))
    }

    /// The graph with these values for its weights, in their order; named dimensions stay.
    pub fn with_values(&self, values: &[Tensor]) -> Result<Graph, Error> {
        let mut b = Builder::new(&self.graph.name);
        let mut ins = Vec::with_capacity(self.graph.inputs().len());
        for (name, ty) in self.inputs() {
            ins.push(b.input(name, ty.clone()));
        }
        for (weight, value) in self.weights.iter().zip(values) {
            let op = ops::Constant { value: value.clone() };
            ins.push(b.push(op, &[], Some(weight.name.as_str().into()))?[0]);
        }
        let outs = b.inline(&self.graph, &ins)?;
        for ((name, _), value) in self.graph.outputs().iter().zip(outs) {
            b.output(name, value);
        }
        b.finish()
    }
}

/// Which values are weights.
fn weights(graph: &Graph) -> SecondaryMap<Value, bool> {
    // What a result depends on by way of floats, and what a size depends on.
    let mut smooth: SecondaryMap<Value, bool> = SecondaryMap::with_capacity(graph.value_count());
    let mut sizes: SecondaryMap<Value, bool> = SecondaryMap::with_capacity(graph.value_count());
    let is_float = |value: Value| graph.ty(value).dtype.is_float();
    graph.outputs().iter().for_each(|(_, value)| smooth[*value] = is_float(*value));
    for (_, data) in graph.nodes().rev() {
        let is_smooth = data.outs.iter().any(|&out| smooth[out]);
        let is_size = data.outs.iter().any(|&out| sizes[out]) && !matches!(*data.op, Op::ShapeOf(_));
        for &value in &data.ins {
            smooth[value] |= is_smooth && is_float(value);
            sizes[value] |= is_size;
        }
        for (_, index) in late_operands(&data.op) {
            sizes[data.ins[index as usize]] = true;
        }
    }
    let mut found: SecondaryMap<Value, bool> = SecondaryMap::with_capacity(graph.value_count());
    for (_, data) in graph.nodes() {
        let value = data.outs[0];
        let is_constant = matches!(&*data.op, Op::Constant(_)) && data.name.is_some();
        found[value] = is_constant && smooth[value] && !sizes[value] && graph.ty(value).rank() > 0;
    }
    found
}

/// A name that is not taken, and now is: this one, or with a number behind it.
pub(super) fn free_name(taken: &mut BTreeSet<String>, name: &str) -> String {
    let numbered = (1..).map(|number| format!("{name}.{number}"));
    let free = std::iter::once(name.to_string()).chain(numbered).find(|name| !taken.contains(name));
    let free = free.expect("numbers do not end");
    taken.insert(free.clone());
    free
}

#[cfg(test)]
mod tests {
    use windlass_ir::{DType, Dim, interpret};

    use super::*;

    /// A batch norm on channels behind a product, and a reshape to a size that is computed from a float.
    fn graph() -> Graph {
        let text = r#"graph @g(%x: f32[batch, 2]) {
  %0 = constant {value = f32[2, 2] [1, 2, 3, 4]} "w"
  %1 = matmul %x, %0
  %2 = constant {value = f32[2] [1, 1]} "gamma"
  %3 = constant {value = f32[2] [0, 0]} "beta"
  %4 = constant {value = f32[2] [0.5, 0.25]} "mean"
  %5 = constant {value = f32[2] [1, 4]} "variance"
  %6 = batch_norm %1, %2, %3, %4, %5 {epsilon = 0.0} "norm"
  %7 = constant {value = f32[] [2]} "two"
  %8 = mul %6, %7
  %9 = constant {value = f32[1] [-1]} "count"
  %10 = cast %9 {to = i64}
  %11 = reshape %8 {shape = %10}
  return %8 as "y", %11 as "z"
}"#;
        windlass_ir::text::parse_graph(text).unwrap()
    }

    #[test]
    fn weights_are_named_floats_that_results_depend_on() {
        let body = GraphBody::new(&graph()).unwrap();
        let found: Vec<(&str, bool)> =
            body.variables().iter().map(|v| (v.name.as_str(), v.trainable)).collect();
        let expected = [("w", true), ("gamma", true), ("beta", true), ("mean", false), ("variance", false)];
        assert_eq!(found, expected);
        let values: Vec<Tensor> = body.variables().iter().map(|v| v.initial(0)).collect();
        let again = body.with_values(&values).unwrap();
        assert_eq!(again.ty(again.inputs()[0].1).dims[0], Dim::named("batch"));
        let x = Tensor::new(&[1, 2], &[0.5f32, 1.0]);
        assert_eq!(interpret(&again, &[x.clone()]).unwrap()[0], interpret(&graph(), &[x]).unwrap()[0]);
    }

    #[test]
    fn statistics_follow_when_asked_to() {
        let mut body = GraphBody::new(&graph()).unwrap();
        body.follow_statistics(0.75);
        let mut net = Net::new("g", DType::F32, true);
        let x = net.input("x", TensorType::fixed(DType::F32, &[2, 2]));
        let y = body.apply(&mut net, &[x]).unwrap()[0];
        let built = net.build();
        assert_eq!(built.updates.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [3, 4]);
        let outputs = [("y", y), ("mean", built.updates[0].1), ("variance", built.updates[1].1)];
        let mut ins = vec![Tensor::new(&[2, 2], &[1f32, 0., 0., 1.])];
        ins.extend(built.variables.iter().map(|v| v.initial(0)));
        let outs = interpret(&built.graph(&outputs).unwrap(), &ins).unwrap();
        // Products are [1, 2] and [3, 4]: means 2 and 3, variances 1.
        assert_eq!(outs[0].to_f64s(), [-2.0, -2.0, 2.0, 2.0]);
        assert_eq!(outs[1].to_f64s(), [0.875, 0.9375]);
        assert_eq!(outs[2].to_f64s(), [1.0, 3.25]);
    }
}
