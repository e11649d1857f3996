"""Times models with Windlass, onnxruntime and OpenVINO in turn, and prints medians, ratios and the share of the peak.

    tests/peers/run.sh [--threads N] [--rounds N] [--seconds S] [MODEL...]

A MODEL is the name of a folder that tests/material.sh makes, with sizes for its named dimensions if need be
(`mlp:batch=64`), or `matmul_M_N_K`, a product with a constant right operand. Each round runs every engine once on every
model, so that a machine that slows down slows them all; a model's figure is the median of its rounds' medians. All
engines get inputs of the same sizes: sequences of 128, 256 cached tokens, else 1. The difference is the largest between
our outputs and onnxruntime's, as a part of an output's largest element.
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
import openvino
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"sequence": 128, "past": 256, "length": 4 << 20}
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


def windlass(binary, path, sizes, threads, seconds):
    """One process: compiles the model and repeats it for so long. Milliseconds."""
    sizes = [f"--dim={name}={sizes.get(name, 1)}" for name in sorted(dimensions(path))]
    command = [binary, "bench", "--json", f"--threads={threads}", f"--seconds={seconds}", *sizes, str(path)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    ready = report["load_seconds"] + report["compile_seconds"]
    return report["median_seconds"] * 1e3, ready * 1e3, report["gflops_per_second"] or 0


def dimensions(path):
    model = onnx.load(path, load_external_data=False)
    return {dim.dim_param for port in model.graph.input for dim in port.type.tensor_type.shape.dim if dim.dim_param}


def split_name(model):
    """`mlp:batch=64` as a name and sizes of dimensions."""
    name, _, sizes = model.partition(":")
    pairs = (size.split("=") for size in sizes.split(",") if size)
    return name, SIZES | {dimension: int(size) for dimension, size in pairs}


def feeds_for(path, sizes):
    """Inputs of the sizes that every engine gets, by name."""
    random = np.random.default_rng(0)
    feeds = {}
    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    for port in model.graph.input:
        if port.name in weights:
            continue
        ty = port.type.tensor_type
        shape = [sizes.get(dim.dim_param, 1) if dim.dim_param else dim.dim_value for dim in ty.shape.dim]
        is_float = ty.elem_type == TensorProto.FLOAT
        feeds[port.name] = random.random(shape, dtype=np.float32) if is_float else np.ones(shape, np.int64)
    return feeds


class Peer:
    """A compiled model, kept between rounds; making it is what `ready` times."""

    def __init__(self, path, threads, feeds):
        start = time.perf_counter()
        self.run = self.compile(str(path), threads, feeds)
        self.ready = (time.perf_counter() - start) * 1e3
        self.outputs = self.run()

    def time(self, seconds):
        times = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.run()
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3


class Onnxruntime(Peer):
    name = "onnxruntime"

    def compile(self, path, threads, feeds):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feeds)


class OpenVino(Peer):
    name = "OpenVINO"

    def compile(self, path, threads, feeds):
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: list(value.shape) for name, value in feeds.items()})
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda: list(request.infer(feeds).values())


def largest_difference(binary, path, feeds, expected):
    """Between our outputs and a peer's, as a part of the largest element of each output."""
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "run", str(path), "--save", folder]
        for number, (name, value) in enumerate(feeds.items()):
            file = Path(folder) / f"in{number}.npy"
            np.save(file, value)
            command += ["--input", f"{name}={file}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        names = [output.name for output in onnx.load(path, load_external_data=False).graph.output]
        worst = 0.0
        for name, value in zip(names, expected):
            ours = np.load(next(f for f in Path(folder).glob("*.npy") if f.stem == name.replace("/", "_")))
            worst = max(worst, float(np.abs(ours - value).max() / max(np.abs(value).max(), 1e-30)))
        return worst


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
            model: matmul(model, Path(folder))
            if model.startswith("matmul_")
            else ROOT / f"target/models/{split_name(model)[0]}/model.onnx"
            for model in arguments.models or DEFAULT
        }
        sizes = {model: split_name(model)[1] for model in paths}
        missing = [str(path) for path in paths.values() if not path.exists()]
        if missing:
            sys.exit(f"no such model: {', '.join(missing)} (tests/material.sh makes the folders)")
        peers, differences = {}, {}
        for name, path in paths.items():
            feeds = feeds_for(path, sizes[name])
            peers[name] = [engine(path, arguments.threads, feeds) for engine in (Onnxruntime, OpenVino)]
            differences[name] = largest_difference(arguments.windlass, path, feeds, peers[name][0].outputs)
        ours, theirs, peaks = {name: [] for name in paths}, {name: [] for name in paths}, []
        for _ in range(arguments.rounds):
            peaks.append(peak(arguments.windlass))
            for name, path in paths.items():
                own = windlass(arguments.windlass, path, sizes[name], arguments.threads, arguments.seconds)
                ours[name].append(own)
                theirs[name].append([peer.time(arguments.seconds) for peer in peers[name]])

    best = statistics.median(peaks)
    print(f"{arguments.threads} thread(s), medians of {arguments.rounds} rounds; peak of one thread {best:.1f} GFLOP/s\n")
    print("| model | windlass ms | onnxruntime ms | OpenVINO ms | ratio | % of peak | ready ms | theirs | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    ratios = []
    for name in paths:
        own, ready, rate = (statistics.median(column) for column in zip(*ours[name]))
        others = [statistics.median(column) for column in zip(*theirs[name])]
        ratios.append(own / min(others))
        shown = " | ".join(f"{other:.3f}" for other in others)
        theirs_ready = ", ".join(f"{peer.ready:.0f}" for peer in peers[name])
        print(
            f"| {name} | {own:.3f} | {shown} | {ratios[-1]:.2f} | {100 * rate / best / arguments.threads:.0f} "
            f"| {ready:.0f} | {theirs_ready} | {differences[name]:.0e} |"
        )
    print(f"\nRatios are to the fastest peer; their geometric mean is {statistics.geometric_mean(ratios):.2f}.")


if __name__ == "__main__":
    main()
