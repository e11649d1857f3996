"""Writes the backend test suite of the installed onnx package to disk, in ONNX's test-case layout.

    target/venv/bin/python tests/python/node_suite.py OUT

A case is a folder OUT/<kind>/<case>/ with model.onnx and test_data_set_N/{input,output}_M.pb. The kinds:

    node                the cases of one operator each
    node-expanded       the same cases, the operator replaced by the body that its schema gives for it
    simple              small graphs: sequences, Expand, StringNormalizer, Gradient
    pytorch-converted   layers as an old PyTorch exported them
    pytorch-operator    operators as an old PyTorch exported them
    light               nine whole networks (the package's kind "real"): weights made inside the graph by
                        ConstantOfShape, so the files are small; input and expected output as its runner has them

The file input_M.pb holds the M-th graph input that has no initializer, as TensorProto, SequenceProto or
OptionalProto according to the graph input's type; the same for output_M.pb. A case whose tolerances are not the
suite's default (rtol 1e-3, atol 1e-7) has a case.json that states them. OUT/index.json lists every case with its
kind and tolerances. The same package gives the same bytes on every run.
"""

import argparse
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test import loader
from onnx.backend.test.case import model as model_cases
from onnx.backend.test.runner import Runner

DEFAULT_TOLERANCE = {"rtol": 1e-3, "atol": 1e-7}
# The suite's runner compares bfloat16 results within two units in the last place.
BFLOAT16_RTOL = 2**-6
PACKAGE = Path(onnx.__file__).parent


def to_proto(value, info):
    """One input or output of a case as the message that its declared type asks for."""
    kind = info.type.WhichOneof("value")
    if isinstance(value, onnx.TensorProto):
        proto = onnx.TensorProto()
        proto.CopyFrom(value)
        proto.name = info.name
        return proto
    if kind == "sequence_type":
        return numpy_helper.from_list(value, info.name)
    if kind == "optional_type":
        return numpy_helper.from_optional(value, info.name)
    return numpy_helper.from_array(np.asarray(value), info.name)


def fed_inputs(model):
    """The graph inputs that a caller feeds: old models list their initializers among the inputs too."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in constants]


def save(message, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(message.SerializeToString(deterministic=True))


def save_data_set(folder, inputs, outputs):
    for stem, messages in (("input", inputs), ("output", outputs)):
        for index, message in enumerate(messages):
            save(message, folder / f"{stem}_{index}.pb")


def write_coded_case(case, folder):
    """A case made by code: a model and numpy values."""
    save(case.model, folder / "model.onnx")
    for number, (inputs, outputs) in enumerate(case.data_sets):
        # Strict: a value without a declared input or output would be written as another's.
        fed = zip(inputs, fed_inputs(case.model), strict=True)
        expected = zip(outputs, case.model.graph.output, strict=True)
        messages = ([to_proto(value, info) for value, info in side] for side in (fed, expected))
        save_data_set(folder / f"test_data_set_{number}", *messages)


def write_stored_case(case, folder):
    """A case that the package ships as files already."""
    source = Path(case.model_dir)
    for path in sorted(source.rglob("*")):
        if path.name == "model.onnx" or path.suffix == ".pb":
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def write_light_case(case, folder):
    """A network of the package's data/light: its input is a ramp from 0 to 1, as in the suite's own runner."""
    source = PACKAGE.parent / case.url
    model = onnx.load(source)
    shutil.copyfile(source, folder / "model.onnx")
    inputs = [numpy_helper.from_array(Runner.generate_dummy_data(info), info.name) for info in fed_inputs(model)]
    outputs = []
    for index, info in enumerate(model.graph.output):
        tensor = onnx.load_tensor(source.with_name(f"{source.stem}_output_{index}.pb"))
        tensor.name = info.name
        outputs.append(tensor)
    save_data_set(folder / "test_data_set_0", inputs, outputs)


def tolerance(case, folder):
    model = case.model or onnx.load(folder / "model.onnx")
    types = [info.type.tensor_type.elem_type for info in model.graph.output]
    rtol = max(case.rtol, BFLOAT16_RTOL) if onnx.TensorProto.BFLOAT16 in types else case.rtol
    return {"rtol": rtol, "atol": case.atol}


def collect():
    """Every case of the package as (kind, case, writer); those that would need the network come apart."""
    found, remote = [], []
    coded = [*loader.load_model_tests(kind="node"), *model_cases.collect_testcases()]
    for case in coded:
        if case.kind == "real":
            continue
        kind = "node-expanded" if case.kind == "node" and "_expanded" in case.name else case.kind
        found.append((kind, case, write_coded_case))

    # The kind "simple" is also stored as files, by an older run of the code above, which has more cases.
    names = {case.name for _, case, _ in found}
    for kind in ("simple", "pytorch-converted", "pytorch-operator", "real"):
        for case in loader.load_model_tests(kind=kind):
            if kind == "simple" and case.name in names:
                continue
            if case.url is None:
                found.append((kind, case, write_stored_case))
            elif (PACKAGE.parent / case.url).is_file():
                found.append(("light", case, write_light_case))
            else:
                remote.append((kind, case))
    return sorted(found, key=lambda entry: (entry[0], entry[1].name)), remote


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; the kinds in it are replaced")
    out = parser.parse_args().out
    # Some cases compute their expected output with overflow and division by zero on purpose.
    warnings.simplefilter("ignore")

    found, remote = collect()
    for kind in sorted({kind for kind, _, _ in found}):
        shutil.rmtree(out / kind, ignore_errors=True)

    index = []
    for kind, case, write in found:
        folder = out / kind / case.name
        folder.mkdir(parents=True)
        write(case, folder)
        allowed = tolerance(case, folder)
        if allowed != DEFAULT_TOLERANCE:
            (folder / "case.json").write_text(json.dumps(allowed) + "\n")
        index.append({"case": case.name, "kind": kind, **allowed})
    lines = ",\n".join(json.dumps(entry) for entry in index)
    (out / "index.json").write_text(f"[\n{lines}\n]\n")

    for kind, count in sorted(Counter(entry["kind"] for entry in index).items()):
        print(f"{count:5}  {kind}")
    print(f"{len(index):5}  in all, from onnx {onnx.__version__}, in {out}")
    for kind, case in remote:
        print(f"skipped, needs the network: {kind}/{case.name} {case.url}")


if __name__ == "__main__":
    main()
