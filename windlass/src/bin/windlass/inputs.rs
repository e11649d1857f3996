//! A model, and the inputs of a run: from files, else made from a seed.

use std::collections::BTreeMap;
use std::path::Path;

use windlass::{DType, Dim, Error, Limits, Model, Session, Sizes, Tensor, TensorType};
use windlass_frontend::image::read_png;
use windlass_frontend::npy;
use windlass_frontend::onnx::testcase::read_tensor;

use crate::arguments::{DimArg, InputArg};
use crate::failure::Failure;
use crate::picture::lay_out;

/// The inputs of a run, in the model's order, and what was made up for it.
pub struct Gathered {
    pub tensors: Vec<Tensor>,
    /// The inputs made from the seed.
    pub seeded: Vec<String>,
    /// The named dimensions that nothing gave a size, so that they are 1.
    pub ones: Vec<String>,
}

impl Gathered {
    /// Says on stderr what was made up.
    pub fn announce(&self, seed: u64) {
        if !self.ones.is_empty() {
            eprintln!("note: no size was given for {}: 1 is used", self.ones.join(", "));
        }
        if !self.seeded.is_empty() {
            eprintln!("note: random values (seed {seed}) are used for {}", self.seeded.join(", "));
        }
    }
}

/// Reads a model for any sizes, or, if that cannot be done, for those that are given. What is left of the latter: sizes of
/// dimensions that are still open.
pub fn load_model(
    path: &Path,
    limits: &Limits,
    files: &[InputArg],
    dims: &[DimArg],
) -> Result<(Model, Vec<DimArg>), Failure> {
    let error = match Model::load(path, limits) {
        Ok(model) => return Ok((model, dims.to_vec())),
        Err(error) => error,
    };
    if !matches!(error, Error::Frontend(windlass_frontend::Error::Unsupported(_))) {
        return Err(error.into());
    }
    let mut sizes =
        Sizes { dims: dims.iter().map(|dim| (dim.name.clone(), dim.size)).collect(), ..Sizes::default() };
    for file in files {
        // The shape of an image depends on what the model takes.
        let tensor = match extension(&file.file).as_str() {
            "npy" => npy::read(&file.file, limits),
            "pb" => read_tensor(&file.file, limits),
            _ => continue,
        };
        sizes.inputs.insert(file.name.clone(), tensor.map_err(Error::from)?.shape().to_vec());
    }
    if sizes.is_empty() {
        return Err(error.into());
    }
    let model = Model::load_sized(path, limits, &sizes)?;
    let open = model.graph.dim_names();
    let left = dims.iter().filter(|dim| open.iter().any(|name| **name == *dim.name)).cloned().collect();
    Ok((model, left))
}

/// Reads the files and makes the inputs that no file was given for.
///
/// A named dimension has the size given with --dim, else the size it has in a file, else 1.
pub fn gather(
    session: &Session,
    files: &[InputArg],
    dims: &[DimArg],
    seed: u64,
) -> Result<Gathered, Failure> {
    let declared: Vec<(&str, &TensorType)> = session.inputs().collect();
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for dim in dims {
        if sizes.insert(dim.name.clone(), dim.size).is_some() {
            return Err(Failure::Usage(format!("dimension `{}` is given twice", dim.name)));
        }
    }
    let names = session.graph().dim_names();
    if let Some(dim) = dims.iter().find(|dim| !names.iter().any(|name| **name == *dim.name)) {
        let known = if names.is_empty() { "none".to_string() } else { names.join(", ") };
        let message = format!("the model has no dimension `{}`; its named dimensions: {known}", dim.name);
        return Err(Failure::Usage(message));
    }
    let mut read: BTreeMap<&str, Tensor> = BTreeMap::new();
    for file in files {
        let Some((name, ty)) = declared.iter().find(|(name, _)| *name == file.name) else {
            let known: Vec<&str> = declared.iter().map(|(name, _)| *name).collect();
            let message = format!("the model has no input `{}`; its inputs: {}", file.name, known.join(", "));
            return Err(Failure::Usage(message));
        };
        let tensor = read_file(&file.file, ty, &session.options().limits)?;
        for (dim, &size) in ty.dims.iter().zip(tensor.shape()) {
            if let Dim::Named(dim) = dim {
                sizes.entry(dim.to_string()).or_insert(size);
            }
        }
        if read.insert(name, tensor).is_some() {
            return Err(Failure::Usage(format!("input `{name}` is given twice")));
        }
    }
    let mut gathered = Gathered { tensors: Vec::new(), seeded: Vec::new(), ones: Vec::new() };
    let mut random = fastrand::Rng::with_seed(seed);
    for (name, ty) in declared {
        let tensor = match read.remove(name) {
            Some(tensor) => tensor,
            None => {
                gathered.seeded.push(name.to_string());
                let shape: Vec<usize> =
                    ty.dims.iter().map(|dim| size_of(dim, &sizes, &mut gathered.ones)).collect();
                let ty = TensorType::fixed(ty.dtype, &shape);
                session.options().limits.check_type(&ty, || format!("input `{name}`"))?;
                random_tensor(ty.dtype, &shape, &mut random)
            }
        };
        gathered.tensors.push(tensor);
    }
    Ok(gathered)
}

fn size_of(dim: &Dim, sizes: &BTreeMap<String, usize>, ones: &mut Vec<String>) -> usize {
    match dim {
        Dim::Fixed(n) => *n,
        Dim::Unknown => 1,
        Dim::Named(name) => sizes.get(&**name).copied().unwrap_or_else(|| {
            if !ones.iter().any(|one| *one == **name) {
                ones.push(name.to_string());
            }
            1
        }),
    }
}

/// Floats from 0 to 1; integers and bools 0 or 1, which are valid as tokens, masks and indices alike.
fn random_tensor(dtype: DType, shape: &[usize], random: &mut fastrand::Rng) -> Tensor {
    let len = shape.iter().product();
    match dtype.is_float() {
        true => Tensor::from_f64s(dtype, shape, &(0..len).map(|_| random.f64()).collect::<Vec<_>>()),
        false => Tensor::from_i128s(dtype, shape, &(0..len).map(|_| random.i128(0..2)).collect::<Vec<_>>()),
    }
}

/// What a file's name ends in.
fn extension(file: &Path) -> String {
    file.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// Reads a file as an input of this type; its name's ending says what it is.
fn read_file(file: &Path, ty: &TensorType, limits: &Limits) -> Result<Tensor, Failure> {
    let tensor = match extension(file).as_str() {
        "npy" => npy::read(file, limits),
        "pb" => read_tensor(file, limits),
        "png" => {
            let image = read_png(file, limits).map_err(Error::from)?;
            return lay_out(&image, ty)
                .map_err(|message| Failure::Message(format!("{}: {message}", file.display())));
        }
        _ => {
            let message = format!("{}: the name of an input file ends in .npy, .pb or .png", file.display());
            return Err(Failure::Usage(message));
        }
    };
    Ok(tensor.map_err(Error::from)?)
}
