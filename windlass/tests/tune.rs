//! Tuning: what it finds is remembered, and does not show in results.

use std::path::Path;
use std::process::Command;

use windlass::{Builder, DType, Graph, Options, Session, Tensor, TensorType, Tuning, ops};

fn ramp(shape: &[usize], salt: usize) -> Tensor {
    Tensor::from_fn::<f32>(shape, |i| (((i * 37 + salt * 11) % 101) as f32 - 50.0) / 40.0)
}

/// Products, one of many steps and one whose weight may stay in few bits.
fn graph(rows: usize) -> Graph {
    let mut b = Builder::new("products");
    let x = b.input("x", TensorType::fixed(DType::F32, &[rows, 1200]));
    let w = b.constant(ramp(&[1200, 96], 1));
    let hidden = b.push1(ops::MatMul::default(), &[x, w]).unwrap();
    let bytes: Vec<i8> = (0..96 * 144).map(|i| (i * 29 % 255) as i8).collect();
    let (q, scale) = (b.constant(Tensor::new(&[96, 144], &bytes)), b.constant(ramp(&[144], 2)));
    let op = ops::DequantizeLinear { axis: 1, block_size: 0, to: DType::F32 };
    let w = b.push1(op, &[q, scale]).unwrap();
    let y = b.push1(ops::MatMul::default(), &[hidden, w]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

fn run(rows: usize, cache: Option<&Path>) -> Tensor {
    let tune = cache.map(|path| Tuning { cache: Some(path.to_path_buf()) });
    let session = Session::new(graph(rows), Options { tune, ..Options::default() }).unwrap();
    session.run([("x", ramp(&[rows, 1200], 3))]).unwrap()["y"].clone()
}

#[test]
fn tuning_is_remembered_and_does_not_show_in_results() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuning.json");
    for rows in [1, 3, 70] {
        let untuned = run(rows, None);
        assert_eq!(run(rows, Some(&path)), untuned);
        let remembered = std::fs::read(&path).unwrap();
        assert_eq!(run(rows, Some(&path)), untuned);
        assert_eq!(std::fs::read(&path).unwrap(), remembered);
        // Damaged, it is not used, and made anew.
        std::fs::write(&path, &remembered[..remembered.len() / 2]).unwrap();
        assert!(Tuning { cache: Some(path.clone()) }.warning().unwrap().contains("is damaged"));
        assert_eq!(run(rows, Some(&path)), untuned);
        assert_eq!(Tuning { cache: Some(path.clone()) }.warning(), None);
    }
}

#[test]
fn a_file_of_somebody_else_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "my notes").unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples/digits/digits.onnx");
    let output = Command::new(env!("CARGO_BIN_EXE_windlass"))
        .args([
            "run".as_ref(),
            model.as_os_str(),
            "--tune".as_ref(),
            "--tune-cache".as_ref(),
            path.as_os_str(),
        ])
        .output()
        .unwrap();
    assert!(output.status.success());
    let warned = String::from_utf8(output.stderr).unwrap();
    assert!(warned.contains("warning: ") && warned.contains("is not a file of tuned schedules"), "{warned}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes");
}
