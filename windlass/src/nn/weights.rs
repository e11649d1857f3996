//! Weights in files: safetensors, whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use windlass_ir::{DType, Tensor};

use super::error::TrainingError;
use super::model::Model;
use crate::error::Error;
use crate::files::write_whole;

fn to_safe(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        _ => return None,
    })
}

impl Model {
    /// Writes the variables to a safetensors file. What was there stays until the new file is complete.
    pub fn save_weights(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let io = |error: std::io::Error| Error::Io { path: path.to_path_buf(), error };
        let refused = |message: String| TrainingError::Weights { path: path.to_path_buf(), message };
        let mut views = BTreeMap::new();
        for (name, tensor) in self.variables() {
            let dtype = to_safe(tensor.dtype()).ok_or_else(|| refused(format!("{name} is not a float")))?;
            let view = TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes());
            views.insert(name.to_string(), view.map_err(|error| refused(error.to_string()))?);
        }
        let bytes = safetensors::serialize(&views, None).map_err(|error| refused(error.to_string()))?;
        write_whole(path, &bytes).map_err(io)
    }

    /// Reads the variables from a safetensors file, which has every one of them, of its type and shape.
    pub fn load_weights(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let refused = |message: String| TrainingError::Weights { path: path.to_path_buf(), message };
        let bytes = std::fs::read(path).map_err(|error| Error::Io { path: path.to_path_buf(), error })?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| refused(error.to_string()))?;
        let mut values = Vec::new();
        for variable in &self.variables {
            let view = file.tensor(&variable.name).map_err(|error| refused(error.to_string()))?;
            let fits =
                Some(view.dtype()) == to_safe(variable.ty.dtype) && *view.shape() == *variable.ty.shape();
            let tensor = Tensor::from_bytes(variable.ty.dtype, view.shape(), view.data()).filter(|_| fits);
            values.push(tensor.ok_or_else(|| {
                let found = format!("{:?}{:?}", view.dtype(), view.shape());
                refused(format!("`{}` is {found}, the model's is {}", variable.name, variable.ty))
            })?);
        }
        self.values = values;
        Ok(())
    }

    /// Writes the network and its weights, for so many examples at a time, as an ONNX file.
    pub fn export_onnx(&self, path: impl AsRef<Path>, batch: usize) -> Result<(), Error> {
        let path = path.as_ref();
        let bytes = windlass_frontend::onnx::to_bytes(&self.graph(batch)?)?;
        write_whole(path, &bytes).map_err(|error| Error::Io { path: path.to_path_buf(), error })
    }
}
