//! rten: weights are laid out for its products when the model is loaded, as the other engines do.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value};
use rten_tensor::prelude::*;

use crate::array::{Array, Elements};

pub struct Session {
    model: Model,
    options: RunOptions,
    inputs: Vec<(NodeId, Value)>,
    outputs: Vec<Value>,
}

pub fn load(path: &Path, inputs: Vec<(String, Array)>, threads: usize) -> Result<Session> {
    let model = ModelOptions::with_all_ops().prepack_weights(true).load_file(path)?;
    let options =
        RunOptions::default().with_thread_pool(Some(Arc::new(ThreadPool::with_num_threads(threads))));
    let inputs = inputs.into_iter().map(|(name, array)| Ok((model.node_id(&name)?, to_value(array)?)));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    Ok(Session { model, options, inputs, outputs: Vec::new() })
}

impl crate::Session for Session {
    fn run(&mut self) -> Result<()> {
        let inputs = self.inputs.iter().map(|(node, value)| (*node, value.into())).collect();
        self.outputs = self.model.run(inputs, self.model.output_ids(), Some(self.options.clone()))?;
        Ok(())
    }

    fn outputs(&self) -> Result<Vec<Array>> {
        self.outputs.iter().map(to_array).collect()
    }
}

/// rten takes 64-bit integers and booleans as 32-bit integers.
fn to_value(array: Array) -> Result<Value> {
    let shape = &array.shape;
    Ok(match array.elements {
        Elements::F32(values) => Value::from_shape(shape, values)?,
        Elements::I64(values) => {
            let values: Result<Vec<i32>, _> = values.into_iter().map(i32::try_from).collect();
            Value::from_shape(shape, values.context("an input does not fit 32 bits")?)?
        }
        Elements::I32(values) => Value::from_shape(shape, values)?,
        Elements::I8(values) => Value::from_shape(shape, values)?,
        Elements::U8(values) => Value::from_shape(shape, values)?,
        Elements::Bool(values) => {
            Value::from_shape(shape, values.into_iter().map(i32::from).collect::<Vec<_>>())?
        }
    })
}

fn to_array(value: &Value) -> Result<Array> {
    let (shape, elements) = match value {
        Value::FloatTensor(tensor) => (tensor.shape(), Elements::F32(tensor.to_vec())),
        Value::Int32Tensor(tensor) => (tensor.shape(), Elements::I32(tensor.to_vec())),
        Value::Int8Tensor(tensor) => (tensor.shape(), Elements::I8(tensor.to_vec())),
        Value::UInt8Tensor(tensor) => (tensor.shape(), Elements::U8(tensor.to_vec())),
        other => bail!("an output of type {:?}", other.dtype()),
    };
    Ok(Array { shape: shape.to_vec(), elements })
}
