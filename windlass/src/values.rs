//! What goes into a run and what comes out, by position or by name.

use std::ops::Index;
use std::sync::Arc;

use windlass_ir::{Graph, Tensor};

use crate::error::Error;

/// The inputs of a run.
#[derive(Clone, Debug)]
pub enum Inputs {
    /// In the order the model declares them.
    Ordered(Vec<Tensor>),
    /// By name, in any order.
    Named(Vec<(String, Tensor)>),
}

impl Inputs {
    /// The tensors in the order `graph` declares its inputs.
    pub(crate) fn in_order(self, graph: &Graph) -> Result<Vec<Tensor>, Error> {
        let named = match self {
            Inputs::Ordered(tensors) => return Ok(tensors),
            Inputs::Named(named) => named,
        };
        let mut slots: Vec<Option<Tensor>> = vec![None; graph.inputs().len()];
        for (name, tensor) in named {
            let Some(index) = graph.inputs().iter().position(|(n, _)| *n == name) else {
                let known = graph.inputs().iter().map(|(n, _)| n.clone()).collect();
                return Err(Error::UnknownInput { name, known });
            };
            if slots[index].replace(tensor).is_some() {
                return Err(Error::RepeatedInput { name });
            }
        }
        let missing = |(slot, (name, _)): (Option<Tensor>, &(String, _))| {
            slot.ok_or_else(|| Error::MissingInput { name: name.clone() })
        };
        slots.into_iter().zip(graph.inputs()).map(missing).collect()
    }
}

impl From<Vec<Tensor>> for Inputs {
    fn from(tensors: Vec<Tensor>) -> Inputs {
        Inputs::Ordered(tensors)
    }
}

impl From<&[Tensor]> for Inputs {
    fn from(tensors: &[Tensor]) -> Inputs {
        Inputs::Ordered(tensors.to_vec())
    }
}

impl From<Vec<(String, Tensor)>> for Inputs {
    fn from(named: Vec<(String, Tensor)>) -> Inputs {
        Inputs::Named(named)
    }
}

impl<const N: usize> From<[Tensor; N]> for Inputs {
    fn from(tensors: [Tensor; N]) -> Inputs {
        Inputs::Ordered(tensors.into())
    }
}

impl<const N: usize> From<[(&str, Tensor); N]> for Inputs {
    fn from(named: [(&str, Tensor); N]) -> Inputs {
        Inputs::Named(named.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect())
    }
}

/// The outputs of a run, in the order the model declares them.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    names: Arc<[String]>,
    tensors: Vec<Tensor>,
}

impl Outputs {
    pub(crate) fn new(names: Arc<[String]>, tensors: Vec<Tensor>) -> Outputs {
        Outputs { names, tensors }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none; no model is without outputs.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The output of this name.
    pub fn named(&self, name: &str) -> Option<&Tensor> {
        self.iter().find(|(known, _)| *known == name).map(|(_, tensor)| tensor)
    }

    /// Names and tensors, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.names.iter().map(String::as_str).zip(&self.tensors)
    }

    /// The tensors, in order.
    pub fn into_tensors(self) -> Vec<Tensor> {
        self.tensors
    }
}

/// # Panics
/// If there is no such output, as indexing does; [`Outputs::named`] does not.
impl Index<&str> for Outputs {
    type Output = Tensor;

    fn index(&self, name: &str) -> &Tensor {
        self.named(name).unwrap_or_else(|| panic!("no output is named `{name}`"))
    }
}

/// # Panics
/// If there are not as many outputs.
impl Index<usize> for Outputs {
    type Output = Tensor;

    fn index(&self, index: usize) -> &Tensor {
        &self.tensors[index]
    }
}
