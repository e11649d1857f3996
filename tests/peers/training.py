"""Times training steps with Windlass, TensorFlow (with and without XLA) and JAX in turn.

    tests/peers/training.sh [--threads N] [--rounds N] [--seconds S] [--engines NAME,..] [NET...]

A NET is a network of tests/examples/training.rs: `mlp`, `cnn`, `resnet`, `lstm`, `transformer`. All engines start from the
same weights, train on the same batch with Adam as Keras has it, and are given N cores. Each measurement is a process of
its own; each round runs every engine once on every network, and a network's figures are the medians of its rounds'.

- Step: the median of the steps after the first, data at hand, the loss read each time.
- First: the first step, with all that is differentiated, optimized and compiled for it.
- Losses: the largest relative difference of the first 20 losses from JAX's.

"Ratio" is to the fastest of the others.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETS = ["mlp", "cnn", "resnet", "lstm", "transformer"]
ENGINES = ["windlass", "tensorflow", "tensorflow-xla", "jax"]


def measure(engine, net, options):
    """What one process of an engine says of a network."""
    data = str(options.data / f"{net}.npz")
    arguments = [net, data, str(options.threads), str(options.seconds)]
    if engine == "windlass":
        command = ["taskset", "--cpu-list", f"0-{options.threads - 1}", options.windlass, "run", *arguments]
    else:
        command = [sys.executable, str(Path(__file__).with_name("training_engine.py")), engine, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(f"{engine} on {net}: {result.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def row(net, runs):
    """A line of the table."""
    steps = {engine: statistics.median(r["step"] for r in of) for engine, of in runs.items() if of}
    first = {engine: statistics.median(r["first"] for r in of) for engine, of in runs.items() if of}
    peers = [steps[engine] for engine in ENGINES[1:] if engine in steps]
    ratio = steps["windlass"] / min(peers) if "windlass" in steps and peers else float("nan")
    losses = {engine: of[0]["losses"] for engine, of in runs.items() if of}
    other = losses.get("jax", losses.get("tensorflow", []))
    apart = max((abs(a - b) / abs(b) for a, b in zip(losses.get("windlass", []), other)), default=float("nan"))
    cells = [net]
    cells += [f"{steps[engine]:.2f}" if engine in steps else "-" for engine in ENGINES]
    cells += [f"{ratio:.2f}", " / ".join(f"{first[e]:.0f}" if e in first else "-" for e in ENGINES), f"{apart:.0e}"]
    return "| " + " | ".join(cells) + " |", ratio


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windlass", required=True, help="the binary of tests/examples/training.rs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--losses", action="store_true", help="print each engine's first losses")
    parser.add_argument("nets", nargs="*", default=NETS)
    options = parser.parse_args()
    options.data = ROOT / "target" / "training"
    options.data.mkdir(parents=True, exist_ok=True)
    subprocess.run([options.windlass, "data", str(options.data)], check=True)
    engines = options.engines.split(",")
    runs = {net: {engine: [] for engine in engines} for net in options.nets}
    for _ in range(options.rounds):
        for net in options.nets:
            for engine in engines:
                found = measure(engine, net, options)
                if found:
                    runs[net][engine].append(found)
    if options.losses:
        for net in options.nets:
            for engine in engines:
                for of in runs[net][engine][:1]:
                    print(f"{net} {engine}:", " ".join(f"{loss:.6f}" for loss in of["losses"]))
    print(f"{options.threads} thread(s), medians of {options.rounds} rounds, milliseconds\n")
    print("| network | windlass | TensorFlow | TensorFlow XLA | JAX | ratio | first step, in this order | losses |")
    print("|---|---|---|---|---|---|---|---|")
    ratios = []
    for net in options.nets:
        text, ratio = row(net, runs[net])
        ratios.append(ratio)
        print(text)
    print(f"\ngeometric mean of ratios {statistics.geometric_mean(ratios):.2f}")


main()
