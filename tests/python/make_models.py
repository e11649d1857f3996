"""Builds whole models with seeded weights, and what onnxruntime makes of them, in ONNX's test-case layout.

    target/venv/bin/python tests/python/make_models.py OUT [NAME...]
    target/venv/bin/python tests/python/make_models.py --list

A model is a folder OUT/NAME/ with model.onnx (one of them keeps its weights in model.onnx.data beside it), a
test_data_set_N/ for each binding of its named dimensions, with input_M.pb and output_M.pb, and case.json with the
tolerances {"rtol": T, "atol": T * the largest output}, where T is 1e-4 unless the recipe says more. The architectures
are functions in the package models/. Without NAME all are built: about 2 GB in about half a minute.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from models import MODELS
from models.builder import Builder

def expected_outputs(path, feeds_of_sets):
    """Runs the graph as written: no optimisation, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Old models list their weights among the inputs, which onnxruntime warns about one by one.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [info.name for info in session.get_outputs()], [session.run(None, feeds) for feeds in feeds_of_sets]


def write_tensors(folder, stem, named_values):
    folder.mkdir(exist_ok=True)
    for index, (name, value) in enumerate(named_values):
        tensor = numpy_helper.from_array(value, name)
        (folder / f"{stem}_{index}.pb").write_bytes(tensor.SerializeToString(deterministic=True))


def make(name, out):
    """Builds one model; returns the line of figures to print."""
    start = time.monotonic()
    recipe = MODELS[name]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    builder = Builder(name, recipe.opset, recipe.style, recipe.half)
    recipe.build(builder)
    path = folder / "model.onnx"
    parameters = sum(array.size for array in builder.initializers.values())
    external = {"save_as_external_data": True, "location": "model.onnx.data"} if recipe.external_data else {}
    onnx.save_model(builder.to_model(), path, **external)
    onnx.checker.check_model(path, full_check=True)

    feeds_of_sets = [builder.feeds(binding, number) for number, binding in enumerate(recipe.data_sets)]
    output_names, results = expected_outputs(path, feeds_of_sets)
    for number, (feeds, outputs) in enumerate(zip(feeds_of_sets, results, strict=True)):
        data_set = folder / f"test_data_set_{number}"
        write_tensors(data_set, "input", feeds.items())
        write_tensors(data_set, "output", zip(output_names, outputs, strict=True))

    # One tolerance holds for every output, so the output with the smallest values sets it.
    largest = min(float(np.abs(output).max()) for outputs in results for output in outputs)
    assert all(np.isfinite(output).all() for outputs in results for output in outputs), name
    case = {"rtol": recipe.tolerance, "atol": recipe.tolerance * largest}
    (folder / "case.json").write_text(json.dumps(case) + "\n")

    size = sum(file.stat().st_size for file in folder.glob("model.onnx*")) / 1e6
    seconds = time.monotonic() - start
    figures = f"{parameters / 1e6:.2f}", f"{size:.1f}", f"{largest:.3g}", f"{seconds:.1f}"
    return [name, recipe.opset, len(builder.nodes), *figures]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of the models and stop")
    parser.add_argument("out", type=Path, metavar="OUT", nargs="?", help="folder to write; replaces the models in it")
    parser.add_argument("names", metavar="NAME", nargs="*", help="models to build (all)")
    args = parser.parse_args()
    if args.list:
        print("\n".join(MODELS))
        return
    if args.out is None:
        parser.error("OUT is missing")
    unknown = [name for name in args.names if name not in MODELS]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)} (there are {', '.join(MODELS)})")

    row = "{:20} {:>5} {:>6} {:>10} {:>8} {:>8} {:>8}".format
    print(row("model", "opset", "nodes", "weights M", "MB", "largest", "seconds"))
    for name in args.names or MODELS:
        print(row(*make(name, args.out)), flush=True)


if __name__ == "__main__":
    main()
