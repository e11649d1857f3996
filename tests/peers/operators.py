"""Models of one operator each, for comparing engines where whole models hide what one kernel does.

    tests/peers/run.sh --operators [--threads N] [--rounds N] [--seconds S] [--peers NAME,..] [OPERATOR...]

Images have their channels first, as in ONNX, and what is not float is a constant: the time of an operator has whatever
layouts an engine puts around it.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


def weights(name, *shape):
    return numpy_helper.from_array((RANDOM.standard_normal(shape) / 10).astype(np.float32), name)


def constant(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.array(values, dtype), name)


def integers(name, *values):
    return constant(name, values, np.int64)


def node(op, *inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def conv(x, w, **attributes):
    return [node("Conv", "x", "w", **attributes)], [x], [weights("w", *w)]


def unary(op, shape, *constants, **attributes):
    names = [tensor.name for tensor in constants]
    return [node(op, "x", *names, **attributes)], [shape], list(constants)


def resized(shape, scale, **attributes):
    return [node("Resize", "x", "", "scales", **attributes)], [shape], [constant("scales", [1, 1, scale, scale])]


ROWS, IMAGE = [128, 3072], [1, 64, 56, 56]
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

# Nodes, shapes of the inputs `x` and `z`, and constants.
OPERATORS = {
    "conv_1x1": conv(IMAGE, [256, 64, 1, 1]),
    "conv_3x3": conv(IMAGE, [64, 64, 3, 3], pads=[1] * 4),
    "conv_3x3_dilated": conv(IMAGE, [64, 64, 3, 3], pads=[2] * 4, dilations=[2, 2]),
    "conv_7x7_stride_2": conv([1, 3, 224, 224], [64, 3, 7, 7], pads=[3] * 4, strides=[2, 2]),
    "conv_4x4_patches": conv([1, 3, 224, 224], [96, 3, 4, 4], strides=[4, 4]),
    "conv_9x9_to_3": conv([1, 64, 64, 64], [3, 64, 9, 9], pads=[4] * 4),
    "conv_from_1": conv([1, 1, 128, 128], [16, 1, 3, 3], pads=[1] * 4),
    "conv_groups_of_4": conv([1, 128, 56, 56], [128, 4, 3, 3], group=32, pads=[1] * 4),
    "conv_groups_of_8": conv([1, 256, 28, 28], [256, 8, 3, 3], group=32, pads=[1] * 4),
    "conv_depthwise_3x3": conv([1, 32, 112, 112], [32, 1, 3, 3], group=32, pads=[1] * 4),
    "conv_depthwise_7x7": conv([1, 96, 56, 56], [96, 1, 7, 7], group=96, pads=[3] * 4),
    "conv_depthwise_by_2": conv([1, 32, 56, 56], [64, 1, 3, 3], group=32, pads=[1] * 4),
    "conv_1d": conv([1, 256, 512], [256, 256, 3], pads=[1, 1]),
    "conv_3d": conv([1, 16, 16, 32, 32], [32, 16, 3, 3, 3], pads=[1] * 6),
    "conv_transpose": (
        [node("ConvTranspose", "x", "w", strides=[2, 2], pads=[1] * 4)],
        [[1, 64, 28, 28]],
        [weights("w", 64, 64, 4, 4)],
    ),
    "max_pool_2x2": unary("MaxPool", [1, 64, 112, 112], kernel_shape=[2, 2], strides=[2, 2]),
    "max_pool_3x3": unary("MaxPool", [1, 64, 112, 112], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "max_pool_5x5": unary("MaxPool", [1, 256, 20, 20], kernel_shape=[5, 5], pads=[2] * 4),
    "average_pool_2x2": unary("AveragePool", [1, 128, 56, 56], kernel_shape=[2, 2], strides=[2, 2]),
    "average_pool_3x3": unary("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1] * 4),
    "global_average_pool": unary("GlobalAveragePool", [1, 512, 28, 28]),
    "resize_nearest": resized([1, 64, 40, 40], 2, **NEAREST),
    "resize_linear": resized([1, 64, 40, 40], 2, mode="linear"),
    "resize_linear_half": resized([1, 3, 640, 640], 0.5, mode="linear"),
    "resize_cubic": resized([1, 16, 40, 40], 2, mode="cubic"),
    "grid_sample": ([node("GridSample", "x", "z")], [[1, 32, 64, 64], [1, 64, 64, 2]], []),
    "pad_reflect": unary("Pad", IMAGE, integers("pads", 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
    "layer_norm": unary("LayerNormalization", [197, 768], weights("scale", 768), weights("bias", 768)),
    "instance_norm": unary("InstanceNormalization", [1, 64, 64, 64], weights("scale", 64), weights("bias", 64)),
    "softmax": unary("Softmax", [12, 197, 197]),
    "log_softmax": unary("LogSoftmax", [64, 1000]),
    "reduce_sum_rows": unary("ReduceSum", [1000, 513], integers("axes", 1)),
    "reduce_max_middle": unary("ReduceMax", [64, 32, 256], integers("axes", 1)),
    "arg_max": unary("ArgMax", [512, 1000], axis=1),
    "top_k": unary("TopK", [64, 1000], integers("k", 10), outputs=("y", "places")),
    "cum_sum": unary("CumSum", [512, 1000], constant("axis", 1, np.int64)),
    "transpose": unary("Transpose", [1000, 1000], perm=[1, 0]),
    "transpose_image": unary("Transpose", [1, 64, 112, 112], perm=[0, 2, 3, 1]),
    "transpose_heads": unary("Transpose", [1, 197, 12, 64], perm=[0, 2, 1, 3]),
    "slice_steps": (
        [node("Slice", "x", "starts", "ends", "axes", "steps")],
        [[1, 3, 640, 640]],
        [integers("starts", 0, 0), integers("ends", 640, 640), integers("axes", 2, 3), integers("steps", 2, 2)],
    ),
    "concat": ([node("Concat", "x", "z", axis=1)], [IMAGE, IMAGE], []),
    "depth_to_space": unary("DepthToSpace", [1, 64, 64, 64], blocksize=2),
    "exp": unary("Exp", ROWS),
    "tanh": unary("Tanh", ROWS),
    "gelu": unary("Gelu", ROWS),
    "clip": unary("Clip", ROWS, constant("low", 0), constant("high", 6)),
    "div": ([node("Div", "x", "z")], [ROWS, ROWS], []),
    "matmul_batch": ([node("MatMul", "x", "z")], [[12, 197, 64], [12, 64, 197]], []),
    "matmul_vector": unary("MatMul", [1, 1024], weights("w", 1024, 1000)),
    "matmul_to_10": unary("MatMul", [256, 512], weights("w", 512, 10)),
}


def make(name, path):
    """Writes the model of an operator."""
    nodes, shapes, constants = OPERATORS[name]
    inputs = [
        helper.make_tensor_value_info(port, TensorProto.FLOAT, shape) for port, shape in zip("xz", shapes)
    ]
    outputs = [helper.make_empty_tensor_value_info(output) for output in nodes[-1].output]
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
