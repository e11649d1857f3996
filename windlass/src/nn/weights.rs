//! Weights in files: safetensors, whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use windlass_ir::{DType, Tensor, TensorType};

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

/// The bytes of a file of named tensors, with a text about them.
pub(super) fn encode<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    about: Option<(&str, String)>,
) -> Result<Vec<u8>, String> {
    let mut views = BTreeMap::new();
    for (name, tensor) in tensors {
        let dtype = to_safe(tensor.dtype()).ok_or_else(|| format!("{name} is not a float"))?;
        let view = TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes());
        views.insert(name, view.map_err(|error| error.to_string())?);
    }
    // One entry: several would be written in no certain order.
    let about = about.map(|(key, text)| HashMap::from([(key.to_string(), text)]));
    safetensors::serialize(&views, about).map_err(|error| error.to_string())
}

/// The tensors of these names and types.
pub(super) fn decode<'a>(
    file: &SafeTensors<'_>,
    wanted: impl IntoIterator<Item = (&'a str, &'a TensorType)>,
) -> Result<Vec<Tensor>, String> {
    let read = |(name, ty): (&str, &TensorType)| {
        let view = file.tensor(name).map_err(|error| error.to_string())?;
        let fits = Some(view.dtype()) == to_safe(ty.dtype) && *view.shape() == *ty.shape();
        let tensor = Tensor::from_bytes(ty.dtype, view.shape(), view.data()).filter(|_| fits);
        tensor.ok_or_else(|| format!("`{name}` is {:?}{:?}, the model's is {ty}", view.dtype(), view.shape()))
    };
    wanted.into_iter().map(read).collect()
}

impl Model {
    /// Writes the variables to a safetensors file. What was there stays until the new file is complete.
    pub fn save_weights(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let io = |error: std::io::Error| Error::Io { path: path.to_path_buf(), error };
        let refused = |message: String| TrainingError::Weights { path: path.to_path_buf(), message };
        let bytes = encode(self.variables(), None).map_err(refused)?;
        write_whole(path, &bytes).map_err(io)
    }

    /// Reads the variables from a safetensors file, which has every one of them, of its type and shape.
    pub fn load_weights(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let refused = |message: String| TrainingError::Weights { path: path.to_path_buf(), message };
        let bytes = std::fs::read(path).map_err(|error| Error::Io { path: path.to_path_buf(), error })?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| refused(error.to_string()))?;
        let wanted = self.variables.iter().map(|v| (v.name.as_str(), &v.ty));
        let values = decode(&file, wanted).map_err(refused)?;
        self.values = values;
        Ok(())
    }

    /// Writes the network and its weights as an ONNX file: layers for so many examples at a time, a graph with the
    /// dimensions, inputs and outputs that it had.
    pub fn export_onnx(&self, path: impl AsRef<Path>, batch: usize) -> Result<(), Error> {
        let path = path.as_ref();
        let bytes = windlass_frontend::onnx::to_bytes(&self.graph(batch)?)?;
        write_whole(path, &bytes).map_err(|error| Error::Io { path: path.to_path_buf(), error })
    }
}
