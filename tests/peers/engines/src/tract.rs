//! tract: the model is typed for the shapes of the inputs, optimised, and laid out as a plan.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tract_linalg::multithread::Executor;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::runtime::RunOptions;

use crate::array::{Array, Elements};

pub struct Session {
    plan: Arc<TypedRunnableModel>,
    inputs: TVec<TValue>,
    outputs: TVec<TValue>,
}

pub fn load(path: &Path, inputs: &[(String, Array)], threads: usize) -> Result<Session> {
    let mut model = tract_onnx::onnx().model_for_path(path)?;
    let mut values = TVec::new();
    for (number, outlet) in model.input_outlets()?.to_vec().into_iter().enumerate() {
        let name = &model.node(outlet.node).name;
        let (_, array) =
            inputs.iter().find(|(given, _)| given == name).with_context(|| format!("no input {name}"))?;
        let value = to_tensor(array)?;
        model.set_input_fact(number, InferenceFact::dt_shape(value.datum_type(), value.shape()))?;
        values.push(Arc::new(value).into_tvalue());
    }
    let executor = match threads {
        1 => Executor::SingleThread,
        _ => Executor::multithread(threads),
    };
    let options = RunOptions { executor: Some(executor), ..RunOptions::default() };
    let plan = model.into_optimized()?.into_runnable_with_options(&options)?;
    Ok(Session { plan, inputs: values, outputs: TVec::new() })
}

impl crate::Session for Session {
    fn run(&mut self) -> Result<()> {
        self.outputs = self.plan.run(self.inputs.clone())?;
        Ok(())
    }

    fn outputs(&self) -> Result<Vec<Array>> {
        self.outputs.iter().map(|output| to_array(output)).collect()
    }
}

fn to_tensor(array: &Array) -> Result<Tensor> {
    match &array.elements {
        Elements::F32(values) => Tensor::from_shape(&array.shape, values),
        Elements::I64(values) => Tensor::from_shape(&array.shape, values),
        Elements::I32(values) => Tensor::from_shape(&array.shape, values),
        Elements::I8(values) => Tensor::from_shape(&array.shape, values),
        Elements::U8(values) => Tensor::from_shape(&array.shape, values),
        Elements::Bool(values) => Tensor::from_shape(&array.shape, values),
    }
}

fn to_array(tensor: &Tensor) -> Result<Array> {
    let plain = tensor.try_as_plain_ram()?;
    let elements = match tensor.datum_type().unquantized() {
        DatumType::F32 => Elements::F32(plain.as_slice()?.to_vec()),
        DatumType::I64 => Elements::I64(plain.as_slice()?.to_vec()),
        DatumType::I32 => Elements::I32(plain.as_slice()?.to_vec()),
        DatumType::I8 => Elements::I8(plain.as_slice()?.to_vec()),
        DatumType::U8 => Elements::U8(plain.as_slice()?.to_vec()),
        DatumType::Bool => Elements::Bool(plain.as_slice()?.to_vec()),
        other => bail!("an output of type {other:?}"),
    };
    Ok(Array { shape: tensor.shape().to_vec(), elements })
}
