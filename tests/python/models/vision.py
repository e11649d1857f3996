"""Later vision networks, as PyTorch's exporter writes them: what `cnn.py`'s classics do not have."""

import numpy as np

from . import model
from .cnn import IMAGE, conv_bn, head
from .transformer import gelu_erf, layer_norm, linear


def silu(g, x):
    return g.node("Mul", x, g.node("Sigmoid", x))


@model("resnext50", opset=17)
def resnext50(g, groups=32):
    """ResNet-50's shape with 3x3 convolutions in 32 groups, of 4 to 32 channels."""

    def block(x, width, stride):
        shortcut = x
        y = g.relu(conv_bn(g, "conv1", "bn1", x, width, 1))
        y = g.relu(conv_bn(g, "conv2", "bn2", y, width, 3, stride, 1, groups=groups))
        y = conv_bn(g, "conv3", "bn3", y, 2 * width, 1, scale=0.3)
        if stride != 1 or g.width[x] != 2 * width:
            shortcut = conv_bn(g, "downsample.0", "downsample.1", x, 2 * width, 1, stride, gain=1.0)
        return g.relu(g.node("Add", y, shortcut))

    x = g.input("input", IMAGE, width=3)
    x = g.relu(conv_bn(g, "conv1", "bn1", x, 64, 7, 2, 3))
    x = g.pool("MaxPool", x, 3, 2, 1)
    for stage, (width, blocks, stride) in enumerate(((128, 3, 1), (256, 4, 2), (512, 6, 2), (1024, 3, 2)), 1):
        for index in range(blocks):
            with g.scope(f"layer{stage}.{index}"):
                x = block(x, width, stride if index == 0 else 1)
    head(g, x, "fc", (1, 1000))


@model("mobilenet_v3", opset=14)
def mobilenet_v3(g):
    """The large one: hard swish and hard sigmoid, kernels of 5x5, channels scaled before the activation's end."""

    def activated(name, x):
        return g.relu(x) if name == "RE" else g.node("HardSwish", x)

    def squeeze_excite(x):
        squeezed = max(8, (g.width[x] // 4 + 4) // 8 * 8)
        y = g.node("GlobalAveragePool", x)
        with g.scope("fc1"):
            y = g.relu(g.conv(y, squeezed, 1))
        with g.scope("fc2"):
            y = g.conv(y, g.width[x], 1)
        return g.node("Mul", g.node("HardSigmoid", y, alpha=1 / 6), x, width=g.width[x])

    def block(x, kernel, hidden, filters, excite, activation, stride):
        y = x
        if hidden != g.width[x]:
            y = activated(activation, conv_bn(g, "0.0", "0.1", y, hidden, 1))
        y = conv_bn(g, "1.0", "1.1", y, hidden, kernel, stride, kernel // 2, groups=hidden)
        y = activated(activation, y)
        y = squeeze_excite(y) if excite else y
        residual = stride == 1 and g.width[x] == filters
        y = conv_bn(g, "3.0", "3.1", y, filters, 1, scale=0.4 if residual else 1.0)
        return g.node("Add", x, y) if residual else y

    x = g.input("input", IMAGE, width=3)
    x = activated("HS", conv_bn(g, "features.0.0", "features.0.1", x, 16, 3, 2, 1))
    table = (
        *((3, 16, 16, False, "RE", 1), (3, 64, 24, False, "RE", 2), (3, 72, 24, False, "RE", 1)),
        *((5, 72, 40, True, "RE", 2), (5, 120, 40, True, "RE", 1), (5, 120, 40, True, "RE", 1)),
        *((3, 240, 80, False, "HS", 2), (3, 200, 80, False, "HS", 1), (3, 184, 80, False, "HS", 1)),
        *((3, 184, 80, False, "HS", 1), (3, 480, 112, True, "HS", 1), (3, 672, 112, True, "HS", 1)),
        *((5, 672, 160, True, "HS", 2), (5, 960, 160, True, "HS", 1), (5, 960, 160, True, "HS", 1)),
    )
    for index, row in enumerate(table, 1):
        with g.scope(f"features.{index}.block"):
            x = block(x, *row)
    x = activated("HS", conv_bn(g, "features.16.0", "features.16.1", x, 960, 1))
    x = g.node("Flatten", g.node("GlobalAveragePool", x), axis=1)
    with g.scope("classifier.0"):
        x = activated("HS", g.gemm(x, 1280))
    with g.scope("classifier.3"):
        g.output(g.gemm(x, 1000, gain=1.0), "output", (1, 1000))


# Roundings to f16 differ with where they are made.
@model("mobilenet_v3_f16", opset=14, half=True, tolerance=3e-2)
def mobilenet_v3_f16(g):
    mobilenet_v3(g)


@model("convnext", opset=17)
def convnext(g):
    """ConvNeXt-T: depthwise 7x7, then a layer norm and two linear layers over channels that a Transpose puts last."""

    def norm_of_channels(x):
        """`LayerNorm2d`: there and back."""
        width = g.width[x]
        x = layer_norm(g, g.node("Transpose", x, perm=[0, 2, 3, 1], width=width), 1e-6)
        return g.node("Transpose", x, perm=[0, 3, 1, 2], width=width)

    def block(x):
        width = g.width[x]
        with g.scope("0"):
            y = g.conv(x, width, 7, 1, 3, groups=width, gain=1.0)
        y = g.node("Transpose", y, perm=[0, 2, 3, 1])
        with g.scope("2"):
            y = layer_norm(g, y, 1e-6)
        with g.scope("3"):
            y = gelu_erf(g, linear(g, y, 4 * width))
        with g.scope("5"):
            y = linear(g, y, width)
        y = g.node("Transpose", y, perm=[0, 3, 1, 2], width=width)
        scale = g.parameter("layer_scale", 0.2 + 0.05 * g.rng.standard_normal((width, 1, 1), dtype=np.float32))
        return g.node("Add", g.node("Mul", scale, y, width=width), x, width=width)

    x = g.input("input", IMAGE, width=3)
    with g.scope("features.0.0"):
        x = norm_of_channels(g.conv(x, 96, 4, 4, gain=1.0))
    for stage, (width, blocks) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
        if stage:
            with g.scope(f"features.{2 * stage}"):
                x = g.conv(norm_of_channels(x), width, 2, 2, gain=1.0)
        for index in range(blocks):
            with g.scope(f"features.{2 * stage + 1}.{index}.block"):
                x = block(x)
    x = norm_of_channels(g.node("GlobalAveragePool", x))
    x = g.node("Flatten", x, axis=1)
    with g.scope("classifier.2"):
        g.output(g.gemm(x, 1000, gain=1.0), "output", (1, 1000))


@model("swin", opset=17)
def swin(g, side=56, window=7, width=96, heads=3, depths=(2, 2, 2)):
    """Swin-T's first three stages (the third with two of its six blocks): attention within windows of 7x7 tokens, which
    every second block moves by three (a roll is Slice and Concat), and a learned bias for how far tokens are apart."""

    def roll(x, shift):
        for axis in (1, 2):
            split = g.ints(shift)
            parts = (
                g.node("Slice", x, split, g.ints(np.iinfo(np.int64).max), g.ints(axis)),
                g.node("Slice", x, g.ints(0), split, g.ints(axis)),
            )
            x = g.node("Concat", *parts, axis=axis, width=g.width[x])
        return x

    def mask_of(side, shift):
        """What may not attend across the borders that a roll brought together."""
        regions = np.zeros((side, side), np.int64)
        bounds = (0, side - window, side - shift, side)
        for row in range(3):
            for column in range(3):
                regions[bounds[row] : bounds[row + 1], bounds[column] : bounds[column + 1]] = 3 * row + column
        count = side // window
        regions = regions.reshape(count, window, count, window).transpose(0, 2, 1, 3).reshape(count * count, -1)
        apart = regions[:, None, :] != regions[:, :, None]
        return np.where(apart, -100.0, 0.0).astype(np.float32).reshape(1, count * count, 1, window**2, window**2)

    def attention(x, side, heads, shift):
        width, count, tokens = g.width[x], side // window, window**2
        head, windows = width // heads, count * count
        x = roll(x, shift) if shift else x
        x = g.node("Reshape", x, g.ints(1, count, window, count, window, width))
        x = g.node("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        x = g.node("Reshape", x, g.ints(windows, tokens, width), width=width)
        with g.scope("qkv"):
            qkv = g.node("Reshape", linear(g, x, 3 * width), g.ints(windows, tokens, 3, heads, head))
        qkv = g.node("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        query, key, value = (g.node("Gather", qkv, g.constant(part, np.int64), axis=0) for part in range(3))
        query = g.node("Mul", query, g.constant(head**-0.5))
        scores = g.node("MatMul", query, g.node("Transpose", key, perm=[0, 1, 3, 2]))
        bias = 0.1 * g.rng.standard_normal((1, heads, tokens, tokens), dtype=np.float32)
        scores = g.node("Add", scores, g.parameter("relative_position_bias", bias))
        if shift:
            scores = g.node("Reshape", scores, g.ints(1, windows, heads, tokens, tokens))
            scores = g.node("Add", scores, g.constant(mask_of(side, shift)))
            scores = g.node("Reshape", scores, g.ints(windows, heads, tokens, tokens))
        y = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
        y = g.node("Transpose", y, perm=[0, 2, 1, 3])
        y = g.node("Reshape", y, g.ints(windows, tokens, width), width=width)
        with g.scope("proj"):
            y = linear(g, y, width)
        y = g.node("Reshape", y, g.ints(1, count, count, window, window, width))
        y = g.node("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
        y = g.node("Reshape", y, g.ints(1, side, side, width), width=width)
        return roll(y, -shift) if shift else y

    def merged(x):
        """Patches of 2x2 tokens beside each other, and a linear layer to twice the width."""
        width, parts = g.width[x], []
        for column in (0, 1):
            for row in (0, 1):
                part = x
                for axis, start in ((1, row), (2, column)):
                    end = g.ints(np.iinfo(np.int64).max)
                    part = g.node("Slice", part, g.ints(start), end, g.ints(axis), g.ints(2))
                parts.append(part)
        x = g.node("Concat", *parts, axis=3, width=4 * width)
        x = layer_norm(g, x)
        weight = g.weight("reduction.weight", (4 * width, 2 * width), 4 * width, 1.0)
        return g.node("MatMul", x, weight, width=2 * width)

    x = g.input("input", IMAGE, width=3)
    with g.scope("features.0.0"):
        x = g.conv(x, width, 4, 4, gain=1.0)
    x = layer_norm(g, g.node("Transpose", x, perm=[0, 2, 3, 1]))
    for stage, blocks in enumerate(depths):
        if stage:
            with g.scope(f"features.{2 * stage}"):
                x, side, heads = merged(x), side // 2, 2 * heads
        for index in range(blocks):
            with g.scope(f"features.{2 * stage + 1}.{index}"):
                with g.scope("attn"):
                    y = attention(layer_norm(g, x), side, heads, window // 2 if index % 2 else 0)
                x = g.node("Add", x, y)
                with g.scope("mlp.0"):
                    y = gelu_erf(g, linear(g, layer_norm(g, x), 4 * g.width[x]))
                with g.scope("mlp.3"):
                    x = g.node("Add", x, linear(g, y, g.width[x]), width=g.width[x])
    x = g.node("ReduceMean", layer_norm(g, x), axes=[1, 2], keepdims=0)
    with g.scope("head"):
        g.output(g.gemm(x, 1000, gain=1.0), "output", (1, 1000))


@model("yolo", opset=17)
def yolo(g, side=320, classes=80, bins=16):
    """YOLOv8n's shape at 320x320: stages that split, refine and concatenate, pools of 5x5 in a row, a pyramid up by
    Resize and down by strides, and boxes read from a softmax over 16 distances."""

    def unit(x, filters, kernel, stride=1):
        with g.scope("conv"):
            return silu(g, g.conv(x, filters, kernel, stride, kernel // 2))

    def split_stage(x, filters, repeats, residual):
        half = filters // 2
        parts = g.node("Split", unit(x, filters, 1), g.ints(half, half), outputs=2, axis=1, width=half)
        parts = list(parts)
        for index in range(repeats):
            with g.scope(f"m.{index}"):
                y = unit(unit(parts[-1], half, 3), half, 3)
                parts.append(g.node("Add", parts[-1], y) if residual else y)
        return unit(g.concat(*parts), filters, 1)

    def pyramid_pool(x):
        width = g.width[x]
        parts = [unit(x, width // 2, 1)]
        for _ in range(3):
            parts.append(g.pool("MaxPool", parts[-1], 5, 1, 2))
        return unit(g.concat(*parts), width, 1)

    def enlarged(x):
        scales = g.constant([1, 1, 2, 2])
        options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return g.node("Resize", x, "", scales, **options)

    def level_head(x):
        def branch(name, hidden, filters):
            with g.scope(name):
                y = unit(unit(x, hidden, 3), hidden, 3)
                return g.conv(y, filters, 1, gain=1.0)

        y = g.concat(branch("cv2", 64, 4 * bins), branch("cv3", classes, classes))
        return g.node("Reshape", y, g.ints(1, 4 * bins + classes, -1))

    x = g.input("images", (1, 3, side, side), width=3)
    features = []
    with g.scope("model"):
        x = unit(unit(x, 16, 3, 2), 32, 3, 2)
        for index, (filters, repeats) in enumerate(((32, 1), (64, 2), (128, 2), (256, 1))):
            x = unit(x, filters, 3, 2) if index else x
            x = split_stage(x, filters, repeats, residual=True)
            features.append(x)
        x = pyramid_pool(x)
        up = [split_stage(g.concat(enlarged(x), features[2]), 128, 1, residual=False)]
        up.append(split_stage(g.concat(enlarged(up[0]), features[1]), 64, 1, residual=False))
        middle = split_stage(g.concat(unit(up[1], 64, 3, 2), up[0]), 128, 1, residual=False)
        last = split_stage(g.concat(unit(middle, 128, 3, 2), x), 256, 1, residual=False)
        levels = [level_head(y) for y in (up[1], middle, last)]
        y = g.node("Concat", *levels, axis=2)
        boxes, scores = g.node("Split", y, g.ints(4 * bins, classes), outputs=2, axis=1)
        sides = [side // 8, side // 16, side // 32]
        anchors = [np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) + 0.5] * 2)).reshape(2, -1) for n in sides]
        strides = [np.full(n * n, side // n, np.float32) for n in sides]
        count = sum(n * n for n in sides)
        boxes = g.node("Transpose", g.node("Reshape", boxes, g.ints(1, 4, bins, count)), perm=[0, 2, 1, 3])
        weights = g.node("Softmax", boxes, axis=1)
        distances = g.node("Conv", weights, g.parameter("dfl", np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1)))
        distances = g.node("Reshape", distances, g.ints(1, 4, count))
        near, far = g.node("Split", distances, g.ints(2, 2), outputs=2, axis=1)
        centres = g.constant(np.concatenate(anchors, axis=1)[None])
        near, far = g.node("Sub", centres, near), g.node("Add", centres, far)
        middle = g.node("Div", g.node("Add", near, far), g.constant(2.0))
        boxes = g.node("Concat", middle, g.node("Sub", far, near), axis=1)
        boxes = g.node("Mul", boxes, g.constant(np.concatenate(strides)[None]))
        y = g.node("Concat", boxes, g.node("Sigmoid", scores), axis=1)
    g.output(y, "output", (1, 4 + classes, count))


@model("deeplab", opset=17)
def deeplab(g, side=33, channels=320, width=128, classes=21):
    """DeepLab's end: parallel dilated convolutions beside a pooled image, enlarged by linear interpolation."""

    def unit(name, x, filters, kernel, dilation=1):
        with g.scope(name):
            fan_in = g.width[x] * kernel * kernel
            weight = g.weight("weight", (filters, g.width[x], kernel, kernel), fan_in)
            reach = dilation * (kernel // 2)
            window = {"kernel_shape": [kernel] * 2, "pads": [reach] * 4, "dilations": [dilation] * 2}
            return g.relu(g.batch_norm(g.node("Conv", x, weight, width=filters, **window)))

    def resized(x, height):
        options = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
        return g.node("Resize", x, "", "", g.ints(1, g.width[x], height, height), **options)

    x = g.input("features", (1, channels, side, side), width=channels)
    parts = [unit("convs.0", x, width, 1)]
    parts += [unit(f"convs.{index}", x, width, 3, 6 * index) for index in (1, 2, 3)]
    parts.append(resized(unit("convs.4", g.node("GlobalAveragePool", x), width, 1), side))
    y = unit("project", g.concat(*parts), width, 1)
    y = unit("classifier.1", y, width, 3)
    with g.scope("classifier.4"):
        y = g.conv(y, classes, 1, gain=1.0)
    g.output(resized(y, 8 * (side - 1) + 1), "output", (1, classes, 8 * (side - 1) + 1, 8 * (side - 1) + 1))


@model("dcgan", opset=13, data_sets=({"batch": 1}, {"batch": 4}))
def dcgan(g, latent=100, base=64):
    """A generator: from one pixel of noise to an image of 64x64, by transposed convolutions of 4x4 in steps of two."""
    x = g.input("noise", ("batch", latent, 1, 1), width=latent)
    for index, filters in enumerate((8 * base, 4 * base, 2 * base, base, 3)):
        stride, pad = (2, 1) if index else (1, 0)
        channels = g.width[x]
        with g.scope(f"main.{3 * index}"):
            fan_in = channels * (4 if index else 1)
            weight = g.weight("weight", (channels, filters, 4, 4), fan_in)
            window = {"kernel_shape": [4, 4], "strides": [stride] * 2, "pads": [pad] * 4}
            x = g.node("ConvTranspose", x, weight, width=filters, **window)
        if filters != 3:
            with g.scope(f"main.{3 * index + 1}"):
                x = g.relu(g.batch_norm(x))
    g.output(g.node("Tanh", x), "image", ("batch", 3, 64, 64))


@model("espcn", opset=13)
def espcn(g, side=224, scale=3):
    """Super-resolution of one channel: wide convolutions on the small image, and channels laid out as pixels."""
    x = g.input("input", (1, 1, side, side), width=1)
    for index, (filters, kernel) in enumerate(((64, 5), (64, 3), (32, 3)), 1):
        with g.scope(f"conv{index}"):
            x = g.relu(g.conv(x, filters, kernel, 1, kernel // 2))
    with g.scope("conv4"):
        x = g.conv(x, scale * scale, 3, 1, 1, gain=1.0)
    x = g.node("DepthToSpace", x, blocksize=scale, mode="CRD")
    g.output(x, "output", (1, 1, scale * side, scale * side))


@model("r3d", opset=17)
def r3d(g, frames=8, side=56, base=32):
    """Video: a residual network of 3x3x3 convolutions."""

    def conv3d(x, filters, kernel, stride, pads):
        fan_in = g.width[x] * int(np.prod(kernel))
        weight = g.weight("weight", (filters, g.width[x], *kernel), fan_in)
        window = {"kernel_shape": list(kernel), "strides": list(stride), "pads": list(pads) * 2}
        return g.node("Conv", x, weight, width=filters, **window)

    def unit(name, x, filters, stride=1, kernel=3):
        with g.scope(name):
            return g.batch_norm(conv3d(x, filters, (kernel,) * 3, (stride,) * 3, (kernel // 2,) * 3))

    x = g.input("input", (1, 3, frames, side, side), width=3)
    with g.scope("stem"):
        x = g.relu(g.batch_norm(conv3d(x, base, (3, 7, 7), (1, 2, 2), (1, 3, 3))))
    for stage, filters in enumerate((base, 2 * base, 4 * base), 1):
        with g.scope(f"layer{stage}.0"):
            stride = 2 if stage > 1 else 1
            y = unit("conv2", g.relu(unit("conv1", x, filters, stride)), filters)
            shortcut = x if stride == 1 else unit("downsample", x, filters, 2, kernel=1)
            x = g.relu(g.node("Add", y, shortcut))
    x = g.node("Flatten", g.node("GlobalAveragePool", x), axis=1)
    with g.scope("fc"):
        g.output(g.gemm(x, 400, gain=1.0), "output", (1, 400))


@model("diffusion", opset=17)
def diffusion(g, side=32, width=128, groups=32, heads=4, context=77, depth=256):
    """A part of a diffusion model's U-Net at 32x32: two residual blocks that a time step shifts, with group norms as the
    exporter wrote them for older operator sets, and attention among pixels and to a text."""

    def group_norm(x, name):
        """`nn.GroupNorm`: an instance norm of the groups, scaled by channel."""
        with g.scope(name):
            channels = g.width[x]
            grouped = g.node("Reshape", x, g.ints(0, groups, -1))
            ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
            y = g.node("InstanceNormalization", grouped, g.constant(ones), g.constant(zeros), epsilon=1e-5)
            y = g.node("Reshape", y, g.node("Shape", x))
            weight = 1.0 + 0.1 * g.rng.standard_normal((channels, 1, 1), dtype=np.float32)
            bias = 0.1 * g.rng.standard_normal((channels, 1, 1), dtype=np.float32)
            y = g.node("Mul", y, g.parameter("weight", weight))
            return g.node("Add", y, g.parameter("bias", bias), width=channels)

    def residual_block(x, time, filters):
        y = silu(g, group_norm(x, "norm1"))
        with g.scope("conv1"):
            y = g.conv(y, filters, 3, 1, 1, gain=1.0)
        with g.scope("time_emb_proj"):
            shift = g.gemm(silu(g, time), filters, gain=1.0)
        shift = g.node("Unsqueeze", g.node("Unsqueeze", shift, g.ints(2)), g.ints(3))
        y = silu(g, group_norm(g.node("Add", y, shift, width=filters), "norm2"))
        with g.scope("conv2"):
            y = g.conv(y, filters, 3, 1, 1, gain=0.5)
        if g.width[x] != filters:
            with g.scope("conv_shortcut"):
                x = g.conv(x, filters, 1, gain=1.0)
        return g.node("Add", x, y)

    def attention(x, keys, length):
        """Of `side * side` queries to `length` keys."""
        hidden, tokens = g.width[x], side * side
        head = hidden // heads

        def project(name, of, count, perm):
            with g.scope(name):
                weight = g.weight("weight", (g.width[of], hidden), g.width[of], 1.0)
                split = g.node("Reshape", g.node("MatMul", of, weight), g.ints(1, count, heads, head))
            return g.node("Transpose", split, perm=perm)

        query = project("to_q", x, tokens, [0, 2, 1, 3])
        key, value = project("to_k", keys, length, [0, 2, 3, 1]), project("to_v", keys, length, [0, 2, 1, 3])
        scores = g.node("Mul", g.node("MatMul", query, key), g.constant(head**-0.5))
        y = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
        y = g.node("Reshape", g.node("Transpose", y, perm=[0, 2, 1, 3]), g.ints(1, tokens, hidden), width=hidden)
        with g.scope("to_out"):
            return linear(g, y, hidden)

    x = g.input("sample", (1, width, side, side), width=width)
    time = g.input("time", (1, 4 * width), width=4 * width)
    text = g.input("text", (1, context, depth), width=depth)
    filters = 2 * width
    with g.scope("resnets.0"):
        x = residual_block(x, time, filters)
    with g.scope("attentions.0"):
        y = group_norm(x, "norm")
        y = g.node("Reshape", g.node("Transpose", y, perm=[0, 2, 3, 1]), g.ints(1, side * side, filters), width=filters)
        for name, keys, length in (("attn1", None, side * side), ("attn2", text, context)):
            with g.scope(name):
                of = layer_norm(g, y)
                y = g.node("Add", y, attention(of, of if keys is None else keys, length), width=filters)
        with g.scope("ff"):
            z = linear(g, layer_norm(g, y), 8 * filters)
            kept, gate = g.node("Split", z, g.ints(4 * filters, 4 * filters), outputs=2, axis=-1, width=4 * filters)
            y = g.node("Add", y, linear(g, g.node("Mul", kept, gelu_erf(g, gate)), filters), width=filters)
        y = g.node("Transpose", g.node("Reshape", y, g.ints(1, side, side, filters)), perm=[0, 3, 1, 2], width=filters)
        x = g.node("Add", x, y, width=filters)
    with g.scope("resnets.1"):
        x = residual_block(x, time, filters)
    g.output(x, "output", (1, filters, side, side))
