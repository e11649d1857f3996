//! A network under construction: a graph whose variables are inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use windlass_ir::graph::Values;
use windlass_ir::{Builder, DType, Error, Graph, Op, ScalarFn, Tensor, TensorType, Value};

use super::initializers::Initializer;

/// A tensor that a network keeps: a parameter that is trained, or a statistic.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// The layer's name, a dot and the variable's.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// The element type that it is computed with.
    pub arithmetic: DType,
    /// What it holds before training.
    pub initializer: Initializer,
    /// Whether gradients change it.
    pub trainable: bool,
}

impl Variable {
    /// What it holds before training, for a seed.
    pub fn initial(&self, seed: u64) -> Tensor {
        self.initializer.sample(self.ty.dtype, &self.ty.shape(), &self.name, seed)
    }
}

/// A network under construction, for training or for inference. Layers add nodes and variables to it.
///
/// Building the same network twice gives the same names, so one for training and one for inference share their
/// variables.
#[derive(Debug)]
pub struct Net {
    builder: Builder,
    dtype: DType,
    training: bool,
    /// Whether weights are multiplied with masks.
    masked: bool,
    /// The type that trained variables are kept in.
    storage: DType,
    /// What is read for each variable: its value in the type that is computed in.
    wide: Vec<Value>,
    variables: Vec<Variable>,
    values: Vec<Value>,
    /// What variables become after a step, for those that gradients do not change.
    updates: Vec<(usize, Value)>,
    penalties: Vec<Value>,
    counts: BTreeMap<String, usize>,
}

/// A network that is built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The graph so far: its inputs are variables and data, in the order in which they were made.
    pub builder: Builder,
    /// The variables, in the order in which layers made them.
    pub variables: Vec<Variable>,
    /// Their values.
    pub values: Vec<Value>,
    /// Their values in the type that is computed in.
    pub wide: Vec<Value>,
    /// Which variables have a next value, and what it is.
    pub updates: Vec<(usize, Value)>,
    /// Numbers that are added to the loss.
    pub penalties: Vec<Value>,
}

impl Net {
    /// An empty network whose variables have this type.
    pub fn new(name: &str, dtype: DType, training: bool) -> Net {
        Net {
            builder: Builder::new(name),
            dtype,
            training,
            masked: false,
            storage: dtype,
            wide: Vec::new(),
            variables: Vec::new(),
            values: Vec::new(),
            updates: Vec::new(),
            penalties: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// With trained variables kept in a narrower float type; what is computed with is their value in the network's.
    pub fn with_storage(self, storage: DType) -> Net {
        Net { storage, ..self }
    }

    /// With a mask for each weight of several dimensions that is trained, which it is multiplied with: a variable that is
    /// 1 at first, named after the weight and `mask`.
    pub fn with_masks(self) -> Net {
        Net { masked: true, ..self }
    }

    /// Whether it is built for training.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// The element type of variables.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A name that no layer has: `kind`, `kind_1`, ..
    pub fn unique_name(&mut self, kind: &str) -> String {
        let count = self.counts.entry(kind.to_string()).or_insert(0);
        *count += 1;
        if *count == 1 { kind.to_string() } else { format!("{kind}_{}", *count - 1) }
    }

    /// An input for data.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Value {
        self.builder.input(name, ty)
    }

    /// The variable of this name, made if it is not there: layers of one name share theirs.
    pub fn variable(
        &mut self,
        layer: &str,
        name: &str,
        shape: &[usize],
        initializer: &Initializer,
        trainable: bool,
    ) -> Result<Value, Error> {
        let name = format!("{layer}.{name}");
        let arithmetic = self.dtype;
        let of = |dtype: DType| TensorType::fixed(dtype, shape);
        let mask = (self.masked && trainable && shape.len() >= 2).then(|| Variable {
            name: format!("{name}.mask"),
            ty: of(arithmetic),
            arithmetic,
            initializer: Initializer::Constant(1.0),
            trainable: false,
        });
        let ty = of(if trainable { self.storage } else { arithmetic });
        let initializer = initializer.clone();
        let value = self.add_variable(Variable { name, ty, arithmetic, initializer, trainable })?;
        match mask {
            None => Ok(value),
            Some(mask) => {
                let mask = self.add_variable(mask)?;
                self.map(ScalarFn::Mul, &[value, mask])
            }
        }
    }

    /// This variable, in the type that it is computed with; made if none is there of its name.
    pub fn add_variable(&mut self, variable: Variable) -> Result<Value, Error> {
        let Variable { name, ty, arithmetic, .. } = variable.clone();
        if let Some(i) = self.variables.iter().position(|v| v.name == name) {
            return match self.variables[i].ty == ty {
                true => Ok(self.wide[i]),
                false => Err(Error::InputType { name, expected: self.variables[i].ty.clone(), found: ty }),
            };
        }
        let value = self.builder.input(&name, ty);
        self.variables.push(variable);
        self.values.push(value);
        let wide = self.builder.cast(value, arithmetic)?;
        self.wide.push(wide);
        Ok(wide)
    }

    /// What a variable becomes after a training step.
    pub fn update(&mut self, variable: Value, next: Value) {
        if let Some(i) = self.values.iter().position(|&v| v == variable) {
            self.updates.push((i, next));
        }
    }

    /// A number that is added to the loss.
    pub fn penalty(&mut self, value: Value) {
        self.penalties.push(value);
    }

    /// The builder of the graph.
    pub fn builder(&mut self) -> &mut Builder {
        &mut self.builder
    }

    /// A value's type.
    pub fn ty(&self, value: Value) -> &TensorType {
        self.builder.ty(value)
    }

    /// Adds a node of one result.
    pub fn push(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Result<Value, Error> {
        self.builder.push1(op, ins)
    }

    /// Adds a node of several results.
    pub fn push_all(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Result<Values, Error> {
        self.builder.push(op, ins, None)
    }

    /// Applies a scalar function.
    pub fn map(&mut self, f: ScalarFn, ins: &[Value]) -> Result<Value, Error> {
        self.builder.map(f, ins)
    }

    /// The network, built.
    pub fn build(mut self) -> Built {
        self.builder.set_name(None);
        Built {
            builder: self.builder,
            variables: self.variables,
            values: self.values,
            wide: self.wide,
            updates: self.updates,
            penalties: self.penalties,
        }
    }
}

impl Built {
    /// The graph with these results.
    pub fn graph(mut self, outputs: &[(&str, Value)]) -> Result<Graph, Error> {
        for (name, value) in outputs {
            self.builder.output(name, *value);
        }
        self.builder.finish()
    }
}
