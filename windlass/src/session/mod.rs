//! Sessions: a model made ready to run for any sizes of its inputs.
//!
//! The first run for inputs of new sizes compiles a `Plan` for them and begins while its code is made; later runs find it
//! in a small cache. Where sizes depend on data, a plan holds the part that is known and plans the rest once the
//! sizes are (see `plan.rs`).

mod cache;
mod control;
mod parts;
mod plan;
mod stage;

use std::collections::HashMap;
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
    /// The names of the outputs.
    names: Arc<[String]>,
    /// The positions of the inputs and outputs of [`Options::in_place`].
    in_place: Vec<(usize, usize)>,
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
        let graph = model.graph;
        windlass_ir::verify(&graph)?;
        let in_place = in_place(&graph, &options.in_place)?;
        let plans = Cache::new(options.cache);
        let names = graph.outputs().iter().map(|(name, _)| name.clone()).collect();
        Ok(Session { graph, names, in_place, setup: Setup { options, pool }, plans })
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

    /// Runs the model. The memory of results that nothing refers to any more is kept for those of later runs, as much as one
    /// run needs.
    pub fn run(&self, inputs: impl Into<Inputs>) -> Result<Outputs, Error> {
        Ok(self.run_counted(inputs)?.0)
    }

    /// Runs a model that has a state: `state` holds its inputs that [`Options::in_place`] names, in that order, and holds
    /// what the model makes of them afterwards, in the same memory if nothing else holds it. The other inputs are given in
    /// their order, and the other outputs returned in theirs. After an error that is found before the model runs the state
    /// is what it was; one within the run may leave a part of it replaced.
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
        let (expected, count) = (self.graph.inputs().len(), state.len() + inputs.len());
        if state.len() != self.in_place.len() || count != expected {
            return Err(windlass_ir::Error::InputCount { expected, found: count }.into());
        }
        let mut all: Vec<Option<Tensor>> = vec![None; count];
        for (tensor, &(input, _)) in state.iter_mut().zip(&self.in_place) {
            all[input] = Some(tensor.take());
        }
        let mut others = inputs.iter().cloned();
        let mut all: Vec<Tensor> =
            all.into_iter().filter_map(|kept| kept.or_else(|| others.next())).collect();
        let (result, _) = self.run_on(&mut all);
        for (tensor, &(input, _)) in state.iter_mut().zip(&self.in_place) {
            *tensor = all[input].take();
        }
        let mut results: Vec<Option<Tensor>> = result?.into_iter().map(Some).collect();
        for (tensor, &(_, output)) in state.iter_mut().zip(&self.in_place) {
            if let Some(made) = results[output].take() {
                *tensor = made;
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Runs the model and says how its nodes were run.
    pub fn run_counted(&self, inputs: impl Into<Inputs>) -> Result<(Outputs, Counts), Error> {
        let mut inputs = inputs.into().in_order(&self.graph)?;
        let (tensors, counts) = self.run_on(&mut inputs);
        Ok((Outputs::new(self.names.clone(), tensors?), counts))
    }

    /// The results, and how nodes were run. Inputs in whose memory results are made are taken, unless there is an error.
    fn run_on(&self, inputs: &mut [Tensor]) -> (Result<Vec<Tensor>, Error>, Counts) {
        let mut counts = Counts::default();
        let mut run = || {
            check_inputs(&self.graph, inputs)?;
            match self.setup.options.engine {
                Engine::Interpreter => {
                    let is_run = |data: &NodeData| !matches!(*data.op, Op::Constant(_));
                    counts.interpreted = self.graph.nodes().filter(|(_, data)| is_run(data)).count();
                    Ok(interpret(&self.graph, inputs)?)
                }
                Engine::Jit | Engine::Loops => {
                    let make = |types: &Vec<TensorType>| Plan::new(&self.graph, types, &self.setup);
                    let plan = self.plans.obtain_for(inputs, make)?;
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
        self.plans.last().map(|plan| plan.profile()).unwrap_or_default()
    }

    fn plan(&self, types: Vec<TensorType>) -> Result<Arc<Plan>, Error> {
        self.plans.obtain(types, |types| Plan::new(&self.graph, types, &self.setup))
    }
}

/// The positions of these inputs and outputs, if the model has them, of the same types, and each is named once.
fn in_place(graph: &Graph, pairs: &[(String, String)]) -> Result<Vec<(usize, usize)>, Error> {
    let numbered = |list: &[(String, Value)]| -> HashMap<String, usize> {
        list.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect()
    };
    // Each name is taken out by the pair that has it.
    let (mut inputs, mut outputs) = (numbered(graph.inputs()), numbered(graph.outputs()));
    let mut found = Vec::with_capacity(pairs.len());
    for (input, output) in pairs {
        let refused = |reason: String| {
            let (input, output) = (input.clone(), output.clone());
            Err(Error::InPlace { input, output, reason })
        };
        let Some(from) = inputs.remove(input) else {
            return refused("there is no such input, or a pair before has it".to_string());
        };
        let Some(to) = outputs.remove(output) else {
            return refused("there is no such output, or a pair before has it".to_string());
        };
        let (own, made) = (graph.ty(graph.inputs()[from].1), graph.ty(graph.outputs()[to].1));
        if own != made {
            return refused(format!("they are {own} and {made}"));
        }
        found.push((from, to));
    }
    Ok(found)
}
