"""The model zoo by script: real architectures with seeded weights, each one function in a module of this package.

`MODELS` maps a model's name to its `Recipe`; a function joins it with the decorator `model`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .builder import Builder


@dataclass(frozen=True)
class Recipe:
    """How a model is made: the graph function, the exporter it imitates, and the sizes its test data is made for."""

    build: Callable[[Builder], None]
    opset: int
    style: str
    # One test data set for each binding of the model's named dimensions.
    data_sets: tuple[dict[str, int], ...]
    # Weights go to model.onnx.data beside the model, as exporters do for large ones.
    external_data: bool
    # Whether all floats are f16.
    half: bool
    # How far from onnxruntime's outputs a result may be, as a part of the largest of them.
    tolerance: float


MODELS: dict[str, Recipe] = {}


def model(name, *, opset, style="pytorch", data_sets=({},), external_data=False, half=False, tolerance=1e-4):
    """Registers the decorated graph function under `name`."""

    def register(build):
        assert name not in MODELS, name
        MODELS[name] = Recipe(build, opset, style, tuple(data_sets), external_data, half, tolerance)
        return build

    return register


# The modules register their functions when they are imported.
from . import audio, caffe2, cnn, quantized, recurrent, small, transformer, vision  # noqa: E402, F401
