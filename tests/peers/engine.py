"""Times a model with onnxruntime or OpenVINO in a process of its own, and prints one JSON object.

The Python counterpart of the program in engines/, with the same arguments and the same keys but for the memory:
`peak_bytes` leaves out what the interpreter, the libraries and the inputs took before the model was loaded.
"""

import argparse
import json
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np


def onnxruntime(engine, path, threads, feeds):
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = engine.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def openvino(engine, path, threads, feeds):
    core = engine.Core()
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


COMPILE = {"onnxruntime": onnxruntime, "openvino": openvino}


def resident(key):
    """Bytes of this process: VmRSS is what it holds now, VmHWM the most it ever held."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{key}:"))


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, (time.perf_counter() - start) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=COMPILE)
    parser.add_argument("model")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--save", type=Path, help="a folder for the first run's outputs, 0.npy and so on")
    arguments = parser.parse_args()

    feeds = {name: np.load(file) for name, file in (text.split("=", 1) for text in arguments.input)}
    engine = import_module(arguments.engine)
    before = resident("VmRSS")
    run, load = timed(lambda: COMPILE[arguments.engine](engine, arguments.model, arguments.threads, feeds))
    outputs, first = timed(run)
    if arguments.save:
        for number, output in enumerate(outputs):
            np.save(arguments.save / f"{number}.npy", output)
    times = []
    end = time.perf_counter() + arguments.seconds
    while not times or time.perf_counter() < end:
        times.append(timed(run)[1])
    report = {
        "engine": arguments.engine,
        "load_ms": load,
        "first_run_ms": first,
        "median_ms": statistics.median(times),
        "runs": len(times),
        "peak_bytes": resident("VmHWM") - before,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # an engine's own errors have no common type
        sys.exit(f"error: {error}")
