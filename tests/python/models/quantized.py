"""Quantized networks: in QDQ form, as onnxruntime's static quantizer writes them, and with quantized weights alone.

In QDQ form every activation passes a QuantizeLinear and a DequantizeLinear with one scale; weights are stored as int8 with a scale
for each output channel, biases as int32 at the product of the scales. Batch norms are folded before.
"""

import numpy as np

from . import model
from .audio import attention
from .cnn import BATCH_OF_IMAGES
from .transformer import gelu_erf, layer_norm

# (scale, zero point) of uint8 activations near unit size: after a ReLU, and of either sign.
POSITIVE = 10 / 255, 0
SIGNED = 10 / 255, 128


def activation(g, x, scale, zero):
    """Through uint8 and back; returns the dequantized value, and remembers its scale for the biases after it."""
    parameters = [g.parameter("scale", np.float32(scale)), g.parameter("zero_point", np.uint8(zero))]
    y = g.node("DequantizeLinear", g.node("QuantizeLinear", x, *parameters), *parameters, width=g.width[x])
    g.scale[y] = scale
    return y


def weights(g, shape, fan_in, gain):
    """A dequantized int8 weight and the scales of its output channels, which are its first dimension."""
    values = g.rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(gain / fan_in))
    scales = (np.abs(values).max(axis=tuple(range(1, len(shape)))) / 127).astype(np.float32)
    spread = scales.reshape([-1] + [1] * (len(shape) - 1))
    quantized = np.clip(np.rint(values / spread), -127, 127).astype(np.int8)
    return dequantized(g, "weight", quantized, scales), scales


def bias(g, length, scales):
    values = np.rint(0.1 * g.rng.standard_normal(length) / scales).astype(np.int32)
    return dequantized(g, "bias", values, scales.astype(np.float32))


def dequantized(g, name, values, scales):
    """A quantized parameter with a scale for each position of its first dimension."""
    parameters = [
        g.parameter(f"{name}_scale", scales),
        g.parameter(f"{name}_zero_point", np.zeros(len(scales), values.dtype)),
    ]
    return g.node("DequantizeLinear", g.parameter(f"{name}_quantized", values), *parameters, axis=0)


def conv(g, x, filters, kernel, stride=1, pads=0, gain=2.0):
    channels = g.width[x]
    weight, scales = weights(g, (filters, channels, kernel, kernel), channels * kernel * kernel, gain)
    window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pads] * 4}
    others = {"dilations": [1, 1], "group": 1}
    return g.node("Conv", x, weight, bias(g, filters, g.scale[x] * scales), width=filters, **window, **others)


# A difference in the last bit of a sum can move an activation by one step, 1/255 of its range, and steps add up over
# the layers: the tolerance is some eight of them.
@model("resnet50_int8", opset=13, data_sets=({"batch": 1},), tolerance=3e-2)
def resnet50_int8(g):
    g.scale = {}

    def bottleneck(x, width, stride):
        shortcut = x
        with g.scope("conv1"):
            y = activation(g, g.relu(conv(g, x, width, 1)), *POSITIVE)
        with g.scope("conv2"):
            y = activation(g, g.relu(conv(g, y, width, 3, stride, 1)), *POSITIVE)
        with g.scope("conv3"):
            y = activation(g, conv(g, y, 4 * width, 1, gain=0.2), *SIGNED)
        if stride != 1 or g.width[x] != 4 * width:
            with g.scope("downsample.0"):
                shortcut = activation(g, conv(g, x, 4 * width, 1, stride, gain=1.0), *SIGNED)
        return activation(g, g.relu(g.node("Add", y, shortcut)), *POSITIVE)

    x = activation(g, g.input("input", BATCH_OF_IMAGES, width=3), *SIGNED)
    with g.scope("conv1"):
        x = activation(g, g.relu(conv(g, x, 64, 7, 2, 3)), *POSITIVE)
    x = activation(g, g.pool("MaxPool", x, 3, 2, 1), *POSITIVE)
    for stage, (width, blocks, stride) in enumerate(((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)), 1):
        for block in range(blocks):
            with g.scope(f"layer{stage}.{block}"):
                x = bottleneck(x, width, stride if block == 0 else 1)
    with g.scope("avgpool"):
        x = activation(g, g.node("GlobalAveragePool", x), *POSITIVE)
    x = activation(g, g.node("Flatten", x, axis=1), *POSITIVE)
    with g.scope("fc"):
        weight, scales = weights(g, (1000, 2048), 2048, 1.0)
        g.output(g.node("Gemm", x, weight, bias(g, 1000, g.scale[x] * scales), transB=1), "output", ("batch", 1000))


def linear(g, x, units):
    """A float activation times a float weight."""
    fan_in = g.width[x]
    return g.node("MatMul", x, g.weight("weight", (fan_in, units), fan_in, 1.0), width=units)


def linear_int8(g, x, units):
    """A float activation times an int8 weight with a scale for each column, as weight-only quantizers write it."""
    fan_in = g.width[x]
    values = g.rng.integers(-127, 128, (fan_in, units)).astype(np.int8)
    scales = (g.rng.uniform(0.5, 1.5, units) / (73 * np.sqrt(fan_in))).astype(np.float32)
    weight = g.node(
        "DequantizeLinear", g.parameter("weight_quantized", values), g.parameter("weight_scale", scales), axis=1
    )
    return g.node("MatMul", x, weight, width=units)


def linear_int4(g, x, units, block=32):
    """The same with 4 bits, and a scale and a zero point for each block: onnxruntime's own operator."""
    fan_in = g.width[x]
    blocks = fan_in // block
    values = g.rng.integers(0, 256, (units, blocks, block // 2)).astype(np.uint8)
    scales = (g.rng.uniform(0.5, 1.5, units * blocks) / (4.6 * np.sqrt(fan_in))).astype(np.float32)
    # 7 or 8 in each half.
    zeros = (0x77 + g.rng.integers(0, 2, units * blocks // 2) + 16 * g.rng.integers(0, 2, units * blocks // 2)).astype(
        np.uint8
    )
    inputs = [g.parameter("weight_Q4", values), g.parameter("weight_scales", scales), g.parameter("weight_zp", zeros)]
    sizes = {"K": fan_in, "N": units, "bits": 4, "block_size": block}
    return g.node("MatMulNBits", x, *inputs, width=units, domain="com.microsoft", **sizes)


def mlp_step(g, linear, hidden=1024, layers=4):
    """The feed-forward parts of a decoder, for one token or a few: products that are bound by reading weights."""
    x = g.input("hidden_states", ("tokens", hidden), width=hidden)
    for layer in range(layers):
        with g.scope(f"layers.{layer}"):
            gate, up = linear(g, x, 4 * hidden), linear(g, x, 4 * hidden)
            y = g.node("Mul", g.node("Mul", gate, g.node("Sigmoid", gate)), up, width=4 * hidden)
            x = g.node("Add", x, linear(g, y, hidden))
    g.output(x, "last_hidden_state", ("tokens", hidden))


@model("mlp_step_int8", opset=13, data_sets=({"tokens": 1}, {"tokens": 3}))
def mlp_step_int8(g):
    mlp_step(g, linear_int8)


@model("mlp_step_int4", opset=17, data_sets=({"tokens": 1}, {"tokens": 3}))
def mlp_step_int4(g):
    mlp_step(g, linear_int4)


@model("mlp_step", opset=17, data_sets=({"tokens": 1}, {"tokens": 3}))
def mlp_step_f32(g):
    mlp_step(g, linear)


def linear_dynamic(g, x, units):
    """onnxruntime's dynamic quantization: activations by their own least and greatest, weights by output channel."""
    fan_in = g.width[x]
    values = g.rng.standard_normal((fan_in, units), dtype=np.float32) * np.float32(np.sqrt(1 / fan_in))
    scales = (np.abs(values).max(axis=0) / 127).astype(np.float32)
    quantized = np.clip(np.rint(values / scales), -127, 127).astype(np.int8)
    q, scale, zero = g.node("DynamicQuantizeLinear", x, outputs=3)
    weight = g.parameter("weight_quantized", quantized)
    sums = g.node("MatMulInteger", q, weight, zero, g.parameter("weight_zero_point", np.zeros(units, np.int8)))
    scale = g.node("Mul", scale, g.parameter("weight_scale", scales))
    product = g.node("Mul", g.node("Cast", sums, to=1), scale)
    return g.node("Add", product, g.vector("bias", units), width=units)


# As for resnet50_int8: a step of an activation is 1/255 of its range.
@model("encoder_int8", opset=17, tolerance=3e-2)
def encoder_int8(g, length=128, hidden=384, heads=12, layers=2):
    """A transformer's encoder layers with dynamically quantized linear layers."""
    x = g.input("input", (1, length, hidden), width=hidden)
    for layer in range(layers):
        with g.scope(f"layers.{layer}"):
            y = attention(g, x, length, heads, linear_dynamic)
            x = layer_norm(g, g.node("Add", x, y, width=hidden))
            with g.scope("fc1"):
                y = gelu_erf(g, linear_dynamic(g, x, 4 * hidden))
            with g.scope("fc2"):
                x = layer_norm(g, g.node("Add", x, linear_dynamic(g, y, hidden), width=hidden))
    g.output(x, "output", (1, length, hidden))
