//! The caller's own threads: whatever they do, outputs have the bits of one thread's.

use std::sync::Arc;
use std::thread;

use windlass::ops::{MatMul, Softmax};
use windlass::{Builder, DType, Executor, Graph, Helper, Options, ScalarFn, Session, Tensor, TensorType};

/// Softmax of the rows of `exp(x) @ w`: kernels large enough to be shared.
fn model() -> Graph {
    let mut b = Builder::new("model");
    let x = b.input("x", TensorType::fixed(DType::F32, &[96, 128]));
    let w = b.constant(values(&[128, 200], 5));
    let x = b.map(ScalarFn::Exp, &[x]).unwrap();
    let y = b.push1(MatMul::default(), &[x, w]).unwrap();
    let y = b.push1(Softmax { axis: 1, log: false, masked: false }, &[y]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

fn values(shape: &[usize], step: usize) -> Tensor {
    Tensor::from_fn::<f32>(shape, |i| (i * step % 23) as f32 / 23.0 - 0.5)
}

/// An executor of four threads that does this with the threads it is asked for.
struct Launch(fn(usize, &Helper));

impl Executor for Launch {
    fn threads(&self) -> usize {
        4
    }

    fn launch(&self, wanted: usize, helper: &Helper) {
        (self.0)(wanted, helper);
    }
}

/// Threads that take up their work in the reverse of the order in which they were asked for, each after the one
/// before it ended.
fn reversed(wanted: usize, helper: &Helper) {
    let mut next: Box<dyn FnOnce() + Send> = Box::new(|| {});
    for _ in 0..wanted {
        let (helper, earlier) = (helper.clone(), next);
        next = Box::new(move || {
            helper.help();
            earlier();
        });
    }
    thread::spawn(next);
}

#[test]
fn outputs_do_not_depend_on_the_executor() {
    let x = values(&[96, 128], 7);
    let alone = Session::new(model(), Options::default()).unwrap().run([x.clone()]).unwrap();
    let nobody: fn(usize, &Helper) = |_, _| {};
    let the_caller: fn(usize, &Helper) = |wanted, helper| (0..wanted).for_each(|_| helper.help());
    let scoped: fn(usize, &Helper) = |wanted, helper| {
        thread::scope(|scope| {
            for _ in 0..wanted {
                scope.spawn(|| helper.help());
            }
        });
    };
    for launch in [nobody, the_caller, scoped, reversed] {
        let executor = Arc::new(Launch(launch));
        let session = Session::with_executor(model(), Options::default(), executor).unwrap();
        assert_eq!(session.options().threads, 4);
        for _ in 0..5 {
            assert_eq!(session.run([x.clone()]).unwrap(), alone);
        }
    }
}
