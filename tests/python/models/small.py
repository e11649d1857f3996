"""Small networks from tutorials: a multilayer perceptron, and a Keras image classifier."""

import numpy as np

from . import model


@model("mlp", opset=13, data_sets=({"batch": 1}, {"batch": 32}))
def mlp(g):
    """784-512-512-10, as PyTorch's exporter writes it."""
    x = g.input("input", ("batch", 784), width=784)
    for index, units in enumerate((512, 512)):
        with g.scope(f"layers.{2 * index}"):
            x = g.relu(g.gemm(x, units))
    with g.scope("layers.4"):
        g.output(g.gemm(x, 10, gain=1.0), "output", ("batch", 10))


@model("keras_cnn", opset=15, style="tensorflow", data_sets=({"batch": 1}, {"batch": 5}))
def keras_cnn(g):
    """Keras' first convolutional network as tf2onnx writes it: images channels-last, so Transposes at both ends."""

    def image(rng, shape):
        return rng.random(shape, dtype=np.float32)

    def dense(name, x, units, gain=2.0):
        with g.scope(f"sequential/{name}"):
            fan_in = g.width[x]
            y = g.node("MatMul", x, g.weight("MatMul/ReadVariableOp", (fan_in, units), fan_in, gain), width=units)
            return g.node("Add", y, g.vector("BiasAdd/ReadVariableOp", units))

    x = g.input("conv2d_input", ("batch", 28, 28, 1), sample=image, width=1)
    x = g.node("Transpose", x, perm=[0, 3, 1, 2])
    for name, filters in (("conv2d", 32), ("conv2d_1", 64)):
        with g.scope(f"sequential/{name}"):
            x = g.relu(g.conv(x, filters, 3))
        with g.scope(f"sequential/max_pooling2d{name[6:]}"):
            x = g.pool("MaxPool", x, 2, 2)
    x = g.node("Transpose", x, perm=[0, 2, 3, 1])
    with g.scope("sequential/flatten"):
        shape = g.parameter("Const", np.array([-1, 5 * 5 * 64], np.int64))
        x = g.node("Reshape", x, shape, width=5 * 5 * 64)
    x = g.relu(dense("dense", x, 128))
    x = g.node("Softmax", dense("dense_1", x, 32, gain=1.0), axis=-1)
    g.output(x, "dense_1", ("batch", 32))


@model("elementwise", opset=17, data_sets=({"length": 4 << 20}, {"length": 1001}))
def elementwise(g):
    """A chain of elementwise operators over one long vector: memory traffic unless it is one loop."""
    x = g.input("input", ("length",))
    y = g.node("Add", g.node("Mul", x, g.constant(1.5)), g.constant(-0.25))
    y = g.node("Mul", g.node("Tanh", y), g.node("Sigmoid", x))
    y = g.node("Add", g.node("Mul", y, y), g.node("Relu", x))
    g.output(g.node("Sqrt", g.node("Add", y, g.constant(1.0))), "output", ("length",))


@model("relu16", opset=17)
def relu16(g):
    """Almost nothing: what a call costs."""
    g.output(g.relu(g.input("input", (16,))), "output", (16,))


@model("dlrm", opset=13, data_sets=({"batch": 64}, {"batch": 1}))
def dlrm(g, dense=13, tables=26, rows=2000, width=32):
    """A recommender: a small network over numbers, rows of tables for categories, and the products of all pairs."""

    def categories(rng, shape):
        return rng.integers(0, rows, shape)

    def network(x, *units):
        for index, count in enumerate(units):
            with g.scope(f"{2 * index}"):
                x = g.relu(g.gemm(x, count))
        return x

    x = g.input("dense", ("batch", dense), width=dense)
    ids = g.input("categories", ("batch", tables), np.int64, categories)
    with g.scope("bottom"):
        x = network(x, 256, 128, width)
    features = [g.node("Unsqueeze", x, g.ints(1))]
    for index in range(tables):
        with g.scope(f"embeddings.{index}"):
            table = g.weight("weight", (rows, width), width, 1.0)
            of_table = g.node("Gather", ids, g.ints(index), axis=1)
            features.append(g.node("Gather", table, of_table))
    y = g.node("Concat", *features, axis=1)
    products = g.node("MatMul", y, g.node("Transpose", y, perm=[0, 2, 1]))
    count = tables + 1
    pairs = [row * count + column for row in range(count) for column in range(row)]
    products = g.node("Reshape", products, g.ints(-1, count * count))
    pairs_of = g.node("Gather", products, g.ints(*pairs), axis=1, width=len(pairs))
    x = g.concat(x, pairs_of)
    with g.scope("top"):
        x = network(x, 512, 256)
    with g.scope("top.4"):
        g.output(g.node("Sigmoid", g.gemm(x, 1, gain=1.0)), "output", ("batch", 1))
