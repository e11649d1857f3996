//! Results that are not numbers: what to do about them, and which node made the first.
//!
//! ```
//! use windlass::{Builder, DType, Error, NanPolicy, Options, ScalarFn, Session, Tensor, TensorType};
//!
//! let mut b = Builder::new("entropy");
//! let p = b.input("p", TensorType::fixed(DType::F32, &[2]));
//! let logarithm = b.map(ScalarFn::Log, &[p])?;
//! let product = b.map(ScalarFn::Mul, &[p, logarithm])?;
//! b.output("h", product);
//! let session = Session::new(b.finish()?, Options::default())?;
//! // 0 times minus infinity.
//! let error = session.run_checked([Tensor::new(&[2], &[0f32, 0.5])], NanPolicy::Stop).unwrap_err();
//! assert_eq!(error.to_string(), "output `h` is not a number: the first that is none came from mul node1, of an infinity");
//! # Ok::<(), windlass::Error>(())
//! ```

use std::fmt;

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::{Def, Value, Values};
use windlass_ir::ops::{Reduce, ReduceKind};
use windlass_ir::{Builder, DType, Graph, ScalarFn, Tensor};

use crate::error::Error;
use crate::options::Options;
use crate::session::Session;
use crate::values::{Inputs, Outputs};

/// What is done about what is not a number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum NanPolicy {
    /// A result that is none is an error, which names the node that made the first. Looking for it takes a second run.
    #[default]
    Stop,
    /// Inputs that are none become this number.
    Impute(f64),
    /// Nothing.
    Propagate,
}

/// Where the first value that is not a number came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NanOrigin {
    /// An input has it.
    Input {
        /// Which.
        name: String,
    },
    /// A variable has it, which a gradient of an earlier step made so.
    Variable {
        /// Which.
        name: String,
    },
    /// A node made it of operands that have none.
    Node {
        /// Its op, and its name or place.
        node: String,
        /// Whether an operand was infinite.
        of_infinity: bool,
    },
    /// It did not appear when every node was computed by itself.
    Unknown,
}

impl fmt::Display for NanOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NanOrigin::Input { name } => write!(f, "the first that is none is in `{name}`"),
            NanOrigin::Variable { name } => {
                write!(f, "the first that is none is in the variable `{name}`, since an earlier step")
            }
            NanOrigin::Node { node, of_infinity } => {
                let end = if *of_infinity { ", of an infinity" } else { "" };
                write!(f, "the first that is none came from {node}{end}")
            }
            NanOrigin::Unknown => write!(f, "none is where each node is computed by itself"),
        }
    }
}

/// Whether any element is not a number.
pub(crate) fn has_nan(x: &Tensor) -> bool {
    match x.dtype() {
        DType::F32 => x.as_slice::<f32>().iter().any(|x| x.is_nan()),
        dtype => dtype.is_float() && x.to_f64s().iter().any(|x| x.is_nan()),
    }
}

/// A tensor with a number for every element that is none.
pub(crate) fn imputed(x: &Tensor, number: f64) -> Tensor {
    if !has_nan(x) {
        return x.clone();
    }
    let values: Vec<f64> = x.to_f64s().into_iter().map(|x| if x.is_nan() { number } else { x }).collect();
    Tensor::from_f64s(x.dtype(), x.shape(), &values)
}

impl Session {
    /// Runs the model and does about what is not a number what the policy says.
    pub fn run_checked(&self, inputs: impl Into<Inputs>, policy: NanPolicy) -> Result<Outputs, Error> {
        let mut inputs = inputs.into().in_order(self.graph())?;
        if let NanPolicy::Impute(number) = policy {
            inputs = inputs.iter().map(|x| imputed(x, number)).collect();
        }
        let outputs = self.run(inputs.clone())?;
        if policy == NanPolicy::Stop
            && let Some((output, _)) = outputs.iter().find(|(_, x)| has_nan(x))
        {
            let output = output.to_string();
            let origin = origin(self.graph(), &inputs, &output, self.options())?;
            return Err(Error::NotANumber { output, origin });
        }
        Ok(outputs)
    }
}

/// The first value that is not a number on the way to an output, found by a run that computes every node by itself and
/// looks at its results.
pub(crate) fn origin(
    graph: &Graph,
    inputs: &[Tensor],
    output: &str,
    options: &Options,
) -> Result<NanOrigin, Error> {
    let (probed, values) = probed(graph)?;
    // The probed graph has other outputs, and every value is an end in itself.
    let options = Options {
        opt_level: 0,
        bf16_weights: false,
        in_place: Vec::new(),
        memory_limit: None,
        profile: false,
        tune: None,
        ..options.clone()
    };
    let found = Session::new(probed, options)?.run(inputs.to_vec())?;
    let mut flags: SecondaryMap<Value, (bool, bool)> = SecondaryMap::with_capacity(graph.value_count());
    for (&value, counts) in values.iter().zip(found.into_tensors()) {
        let counts = counts.to_ints();
        flags[value] = (counts[0] > 0, counts[1] > 0);
    }
    let Some(&(_, mut value)) =
        graph.outputs().iter().find(|(name, value)| name == output && flags[*value].0)
    else {
        return Ok(NanOrigin::Unknown);
    };
    loop {
        match graph.def(value) {
            Def::Input(index) => {
                return Ok(NanOrigin::Input { name: graph.inputs()[index as usize].0.clone() });
            }
            Def::Output { node, .. } => {
                let ins = &graph.node(node).ins;
                let Some(&before) = ins.iter().find(|&&v| flags[v].0) else {
                    let of_infinity = ins.iter().any(|&v| flags[v].1);
                    return Ok(NanOrigin::Node { node: graph.describe(node), of_infinity });
                };
                value = before;
            }
        }
    }
}

/// A graph that says for each float value of another how many elements are not numbers and how many are infinite, and
/// those values.
fn probed(graph: &Graph) -> Result<(Graph, Vec<Value>), Error> {
    let mut b = Builder::new(&graph.name);
    let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::with_capacity(graph.value_count());
    let mut order = Vec::new();
    for (name, value) in graph.inputs() {
        map[*value] = Some(b.input(name, graph.ty(*value).clone()));
        order.push(*value);
    }
    for (_, data) in graph.nodes() {
        let ins: Values = data.ins.iter().map(|&v| map[v].expect("operands come before users")).collect();
        let outs = b.push(data.op.clone(), &ins, data.name.clone())?;
        for (&old, new) in data.outs.iter().zip(outs) {
            map[old] = Some(new);
            order.push(old);
        }
    }
    order.retain(|&value| graph.ty(value).dtype.is_float());
    for &value in &order {
        let probe = probe(&mut b, map[value].expect("every value is copied"))?;
        b.output(&value.to_string(), probe);
    }
    Ok((b.finish()?, order))
}

/// How many elements are not numbers, and how many are infinite.
fn probe(b: &mut Builder, x: Value) -> Result<Value, Error> {
    let infinity = b.scalar_like(x, f64::INFINITY);
    let size = b.map(ScalarFn::Abs, &[x])?;
    let kinds = [b.map(ScalarFn::IsNan, &[x])?, b.map(ScalarFn::Eq, &[size, infinity])?];
    let axes: Vec<i64> = (0..b.ty(x).rank() as i64).collect();
    let mut counts = Values::new();
    for kind in kinds {
        let ones = b.cast(kind, DType::I64)?;
        let count = match axes.len() {
            0 => ones,
            _ => b.push1(Reduce::over(ReduceKind::Sum, &axes, false), &[ones])?,
        };
        counts.push(b.push1(windlass_ir::ops::Reshape::to(&[1]), &[count])?);
    }
    Ok(b.push1(windlass_ir::ops::Concat { axis: 0 }, &counts)?)
}
