"""Times models with Windlass and four other engines in turn: medians, ratios, first results, memory, share of the peak.

    tests/peers/run.sh [--operators] [--threads N] [--rounds N] [--seconds S] [--peers NAME,..] [MODEL...]

A MODEL is the name of a folder that tests/material.sh or fetch_models.py makes, with sizes for its named dimensions if need be
(`mlp:batch=64`), or `matmul_M_N_K`, a product with a constant right operand, or, with --operators, the name of one of
operators.py, all of which are measured if none is named. Each round runs every engine once on every
model, so that a machine that slows down slows them all; a model's figures are the medians of its rounds' figures. All
engines get the same inputs, with sequences of 128, 256 cached tokens, else sizes of 1. An engine that fails on a model
has a dash in its place, and its message is printed; so has a peer whose outputs are wrong.

Each measurement is a process of its own, so that none inherits what another left in memory. What cargo built is copied
before, as installing does: the system keeps the pages of a file that a linker wrote piece by piece one by one.

- Time: the median of the runs after the first.
- First result: from opening the model's file, which is in the system's cache, to the end of the first run; starting the
  process is left out. Memory that a virtual machine has handed back to its host is slow to touch again: some is touched
  before each measurement, or whoever comes first would pay for the others.
- Memory: the most that was resident at once. Of Windlass, tract and rten that is the whole process. Of onnxruntime and
  OpenVINO it is what was added after the imports: Python, numpy, the engine's libraries and the inputs are left out.
- Difference: the largest between our outputs and those of the first peer, onnxruntime unless it is left out or fails,
  as a part of an output's largest element. What the other peers differ by is printed before the table.

"Ratio" is to the fastest peer; first results and memory stand as ours / the best peer's, best in that column.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import operators

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"sequence": 128, "past": 256, "length": 4 << 20}
DEFAULT = ["matmul_1024_1024_1024", "resnet50"]
PEERS = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO", "tract": "tract", "rten": "rten"}
IN_PYTHON = ["onnxruntime", "openvino"]
# Bytes of memory that are touched before a measurement.
WARMED = 1 << 30
# A peer that differs by more computes something else. Engines that quantize at other places differ by 0.02.
WRONG = 0.1


class Failure(Exception):
    """What an engine that cannot run a model says."""


class Figures(NamedTuple):
    run: float  # milliseconds
    first: float  # milliseconds from the file to the first result
    memory: float  # MiB
    rate: float  # GFLOP/s, of Windlass only


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


def split_name(model):
    """`mlp:batch=64` as a name and sizes of dimensions."""
    name, _, sizes = model.partition(":")
    pairs = (size.split("=") for size in sizes.split(",") if size)
    return name, SIZES | {dimension: int(size) for dimension, size in pairs}


def write_inputs(path, sizes, folder):
    """Files of the inputs that every engine gets, as the arguments that all their commands take."""
    random = np.random.default_rng(0)
    arguments = []
    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    for port in model.graph.input:
        if port.name in weights:
            continue
        ty = port.type.tensor_type
        shape = [sizes.get(dim.dim_param, 1) if dim.dim_param else dim.dim_value for dim in ty.shape.dim]
        is_float = ty.elem_type == TensorProto.FLOAT
        integer = helper.tensor_dtype_to_np_dtype(ty.elem_type)
        file = folder / f"{len(arguments)}.npy"
        np.save(file, random.random(shape, dtype=np.float32) if is_float else np.ones(shape, integer))
        arguments.append(f"--input={port.name}={file}")
    return arguments


def call(command):
    """The standard output of a command."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise Failure(result.stderr.strip() or f"exit status {result.returncode}")
    return result.stdout


class Bench:
    """The commands of all engines, for one model after another."""

    def __init__(self, arguments):
        self.windlass, self.engines = arguments.windlass, arguments.engines
        self.threads = f"--threads={arguments.threads}"
        # What rten loads a model with, which the program's own --threads cannot set.
        os.environ["RTEN_NUM_THREADS"] = str(arguments.threads)

    def measure(self, engine, model, seconds):
        model.warm()
        options = [self.threads, f"--seconds={seconds}", *model.inputs]
        if engine != "windlass":
            report = json.loads(call(self.peer(engine, model, options)))
            first = report["load_ms"] + report["first_run_ms"]
            return Figures(report["median_ms"], first, report["peak_bytes"] / 2**20, 0)
        # The program that starts Windlass is one with little memory, which counts into Windlass's own.
        bench = [self.engines, "memory", self.windlass, "bench", "--json", *options, model.path]
        report, memory = (json.loads(line) for line in call(bench).splitlines())
        first = report["first_result_seconds"]
        rate = report["gflops_per_second"] or 0
        return Figures(report["median_seconds"] * 1e3, first * 1e3, memory["peak_bytes"] / 2**20, rate)

    def outputs(self, engine, model):
        """The model's outputs, in its order."""
        with tempfile.TemporaryDirectory() as folder:
            if engine == "windlass":
                call([self.windlass, "run", model.path, f"--save={folder}", self.threads, *model.inputs])
                ports = onnx.load(model.path, load_external_data=False).graph.output
                names = [re.sub(r"[^\w.-]", "_", port.name) for port in ports]
            else:
                call(self.peer(engine, model, [self.threads, "--seconds=0", f"--save={folder}", *model.inputs]))
                names = range(len(list(Path(folder).iterdir())))
            return [np.load(f"{folder}/{name}.npy") for name in names]

    def peer(self, engine, model, options):
        in_python = [sys.executable, Path(__file__).with_name("engine.py")]
        program = in_python if engine in IN_PYTHON else [self.engines, "time"]
        return [*program, engine, model.path, *options]

    def peak(self):
        return json.loads(call([self.windlass, "bench", "--peak", "--json"]))["peak_gflops_per_second"]


class Model:
    """A model with its inputs, and what was measured of it by engine."""

    def __init__(self, name, folder, is_operator):
        self.name = name
        base, sizes = split_name(name)
        if is_operator:
            self.path = folder / f"{name}.onnx"
            operators.make(name, self.path)
        elif name.startswith("matmul_"):
            self.path = matmul(name, folder)
        else:
            paths = [ROOT / f"target/{made}/{base}/model.onnx" for made in ("models", "published")]
            self.path = next((path for path in paths if path.exists()), None)
            if self.path is None:
                sys.exit(f"no such model: {paths[0]} (tests/material.sh and fetch_models.py make the folders)")
        inputs = Path(tempfile.mkdtemp(dir=folder))
        self.inputs = write_inputs(self.path, sizes, inputs)
        self.differences, self.rounds = {}, {}

    def try_engines(self, bench, engines):
        """Runs every engine once: who can, and how far its outputs are from the first peer's."""
        outputs = {}
        for engine in engines:
            try:
                outputs[engine] = bench.outputs(engine, self)
            except Failure as failure:
                print(f"{self.name}: {engine} fails: {failure}", file=sys.stderr)
        self.rounds = {engine: [] for engine in outputs}
        first = next((engine for engine in outputs if engine != "windlass"), None)
        self.differences = {
            engine: difference(found, outputs[first])
            for engine, found in outputs.items()
            if first and engine != first
        }
        for engine, value in self.differences.items():
            if engine != "windlass" and not value <= WRONG:
                print(f"{self.name}: {engine} gives other outputs than {first}", file=sys.stderr)
                del self.rounds[engine]
        shown = ", ".join(f"{engine} {value:.0e}" for engine, value in self.differences.items())
        print(f"{self.name}: differences from {first}: {shown or 'none'}", file=sys.stderr)

    def warm(self):
        """Puts the model's files into the system's cache, and touches as much memory as a large model takes."""
        for file in [self.path, *self.path.parent.glob(f"{self.path.name}.*")]:
            with open(file, "rb") as source:
                while source.read(1 << 22):
                    pass
        np.ones(WARMED // 8)

    def measure_engines(self, bench, seconds):
        """One round. An engine that fails in any has no figures."""
        for engine in list(self.rounds):
            try:
                self.rounds[engine].append(bench.measure(engine, self, seconds))
            except Failure as failure:
                print(f"{self.name}: {engine} fails: {failure}", file=sys.stderr)
                del self.rounds[engine]

    def figures(self, engine):
        """Medians of the rounds, or nothing if the engine fails."""
        rounds = self.rounds.get(engine)
        return Figures(*map(statistics.median, zip(*rounds))) if rounds else None


def difference(found, expected):
    """The largest between two lists of outputs, as a part of the largest element of each output."""
    parts = [0.0]
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return float("inf")
        one, other = one.astype(np.float64), other.astype(np.float64)
        parts.append(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))
    return float(np.max(parts))


def show(value, digits=0):
    return "-" if value is None else f"{value:.{digits}f}"


def print_table(models, peers, threads, peak):
    """One row a model, then the geometric means of the ratios to the best peer."""
    names = [f"{name} ms" for name in ["windlass", *(PEERS[peer] for peer in peers)]]
    header = ["model", *names, "ratio", "% of peak", "first result ms", "memory MiB", "difference"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    ratios = {"run": [], "first": [], "memory": []}
    for model in models:
        own, *others = figures = [model.figures(engine) for engine in ["windlass", *peers]]
        pairs = {}
        for column, found in ratios.items():
            ours = own and getattr(own, column)
            theirs = min((getattr(other, column) for other in others if other), default=None)
            pairs[column] = f"{show(ours)} / {show(theirs)}"
            found.append(ours / theirs if ours and theirs else None)
        difference = model.differences.get("windlass")
        row = [
            model.name,
            *(show(each and each.run, 3) for each in figures),
            show(ratios["run"][-1], 2),
            show(own and 100 * own.rate / peak / threads),
            pairs["first"],
            pairs["memory"],
            "-" if difference is None else f"{difference:.0e}",
        ]
        print(f"| {' | '.join(row)} |")
    run, first, memory = (
        f"{statistics.geometric_mean(known):.2f}" if (known := [ratio for ratio in found if ratio]) else "-"
        for found in ratios.values()
    )
    print(
        f"\nRatios are to the fastest peer; their geometric mean is {run}. "
        f"Of the first result, ours to the best peer's, it is {first}, and of the memory {memory}."
    )


def parse_peers(text):
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [peer for peer in PEERS if peer in chosen]


def install(program, folder):
    """A copy of a program."""
    if not Path(program).exists():
        sys.exit(f"no such program: {program} (tests/peers/run.sh builds it)")
    return shutil.copy(program, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--operators", action="store_true", help="models of one operator each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine on each model in a round")
    parser.add_argument("--peers", type=parse_peers, default=list(PEERS), metavar="NAME,..", help=", ".join(PEERS))
    parser.add_argument("--windlass", default=ROOT / "target/release/windlass", help="the command's binary")
    parser.add_argument(
        "--engines", default=ROOT / "target/peers/release/windlass-peers", help="the binary of tests/peers/engines"
    )
    arguments = parser.parse_args()
    engines = ["windlass", *arguments.peers]
    with tempfile.TemporaryDirectory() as folder:
        arguments.windlass, arguments.engines = (install(p, folder) for p in (arguments.windlass, arguments.engines))
        bench, peaks = Bench(arguments), []
        names = arguments.models or (operators.OPERATORS if arguments.operators else DEFAULT)
        models = [Model(name, Path(folder), arguments.operators) for name in names]
        for model in models:
            model.try_engines(bench, engines)
        for _ in range(arguments.rounds):
            peaks.append(bench.peak())
            for model in models:
                model.measure_engines(bench, arguments.seconds)

    peak = statistics.median(peaks)
    threads, rounds = arguments.threads, arguments.rounds
    print(f"{threads} thread(s), medians of {rounds} rounds; peak of one thread {peak:.1f} GFLOP/s\n")
    print_table(models, arguments.peers, threads, peak)


if __name__ == "__main__":
    main()
