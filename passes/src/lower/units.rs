//! Units: a graph lowered op by op to formulas, kernels and interpreted ops, over buffers.
//!
//! This is the form between graphs and programs. Fusion merges units, packing changes the layout of
//! the buffers between them, scheduling turns each formula into a kernel, and planning gives every
//! buffer its place.

use std::collections::BTreeSet;
use std::sync::Arc;

use cranelift_entity::{PrimaryMap, SecondaryMap, entity_impl};
use rustc_hash::FxHashMap;
use windlass_ir::graph::NodeData;
use windlass_ir::loops::{Kernel, Nest, Origin, Rounds};
use windlass_ir::ops::{Lowered, Op, Recurrence, Repeated};
use windlass_ir::{DType, Error, Graph, Shape, Tensor, TensorType, Value};

use super::margins::Margins;
use super::parallel;
use super::schedule::Machine;
use crate::fingerprint::op_fingerprint;

/// Identifies a buffer between units.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buf(u32);
entity_impl!(Buf, "buf");

/// A buffer: row-major elements of a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct BufData {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
    /// The contents, if known when compiling.
    pub constant: Option<Tensor>,
}

impl BufData {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds as many elements of the same type.
    pub fn is_like(&self, other: &BufData) -> bool {
        self.dtype == other.dtype && self.elements() == other.elements()
    }

    /// The type of its contents.
    pub fn ty(&self) -> TensorType {
        TensorType::fixed(self.dtype, &self.shape)
    }
}

/// What a unit computes.
#[derive(Clone, Debug, PartialEq)]
pub enum UnitWork {
    /// A formula, yet to be scheduled.
    Nest(Box<Nest>),
    /// A copy that must be made, even if its formula is the identity: no other unit takes it in.
    Copy(Box<Nest>),
    /// A formula whose result stands inside a larger array, yet to be scheduled.
    Padded(Box<Nest>, Margins),
    /// Scheduled loops; parameters are the operands, then the results.
    Kernel(Box<Kernel>),
    /// Scheduled loops, some of them run several times over; buffers are the operands, then the results, then its own.
    Rounds(Box<Rounds>),
    /// Units that run several times over.
    Body(Box<Body>),
    /// An op that the interpreter runs.
    Interpret(Box<Op>),
}

/// Units that run for each slice of some operands, with states passed from one round to the next. The operands are the
/// first states, whole tensors to be read slice by slice, and captures, which are the same in every round; the results
/// are the last states and whole tensors written slice by slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// The units of one round. Its inputs are the states, the slices, then the captures, whose operands of the unit stand
    /// in the same order; its outputs are the next states and the slices of the results.
    pub units: Units,
    /// The number of rounds.
    pub times: usize,
    /// The number of states.
    pub states: usize,
    /// For each operand that is read slice by slice, whether from its end.
    pub scanned: Vec<bool>,
    /// For each result that is written slice by slice, whether from its end.
    pub stacked: Vec<bool>,
    /// Where each state is kept, once that is settled.
    pub homes: Vec<Home>,
}

/// Where a state is kept from one round to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In the rows of this stacked result, which has it after each round.
    After(usize),
    /// In the rows of this stacked result, which has it before each round.
    Before(usize),
    /// In memory of its own.
    Own,
}

impl Body {
    /// The units of a graph that is run a number of times over, if formulas and kernels express all of it.
    fn lower(repeated: &Repeated, origin: &str, machine: &Machine) -> Result<Option<Body>, Error> {
        let mut units = Units::lower(&repeated.body, machine)?;
        let is_loop = |unit: &Unit| matches!(unit.work, UnitWork::Nest(_) | UnitWork::Kernel(_));
        if !units.units.iter().all(is_loop) {
            return Ok(None);
        }
        for node in units.units.iter_mut().flat_map(|unit| &mut unit.origin) {
            *node = format!("{origin}: {node}").into();
        }
        let (times, states) = (repeated.times, repeated.states);
        let (scanned, stacked) = (repeated.scanned.clone(), repeated.stacked.clone());
        units.captured = units.inputs[states + scanned.len()..].iter().map(|(_, buf)| *buf).collect();
        Ok(Some(Body { units, times, states, scanned, stacked, homes: Vec::new() }))
    }

    /// How many of the inputs differ from round to round; those after them are captures.
    pub fn varying(&self) -> usize {
        self.states + self.scanned.len()
    }
}

/// One piece of work over buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// What it computes.
    pub work: UnitWork,
    /// The buffers it reads, in the order of the nest's operands.
    pub ins: Vec<Buf>,
    /// The buffers it writes.
    pub outs: Vec<Buf>,
    /// The graph nodes it came from.
    pub origin: Origin,
    /// Floating-point operations of contractions in it, an fma counting as two.
    pub flops: u64,
}

/// The graph nodes that units came from, each once.
pub fn origins<'u>(units: impl IntoIterator<Item = &'u Unit>) -> Origin {
    let mut origins = Origin::new();
    for node in units.into_iter().flat_map(|unit| &unit.origin) {
        if !origins.contains(node) {
            origins.push(node.clone());
        }
    }
    origins
}

/// A lowered graph: units in order, operands before users.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Units {
    /// Every buffer.
    pub bufs: PrimaryMap<Buf, BufData>,
    /// The caller's inputs.
    pub inputs: Vec<(String, Buf)>,
    /// The caller's outputs.
    pub outputs: Vec<(String, Buf)>,
    /// Inputs in whose memory an output stands: the positions of both.
    pub in_place: Vec<(usize, usize)>,
    /// Buffers that other units compute once before the first run.
    pub prepared: Vec<Buf>,
    /// Of a body, the inputs that are the same in every round.
    pub captured: Vec<Buf>,
    /// The work.
    pub units: Vec<Unit>,
}

impl Units {
    /// Lowers every node of a graph whose dimensions are all fixed, for a machine.
    pub fn lower(graph: &Graph, machine: &Machine) -> Result<Units, Error> {
        let mut units = Units::default();
        let mut bufs: SecondaryMap<Value, Option<Buf>> = SecondaryMap::new();
        for (name, value) in graph.inputs() {
            let buf = units.add_buf(graph.ty(*value), name)?;
            bufs[*value] = Some(buf);
            units.inputs.push((name.clone(), buf));
        }
        units.lower_nodes(graph, &mut bufs, None, machine)?;
        let buf_of = |v: &Value| bufs[*v].expect("outputs are defined");
        units.outputs = graph.outputs().iter().map(|(name, v)| (name.clone(), buf_of(v))).collect();
        Ok(units)
    }

    /// Lets outputs stand in the memory of inputs, by their names, where there are both.
    pub fn keep_in_place(&mut self, pairs: &[(String, String)]) -> Result<(), Error> {
        let numbered = |list: &[(String, Buf)]| -> FxHashMap<String, usize> {
            list.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect()
        };
        // Each name is taken out by the pair that has it.
        let (mut inputs, mut outputs) = (numbered(&self.inputs), numbered(&self.outputs));
        for (input, output) in pairs {
            let (Some(from), Some(to)) = (inputs.remove(input), outputs.remove(output)) else { continue };
            let [own, made] = [self.inputs[from].1, self.outputs[to].1].map(|buf| self.bufs[buf].ty());
            if own != made {
                let message =
                    format!("output `{output}`, {made}, cannot stand in the memory of `{input}`, {own}");
                return Err(Error::Verify { invariant: "U2", message });
            }
            self.in_place.push((from, to));
        }
        Ok(())
    }

    /// How often each buffer is read, program outputs included.
    pub fn use_counts(&self) -> SecondaryMap<Buf, u32> {
        let mut counts = SecondaryMap::new();
        let reads = self.units.iter().flat_map(|u| u.ins.iter().copied());
        for buf in reads.chain(self.outputs.iter().map(|(_, b)| *b)) {
            counts[buf] += 1;
        }
        counts
    }

    /// For each buffer the position of the unit that makes it.
    pub fn makers(&self) -> SecondaryMap<Buf, Option<usize>> {
        let mut makers = SecondaryMap::new();
        for (at, unit) in self.units.iter().enumerate() {
            unit.outs.iter().for_each(|&buf| makers[buf] = Some(at));
        }
        makers
    }

    /// The same of buffers with one reader.
    pub fn makers_for_one(&self) -> SecondaryMap<Buf, Option<usize>> {
        let (uses, mut makers) = (self.use_counts(), self.makers());
        makers.iter_mut().filter(|(buf, _)| uses[*buf] != 1).for_each(|(_, maker)| *maker = None);
        makers
    }

    /// The units of these numbers as one: a kernel that reads these buffers, and makes what the last of them makes.
    pub fn joined(&self, numbers: &[usize], ins: Vec<Buf>, kernel: Kernel) -> Unit {
        let parts = || numbers.iter().map(|&number| &self.units[number]);
        Unit {
            work: UnitWork::Kernel(Box::new(kernel)),
            ins,
            outs: parts().next_back().map(|unit| unit.outs.clone()).unwrap_or_default(),
            origin: origins(parts()),
            flops: parts().map(|unit| unit.flops).sum(),
        }
    }

    /// Removes units by their positions.
    pub fn remove(&mut self, dead: &BTreeSet<usize>) {
        let mut at = 0..;
        self.units.retain(|_| at.next().is_some_and(|at| !dead.contains(&at)));
    }

    fn add_buf(&mut self, ty: &TensorType, subject: &str) -> Result<Buf, Error> {
        let Some(shape) = ty.as_shape() else {
            let message = format!("{ty} has dimensions that are not bound");
            return Err(Error::Verify { invariant: "U1", message: format!("{subject}: {message}") });
        };
        Ok(self.bufs.push(BufData { dtype: ty.dtype, shape, constant: None }))
    }

    fn lower_nodes(
        &mut self,
        graph: &Graph,
        bufs: &mut SecondaryMap<Value, Option<Buf>>,
        within: Option<&str>,
        machine: &Machine,
    ) -> Result<(), Error> {
        let types =
            |values: &[Value]| -> Vec<TensorType> { values.iter().map(|&v| graph.ty(v).clone()).collect() };
        let (distinct, numbers) = distinct(graph);
        let mut lowered = parallel::map(&distinct, |data| {
            let are_bound = data.ins.iter().chain(&data.outs).all(|&v| graph.ty(v).as_shape().is_some());
            let is_lowered = are_bound && !matches!(*data.op, Op::Constant(_));
            is_lowered.then(|| data.op.lower(&types(&data.ins), &types(&data.outs)))
        });
        let mut left = vec![0; distinct.len()];
        numbers.iter().for_each(|&number| left[number] += 1);
        for ((node, data), number) in graph.nodes().zip(numbers) {
            if let Op::Constant(constant) = &*data.op {
                let buf = self.add_buf(&constant.value.ty(), "constant")?;
                self.bufs[buf].constant = Some(constant.value.clone());
                bufs[data.outs[0]] = Some(buf);
                continue;
            }
            let origin: Arc<str> = within.map_or_else(|| graph.describe(node).into(), Arc::from);
            let mut ins: Vec<Buf> = data.ins.iter().map(|&v| bufs[v].expect("operands come first")).collect();
            left[number] -= 1;
            let form = if left[number] == 0 { lowered[number].take() } else { lowered[number].clone() };
            let Some(lowered) = form.transpose()? else {
                let open = data.ins.iter().chain(&data.outs).find(|&&v| graph.ty(v).as_shape().is_none());
                let ty = open.map(|&v| graph.ty(v).to_string()).unwrap_or_default();
                let message = format!("{origin}: {ty} has dimensions that are not bound");
                return Err(Error::Verify { invariant: "U1", message });
            };
            let form = Form::of(lowered, &data.op, &types(&data.ins), &origin, machine)?;
            if let Form::Graph(body) = &form {
                let mut inner: SecondaryMap<Value, Option<Buf>> = SecondaryMap::new();
                for ((_, value), &buf) in body.inputs().iter().zip(&ins) {
                    inner[*value] = Some(buf);
                }
                self.lower_nodes(body, &mut inner, Some(&origin), machine)?;
                for (&value, (_, out)) in data.outs.iter().zip(body.outputs()) {
                    bufs[value] = inner[*out];
                }
                continue;
            }
            let mut outs = Vec::new();
            for &value in &data.outs {
                let buf = self.add_buf(graph.ty(value), &origin)?;
                bufs[value] = Some(buf);
                outs.push(buf);
            }
            let work = match form {
                Form::Graph(_) => unreachable!("handled above"),
                Form::Work(work) => work,
                Form::Recurrence(recurrence) => {
                    let weights = ins.remove(Recurrence::WEIGHTS);
                    for (at, panels) in recurrence.panels(machine.sum_bytes()).into_iter().enumerate() {
                        let ty = TensorType::fixed(panels.dtype(panels.roots[0]), &panels.shape());
                        let buf = self.add_buf(&ty, &origin)?;
                        ins.insert(Recurrence::WEIGHTS + at, buf);
                        let (ins, outs, origin) = (vec![weights], vec![buf], vec![origin.clone()]);
                        let work = UnitWork::Nest(Box::new(panels));
                        self.units.push(Unit { work, ins, outs, origin, flops: 0 });
                    }
                    UnitWork::Rounds(Box::new(recurrence.rounds(machine.sum_bytes())))
                }
            };
            self.units.push(Unit { work, ins, outs, origin: vec![origin], flops: 0 });
        }
        Ok(())
    }
}

/// The nodes that lower to different forms, and for each node which of them it lowers like.
fn distinct<'g>(graph: &'g Graph) -> (Vec<&'g NodeData>, Vec<usize>) {
    let types = |data: &'g NodeData| -> Vec<&'g TensorType> {
        data.ins.iter().chain(&data.outs).map(|&value| graph.ty(value)).collect()
    };
    let mut distinct: Vec<&NodeData> = Vec::new();
    let mut seen: FxHashMap<(u64, Vec<&TensorType>), Vec<usize>> = FxHashMap::default();
    let number_of = |data: &'g NodeData| {
        let number = distinct.len();
        // A constant is lowered to nothing, and may be large.
        if !matches!(*data.op, Op::Constant(_)) {
            let alike = seen.entry((op_fingerprint(&data.op), types(data))).or_default();
            let is_like = |other: &NodeData| data.ins.len() == other.ins.len() && data.op == other.op;
            if let Some(known) = alike.iter().copied().find(|&number| is_like(distinct[number])) {
                return known;
            }
            alike.push(number);
        }
        distinct.push(data);
        number
    };
    let numbers = graph.nodes().map(|(_, data)| data).map(number_of).collect();
    (distinct, numbers)
}

/// What becomes of a lowered node.
enum Form {
    /// The nodes of a graph.
    Graph(Box<Graph>),
    /// A recurrence, whose weights are laid out first.
    Recurrence(Box<Recurrence>),
    /// A unit.
    Work(UnitWork),
}

impl Form {
    fn of(
        lowered: Lowered,
        op: &Op,
        ins: &[TensorType],
        origin: &str,
        machine: &Machine,
    ) -> Result<Form, Error> {
        Ok(Form::Work(match lowered {
            Lowered::Graph(graph) => return Ok(Form::Graph(graph)),
            Lowered::Nest(nest) => UnitWork::Nest(nest),
            Lowered::Kernel(kernel) => UnitWork::Kernel(kernel),
            Lowered::Recurrence(recurrence) => return Ok(Form::Recurrence(recurrence)),
            Lowered::Repeated(repeated) => match Body::lower(&repeated, origin, machine)? {
                Some(body) => UnitWork::Body(Box::new(body)),
                None => match repeated.unrolled(ins)? {
                    Some(graph) => return Ok(Form::Graph(Box::new(graph))),
                    None => UnitWork::Interpret(Box::new(op.clone())),
                },
            },
            Lowered::Interpret => UnitWork::Interpret(Box::new(op.clone())),
        }))
    }
}

#[cfg(test)]
mod tests {
    use windlass_ir::{Builder, ScalarFn};

    use super::*;

    #[test]
    fn nodes_are_lowered_alike_if_ops_and_types_are_the_same() {
        let mut b = Builder::new("alike");
        let [x, y] = ["x", "y"].map(|name| b.input(name, TensorType::fixed(DType::F32, &[2, 3])));
        let z = b.input("z", TensorType::fixed(DType::F32, &[3]));
        for (f, ins) in [
            (ScalarFn::Add, [x, y]),
            (ScalarFn::Mul, [x, y]),
            (ScalarFn::Add, [y, y]),
            (ScalarFn::Add, [x, z]),
            (ScalarFn::Add, [z, x]),
        ] {
            let value = b.map(f, &ins).unwrap();
            b.output(&format!("{value}"), value);
        }
        let graph = b.finish().unwrap();
        let (distinct, numbers) = distinct(&graph);
        assert_eq!((distinct.len(), numbers), (4, vec![0, 1, 0, 2, 3]));
    }
}
