"""Trains the digit classifier digits.onnx, in numpy, and writes everything else in this folder.

    target/venv/bin/python examples/digits/train.py

The data are scikit-learn's bundled digits: 1,797 images of 8x8 pixels with values 0 to 16. A quarter of them, the
same share of every class, is held back: neither trained on nor looked at before the last line prints the accuracy.
Everything random comes from one seed, so the same machine makes the same files; another processor may sum in another
order and get weights that differ in their last digits.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4
BRIGHTEST = 16
HERE = Path(__file__).resolve().parent


# Layers. Each returns its output and a function from the output's gradient to the gradients of input and parameters.


def conv(x, weight, bias):
    """3x3 convolution, padded to keep the size. x: [n, in, h, w], weight: [out, in, 3, 3]."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    columns = np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(-1, weight[0].size)
    n, _, height, width = x.shape
    y = (columns @ weight.reshape(len(weight), -1).T + bias).reshape(n, height, width, -1).transpose(0, 3, 1, 2)

    def backward(dy):
        flat = dy.transpose(0, 2, 3, 1).reshape(-1, len(weight))
        turned = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        dx, _ = conv(dy, turned, np.float32(0))
        return dx, (flat.T @ columns).reshape(weight.shape), flat.sum(0)

    return y, backward


def relu(x):
    return np.maximum(x, 0), lambda dy: dy * (x > 0)


def max_pool(x):
    """2x2 windows, no overlap."""
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // 2, 2, width // 2, 2)
    y = blocks.max((3, 5))
    first = blocks == y[:, :, :, None, :, None]

    def backward(dy):
        # Equal values share the gradient.
        share = dy / first.sum((3, 5))
        return (first * share[:, :, :, None, :, None]).reshape(x.shape)

    return y, backward


def dense(x, weight, bias):
    return x @ weight.T + bias, lambda dy: (dy @ weight, dy.T @ x, dy.sum(0))


def softmax(x):
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


# Model and training


def initial_parameters(rng):
    shapes = {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "dense": (10, 32 * 2 * 2)}
    parameters = {}
    for layer, shape in shapes.items():
        spread = np.sqrt(2 / np.prod(shape[1:]))
        parameters[f"{layer}.weight"] = (spread * rng.standard_normal(shape)).astype(np.float32)
        parameters[f"{layer}.bias"] = np.zeros(shape[0], np.float32)
    return parameters


def loss_gradient(parameters, images, labels):
    """The gradient of the mean cross-entropy over a batch."""
    weights = lambda layer: (parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])  # noqa: E731
    x, conv1 = conv(images, *weights("conv1"))
    x, relu1 = relu(x)
    x, pool1 = max_pool(x)
    x, conv2 = conv(x, *weights("conv2"))
    x, relu2 = relu(x)
    image, pool2 = max_pool(x)
    x, dense1 = dense(image.reshape(len(image), -1), *weights("dense"))

    gradient = {}
    dx = (softmax(x) - np.eye(10, dtype=np.float32)[labels]) / np.float32(len(labels))
    dx, gradient["dense.weight"], gradient["dense.bias"] = dense1(dx)
    dx = relu2(pool2(dx.reshape(image.shape)))
    dx, gradient["conv2.weight"], gradient["conv2.bias"] = conv2(dx)
    dx = relu1(pool1(dx))
    _, gradient["conv1.weight"], gradient["conv1.bias"] = conv1(dx)
    return gradient


def shifted(images, rng):
    """Each image moved by up to one pixel each way: the digits of new writers are not centred alike."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = rng.choice([0, 1, 2], (2, len(images)), p=[0.2, 0.6, 0.2])
    return np.stack([image[:, r : r + 8, c : c + 8] for image, r, c in zip(padded, rows, columns, strict=True)])


def train(images, labels):
    """Adam with a cosine schedule and decoupled weight decay."""
    rng = np.random.default_rng(SEED)
    parameters = initial_parameters(rng)
    mean = {name: np.zeros_like(value) for name, value in parameters.items()}
    square = {name: np.zeros_like(value) for name, value in parameters.items()}
    steps = EPOCHS * (len(images) // BATCH)
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            step += 1
            rate = LEARNING_RATE * (1 + np.cos(np.pi * step / steps)) / 2
            chosen = order[start : start + BATCH]
            gradient = loss_gradient(parameters, shifted(images[chosen], rng), labels[chosen])
            for name, slope in gradient.items():
                mean[name] = 0.9 * mean[name] + 0.1 * slope
                square[name] = 0.999 * square[name] + 0.001 * slope**2
                direction = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8)
                update = rate * (direction + WEIGHT_DECAY * parameters[name])
                parameters[name] = (parameters[name] - update).astype(np.float32)
    return parameters


# Products


def to_onnx(parameters):
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "conv1.weight", "conv1.bias"], ["conv1"], name="conv1", **window),
        helper.make_node("Relu", ["conv1"], ["relu1"], name="relu1"),
        helper.make_node("MaxPool", ["relu1"], ["pool1"], name="pool1", **pool),
        helper.make_node("Conv", ["pool1", "conv2.weight", "conv2.bias"], ["conv2"], name="conv2", **window),
        helper.make_node("Relu", ["conv2"], ["relu2"], name="relu2"),
        helper.make_node("MaxPool", ["relu2"], ["pool2"], name="pool2", **pool),
        helper.make_node("Flatten", ["pool2"], ["features"], name="flatten", axis=1),
        helper.make_node("Gemm", ["features", "dense.weight", "dense.bias"], ["scores"], name="dense", transB=1),
        helper.make_node("Softmax", ["scores"], ["probabilities"], name="softmax", axis=1),
    ]
    image = helper.make_tensor_value_info(
        "image", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8], "grey digits: 0 is background, 1 is full ink"
    )
    probabilities = helper.make_tensor_value_info(
        "probabilities", onnx.TensorProto.FLOAT, ["batch", 10], "of the digits 0 to 9"
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in parameters.items()]
    return helper.make_model(
        helper.make_graph(nodes, "digits", [image], [probabilities], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="windlass examples/digits/train.py",
        doc_string="Recognises a handwritten digit in an 8x8 grey image with values 0 to 1.",
    )


def main():
    digits = load_digits()
    pixels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    train_pixels, held_pixels, train_labels, held_labels = train_test_split(
        pixels, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    to_input = lambda values: (values[:, None] / np.float32(BRIGHTEST)).astype(np.float32)  # noqa: E731
    model = to_onnx(train(to_input(train_pixels), train_labels))

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    classify = lambda values: session.run(None, {"image": to_input(values)})[0].argmax(1)  # noqa: E731
    right = classify(held_pixels) == held_labels
    accuracy = f"{right.sum()} of {len(right)} held-back digits right: {100 * right.mean():.2f} %"
    helper.set_model_props(model, {"accuracy": accuracy, "data": "scikit-learn load_digits, pixels divided by 16"})
    onnx.checker.check_model(model, full_check=True)
    (HERE / "digits.onnx").write_bytes(model.SerializeToString(deterministic=True))

    np.savez(HERE / "heldout.npz", images=held_pixels, labels=held_labels)
    for old in HERE.glob("digit_*.png"):
        old.unlink()
    for digit in range(10):
        row = int(np.flatnonzero(held_labels == digit)[0])
        grey = np.round(held_pixels[row] / BRIGHTEST * 255).astype(np.uint8)
        Image.fromarray(grey).save(HERE / f"digit_{digit}_{row}.png")

    print(f"training digits right: {100 * (classify(train_pixels) == train_labels).mean():.2f} %")
    print(accuracy)


if __name__ == "__main__":
    main()
