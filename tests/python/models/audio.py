"""Networks over sound, as PyTorch's exporter writes them: convolutions along one axis, and long sequences."""

import numpy as np

from . import model
from .transformer import gelu_erf, layer_norm, linear


def conv1d(g, name, x, filters, kernel, stride=1, pads=(0, 0), dilation=1, groups=1, bias=True, gain=2.0):
    channels = g.width[x] // groups
    with g.scope(name):
        inputs = [x, g.weight("weight", (filters, channels, kernel), channels * kernel, gain)]
        if bias:
            inputs.append(g.vector("bias", filters))
        window = {"kernel_shape": [kernel], "strides": [stride], "pads": list(pads), "dilations": [dilation]}
        return g.node("Conv", *inputs, width=filters, group=groups, **window)


def attention(g, x, length, heads, linear=linear):
    hidden = g.width[x]
    head = hidden // heads

    def project(name, perm):
        with g.scope(name):
            split = g.node("Reshape", linear(g, x, hidden), g.ints(1, length, heads, head))
        return g.node("Transpose", split, perm=perm)

    query, key, value = project("q_proj", [0, 2, 1, 3]), project("k_proj", [0, 2, 3, 1]), project("v_proj", [0, 2, 1, 3])
    scores = g.node("MatMul", g.node("Mul", query, g.constant(head**-0.5)), key)
    y = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
    y = g.node("Reshape", g.node("Transpose", y, perm=[0, 2, 1, 3]), g.ints(1, length, hidden), width=hidden)
    with g.scope("out_proj"):
        return linear(g, y, hidden)


@model("whisper", opset=17)
def whisper(g, mels=80, frames=1500, hidden=384, heads=6, layers=2):
    """Whisper-tiny's encoder over fifteen seconds, with two of its four layers: two convolutions, the second halving
    the frames, and attention among 750 positions."""
    x = g.input("mel", (1, mels, frames), width=mels)
    x = gelu_erf(g, conv1d(g, "conv1", x, hidden, 3, 1, (1, 1)))
    x = gelu_erf(g, conv1d(g, "conv2", x, hidden, 3, 2, (1, 1)))
    length = frames // 2
    x = g.node("Transpose", x, perm=[0, 2, 1], width=hidden)
    x = g.node("Add", x, g.weight("positions", (length, hidden), 50), width=hidden)
    for layer in range(layers):
        with g.scope(f"layers.{layer}"):
            with g.scope("self_attn"):
                x = g.node("Add", x, attention(g, layer_norm(g, x), length, heads), width=hidden)
            with g.scope("fc1"):
                y = gelu_erf(g, linear(g, layer_norm(g, x), 4 * hidden))
            with g.scope("fc2"):
                x = g.node("Add", x, linear(g, y, hidden), width=hidden)
    g.output(layer_norm(g, x), "output", (1, length, hidden))


@model("wav2vec2", opset=17)
def wav2vec2(g, samples=16000, width=512, hidden=384, heads=6, layers=2):
    """A second of sound at 16 kHz: seven convolutions down to 49 frames, the first normalised over time, positions by a
    convolution over 128 frames in 16 groups, and two layers of attention."""
    x = g.input("samples", (1, samples), width=1)
    x = g.node("Unsqueeze", x, g.ints(1))
    length = samples
    for index, (kernel, stride) in enumerate(((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))):
        x = conv1d(g, f"conv_layers.{index}.conv", x, width, kernel, stride, bias=False)
        length = (length - kernel) // stride + 1
        if index == 0:
            # A group norm with one channel to a group.
            flat = g.node("Reshape", x, g.ints(0, width, -1))
            ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
            flat = g.node("InstanceNormalization", flat, g.constant(ones), g.constant(zeros), epsilon=1e-5)
            flat = g.node("Reshape", flat, g.node("Shape", x))
            scaled = g.node("Mul", flat, g.parameter("norm.weight", np.full((width, 1), 1.1, np.float32)))
            x = g.node("Add", scaled, g.parameter("norm.bias", np.full((width, 1), 0.1, np.float32)), width=width)
        x = gelu_erf(g, x)
    x = layer_norm(g, g.node("Transpose", x, perm=[0, 2, 1], width=width))
    with g.scope("projection"):
        x = linear(g, x, hidden)
    y = g.node("Transpose", x, perm=[0, 2, 1], width=hidden)
    y = conv1d(g, "pos_conv_embed.conv", y, hidden, 128, 1, (64, 64), groups=16)
    y = g.node("Slice", y, g.ints(0), g.ints(-1), g.ints(2), g.ints(1))
    y = g.node("Transpose", gelu_erf(g, y), perm=[0, 2, 1], width=hidden)
    x = layer_norm(g, g.node("Add", x, y, width=hidden))
    for layer in range(layers):
        with g.scope(f"layers.{layer}"):
            with g.scope("attention"):
                x = layer_norm(g, g.node("Add", x, attention(g, x, length, heads), width=hidden))
            with g.scope("intermediate_dense"):
                y = gelu_erf(g, linear(g, x, 4 * hidden))
            with g.scope("output_dense"):
                x = layer_norm(g, g.node("Add", x, linear(g, y, hidden), width=hidden))
    g.output(x, "output", (1, length, hidden))


@model("wavenet", opset=13)
def wavenet(g, length=4096, width=64, skip=128, layers=10):
    """Causal convolutions of two samples, twice as far apart in each layer, whose halves gate each other."""
    x = g.input("samples", (1, 1, length), width=1)
    x = conv1d(g, "causal", x, width, 2, 1, (1, 0), gain=1.0)
    skips = None
    for layer in range(layers):
        dilation = 1 << layer
        with g.scope(f"layers.{layer}"):
            y = conv1d(g, "dilated", x, 2 * width, 2, 1, (dilation, 0), dilation, gain=1.0)
            filtered, gate = g.node("Split", y, g.ints(width, width), outputs=2, axis=1, width=width)
            y = g.node("Mul", g.node("Tanh", filtered), g.node("Sigmoid", gate))
            out = conv1d(g, "skip", y, skip, 1, gain=1.0)
            skips = out if skips is None else g.node("Add", skips, out)
            x = g.node("Add", x, conv1d(g, "residual", y, width, 1, gain=1.0))
    y = conv1d(g, "end.0", g.relu(skips), skip, 1)
    y = conv1d(g, "end.1", g.relu(y), 256, 1, gain=1.0)
    g.output(y, "output", (1, 256, length))
