"""Fits the convolutional network of tests/examples/training.rs with Windlass and with Keras, and compares each epoch's loss.

    target/venv-training/bin/python tests/peers/keras_fit.py WINDLASS [EPOCHS]

WINDLASS is the binary of tests/examples/training.rs. Both start from the same weights and take the same 512 pictures, with
the same classes, 32 at a time in the same order. The pictures are noise about the mean of their class, so there is
something to learn. Fails where an epoch's losses differ by more than a thousandth.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import keras
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["conv1", "conv2", "dense1", "dense2"]


def main():
    windlass, epochs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    folder = ROOT / "target" / "training"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([windlass, "data", str(folder)], check=True)
    weights = dict(np.load(folder / "cnn.npz"))
    random = np.random.default_rng(7)
    y = random.integers(0, 10, 512).astype(np.int32)
    means = random.normal(size=(10, 32, 32, 3))
    x = (0.3 * means[y] + random.normal(size=(512, 32, 32, 3))).astype(np.float32)
    path = folder / "cnn_fit.npz"
    np.savez(path, **{**weights, "x": x, "y": y})
    ours = json.loads(subprocess.run([windlass, "fit", "cnn", str(path), str(epochs)], check=True, capture_output=True).stdout)

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
    theirs = model.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0).history["loss"]
    worst = 0.0
    for epoch, (own, other) in enumerate(zip(ours, theirs, strict=True), 1):
        apart = abs(own - other) / abs(other)
        worst = max(worst, apart)
        print(f"epoch {epoch:2}: windlass {own:.6f}  Keras {other:.6f}  apart {apart:.1e}")
    sys.exit(worst > 1e-3)


main()
