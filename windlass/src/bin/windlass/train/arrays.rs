//! Arrays of a file as a model's examples and what is true of them.

use std::path::{Path, PathBuf};

use windlass::nn::{Network, OutputLoss};
use windlass::{DType, Dim, Error, Limits, Tensor, TensorType};
use windlass_frontend::npy::read_npz;

use crate::failure::Failure;

/// The arrays of a file.
pub struct Arrays {
    path: PathBuf,
    all: Vec<(String, Tensor)>,
}

/// Which array is that of an input or output.
#[derive(Clone, Debug)]
pub struct Choice {
    name: String,
    array: String,
}

/// Reads `NAME=ARRAY`.
pub fn parse_choice(text: &str) -> Result<Choice, String> {
    match text.rsplit_once('=') {
        Some((name, array)) if !name.is_empty() && !array.is_empty() => {
            Ok(Choice { name: name.to_string(), array: array.to_string() })
        }
        _ => Err(format!("`{text}` is not of the form NAME=ARRAY")),
    }
}

/// Reads `NAME=FACTOR`, a number or a fraction.
pub fn parse_scale(text: &str) -> Result<(String, f64), String> {
    let factor = |text: &str| -> Option<f64> {
        match text.split_once('/') {
            Some((over, under)) => Some(over.trim().parse::<f64>().ok()? / under.trim().parse::<f64>().ok()?),
            None => text.trim().parse().ok(),
        }
    };
    match text.rsplit_once('=').map(|(name, text)| (name, factor(text).filter(|f| f.is_finite()))) {
        Some((name, Some(factor))) if !name.is_empty() => Ok((name.to_string(), factor)),
        _ => Err(format!("`{text}` is not of the form NAME=FACTOR")),
    }
}

/// What an array is for.
struct Use<'a> {
    /// `input` or `target`.
    kind: &'static str,
    name: &'a str,
    ty: TensorType,
    /// The array's name where none was chosen and none has the name.
    usual: Option<&'static str>,
    /// What integers are multiplied by, if they may stand for floats.
    scale: Option<f64>,
}

impl Arrays {
    /// Reads a file.
    pub fn read(path: &Path, limits: &Limits) -> Result<Arrays, Failure> {
        let all = read_npz(path, limits).map_err(Error::from)?;
        Ok(Arrays { path: path.to_path_buf(), all })
    }

    /// The array of this name.
    pub fn named(&self, name: &str) -> Result<&Tensor, Failure> {
        let found = self.all.iter().find(|(own, _)| own == name);
        let found = found.map(|(_, tensor)| tensor);
        found.ok_or_else(|| self.wrong(&format!("no array `{name}`; {}", self.listed())))
    }

    fn listed(&self) -> String {
        let all: Vec<String> =
            self.all.iter().map(|(name, tensor)| format!("`{name}` {}", tensor.ty())).collect();
        format!("its arrays: {}", all.join(", "))
    }

    fn wrong(&self, message: &str) -> Failure {
        Failure::Message(format!("{}: {message}", self.path.display()))
    }

    /// The examples: an array for each input.
    pub fn inputs(
        &self,
        network: &Network,
        choices: &[Choice],
        scales: &[(String, f64)],
    ) -> Result<Vec<(String, Tensor)>, Failure> {
        let inputs: Vec<(&str, TensorType)> = network.inputs(DType::F32).collect();
        let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
        known("--input", choices.iter().map(|choice| choice.name.as_str()), &names)?;
        known("--scale", scales.iter().map(|(name, _)| name.as_str()), &names)?;
        let usual = (inputs.len() == 1).then_some("x");
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        for (name, ty) in inputs {
            let scale = scales.iter().find(|(own, _)| own == name).map(|(_, factor)| *factor);
            let tensor = self.array(Use { kind: "input", name, ty, usual, scale }, choices)?;
            if let Some((other, first)) = tensors.first()
                && first.shape()[0] != tensor.shape()[0]
            {
                let (first, own) = (first.shape()[0], tensor.shape()[0]);
                return Err(self.wrong(&format!("{first} examples for input `{other}`, {own} for `{name}`")));
            }
            tensors.push((name.to_string(), tensor));
        }
        Ok(tensors)
    }

    /// What is true: an array for each output with a loss.
    pub fn targets(
        &self,
        network: &Network,
        losses: &[OutputLoss],
        choices: &[Choice],
    ) -> Result<Vec<(String, Tensor)>, Failure> {
        let names: Vec<&str> = losses.iter().map(|loss| loss.output.as_str()).collect();
        known("--target", choices.iter().map(|choice| choice.name.as_str()), &names)?;
        let usual = (losses.len() == 1).then_some("y");
        let mut tensors = Vec::new();
        for loss in losses {
            let types = network.output_types();
            let at = network.outputs().iter().position(|name| *name == loss.output);
            let Some(mut ty) = at.and_then(|at| types.get(at).cloned()) else { continue };
            if loss.loss.takes_classes() {
                ty.dtype = DType::I64;
                ty.dims.pop();
            }
            let name = loss.output.as_str();
            let tensor = self.array(Use { kind: "target", name, ty, usual, scale: None }, choices)?;
            tensors.push((loss.output.clone(), tensor));
        }
        Ok(tensors)
    }

    /// The array for one use, as the type asks.
    fn array(&self, of: Use<'_>, choices: &[Choice]) -> Result<Tensor, Failure> {
        let Use { kind, name, ty, usual, scale } = of;
        let chosen = choices.iter().find(|choice| choice.name == name).map(|choice| choice.array.as_str());
        let has = |array: &str| self.all.iter().any(|(own, _)| own == array);
        let array = match chosen {
            Some(array) => array,
            None => [Some(name), usual].into_iter().flatten().find(|array| has(array)).ok_or_else(|| {
                let hint = format!("--{kind} {name}=ARRAY chooses one");
                self.wrong(&format!(
                    "no array for {kind} `{name}`, which takes {ty}; {}; {hint}",
                    self.listed()
                ))
            })?,
        };
        let tensor = self.named(array)?;
        fitted(tensor, &ty, scale).ok_or_else(|| {
            let hint =
                match tensor.dtype().is_int() && ty.dtype.is_float() && scale.is_none() && kind == "input" {
                    true => format!("; --scale {name}=FACTOR makes floats of integers"),
                    false => String::new(),
                };
            self.wrong(&format!("array `{array}` is {}, {kind} `{name}` takes {ty}{hint}", tensor.ty()))
        })
    }
}

/// Fails if a name is none of those known.
fn known<'n>(argument: &str, names: impl Iterator<Item = &'n str>, known: &[&str]) -> Result<(), Failure> {
    for name in names {
        if !known.contains(&name) {
            let message = format!("{argument}: the model has no `{name}` there; it has {}", known.join(", "));
            return Err(Failure::Usage(message));
        }
    }
    Ok(())
}

/// A tensor as a type asks: floats of another width are converted, and integers where their values are those of the type;
/// dimensions of size 1 are added and left out.
fn fitted(tensor: &Tensor, ty: &TensorType, scale: Option<f64>) -> Option<Tensor> {
    let rows = *tensor.shape().first()?;
    let sized =
        |dims: &[Dim]| -> Vec<Dim> { dims.iter().filter(|dim| **dim != Dim::Fixed(1)).cloned().collect() };
    let own: Vec<usize> = tensor.shape()[1..].iter().copied().filter(|&size| size != 1).collect();
    let shape: Vec<usize> = match tensor.rank() == ty.rank() {
        true => tensor.shape().to_vec(),
        false => {
            let wanted = sized(ty.dims.get(1..)?);
            if wanted.len() != own.len() {
                return None;
            }
            let mut own = own.into_iter();
            let size = |dim: &Dim| if *dim == Dim::Fixed(1) { Some(1) } else { own.next() };
            std::iter::once(Some(rows)).chain(ty.dims[1..].iter().map(size)).collect::<Option<_>>()?
        }
    };
    let mut dims = ty.dims.iter().zip(&shape).skip(1);
    if !dims.all(|(dim, &size)| dim.may_equal(&Dim::Fixed(size))) {
        return None;
    }
    let (from, to) = (tensor.dtype(), ty.dtype);
    if let Some(factor) = scale.filter(|_| to.is_float()) {
        let values: Vec<f64> = tensor.to_f64s().into_iter().map(|x| x * factor).collect();
        return Some(Tensor::from_f64s(to, &shape, &values));
    }
    if from == to {
        return Some(tensor.reshaped(&shape));
    }
    if from.is_float() && to.is_float() {
        return Some(Tensor::from_f64s(to, &shape, &tensor.to_f64s()));
    }
    let converted = Tensor::from_i128s(to, &shape, &tensor.to_i128s());
    (from.is_int() && to.is_int() && converted.to_i128s() == tensor.to_i128s()).then_some(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_become_what_a_type_asks_for() {
        let image =
            TensorType::new(DType::F32, [Dim::named("n"), Dim::Fixed(1), Dim::Fixed(2), Dim::Fixed(2)]);
        let bytes = Tensor::new::<u8>(&[1, 2, 2], &[0, 2, 4, 8]);
        assert_eq!(fitted(&bytes, &image, None), None);
        let scaled = Tensor::new(&[1, 1, 2, 2], &[0.0f32, 0.5, 1.0, 2.0]);
        assert_eq!(fitted(&bytes, &image, Some(0.25)), Some(scaled.clone()));
        let wide = Tensor::new(&[1, 2, 2, 1], &[0.0f64, 0.5, 1.0, 2.0]);
        assert_eq!(fitted(&wide, &image, None), None);
        assert_eq!(fitted(&wide.reshaped(&[1, 2, 2]), &image, None), Some(scaled));
        let classes = TensorType::new(DType::I64, [Dim::named("n")]);
        let labels = Tensor::new::<u8>(&[2, 1], &[3, 1]);
        assert_eq!(fitted(&labels, &classes, None), Some(Tensor::new::<i64>(&[2], &[3, 1])));
        let bytes = TensorType::new(DType::U8, [Dim::named("n")]);
        assert_eq!(fitted(&Tensor::new::<i64>(&[1], &[256]), &bytes, None), None);
    }

    #[test]
    fn scales_are_numbers_and_fractions() {
        assert_eq!(parse_scale("a=b=1/16"), Ok(("a=b".to_string(), 0.0625)));
        assert_eq!(parse_scale("x=2"), Ok(("x".to_string(), 2.0)));
        assert!(parse_scale("x=1/0").is_err() && parse_scale("x").is_err() && parse_scale("x=y").is_err());
    }
}
