"""Recurrent networks as PyTorch's exporter writes them: one RNN node among shape arithmetic and transposes."""

import numpy as np

from . import model
from .transformer import size, unsqueeze

STEPS, FEATURES, HIDDEN = 64, 128, 256


def rnn_weights(g, gates, directions, features=FEATURES, hidden=HIDDEN):
    """W, R and B of a recurrent node, uniform within 1/sqrt(hidden) as PyTorch initialises them."""
    bound = 1 / np.sqrt(hidden)
    shapes = {"W": (gates * hidden, features), "R": (gates * hidden, hidden), "B": (2 * gates * hidden,)}
    return [
        g.parameter(name, g.rng.uniform(-bound, bound, (directions, *shape)).astype(np.float32))
        for name, shape in shapes.items()
    ]


def zero_state(g, x, batch_axis, directions=1):
    """A state of zeros as long as the batch, read from the shape of `x`."""
    batch = unsqueeze(g, size(g, x, batch_axis), 0)
    shape = g.node("Concat", g.ints(directions), batch, g.ints(HIDDEN), axis=0)
    return g.node("Expand", g.constant(0.0), shape)


@model("lstm", opset=14, data_sets=({"batch": 1}, {"batch": 4}))
def lstm(g):
    """Batch first: Transpose in and out. Returns every step and both last states."""
    x = g.input("input", ("batch", STEPS, FEATURES))
    states = zero_state(g, x, 0), zero_state(g, x, 0)
    steps = g.node("Transpose", x, perm=[1, 0, 2])
    with g.scope("lstm"):
        weights = rnn_weights(g, gates=4, directions=1)
        y, hidden, cell = g.node("LSTM", steps, *weights, "", *states, outputs=3, hidden_size=HIDDEN)
    y = g.node("Transpose", g.node("Squeeze", y, g.ints(1)), perm=[1, 0, 2])
    g.output(y, "output", ("batch", STEPS, HIDDEN))
    g.output(hidden, "hidden", (1, "batch", HIDDEN))
    g.output(cell, "cell", (1, "batch", HIDDEN))


@model("gru", opset=14, data_sets=({"batch": 1}, {"batch": 4}))
def gru(g):
    """Sequence first, PyTorch's form of the cell (`linear_before_reset`); the last step goes to a classifier."""
    x = g.input("input", (STEPS, "batch", FEATURES))
    state = zero_state(g, x, 1)
    with g.scope("gru"):
        weights = rnn_weights(g, gates=3, directions=1)
        options = {"hidden_size": HIDDEN, "linear_before_reset": 1}
        y, hidden = g.node("GRU", x, *weights, "", state, outputs=2, width=HIDDEN, **options)
    last = g.node("Gather", g.node("Squeeze", y, g.ints(1)), g.constant(-1, np.int64), axis=0)
    g.width[last] = HIDDEN
    with g.scope("fc"):
        g.output(g.gemm(last, 10, gain=1.0), "output", ("batch", 10))
    g.output(hidden, "hidden", (1, "batch", HIDDEN))


@model("bidirectional_lstm", opset=13, data_sets=({"batch": 2},))
def bidirectional_lstm(g):
    """Two stacked bidirectional layers with given states and a length for each sequence of the batch."""

    def lengths(rng, shape):
        return rng.integers(STEPS // 2, STEPS + 1, shape)

    directions = 2
    x = g.input("input", (STEPS, "batch", FEATURES))
    lens = g.input("lengths", ("batch",), np.int32, lengths)
    hidden = g.input("h0", (2 * directions, "batch", HIDDEN))
    cell = g.input("c0", (2 * directions, "batch", HIDDEN))

    def of_layer(state, layer):
        bounds = g.ints(layer * directions), g.ints((layer + 1) * directions)
        return g.node("Slice", state, *bounds, g.ints(0))

    features, last = FEATURES, []
    for layer in range(2):
        with g.scope(f"lstm.{layer}"):
            weights = rnn_weights(g, 4, directions, features)
            states = of_layer(hidden, layer), of_layer(cell, layer)
            options = {"direction": "bidirectional", "hidden_size": HIDDEN}
            y, h, _c = g.node("LSTM", x, *weights, lens, *states, outputs=3, **options)
            # [steps, directions, batch, hidden] to [steps, batch, directions * hidden]
            x = g.node("Reshape", g.node("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
        features = directions * HIDDEN
        last.append(h)
    g.output(x, "output", (STEPS, "batch", features))
    g.output(g.node("Concat", *last, axis=0), "hn", (2 * directions, "batch", HIDDEN))


@model("tagger", opset=14, data_sets=({"batch": 1, "words": 12}, {"batch": 3, "words": 7}))
def tagger(g):
    """Words as vectors of 300 numbers through a bidirectional layer, and 17 tags for each: sizes of no power of two."""
    vectors, hidden, directions = 300, 150, 2
    words = g.input("words", ("words", "batch"), np.int64, lambda rng, shape: rng.integers(0, 2000, shape))
    with g.scope("embedding"):
        table = g.parameter("weight", g.rng.standard_normal((2000, vectors)).astype(np.float32))
        x = g.node("Gather", table, words)
    with g.scope("lstm"):
        weights = rnn_weights(g, 4, directions, vectors, hidden)
        y, _hidden, _cell = g.node(
            "LSTM", x, *weights, outputs=3, direction="bidirectional", hidden_size=hidden
        )
    y = g.node("Reshape", g.node("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1), width=directions * hidden)
    with g.scope("tags"):
        weight = g.weight("weight", (directions * hidden, 17), directions * hidden, 1.0)
        y = g.node("Add", g.node("MatMul", y, weight), g.vector("bias", 17))
    g.output(y, "output", ("words", "batch", 17))
