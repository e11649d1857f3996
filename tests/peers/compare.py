"""Times models with Windlass and onnxruntime in turn, and prints medians, ratios and the share of the peak.

    tests/peers/run.sh [--threads N] [--rounds N] [--seconds S] [MODEL...]

A MODEL is the name of a folder that tests/material.sh makes, or `matmul_M_N_K`, a product with a constant right operand. Each
round runs every engine once on every model, so that a machine that slows down slows them all; a model's figure is
the median of its rounds' medians. Both engines get inputs of the same sizes: batch 1, sequences of 128.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"sequence": 128}
DEFAULT = ["matmul_1024_1024_1024", "resnet50"]


def matmul(name, folder):
    """Writes the model of one matrix product."""
    m, n, k = (int(size) for size in name.split("_")[1:])
    weights = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def windlass(binary, path, threads, seconds):
    """One process: compiles the model and repeats it for so long. Milliseconds."""
    sizes = [f"--dim={name}={size}" for name, size in SIZES.items() if name in dimensions(path)]
    command = [binary, "bench", "--json", f"--threads={threads}", f"--seconds={seconds}", *sizes, str(path)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    ready = report["load_seconds"] + report["compile_seconds"]
    return report["median_seconds"] * 1e3, ready * 1e3, report["gflops_per_second"]


def dimensions(path):
    model = onnx.load(path, load_external_data=False)
    return {dim.dim_param for port in model.graph.input for dim in port.type.tensor_type.shape.dim if dim.dim_param}


class Onnxruntime:
    """A session, kept between rounds; making it is what `ready` times."""

    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        start = time.perf_counter()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = (time.perf_counter() - start) * 1e3
        random = np.random.default_rng(0)
        self.feeds = {}
        for port in self.session.get_inputs():
            shape = [size if isinstance(size, int) else SIZES.get(size, 1) for size in port.shape]
            floats = random.random(shape, dtype=np.float32)
            self.feeds[port.name] = floats if "float" in port.type else np.ones(shape, np.int64)
        self.session.run(None, self.feeds)

    def time(self, seconds):
        times = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.session.run(None, self.feeds)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3


def peak(binary):
    report = subprocess.run([binary, "bench", "--peak", "--json"], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(report)["peak_gflops_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine on each model in a round")
    parser.add_argument("--windlass", default=ROOT / "target/release/windlass", help="the command's binary")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: matmul(name, Path(folder)) if name.startswith("matmul_") else ROOT / f"target/models/{name}/model.onnx"
            for name in arguments.models or DEFAULT
        }
        missing = [str(path) for path in paths.values() if not path.exists()]
        if missing:
            sys.exit(f"no such model: {', '.join(missing)} (tests/material.sh makes the folders)")
        peers = {name: Onnxruntime(path, arguments.threads) for name, path in paths.items()}
        ours, theirs, peaks = {name: [] for name in paths}, {name: [] for name in paths}, []
        for _ in range(arguments.rounds):
            peaks.append(peak(arguments.windlass))
            for name, path in paths.items():
                ours[name].append(windlass(arguments.windlass, path, arguments.threads, arguments.seconds))
                theirs[name].append(peers[name].time(arguments.seconds))

    best = statistics.median(peaks)
    print(f"{arguments.threads} thread(s), medians of {arguments.rounds} rounds; peak of one thread {best:.1f} GFLOP/s")
    print("| model | windlass ms | onnxruntime ms | ratio | GFLOP/s | % of peak | ready ms | onnxruntime ready ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name in paths:
        own, ready, rate = (statistics.median(column) for column in zip(*ours[name]))
        other = statistics.median(theirs[name])
        share = 100 * rate / best / arguments.threads
        print(
            f"| {name} | {own:.3f} | {other:.3f} | {own / other:.2f} | {rate:.1f} | {share:.0f} "
            f"| {ready:.0f} | {peers[name].ready:.0f} |"
        )


if __name__ == "__main__":
    main()
