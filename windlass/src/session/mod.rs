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

    /// Runs the model and says how its nodes were run.
    pub fn run_counted(&self, inputs: impl Into<Inputs>) -> Result<(Outputs, Counts), Error> {
        let inputs = inputs.into().in_order(&self.graph)?;
        check_inputs(&self.graph, &inputs)?;
        let mut counts = Counts::default();
        let tensors = match self.setup.options.engine {
            Engine::Interpreter => {
                counts.interpreted =
                    self.graph.nodes().filter(|(_, data)| !matches!(data.op, Op::Constant(_))).count();
                interpret(&self.graph, &inputs)?
            }
            Engine::Jit | Engine::Loops => {
                let plan = self.plan(inputs.iter().map(Tensor::ty).collect())?;
                plan.run(inputs, &self.setup, &mut counts)?
            }
        };
        Ok((Outputs::new(&self.graph, tensors), counts))
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
