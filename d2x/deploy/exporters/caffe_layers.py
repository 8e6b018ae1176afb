"""ONNX operators to Caffe layers, one function for each."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from d2x.deploy.exporters.caffe_net import CaffeNet

# Twice as large with half-pixel centres: output cells lie a quarter of an input cell off its centre.
BILINEAR = np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25])


def translate(model: onnx.ModelProto, name: str):
    """A network of fixed size as Caffe's ``NetParameter``, weights included.

    Args:
        model: with inferred shapes, one input.
        name: of the network.

    Raises:
        ValueError: an operator, or a use of one, that has no Caffe layer; names it.
    """
    return _Translation(model, name).net.proto


class _Translation:
    def __init__(self, model: onnx.ModelProto, name: str):
        graph = model.graph
        self.net = CaffeNet(name)
        self.constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(one.name for one in graph.output)
        values = (*graph.input, *graph.value_info, *graph.output)
        self.shapes = {one.name: tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim) for one in values}
        self.net.input(graph.input[0].name, self.shapes[graph.input[0].name])
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
                continue
            if node.op_type not in OPERATORS:
                raise ValueError(f"Caffe has no layer for {node.op_type}, at {node.name}")
            OPERATORS[node.op_type](self, node)

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """Input ``index`` if it is there and constant."""
        return self.constants.get(node.input[index]) if len(node.input) > index else None

    def shape(self, blob: str) -> tuple[int, ...]:
        """(N, C, H, W) of a blob."""
        return self.shapes[blob]


def _attributes(node: onnx.NodeProto) -> dict:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _pads(node: onnx.NodeProto, attributes: dict) -> tuple[int, int]:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
        raise ValueError(f"Caffe pads both sides alike, unlike {node.op_type} at {node.name}")
    return top, left


def _pair(values) -> tuple[int, int]:
    return tuple(values)


def _convolution(of: _Translation, node: onnx.NodeProto) -> None:
    attributes = _attributes(node)
    of.net.convolution(
        node.output[0],
        node.input[0],
        of.constant(node, 1),
        of.constant(node, 2),
        stride=_pair(attributes.get("strides", (1, 1))),
        pad=_pads(node, attributes),
        dilation=_pair(attributes.get("dilations", (1, 1))),
        group=attributes.get("group", 1),
    )


def _deconvolution(of: _Translation, node: onnx.NodeProto) -> None:
    attributes = _attributes(node)
    weight = of.constant(node, 1)
    # An output padding is a larger kernel whose last row and column are zero.
    longer, wider = attributes.get("output_padding", (0, 0))
    of.net.convolution(
        node.output[0],
        node.input[0],
        np.pad(weight, ((0, 0), (0, 0), (0, longer), (0, wider))),
        of.constant(node, 2),
        stride=_pair(attributes.get("strides", (1, 1))),
        pad=_pads(node, attributes),
        group=attributes.get("group", 1),
        transposed=True,
    )


def _max_pool(of: _Translation, node: onnx.NodeProto) -> None:
    attributes = _attributes(node)
    kernel, stride = _pair(attributes["kernel_shape"]), _pair(attributes.get("strides", (1, 1)))
    pad = _pads(node, attributes)
    wanted = of.shape(node.output[0])[2:]
    rounded_up = []
    for side, k, s, p in zip(of.shape(node.input[0])[2:], kernel, stride, pad):
        length = -(-(side + 2 * p - k) // s) + 1
        rounded_up.append(length - (p > 0 and (length - 1) * s >= side + p))
    surplus = [axis for axis in (0, 1) if rounded_up[axis] != wanted[axis]]
    blob = of.net.pooling(
        "MAX", f"{node.output[0]}_rounded_up" if surplus else node.output[0], node.input[0], kernel, stride, pad
    )
    for axis in surplus:
        top = node.output[0] if axis == surplus[-1] else f"{node.output[0]}_rows"
        blob = of.net.shrink(top, blob, axis + 2, wanted[axis])


def _average_all(of: _Translation, node: onnx.NodeProto) -> None:
    kernel = of.shape(node.input[0])[2:]
    of.net.pooling("AVE", node.output[0], node.input[0], kernel, kernel, (0, 0))


def _activation(kind: str) -> Callable:
    def add(of: _Translation, node: onnx.NodeProto) -> None:
        of.net.activation(kind, node.output[0], node.input[0])

    return add


def _batch_norm(of: _Translation, node: onnx.NodeProto) -> None:
    weight, bias, mean, variance = (of.constant(node, i).astype(np.float64) for i in (1, 2, 3, 4))
    factor = weight / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
    _scale(of, node.output[0], node.input[0], factor, bias - mean * factor)


def _sum(sign: int) -> Callable:
    def add(of: _Translation, node: onnx.NodeProto) -> None:
        left, right = (of.constant(node, i) for i in (0, 1))
        if left is None and right is None:
            _same_shapes(of, node)
            of.net.eltwise("SUM", node.output[0], list(node.input), (1.0, float(sign)))
        elif left is None:
            _affine(of, node, node.input[0], np.ones(1), sign * right)
        else:
            _affine(of, node, node.input[1], np.full(1, float(sign)), left)

    return add


def _product(of: _Translation, node: onnx.NodeProto) -> None:
    left, right = (of.constant(node, i) for i in (0, 1))
    if left is None and right is None:
        _same_shapes(of, node)
        of.net.eltwise("PROD", node.output[0], list(node.input))
    else:
        _affine(of, node, node.input[int(left is not None)], right if left is None else left, np.zeros(1))


def _quotient(of: _Translation, node: onnx.NodeProto) -> None:
    divisor = of.constant(node, 1)
    if divisor is None:
        raise ValueError(f"Caffe has no layer that divides by a blob, at {node.name}")
    _affine(of, node, node.input[0], 1 / divisor.astype(np.float64), np.zeros(1))


def _affine(of: _Translation, node: onnx.NodeProto, bottom: str, factor: np.ndarray, shift: np.ndarray) -> None:
    """bottom * factor + shift, of numbers or of one number for each channel."""
    if factor.size == shift.size == 1:
        of.net.power(node.output[0], bottom, scale=float(factor.item()), shift=float(shift.item()))
        return
    channels = of.shape(bottom)[1]
    for value in (factor, shift):
        if value.size != 1 and value.shape[-3:] != (channels, 1, 1):
            raise ValueError(f"Caffe cannot combine a blob with constants of shape {value.shape}, at {node.name}")
    factor, shift = (np.broadcast_to(value.reshape(-1), channels) for value in (factor, shift))
    _scale(of, node.output[0], bottom, factor, shift)


def _scale(of: _Translation, top: str, bottom: str, factor: np.ndarray, shift: np.ndarray) -> None:
    if of.readers[bottom] != 1 or not of.net.scale_into(top, bottom, factor, shift):
        of.net.scale(top, bottom, factor, shift)


def _same_shapes(of: _Translation, node: onnx.NodeProto) -> None:
    first, second = (of.shape(name) for name in node.input)
    if first != second:
        raise ValueError(f"Caffe cannot combine blobs of shapes {first} and {second}, at {node.name}")


def _resize(of: _Translation, node: onnx.NodeProto) -> None:
    """Twice as large: bilinear with half-pixel centres, or nearest."""
    attributes = _attributes(node)
    (_, channels, height, width), output = of.shape(node.input[0]), of.shape(node.output[0])
    mode = attributes.get("mode", b"nearest")
    centres = attributes.get("coordinate_transformation_mode", b"half_pixel")
    if output[2:] != (2 * height, 2 * width) or (mode == b"linear" and b"half_pixel" not in centres):
        raise ValueError(f"Caffe can only double a map, with half-pixel centres, unlike {node.name}")
    name, one_each = node.output[0], (channels, 1, 1, 1)
    if mode == b"nearest":
        kernel, blob, pad = np.ones((2, 2)), node.input[0], (0, 0)
    elif mode == b"linear":
        blob = of.net.replicate_border(f"{name}_rows", node.input[0], 2, height)
        blob = of.net.replicate_border(f"{name}_columns", blob, 3, width)
        kernel, pad = BILINEAR, (3, 3)
    else:
        raise ValueError(f"Caffe has no layer for Resize of mode {mode.decode()}, at {node.name}")
    of.net.convolution(
        name, blob, np.tile(kernel, one_each), None, stride=(2, 2), pad=pad, group=channels, transposed=True
    )


def _concat(of: _Translation, node: onnx.NodeProto) -> None:
    of.net.concat(node.output[0], list(node.input), _attributes(node)["axis"] % 4)


OPERATORS: dict[str, Callable[[_Translation, onnx.NodeProto], None]] = {
    "Add": _sum(1),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _deconvolution,
    "Div": _quotient,
    "GlobalAveragePool": _average_all,
    "MaxPool": _max_pool,
    "Mul": _product,
    "Relu": _activation("ReLU"),
    "Resize": _resize,
    "Sigmoid": _activation("Sigmoid"),
    "Sub": _sum(-1),
}
