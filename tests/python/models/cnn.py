"""Convolutional networks as PyTorch's exporter writes torchvision's, in evaluation mode with batch norms kept."""

from . import model

IMAGE = (1, 3, 224, 224)
BATCH_OF_IMAGES = ("batch", 3, 224, 224)


def conv_bn(g, conv, norm, x, *args, scale=1.0, **options):
    with g.scope(conv):
        x = g.conv(x, *args, bias=False, **options)
    with g.scope(norm):
        return g.batch_norm(x, scale=scale)


def head(g, x, name, dims):
    """Global average, flatten and one linear layer."""
    with g.scope("avgpool"):
        x = g.node("GlobalAveragePool", x)
    x = g.node("Flatten", x, axis=1)
    with g.scope(name):
        g.output(g.gemm(x, 1000, gain=1.0), "output", dims)


@model("resnet50", opset=17, data_sets=({"batch": 1}, {"batch": 2}))
def resnet50(g):
    def bottleneck(x, width, stride):
        shortcut = x
        y = g.relu(conv_bn(g, "conv1", "bn1", x, width, 1))
        y = g.relu(conv_bn(g, "conv2", "bn2", y, width, 3, stride, 1))
        # A small last scale keeps the sum over sixteen residual blocks near unit size.
        y = conv_bn(g, "conv3", "bn3", y, 4 * width, 1, scale=0.3)
        if stride != 1 or g.width[x] != 4 * width:
            shortcut = conv_bn(g, "downsample.0", "downsample.1", x, 4 * width, 1, stride, gain=1.0)
        return g.relu(g.node("Add", y, shortcut))

    x = g.input("input", BATCH_OF_IMAGES, width=3)
    x = g.relu(conv_bn(g, "conv1", "bn1", x, 64, 7, 2, 3))
    x = g.pool("MaxPool", x, 3, 2, 1)
    for stage, (width, blocks, stride) in enumerate(((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)), 1):
        for block in range(blocks):
            with g.scope(f"layer{stage}.{block}"):
                x = bottleneck(x, width, stride if block == 0 else 1)
    head(g, x, "fc", ("batch", 1000))


@model("vgg19", opset=13, external_data=True)
def vgg19(g):
    x = g.input("input", IMAGE, width=3)
    index = 0
    for width, convs in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(convs):
            with g.scope(f"features.{index}"):
                x = g.relu(g.conv(x, width, 3, pads=1))
            index += 2
        x = g.pool("MaxPool", x, 2, 2)
        index += 1
    # torchvision's adaptive average pool from 7x7 to 7x7: an average over single pixels.
    with g.scope("avgpool"):
        x = g.pool("AveragePool", x, 1, 1)
    x = g.node("Flatten", x, axis=1, width=512 * 7 * 7)
    for index in (0, 3):
        with g.scope(f"classifier.{index}"):
            x = g.relu(g.gemm(x, 4096))
    with g.scope("classifier.6"):
        g.output(g.gemm(x, 1000, gain=1.0), "output", (1, 1000))


@model("densenet121", opset=13)
def densenet121(g):
    def norm_relu_conv(number, x, *args, **options):
        with g.scope(f"norm{number}"):
            x = g.batch_norm(x)
        x = g.relu(x)
        with g.scope(f"conv{number}"):
            return g.conv(x, *args, bias=False, **options)

    x = g.input("input", IMAGE, width=3)
    x = g.relu(conv_bn(g, "features.conv0", "features.norm0", x, 64, 7, 2, 3))
    x = g.pool("MaxPool", x, 3, 2, 1)
    for block, layers in enumerate((6, 12, 24, 16), 1):
        features = [x]
        for layer in range(1, layers + 1):
            with g.scope(f"features.denseblock{block}.denselayer{layer}"):
                y = g.concat(*features) if len(features) > 1 else x
                y = norm_relu_conv(1, y, 128, 1)
                features.append(norm_relu_conv(2, y, 32, 3, pads=1))
        x = g.concat(*features)
        if block < 4:
            with g.scope(f"features.transition{block}"):
                with g.scope("norm"):
                    x = g.relu(g.batch_norm(x))
                with g.scope("conv"):
                    x = g.conv(x, g.width[x] // 2, 1, bias=False)
                x = g.pool("AveragePool", x, 2, 2)
    with g.scope("features.norm5"):
        x = g.relu(g.batch_norm(x))
    head(g, x, "classifier", (1, 1000))


@model("mobilenet_v2", opset=12, data_sets=({"batch": 1}, {"batch": 3}))
def mobilenet_v2(g):
    """Inverted residuals; ReLU6 is a Clip whose bounds are Constant nodes."""

    def relu6(x):
        return g.node("Clip", x, g.constant(0.0), g.constant(6.0))

    def unit(x, name, filters, kernel, stride=1, groups=1):
        return relu6(conv_bn(g, f"{name}.0", f"{name}.1", x, filters, kernel, stride, kernel // 2, groups=groups))

    def inverted_residual(x, expand, filters, stride):
        hidden = g.width[x] * expand
        layer = 0
        y = x
        if expand != 1:
            y = unit(y, "conv.0", hidden, 1)
            layer = 1
        y = unit(y, f"conv.{layer}", hidden, 3, stride, groups=hidden)
        residual = stride == 1 and g.width[x] == filters
        names = f"conv.{layer + 1}", f"conv.{layer + 2}"
        y = conv_bn(g, *names, y, filters, 1, scale=0.4 if residual else 1.0)
        return g.node("Add", x, y) if residual else y

    x = g.input("input", BATCH_OF_IMAGES, width=3)
    x = unit(x, "features.0", 32, 3, 2)
    block = 1
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, filters, repeats, stride in table:
        for repeat in range(repeats):
            with g.scope(f"features.{block}"):
                x = inverted_residual(x, expand, filters, stride if repeat == 0 else 1)
            block += 1
    x = unit(x, f"features.{block}", 1280, 1)
    head(g, x, "classifier.1", ("batch", 1000))


@model("shufflenet", opset=14)
def shufflenet(g, groups=3):
    """ShuffleNet v1, three groups: grouped 1x1 convolutions, channels shuffled by Reshape, Transpose, Reshape."""

    def shuffle(x, side):
        channels = g.width[x]
        x = g.node("Reshape", x, g.ints(1, groups, channels // groups, side, side))
        x = g.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        return g.node("Reshape", x, g.ints(1, channels, side, side))

    def unit(x, filters, stride, side, grouped):
        """One residual unit on an image of `side` x `side`; with stride 2 it concatenates instead of adding."""
        bottleneck = filters // 4
        out = filters - g.width[x] if stride == 2 else filters
        y = conv_bn(g, "compress", "bn1", x, bottleneck, 1, groups=groups if grouped else 1)
        y = shuffle(g.relu(y), side)
        y = conv_bn(g, "depthwise", "bn2", y, bottleneck, 3, stride, 1, groups=bottleneck, gain=1.0)
        y = conv_bn(g, "expand", "bn3", y, out, 1, groups=groups, gain=1.0, scale=1.0 if stride == 2 else 0.5)
        if stride == 2:
            return g.relu(g.concat(g.pool("AveragePool", x, 3, 2, 1, count_include_pad=1), y))
        return g.relu(g.node("Add", x, y))

    x = g.input("input", IMAGE, width=3)
    x = g.relu(conv_bn(g, "conv1", "bn1", x, 24, 3, 2, 1))
    x = g.pool("MaxPool", x, 3, 2, 1)
    side = 56
    for stage, filters, repeats in ((2, 240, 3), (3, 480, 7), (4, 960, 3)):
        for block in range(repeats + 1):
            with g.scope(f"stage{stage}.{block}"):
                x = unit(x, filters, 2 if block == 0 else 1, side, grouped=(stage, block) != (2, 0))
            side = side // 2 if block == 0 else side
    # Written by hand as x.mean([2, 3]), so a ReduceMean stands where other networks pool.
    x = g.node("ReduceMean", x, axes=[2, 3], keepdims=0)
    with g.scope("fc"):
        g.output(g.gemm(x, 1000, gain=1.0), "output", (1, 1000))


@model("efficientnet", opset=17)
def efficientnet(g):
    """EfficientNet-B0: inverted residuals whose channels are scaled by a small network, and x * sigmoid(x)."""

    def silu(x):
        return g.node("Mul", x, g.node("Sigmoid", x))

    def unit(x, name, filters, kernel, stride=1, groups=1):
        return silu(conv_bn(g, f"{name}.0", f"{name}.1", x, filters, kernel, stride, kernel // 2, groups=groups))

    def squeeze_excite(x, name, squeezed):
        with g.scope(name):
            y = g.node("GlobalAveragePool", x)
            with g.scope("fc1"):
                y = silu(g.conv(y, squeezed, 1))
            with g.scope("fc2"):
                y = g.conv(y, g.width[x], 1)
            return g.node("Mul", g.node("Sigmoid", y), x, width=g.width[x])

    def block(x, expand, filters, kernel, stride):
        hidden, layer, y = g.width[x] * expand, 0, x
        if expand != 1:
            y = unit(y, "block.0", hidden, 1)
            layer = 1
        y = unit(y, f"block.{layer}", hidden, kernel, stride, groups=hidden)
        y = squeeze_excite(y, f"block.{layer + 1}", max(1, g.width[x] // 4))
        residual = stride == 1 and g.width[x] == filters
        names = f"block.{layer + 2}.0", f"block.{layer + 2}.1"
        y = conv_bn(g, *names, y, filters, 1, scale=0.4 if residual else 1.0)
        return g.node("Add", y, x) if residual else y

    x = g.input("input", IMAGE, width=3)
    x = unit(x, "features.0", 32, 3, 2)
    early = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2))
    late = ((6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1))
    for stage, (expand, filters, repeats, kernel, stride) in enumerate(early + late, 1):
        for repeat in range(repeats):
            with g.scope(f"features.{stage}.{repeat}"):
                x = block(x, expand, filters, kernel, stride if repeat == 0 else 1)
    x = unit(x, "features.8", 1280, 1)
    head(g, x, "classifier.1", (1, 1000))


@model("unet", opset=17)
def unet(g, side=256, base=32, depth=4):
    """Halves an image's sides while it doubles its channels, and back up by transposed convolutions beside skips."""

    def double(x, filters):
        for index in (0, 3):
            x = g.relu(conv_bn(g, f"double_conv.{index}", f"double_conv.{index + 1}", x, filters, 3, 1, 1))
        return x

    x = g.input("input", (1, 3, side, side), width=3)
    with g.scope("inc"):
        x = double(x, base)
    skips = []
    for level in range(1, depth + 1):
        skips.append(x)
        with g.scope(f"down{level}"):
            x = double(g.pool("MaxPool", x, 2, 2), base << level)
    for level in reversed(range(depth)):
        with g.scope(f"up{depth - level}"):
            channels, filters = g.width[x], base << level
            weight = g.weight("up.weight", (channels, filters, 2, 2), channels, 1.0)
            window = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
            x = g.node("ConvTranspose", x, weight, g.vector("up.bias", filters), width=filters, **window)
            x = double(g.concat(skips[level], x), filters)
    with g.scope("outc"):
        g.output(g.conv(x, 2, 1), "output", (1, 2, side, side))
