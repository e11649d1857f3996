//! Splitting a graph where a size becomes known only at run time.
//!
//! A [`Plan`] is made for input types of known sizes. Types follow through most of a graph, but not
//! through a node whose result sizes depend on data (`non_zero`), nor one whose shape operand is
//! computed (a late attribute). So the nodes fall into three groups:
//!
//! - the *head*: nodes whose operands and results have known types; it is compiled;
//! - the *boundary*: nodes that read only inputs and the head, but whose own result sizes are not
//!   known, or which run [graphs of their own](super::control). The interpreter runs the former, and their
//!   results have sizes. A node with a late attribute is no boundary: its operand's value joins the key
//!   below, and makes it an ordinary node;
//! - the *rest*: all others, a graph whose inputs are what it reads of the above. Once those have
//!   run it is planned in turn, for the types and late values at hand; plans are kept by these.
//!
//! Each step to the rest either runs a boundary node or settles a late attribute, so plans end.

use std::sync::Arc;

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::{Node, Value};
use windlass_ir::{Graph, Tensor, TensorType, eval_op};

use super::cache::Cache;
use super::control::Control;
use super::parts::{Key, Parts, extract, with_keys};
use super::stage::{KernelProfile, Setup, Stage};
use crate::compile::Counts;
use crate::error::Error;

/// What runs for inputs of given types.
pub(super) struct Plan {
    graph: Graph,
    head: Option<Head>,
    /// With what runs each if it is not the interpreter.
    boundary: Vec<(Node, Option<Control>)>,
    rest: Option<Rest>,
    /// Whether the head takes the graph's inputs and yields its outputs, so that there is nothing to carry between.
    is_head: bool,
}

struct Head {
    stage: Stage,
    /// The values of the plan's graph that the stage takes and yields.
    ins: Vec<Value>,
    outs: Vec<Value>,
}

/// The part that waits for sizes.
struct Rest {
    /// Its inputs stand for `ins`, in order.
    graph: Graph,
    ins: Vec<Value>,
    /// Which of them give late attributes, and so are part of the key.
    is_late: Vec<bool>,
    plans: Cache<Vec<Key>, Plan>,
}

impl Plan {
    /// Plans a graph whose inputs have these types, all sizes known.
    pub(super) fn new(graph: &Graph, types: &[TensorType], setup: &Setup) -> Result<Plan, Error> {
        Plan::of_bound(graph.specialized(types)?, setup)
    }

    fn of_bound(graph: Graph, setup: &Setup) -> Result<Plan, Error> {
        let parts = Parts::of(&graph);
        let is_head = parts.boundary.is_empty() && parts.rest.is_empty();
        let values = |list: &[(String, Value)]| list.iter().map(|(_, value)| *value).collect();
        let head = match (parts.head_outs.is_empty(), is_head) {
            (true, _) => None,
            (false, true) => {
                let stage = Stage::new(&graph, &setup.options)?;
                Some(Head { stage, ins: values(graph.inputs()), outs: values(graph.outputs()) })
            }
            (false, false) => {
                let head = extract(&graph, &parts.head, &parts.head_ins, &parts.head_outs)?;
                let stage = Stage::new(&head, &setup.options)?;
                Some(Head { stage, ins: parts.head_ins, outs: parts.head_outs })
            }
        };
        let rest = match parts.rest.is_empty() {
            true => None,
            false => {
                let outs: Vec<Value> = graph.outputs().iter().map(|(_, v)| *v).collect();
                Some(Rest {
                    graph: extract(&graph, &parts.rest, &parts.rest_ins, &outs)?,
                    is_late: parts.rest_ins.iter().map(|&v| parts.late[v]).collect(),
                    ins: parts.rest_ins,
                    plans: Cache::new(setup.options.cache),
                })
            }
        };
        let with_control = |node: Node| Ok((node, Control::new(&graph, node, setup)?));
        let boundary = parts.boundary.into_iter().map(with_control).collect::<Result<_, Error>>()?;
        Ok(Plan { graph, head, boundary, rest, is_head })
    }

    /// The compiled part that needs no run to be known.
    pub(super) fn stage(&self) -> Option<&Stage> {
        self.head.as_ref().map(|head| &head.stage)
    }

    /// Where the time went, of what is compiled for the sizes met last.
    pub(super) fn profile(&self) -> Vec<KernelProfile> {
        let mut profile = self.stage().map(Stage::profile).unwrap_or_default();
        let bodies = self.boundary.iter().filter_map(|(_, control)| control.as_ref());
        profile.extend(bodies.flat_map(Control::profile));
        let rest = self.rest.as_ref().and_then(|rest| rest.plans.last());
        profile.extend(rest.map(|rest| rest.profile()).unwrap_or_default());
        profile
    }

    /// Runs on inputs of the types it was planned for. Those in whose memory results are made are taken, unless there is
    /// an error.
    pub(super) fn run(
        self: &Arc<Plan>,
        inputs: &mut [Tensor],
        setup: &Setup,
        counts: &mut Counts,
    ) -> Result<Vec<Tensor>, Error> {
        if let (true, Some(head)) = (self.is_head, &self.head) {
            counts.add(head.stage.counts());
            return head.stage.run(inputs, setup);
        }
        let mut plan = self.clone();
        let mut inputs = inputs.to_vec();
        loop {
            if let (true, Some(head)) = (plan.is_head, &plan.head) {
                counts.add(head.stage.counts());
                return head.stage.run(&mut inputs, setup);
            }
            let values = plan.run_here(inputs, setup, counts)?;
            let Some(rest) = &plan.rest else {
                let outputs = plan.graph.outputs().iter();
                return Ok(outputs.map(|(_, v)| value_of(&plan.graph, &values, *v)).collect());
            };
            let tensors: Vec<Tensor> = rest.ins.iter().map(|&v| value_of(&plan.graph, &values, v)).collect();
            let key = tensors.iter().zip(&rest.is_late).map(|(tensor, late)| match late {
                true => Key::Value(tensor.clone()),
                false => Key::Type(tensor.ty()),
            });
            let next = rest.plans.obtain(key.collect(), |key| rest.plan(key, setup))?;
            inputs = tensors
                .into_iter()
                .zip(&rest.is_late)
                .filter_map(|(tensor, late)| (!late).then_some(tensor))
                .collect();
            plan = next;
        }
    }

    /// Runs the head and the boundary.
    fn run_here(
        &self,
        inputs: Vec<Tensor>,
        setup: &Setup,
        counts: &mut Counts,
    ) -> Result<SecondaryMap<Value, Option<Tensor>>, Error> {
        let mut values = SecondaryMap::with_capacity(self.graph.value_count());
        for ((_, value), tensor) in self.graph.inputs().iter().zip(inputs) {
            values[*value] = Some(tensor);
        }
        if let Some(head) = &self.head {
            let mut ins: Vec<Tensor> = head.ins.iter().map(|&v| value_of(&self.graph, &values, v)).collect();
            let outs = head.stage.run(&mut ins, setup)?;
            for (&value, tensor) in head.outs.iter().zip(outs) {
                values[value] = Some(tensor);
            }
            counts.add(head.stage.counts());
        }
        for (node, control) in &self.boundary {
            let data = self.graph.node(*node);
            let ins: Vec<Tensor> = data.ins.iter().map(|&v| value_of(&self.graph, &values, v)).collect();
            let outs = match control {
                Some(control) => control.run(&ins, setup, counts)?,
                None => {
                    counts.interpreted += 1;
                    let fail =
                        |message| windlass_ir::Error::Eval { node: self.graph.describe(*node), message };
                    eval_op(&data.op, &ins).map_err(fail)?
                }
            };
            for (&value, tensor) in data.outs.iter().zip(outs) {
                values[value] = Some(tensor);
            }
        }
        Ok(values)
    }
}

impl Rest {
    /// The plan for the types and late values at hand.
    fn plan(&self, key: &[Key], setup: &Setup) -> Result<Plan, Error> {
        let (graph, types) = with_keys(&self.graph, key, &setup.options.limits)?;
        Plan::new(&graph, &types, setup)
    }
}

/// A value of a plan's graph that was computed, given, or is a constant.
fn value_of(graph: &Graph, values: &SecondaryMap<Value, Option<Tensor>>, value: Value) -> Tensor {
    let computed = values[value].as_ref().or_else(|| graph.as_constant(value));
    computed.expect("what a part reads is computed before it").clone()
}
