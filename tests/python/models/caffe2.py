"""Networks in the form of the first ONNX model zoo: Caffe graphs converted at operator sets 7 to 9.

What is special in them: initializers that are graph inputs too (IR version 3), Dropout with its mask output, LRN,
uneven pooling pads, batch norm followed by a separate Mul and Add (Caffe's Scale layer), Softmax without an axis.
"""

import numpy as np

from . import model

IMAGE = (1, 3, 224, 224)


def relu_conv(g, name, x, *args, **options):
    with g.scope(name):
        return g.relu(g.conv(x, *args, **options))


def local_response_norm(g, x, alpha=1e-4, bias=1.0):
    return g.node("LRN", x, size=5, alpha=alpha, beta=0.75, bias=bias)


def flatten(g, x, features):
    shape = g.parameter("shape", np.array([1, features], np.int64))
    return g.node("Reshape", x, shape, width=features)


def classifier(g, x, name="prob", dims=(1, 1000)):
    with g.scope(name):
        g.output(g.node("Softmax", x), f"{name}_1", dims)


@model("alexnet", opset=7, style="caffe2")
def alexnet(g):
    x = g.input("data_0", IMAGE, width=3)
    x = relu_conv(g, "conv1", x, 96, 11, stride=4)
    x = g.pool("MaxPool", local_response_norm(g, x), 3, 2)
    x = relu_conv(g, "conv2", x, 256, 5, pads=2, groups=2)
    x = g.pool("MaxPool", local_response_norm(g, x), 3, 2)
    x = relu_conv(g, "conv3", x, 384, 3, pads=1)
    x = relu_conv(g, "conv4", x, 384, 3, pads=1, groups=2)
    x = relu_conv(g, "conv5", x, 256, 3, pads=1, groups=2)
    x = g.pool("MaxPool", x, 3, 2, pads=(0, 0, 1, 1))
    x = flatten(g, x, 256 * 6 * 6)
    for name in ("fc6", "fc7"):
        with g.scope(name):
            x, _mask = g.node("Dropout", g.relu(g.gemm(x, 4096)), outputs=2, ratio=0.5)
    with g.scope("fc8"):
        x = g.gemm(x, 1000, gain=1.0)
    classifier(g, x)


@model("zfnet512", opset=8, style="caffe2")
def zfnet512(g):
    x = g.input("gpu_0/data_0", IMAGE, width=3)
    with g.scope("gpu_0/conv1"):
        x = local_response_norm(g, g.relu(g.conv(x, 96, 7, stride=2)), alpha=5e-4, bias=2.0)
        x = g.pool("MaxPool", x, 3, 2)
    with g.scope("gpu_0/conv2"):
        x = local_response_norm(g, g.relu(g.conv(x, 256, 5, stride=2)), alpha=5e-4, bias=2.0)
        x = g.pool("MaxPool", x, 3, 2)
    for number in (3, 4, 5):
        x = relu_conv(g, f"gpu_0/conv{number}", x, 512, 3, pads=1)
    x = g.pool("MaxPool", x, 2, 2)
    x = flatten(g, x, 512 * 6 * 6)
    for name, units in (("gpu_0/fc6", 4096), ("gpu_0/fc7", 1024)):
        with g.scope(name):
            x = g.relu(g.gemm(x, units))
    with g.scope("gpu_0/fc8"):
        x = g.gemm(x, 1000, gain=1.0)
    classifier(g, x, "gpu_0/softmax")


@model("squeezenet", opset=8, style="caffe2")
def squeezenet(g):
    """SqueezeNet 1.1: fire modules (a 1x1 squeeze, then 1x1 and 3x3 expands side by side)."""

    def fire(number, x, squeeze, expand):
        x = relu_conv(g, f"fire{number}/squeeze1x1", x, squeeze, 1)
        narrow = relu_conv(g, f"fire{number}/expand1x1", x, expand, 1)
        wide = relu_conv(g, f"fire{number}/expand3x3", x, expand, 3, pads=1)
        return g.concat(narrow, wide)

    x = g.input("data_0", IMAGE, width=3)
    x = g.pool("MaxPool", relu_conv(g, "conv1", x, 64, 3, stride=2), 3, 2)
    x = g.pool("MaxPool", fire(3, fire(2, x, 16, 64), 16, 64), 3, 2)
    x = g.pool("MaxPool", fire(5, fire(4, x, 32, 128), 32, 128), 3, 2)
    for number, squeeze, expand in ((6, 48, 192), (7, 48, 192), (8, 64, 256), (9, 64, 256)):
        x = fire(number, x, squeeze, expand)
    x, _mask = g.node("Dropout", x, outputs=2, ratio=0.5)
    x = relu_conv(g, "conv10", x, 1000, 1, gain=1.0)
    classifier(g, g.node("GlobalAveragePool", x), "softmaxout", (1, 1000, 1, 1))


@model("inception_v1", opset=9, style="caffe2")
def inception_v1(g):
    """GoogLeNet. A row of the table is a module: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection."""
    modules = {
        "3a": (64, 96, 128, 16, 32, 32),
        "3b": (128, 128, 192, 32, 96, 64),
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
        "5a": (256, 160, 320, 32, 128, 128),
        "5b": (384, 192, 384, 48, 128, 128),
    }

    def inception(name, x, one, three_reduce, three, five_reduce, five, projection):
        path = f"inception_{name}"
        a = relu_conv(g, f"{path}/1x1", x, one, 1)
        b = relu_conv(g, f"{path}/3x3_reduce", x, three_reduce, 1)
        b = relu_conv(g, f"{path}/3x3", b, three, 3, pads=1)
        c = relu_conv(g, f"{path}/5x5_reduce", x, five_reduce, 1)
        c = relu_conv(g, f"{path}/5x5", c, five, 5, pads=2)
        d = g.pool("MaxPool", x, 3, 1, pads=1)
        d = relu_conv(g, f"{path}/pool_proj", d, projection, 1)
        return g.concat(a, b, c, d)

    x = g.input("data_0", IMAGE, width=3)
    x = relu_conv(g, "conv1/7x7_s2", x, 64, 7, stride=2, pads=3)
    x = local_response_norm(g, g.pool("MaxPool", x, 3, 2, pads=(0, 0, 1, 1)))
    x = relu_conv(g, "conv2/3x3_reduce", x, 64, 1)
    x = relu_conv(g, "conv2/3x3", x, 192, 3, pads=1)
    x = g.pool("MaxPool", local_response_norm(g, x), 3, 2, pads=(0, 0, 1, 1))
    for name, sizes in modules.items():
        x = inception(name, x, *sizes)
        if name in ("3b", "4e"):
            x = g.pool("MaxPool", x, 3, 2, pads=(0, 0, 1, 1))
    x = g.pool("AveragePool", x, 7, 1)
    x, _mask = g.node("Dropout", x, outputs=2, ratio=0.4)
    x = flatten(g, x, 1024)
    with g.scope("loss3/classifier"):
        x = g.gemm(x, 1000, gain=1.0)
    classifier(g, x)


@model("inception_v2", opset=9, style="caffe2")
def inception_v2(g):
    """BN-Inception. A row is a module: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, pool kind, projection.

    Without a 1x1 and a projection, the module halves the image.
    """
    modules = {
        "3a": (64, 64, 64, 64, 96, "AveragePool", 32),
        "3b": (64, 64, 96, 64, 96, "AveragePool", 64),
        "3c": (0, 128, 160, 64, 96, "MaxPool", 0),
        "4a": (224, 64, 96, 96, 128, "AveragePool", 128),
        "4b": (192, 96, 128, 96, 128, "AveragePool", 128),
        "4c": (160, 128, 160, 128, 160, "AveragePool", 96),
        "4d": (96, 128, 192, 160, 192, "AveragePool", 96),
        "4e": (0, 128, 192, 192, 256, "MaxPool", 0),
        "5a": (352, 192, 320, 160, 224, "AveragePool", 128),
        "5b": (352, 192, 320, 192, 224, "MaxPool", 128),
    }

    def scaled(kind, name, x, mean, spread):
        """Caffe's Scale layer, one half of it: a vector of parameters broadcast over the image."""
        vector = g.vector(name, g.width[x], mean, spread)
        return g.node(kind, x, g.node("Unsqueeze", vector, axes=[1, 2]))

    def unit(name, x, filters, kernel, stride=1):
        with g.scope(name):
            pads = kernel // 2
            x = g.batch_norm(g.conv(x, filters, kernel, stride, pads, bias=False), epsilon=1e-5)
            x = scaled("Mul", "scale_w", x, 1.0, 0.1)
            x = scaled("Add", "scale_b", x, 0.0, 0.1)
            return g.relu(x)

    def inception(name, x, one, three_reduce, three, double_reduce, double, pool, projection):
        path = f"inception_{name}"
        stride = 1 if one else 2
        branches = [unit(f"{path}/1x1", x, one, 1)] if one else []
        b = unit(f"{path}/3x3_reduce", x, three_reduce, 1)
        branches.append(unit(f"{path}/3x3", b, three, 3, stride))
        c = unit(f"{path}/double3x3_reduce", x, double_reduce, 1)
        c = unit(f"{path}/double3x3_1", c, double, 3)
        branches.append(unit(f"{path}/double3x3_2", c, double, 3, stride))
        d = g.pool(pool, x, 3, stride, pads=1 if one else (0, 0, 1, 1))
        branches.append(unit(f"{path}/pool_proj", d, projection, 1) if projection else d)
        return g.concat(*branches)

    x = g.input("data_0", IMAGE, width=3)
    x = unit("conv1/7x7_s2", x, 64, 7, 2)
    x = g.pool("MaxPool", x, 3, 2, pads=(0, 0, 1, 1))
    x = unit("conv2/3x3_reduce", x, 64, 1)
    x = unit("conv2/3x3", x, 192, 3)
    x = g.pool("MaxPool", x, 3, 2, pads=(0, 0, 1, 1))
    for name, sizes in modules.items():
        x = inception(name, x, *sizes)
    x = flatten(g, g.pool("AveragePool", x, 7, 1), 1024)
    with g.scope("fc1"):
        x = g.gemm(x, 1000, gain=1.0)
    classifier(g, x)
