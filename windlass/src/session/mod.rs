//! Sessions: a model made ready to run for any sizes of its inputs.
//!
//! The first run for inputs of new sizes compiles a `Plan` for them and begins while its code is made; later runs find it
//! in a small cache. Where sizes depend on data, a plan holds the part that is known and plans the rest once the
//! sizes are (see `plan.rs`).

mod cache;
mod parts;
mod plan;
mod stage;

use std::path::Path;
use std::sync::Arc;

use windlass_ir::graph::{NodeData, Value};
use windlass_ir::{Dim, Graph, Op, Tensor, TensorType, check_inputs, interpret};
use windlass_runtime::{Executor, Pool};

use self::cache::Cache;
use self::plan::Plan;
pub use self::stage::KernelProfile;
use self::stage::Setup;
pub use crate::compile::{Counts, Phase, Report};
use crate::error::Error;
use crate::model::Model;
use crate::options::{Engine, Options};
use crate::values::{Inputs, Outputs};

/// A model ready to run. It can be shared by threads; runs do not wait for each other.
pub struct Session {
    graph: Graph,
    setup: Setup,
    plans: Cache<Vec<TensorType>, Plan>,
}

impl Session {
    /// A session for a model or a graph, with threads of its own.
    pub fn new(model: impl Into<Model>, options: Options) -> Result<Session, Error> {
        let pool = Pool::new(options.threads);
        Session::on(model.into(), options, pool)
    }

    /// A session that runs on threads that the caller has already: of its [`Executor::threads`] instead of
    /// [`Options::threads`]. The results do not depend on it.
    pub fn with_executor(
        model: impl Into<Model>,
        options: Options,
        executor: Arc<dyn Executor>,
    ) -> Result<Session, Error> {
        let pool = Pool::with_executor(executor);
        let options = Options { threads: pool.threads(), ..options };
        Session::on(model.into(), options, pool)
    }

    fn on(model: Model, options: Options, pool: Pool) -> Result<Session, Error> {
        if options.engine == Engine::Jit {
            windlass_codegen::warm_up();
        }
        let graph = model.graph;
        windlass_ir::verify(&graph)?;
        check_in_place(&graph, &options.in_place)?;
        let plans = Cache::new(options.cache);
        Ok(Session { graph, setup: Setup { options, pool }, plans })
    }

    /// A session for a model file: `.onnx` or `.wir`.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Session, Error> {
        let model = Model::load(path, &options.limits)?;
        Session::new(model, options)
    }

    /// The model's graph as it was loaded.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The options it was made with.
    pub fn options(&self) -> &Options {
        &self.setup.options
    }

    /// The inputs' names and types, in order.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = (&str, &TensorType)> {
        self.graph.inputs().iter().map(|(name, value)| (name.as_str(), self.graph.ty(*value)))
    }

    /// The outputs' names and types, in order.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = (&str, &TensorType)> {
        self.graph.outputs().iter().map(|(name, value)| (name.as_str(), self.graph.ty(*value)))
    }

    /// Runs the model.
    pub fn run(&self, inputs: impl Into<Inputs>) -> Result<Outputs, Error> {
        Ok(self.run_counted(inputs)?.0)
    }

    /// Runs a model that has a state: `state` holds its inputs that [`Options::in_place`] names, in that order, and holds
    /// what the model makes of them afterwards, in the same memory if nothing else holds it. The other inputs are given in
    /// their order, and the other outputs returned in theirs. After an error the state is what it was.
    ///
    /// ```
    /// use windlass::{Builder, DType, Options, ScalarFn, Session, Tensor, TensorType};
    ///
    /// let mut b = Builder::new("sum");
    /// let (sum, x) = (b.input("sum", TensorType::fixed(DType::F32, &[2])), b.input("x", TensorType::fixed(DType::F32, &[2])));
    /// let next = b.map(ScalarFn::Add, &[sum, x])?;
    /// b.output("next", next);
    /// let in_place = vec![("sum".to_string(), "next".to_string())];
    /// let session = Session::new(b.finish()?, Options { in_place, ..Options::default() })?;
    /// let mut state = vec![Tensor::new(&[2], &[0f32, 1.0])];
    /// for _ in 0..3 {
    ///     session.run_in_place(&mut state, &[Tensor::new(&[2], &[2f32, 3.0])])?;
    /// }
    /// assert_eq!(state[0].to_f64s(), [6.0, 10.0]);
    /// # Ok::<(), windlass::Error>(())
    /// ```
    pub fn run_in_place(&self, state: &mut [Tensor], inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let pairs = &self.setup.options.in_place;
        let kept = |name: &str| pairs.iter().position(|(input, _)| input == name);
        let made = |name: &str| pairs.iter().position(|(_, output)| output == name);
        let (graph, count) = (&self.graph, state.len() + inputs.len());
        if state.len() != pairs.len() || count != graph.inputs().len() {
            return Err(
                windlass_ir::Error::InputCount { expected: graph.inputs().len(), found: count }.into()
            );
        }
        let mut others = inputs.iter().cloned();
        let mut all: Vec<Tensor> = Vec::with_capacity(count);
        for (name, _) in graph.inputs() {
            all.extend(match kept(name) {
                Some(at) => Some(state[at].take()),
                None => others.next(),
            });
        }
        let (result, _) = self.run_on(&mut all);
        for ((name, _), tensor) in graph.inputs().iter().zip(all) {
            if let Some(at) = kept(name) {
                state[at] = tensor;
            }
        }
        let mut results = Vec::new();
        for ((name, _), tensor) in graph.outputs().iter().zip(result?) {
            match made(name) {
                Some(at) => state[at] = tensor,
                None => results.push(tensor),
            }
        }
        Ok(results)
    }

    /// Runs the model and says how its nodes were run.
    pub fn run_counted(&self, inputs: impl Into<Inputs>) -> Result<(Outputs, Counts), Error> {
        let mut inputs = inputs.into().in_order(&self.graph)?;
        let (tensors, counts) = self.run_on(&mut inputs);
        Ok((Outputs::new(&self.graph, tensors?), counts))
    }

    /// The results, and how nodes were run. Inputs in whose memory results are made are taken, unless there is an error.
    fn run_on(&self, inputs: &mut [Tensor]) -> (Result<Vec<Tensor>, Error>, Counts) {
        let mut counts = Counts::default();
        let mut run = || {
            check_inputs(&self.graph, inputs)?;
            match self.setup.options.engine {
                Engine::Interpreter => {
                    let is_run = |data: &NodeData| !matches!(data.op, Op::Constant(_));
                    counts.interpreted = self.graph.nodes().filter(|(_, data)| is_run(data)).count();
                    Ok(interpret(&self.graph, inputs)?)
                }
                Engine::Jit | Engine::Loops => {
                    let plan = self.plan(inputs.iter().map(Tensor::ty).collect())?;
                    plan.run(inputs, &self.setup, &mut counts)
                }
            }
        };
        (run(), counts)
    }

    /// Compiles for inputs of these types, if that has not been done, and says what it came to.
    ///
    /// Where sizes depend on data, this covers the part before them.
    pub fn prepare(&self, types: &[TensorType]) -> Result<Report, Error> {
        let plan = self.plan(types.to_vec())?;
        plan.stage().map_or(Ok(Report::default()), |stage| Ok(stage.report(&self.setup)?.clone()))
    }

    /// The input types with each named dimension replaced by what `size` gives.
    ///
    /// `None` where a dimension stays open.
    pub fn bound_types(&self, size: impl Fn(&str) -> Option<usize>) -> Option<Vec<TensorType>> {
        let bind = |dim: &Dim| match dim {
            Dim::Fixed(n) => Some(Dim::Fixed(*n)),
            Dim::Named(name) => Some(Dim::Fixed(size(name)?)),
            Dim::Unknown => None,
        };
        self.inputs()
            .map(|(_, ty)| {
                let dims = ty.dims.iter().map(bind).collect::<Option<Vec<_>>>()?;
                Some(TensorType::new(ty.dtype, dims))
            })
            .collect()
    }

    /// The time spent in each kernel of the form compiled last, if [`Options::profile`] is set.
    pub fn profile(&self) -> Vec<KernelProfile> {
        self.plans.last().and_then(|plan| Some(plan.stage()?.profile())).unwrap_or_default()
    }

    fn plan(&self, types: Vec<TensorType>) -> Result<Arc<Plan>, Error> {
        self.plans.obtain(types, |types| Plan::new(&self.graph, types, &self.setup))
    }
}

/// Fails unless the model has these inputs and outputs, of the same types, each once.
fn check_in_place(graph: &Graph, pairs: &[(String, String)]) -> Result<(), Error> {
    let find = |list: &[(String, Value)], name: &str| {
        list.iter().find(|(own, _)| own == name).map(|(_, value)| graph.ty(*value).clone())
    };
    for (at, (input, output)) in pairs.iter().enumerate() {
        let reason = match (find(graph.inputs(), input), find(graph.outputs(), output)) {
            (None, _) => "there is no such input".to_string(),
            (_, None) => "there is no such output".to_string(),
            _ if pairs[..at].iter().any(|(i, o)| i == input || o == output) => {
                "one of them stands in a pair before".to_string()
            }
            (Some(own), Some(made)) if own != made => format!("they are {own} and {made}"),
            _ => continue,
        };
        return Err(Error::InPlace { input: input.clone(), output: output.clone(), reason });
    }
    Ok(())
}
