//! What a run costs besides its arithmetic. `cargo bench --bench overhead`
//!
//! `launch` is a parallel loop on two threads that does nothing: right after another one, and a millisecond later,
//! when the pool's thread sleeps. `relu16` is a model of 16 floats through the library's front door.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use windlass::{Builder, DType, Options, ScalarFn, Session, Tensor, TensorType};
use windlass_runtime::Pool;

fn launch(criterion: &mut Criterion) {
    let pool = Pool::new(2);
    let once = || pool.run(black_box(4), 4, &|begin, end| _ = black_box((begin, end)));
    let mut group = criterion.benchmark_group("launch");
    group.bench_function("awake", |bencher| bencher.iter(once));
    group.bench_function("asleep", |bencher| {
        bencher.iter_custom(|rounds| {
            let timed = |_| {
                thread::sleep(Duration::from_millis(1));
                let start = Instant::now();
                once();
                start.elapsed()
            };
            (0..rounds).map(timed).sum()
        });
    });
    group.finish();
}

fn relu16(criterion: &mut Criterion) {
    let mut b = Builder::new("relu16");
    let x = b.input("x", TensorType::fixed(DType::F32, &[16]));
    let y = b.map(ScalarFn::Relu, &[x]).expect("the type fits");
    b.output("y", y);
    let graph = b.finish().expect("the graph is valid");
    let options = Options { threads: 2, ..Options::default() };
    let session = Session::new(graph, options).expect("the graph compiles");
    let x = Tensor::from_fn::<f32>(&[16], |i| i as f32 - 8.0);
    criterion.bench_function("relu16", |bencher| {
        bencher.iter(|| session.run([black_box(&x).clone()]).expect("the model runs"));
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    launch(&mut criterion);
    relu16(&mut criterion);
    criterion.final_summary();
}
