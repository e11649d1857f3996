//! `vmap`: makes a graph of one example one of a batch of [`Options::batch`](crate::Options::batch) of them.
//!
//! Every input and result has the batch as its first dimension, but for inputs that the options say examples share.

use windlass_ir::{Graph, vmap};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;

/// The pass.
pub const PASS: Pass = Pass { name: "vmap", help: "make a graph of one example one of a batch of them", run };

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let mapped: Vec<bool> =
        graph.inputs().iter().map(|(name, _)| !cx.options.shared.contains(name)).collect();
    let batch = cx.options.batch;
    if !cx.fire("batch", || format!("graph `{}` of {batch} examples", graph.name)) {
        return Ok(None);
    }
    Ok(Some(vmap(graph, &mapped, batch)?))
}
