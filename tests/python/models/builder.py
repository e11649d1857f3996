"""`Builder`: the few lines between an architecture's function and an ONNX file.

Values are their names. Beside each value the builder keeps its *width*, the number of channels or features that the
next layer's weights need. Weights are drawn so that activations stay near unit size: He-scaled before a ReLU,
batch-norm statistics near, but not at, the identity. Everything drawn comes from one generator seeded by the model's
name, so a model's bytes depend on nothing but its function.
"""

import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SEED = 20240229

# The IR version that exporters wrote at the time of each operator set. Below 4, initializers are graph inputs too.
IR_VERSION = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 17: 8}


@dataclass(frozen=True)
class Style:
    """How an exporter names things: templates over the scope's parts, the operator and the output's number."""

    producer: str
    node: str
    value: str
    parameter: str
    separator: str


STYLES = {
    "pytorch": Style("pytorch", "/{scope}/{op}", "{node}_output_{index}", "{scope}.{name}", "."),
    "caffe2": Style("onnx-caffe2", "{scope}_{op}", "{node}_{index}", "{scope}_{name}_0", "_"),
    "tensorflow": Style("tf2onnx", "StatefulPartitionedCall/{scope}/{op}", "{node}:{index}", "{scope}/{name}:0", "/"),
}


def normal(rng, shape):
    """The usual test input: standard normal."""
    return rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Input:
    name: str
    dims: tuple
    dtype: type
    sample: Callable


class Builder:
    def __init__(self, name, opset, style, half=False):
        self.name = name
        self.opset = opset
        self.half = half
        self.style = STYLES[style]
        self.rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        self.inputs = []
        self.outputs = []
        self.nodes = []
        self.initializers = {}
        self.width = {}
        self._scope = []
        self._used = {}

    # Names

    @contextmanager
    def scope(self, name):
        self._scope.append(name)
        yield
        self._scope.pop()

    def _unique(self, name):
        count = self._used[name] = self._used.get(name, -1) + 1
        return name if count == 0 else f"{name}_{count}"

    # Graph

    def input(self, name, dims, dtype=np.float32, sample=normal, width=None):
        """A graph input. A dim is a number or a name; `sample(rng, shape)` draws its test data."""
        self.inputs.append(Input(name, tuple(dims), dtype, sample))
        self.width[name] = width
        return name

    def output(self, value, name, dims, dtype=np.float32):
        """Makes `value` a graph output called `name`, by renaming where it is made."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, each in enumerate(names):
                    if each == value:
                        names[index] = name
        self.outputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims))

    def node(self, op, *inputs, outputs=1, width=None, **attributes):
        """Adds a node; returns its output's name, or a tuple of names. The width is the first input's unless given."""
        node_name = self._unique(self.style.node.format(scope=self.style.separator.join(self._scope), op=op))
        names = [self.style.value.format(node=node_name, index=index) for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=node_name, **attributes))
        for name in names:
            self.width[name] = width or (self.width.get(inputs[0]) if inputs else None)
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, value, dtype=np.float32):
        """A Constant node, as PyTorch's exporter writes every literal."""
        tensor = numpy_helper.from_array(np.asarray(value, dtype=dtype))
        return self.node("Constant", value=tensor)

    def ints(self, *values):
        return self.constant(values, np.int64)

    def parameter(self, name, array):
        """An initializer, stored as raw bytes."""
        full = self._unique(self.style.parameter.format(scope=self.style.separator.join(self._scope), name=name))
        self.initializers[full] = np.ascontiguousarray(array)
        return full

    # Seeded weights

    def weight(self, name, shape, fan_in, gain=2.0):
        values = self.rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(np.sqrt(gain / fan_in))
        return self.parameter(name, values)

    def vector(self, name, length, mean=0.0, spread=0.1):
        values = mean + spread * self.rng.standard_normal(length, dtype=np.float32)
        return self.parameter(name, values.astype(np.float32))

    # Layers that several architectures share

    def conv(self, x, filters, kernel, stride=1, pads=0, groups=1, bias=True, gain=2.0):
        channels = self.width[x] // groups
        inputs = [x, self.weight("weight", (filters, channels, kernel, kernel), channels * kernel * kernel, gain)]
        if bias:
            inputs.append(self.vector("bias", filters))
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": _pads(pads)}
        return self.node("Conv", *inputs, width=filters, group=groups, dilations=[1, 1], **window)

    def batch_norm(self, x, scale=1.0, epsilon=1e-5):
        """Inference batch norm whose stored statistics are near those of unit-size activations."""
        length = self.width[x]
        uniform = lambda low, high: self.rng.uniform(low, high, length).astype(np.float32)  # noqa: E731
        inputs = [
            self.parameter("weight", scale * uniform(0.8, 1.2)),
            self.vector("bias", length),
            self.vector("running_mean", length),
            self.parameter("running_var", uniform(0.7, 1.4)),
        ]
        mode = {"training_mode": 0} if self.opset >= 14 else {}
        return self.node("BatchNormalization", x, *inputs, epsilon=epsilon, momentum=0.9, **mode)

    def relu(self, x):
        return self.node("Relu", x)

    def pool(self, kind, x, kernel, stride, pads=0, **attributes):
        if kind == "MaxPool" and self.opset >= 10:
            attributes = {"ceil_mode": 0, **attributes}
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": _pads(pads)}
        return self.node(kind, x, **window, **attributes)

    def concat(self, *values, axis=1):
        return self.node("Concat", *values, axis=axis, width=sum(self.width[value] for value in values))

    def gemm(self, x, units, gain=2.0):
        fan_in = self.width[x]
        weight = self.weight("weight", (units, fan_in), fan_in, gain)
        return self.node("Gemm", x, weight, self.vector("bias", units), transB=1, width=units)

    # Result

    def to_model(self):
        infos = [
            helper.make_tensor_value_info(each.name, helper.np_dtype_to_tensor_dtype(np.dtype(each.dtype)), each.dims)
            for each in self.inputs
        ]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.initializers.items()]
        if self.half:
            infos, tensors = self._halved(infos, tensors)
        ir_version = IR_VERSION[self.opset]
        if ir_version < 4:
            infos += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in tensors]
        graph = helper.make_graph(self.nodes, self.name, infos, self.outputs, tensors)
        domains = sorted({node.domain for node in self.nodes if node.domain})
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset), *(helper.make_opsetid(name, 1) for name in domains)],
            ir_version=ir_version,
            producer_name=self.style.producer,
            doc_string=f"{self.name} with seeded random weights",
        )

    def _dtype(self, of):
        return np.float16 if self.half and of.dtype is np.float32 else of.dtype

    def _halved(self, infos, tensors):
        """The same with floats as f16, which nodes and outputs get too."""

        def halved(tensor):
            array = numpy_helper.to_array(tensor)
            return numpy_helper.from_array(array.astype(np.float16), tensor.name) if array.dtype == np.float32 else tensor

        for value in [*infos, *self.outputs]:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        for attribute in (attribute for node in self.nodes for attribute in node.attribute):
            if attribute.HasField("t"):
                attribute.t.CopyFrom(halved(attribute.t))
            elif attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        return infos, [halved(tensor) for tensor in tensors]

    def feeds(self, binding, number):
        """Test data set `number`: a value for each input, its named dims bound by `binding`."""
        rng = np.random.default_rng([SEED, zlib.crc32(self.name.encode()), number])
        return {
            each.name: each.sample(rng, tuple(binding.get(dim, dim) for dim in each.dims)).astype(self._dtype(each))
            for each in self.inputs
        }


def _pads(pads):
    """One number for all sides, or ONNX's order: top, left, bottom, right."""
    return [pads] * 4 if isinstance(pads, int) else list(pads)
