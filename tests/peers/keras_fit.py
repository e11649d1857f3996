"""Fits the convolutional network of tests/examples/training.rs with Windlass and with Keras, and compares each epoch's loss.

    target/venv-training/bin/python tests/peers/keras_fit.py WINDLASS [EPOCHS]

WINDLASS is the binary of tests/examples/training.rs. Both start from the same weights and take the same examples, 32 at a
time in the same order: the digits of the training goldens, each pixel as a square of four by four in three channels. They
do so in f64, where losses more than a thousandth apart are an error, and in f32, of which each one's distance from Keras in
f64 is printed: Adam divides by the size of a gradient, and so makes steps of rounding errors where a gradient is next to
nothing. Keras computes with JAX: with TensorFlow it rounds Adam's betas to f32 whatever the type, and of equal numbers in a
window to pool another one gets the gradient.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
import jax
import keras
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["conv1", "conv2", "dense1", "dense2"]


def examples():
    digits = np.load(ROOT / "tests" / "golden" / "training" / "digits_data.npz")
    rows = digits["train_idx"].astype(int)
    images = digits["images"].reshape(-1, 8, 8)[rows] / 16.0
    return np.kron(images, np.ones((4, 4)))[..., None].repeat(3, 3), digits["labels"][rows].astype(np.int32)


def fit_windlass(windlass, path, epochs):
    printed = subprocess.run([windlass, "fit", "cnn", str(path), str(epochs)], check=True, capture_output=True).stdout
    return json.loads(printed)


def fit_keras(weights, x, y, epochs):
    jax.config.update("jax_enable_x64", x.dtype == np.float64)
    keras.config.set_floatx(str(x.dtype))
    keras.config.set_dtype_policy(str(x.dtype))
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for name, filters in [("conv1", 32), ("conv2", 64)]:
        model.add(keras.layers.Conv2D(filters, 3, activation="relu", name=name))
        model.add(keras.layers.MaxPooling2D(2))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(128, activation="relu", name="dense1"))
    model.add(keras.layers.Dense(32, name="dense2"))
    for name in LAYERS:
        model.get_layer(name).set_weights([weights[f"{name}.kernel"], weights[f"{name}.bias"]])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    return model.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def main():
    windlass, epochs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    folder = ROOT / "target" / "training"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([windlass, "data", str(folder)], check=True)
    weights = {name: array for name, array in np.load(folder / "cnn.npz").items() if name not in ("x", "y")}
    x, y = examples()
    path = folder / "cnn_fit.npz"
    losses = {}
    for dtype in ["float64", "float32"]:
        cast = {name: array.astype(dtype) for name, array in {**weights, "x": x}.items()}
        np.savez(path, **cast, y=y)
        losses[dtype] = fit_windlass(windlass, path, epochs), fit_keras(weights, cast["x"], y, epochs)

    def apart(own, other):
        return abs(own - other) / abs(other)

    print("| epoch | Windlass, f64 | Keras, f64 | apart | Windlass, f32, from f64 | Keras, f32, from f64 |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    for epoch, (own, other, own32, other32) in enumerate(zip(*losses["float64"], *losses["float32"], strict=True), 1):
        worst = max(worst, apart(own, other))
        print(
            f"| {epoch} | {own:.9f} | {other:.9f} | {apart(own, other):.0e}"
            f" | {apart(own32, other):.0e} | {apart(other32, other):.0e} |"
        )
    sys.exit(worst > 1e-3)


main()
