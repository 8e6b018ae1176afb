"""ONNX operators to Caffe layers, one function for each."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from d2x.deploy.exporters.caffe_proto import NetParameter

# Twice as large with half-pixel centres: output cells lie a quarter of an input cell off its centre.
BILINEAR = np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25])


def translate(model: onnx.ModelProto, name: str) -> Any:
    """A network of fixed size as Caffe's ``NetParameter``, weights included.

    Args:
        model: with inferred shapes, one input.
        name: of the network.

    Raises:
        ValueError: an operator, or a use of one, that has no Caffe layer; names it.
    """
    net = CaffeNet(model, name)
    for node in model.graph.node:
        if node.op_type == "Constant":
            net.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in OPERATORS:
            OPERATORS[node.op_type](net, node)
        else:
            raise ValueError(f"Caffe has no layer for {node.op_type}, at {node.name}")
    return net.proto


class CaffeNet:
    """A Caffe network as it is put together; a layer has the name of the (first) blob that it makes.

    Args:
        model: the ONNX model that it is made from, with inferred shapes.
        name: of the network.

    Attributes:
        proto: the network so far.
        constants: the ONNX model's constants by name.
        shapes: (N, C, H, W) of its other values.
    """

    def __init__(self, model: onnx.ModelProto, name: str):
        graph = model.graph
        self.proto = NetParameter(name=name)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._readers.update(value.name for value in graph.output)
        blob = graph.input[0].name
        self.add("Input", blob, [], input_param={"shape": [{"dim": list(self.shapes[blob])}]})

    def optional(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """Input ``index`` of a node if it is there and constant."""
        return self.constants.get(node.input[index]) if len(node.input) > index else None

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray:
        """Input ``index`` of a node, which must be constant."""
        value = self.optional(node, index)
        if value is None:
            raise ValueError(f"Caffe has no layer for {node.op_type} by a blob, at {node.name}")
        return value

    def add(
        self,
        kind: str,
        top: str,
        bottoms: Sequence[str],
        *,
        more_tops: Sequence[str] = (),
        blobs: Sequence[np.ndarray] = (),
        **parameters: dict[str, Any],
    ) -> str:
        """Add a layer; returns the name of its first output."""
        layer = self.proto.layer.add(name=top, type=kind, bottom=bottoms, top=[top, *more_tops], **parameters)
        for value in blobs:
            data = np.asarray(value, dtype=np.float32).ravel().tolist()
            layer.blobs.add(shape={"dim": list(value.shape)}, data=data)
        return top

    def convolution(
        self,
        top: str,
        bottom: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        *,
        stride: Sequence[int] = (1, 1),
        pad: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        group: int = 1,
        transposed: bool = False,
    ) -> None:
        """Convolution or deconvolution; the weights have torch's layout, which is Caffe's."""
        self.add(
            "Deconvolution" if transposed else "Convolution",
            top,
            [bottom],
            blobs=[weight] if bias is None else [weight, bias],
            convolution_param={
                "num_output": weight.shape[1] * group if transposed else weight.shape[0],
                "bias_term": bias is not None,
                "group": group,
                "dilation": list(dilation) if tuple(dilation) != (1, 1) else [],
                **_by_axis(kernel=weight.shape[2:], stride=stride, pad=pad),
            },
        )

    def scale(self, top: str, bottom: str, factor: np.ndarray, shift: np.ndarray) -> None:
        """x * factor + shift, both (C,)."""
        if not self._scale_into(top, bottom, factor, shift):
            self.add("Scale", top, [bottom], blobs=[factor, shift], scale_param={"axis": 1, "bias_term": True})

    def _scale_into(self, top: str, bottom: str, factor: np.ndarray, shift: np.ndarray) -> bool:
        """``scale`` inside the layer that makes ``bottom``; False where that cannot be.

        For deconvolutions of one channel a group: OpenCV's own fusion of the two layers gets these wrong.
        """
        layer = next((layer for layer in self.proto.layer if layer.name == bottom), None)
        if self._readers[bottom] != 1 or layer is None or layer.type != "Deconvolution":
            return False
        if len(layer.blobs) != 1 or layer.blobs[0].shape.dim[1] != 1:
            return False
        weight = np.array(layer.blobs[0].data, dtype=np.float64).reshape(len(factor), -1) * factor[:, None]
        layer.blobs[0].data[:] = weight.astype(np.float32).ravel().tolist()
        layer.blobs.add(shape={"dim": [len(shift)]}, data=shift.astype(np.float32).tolist())
        layer.convolution_param.bias_term = True
        layer.name = layer.top[0] = top
        return True

    def power(self, top: str, bottom: str, *, scale: float = 1.0, shift: float = 0.0) -> str:
        """x * scale + shift."""
        return self.add("Power", top, [bottom], power_param={"power": 1.0, "scale": scale, "shift": shift})

    def slice(self, tops: list[str], bottom: str, axis: int, points: list[int]) -> list[str]:
        """Cut along an axis before each of the points."""
        self.add("Slice", tops[0], [bottom], more_tops=tops[1:], slice_param={"axis": axis, "slice_point": points})
        return tops

    def replicate_border(self, top: str, bottom: str, axis: int, length: int) -> str:
        """The first and last entry along an axis repeated once; the axis has ``length`` entries.

        Repeated are copies, since OpenCV puts a blob into one place of a concatenation only.
        """
        parts = [bottom]
        if length > 1:
            points = [1] if length == 2 else [1, length - 1]
            parts = self.slice([f"{top}_part{i}" for i in range(len(points) + 1)], bottom, axis, points)
        first, last = self.power(f"{top}_first", parts[0]), self.power(f"{top}_last", parts[-1])
        return self.add("Concat", top, [first, *parts, last], concat_param={"axis": axis})


def _by_axis(**pairs: Sequence[int]) -> dict[str, int]:
    """Caffe's ``kernel_h``, ``kernel_w``, ... of (height, width) pairs."""
    return {f"{name}_{letter}": value for name, pair in pairs.items() for letter, value in zip("hw", pair)}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _pads(node: onnx.NodeProto, attributes: dict[str, Any]) -> tuple[int, int]:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
        raise ValueError(f"Caffe pads both sides alike, unlike {node.op_type} at {node.name}")
    return top, left


def _convolution(net: CaffeNet, node: onnx.NodeProto) -> None:
    attributes, weight = _attributes(node), net.constant(node, 1)
    # An output padding is a larger kernel whose last row and column are zero.
    longer, wider = attributes.get("output_padding", (0, 0))
    net.convolution(
        node.output[0],
        node.input[0],
        np.pad(weight, ((0, 0), (0, 0), (0, longer), (0, wider))),
        net.optional(node, 2),
        stride=attributes.get("strides", (1, 1)),
        pad=_pads(node, attributes),
        dilation=attributes.get("dilations", (1, 1)),
        group=attributes.get("group", 1),
        transposed=node.op_type == "ConvTranspose",
    )


def _max_pool(net: CaffeNet, node: onnx.NodeProto) -> None:
    """Caffe rounds the output's size up: what is too much is cut off, into an output nobody reads."""
    attributes, blob = _attributes(node), node.output[0]
    kernel, stride, pad = attributes["kernel_shape"], attributes.get("strides", (1, 1)), _pads(node, attributes)
    wanted = net.shapes[blob][2:]
    rounded_up = []
    for side, k, s, p in zip(net.shapes[node.input[0]][2:], kernel, stride, pad):
        length = -(-(side + 2 * p - k) // s) + 1
        rounded_up.append(length - (p > 0 and (length - 1) * s >= side + p))
    surplus = [axis for axis in (0, 1) if rounded_up[axis] != wanted[axis]]
    parameters = {"pool": "MAX", **_by_axis(kernel=kernel, stride=stride, pad=pad)}
    blob = net.add("Pooling", f"{blob}_rounded_up" if surplus else blob, [node.input[0]], pooling_param=parameters)
    for axis in surplus:
        top = node.output[0] if axis == surplus[-1] else f"{node.output[0]}_rows"
        blob = net.slice([top, f"{top}_rest"], blob, axis + 2, [wanted[axis]])[0]


def _average_all(net: CaffeNet, node: onnx.NodeProto) -> None:
    kernel = net.shapes[node.input[0]][2:]
    parameters = {"pool": "AVE", **_by_axis(kernel=kernel, stride=kernel, pad=(0, 0))}
    net.add("Pooling", node.output[0], [node.input[0]], pooling_param=parameters)


def _activation(net: CaffeNet, node: onnx.NodeProto) -> None:
    net.add({"Relu": "ReLU"}.get(node.op_type, node.op_type), node.output[0], [node.input[0]])


def _batch_norm(net: CaffeNet, node: onnx.NodeProto) -> None:
    weight, bias, mean, variance = (net.constant(node, i).astype(np.float64) for i in (1, 2, 3, 4))
    factor = weight / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
    net.scale(node.output[0], node.input[0], factor, bias - mean * factor)


def _sum(net: CaffeNet, node: onnx.NodeProto) -> None:
    sign = -1.0 if node.op_type == "Sub" else 1.0
    left, right = net.optional(node, 0), net.optional(node, 1)
    if left is not None:
        _affine(net, node, node.input[1], np.full(1, sign), left)
    elif right is not None:
        _affine(net, node, node.input[0], np.ones(1), sign * right)
    else:
        _eltwise(net, node, {"operation": "SUM", "coeff": [1.0, sign]})


def _product(net: CaffeNet, node: onnx.NodeProto) -> None:
    left, right = net.optional(node, 0), net.optional(node, 1)
    if left is not None:
        _affine(net, node, node.input[1], left, np.zeros(1))
    elif right is not None:
        _affine(net, node, node.input[0], right, np.zeros(1))
    else:
        _eltwise(net, node, {"operation": "PROD"})


def _quotient(net: CaffeNet, node: onnx.NodeProto) -> None:
    _affine(net, node, node.input[0], 1 / net.constant(node, 1).astype(np.float64), np.zeros(1))


def _affine(net: CaffeNet, node: onnx.NodeProto, bottom: str, factor: np.ndarray, shift: np.ndarray) -> None:
    """bottom * factor + shift, of numbers or of one number for each channel."""
    if factor.size == shift.size == 1:
        net.power(node.output[0], bottom, scale=float(factor.item()), shift=float(shift.item()))
        return
    channels = net.shapes[bottom][1]
    for value in (factor, shift):
        if value.size != 1 and value.shape[-3:] != (channels, 1, 1):
            raise ValueError(f"Caffe cannot combine a blob with constants of shape {value.shape}, at {node.name}")
    factor, shift = (np.broadcast_to(value.reshape(-1), channels) for value in (factor, shift))
    net.scale(node.output[0], bottom, factor, shift)


def _eltwise(net: CaffeNet, node: onnx.NodeProto, parameters: dict[str, Any]) -> None:
    first, second = (net.shapes[name] for name in node.input)
    if first != second:
        raise ValueError(f"Caffe cannot combine blobs of shapes {first} and {second}, at {node.name}")
    net.add("Eltwise", node.output[0], list(node.input), eltwise_param=parameters)


def _resize(net: CaffeNet, node: onnx.NodeProto) -> None:
    """Twice as large: bilinear with half-pixel centres, or nearest."""
    attributes, name, blob = _attributes(node), node.output[0], node.input[0]
    _, channels, height, width = net.shapes[blob]
    mode = attributes.get("mode", b"nearest")
    centres = attributes.get("coordinate_transformation_mode", b"half_pixel")
    if net.shapes[name][2:] != (2 * height, 2 * width) or (mode == b"linear" and b"half_pixel" not in centres):
        raise ValueError(f"Caffe can only double a map, with half-pixel centres, unlike {node.name}")
    if mode not in (b"nearest", b"linear"):
        raise ValueError(f"Caffe has no layer for Resize of mode {mode.decode()}, at {node.name}")
    kernel, pad = np.ones((2, 2)), (0, 0)
    if mode == b"linear":
        blob = net.replicate_border(f"{name}_rows", blob, 2, height)
        blob = net.replicate_border(f"{name}_columns", blob, 3, width)
        kernel, pad = BILINEAR, (3, 3)
    weight = np.tile(kernel, (channels, 1, 1, 1))
    net.convolution(name, blob, weight, None, stride=(2, 2), pad=pad, group=channels, transposed=True)


def _concat(net: CaffeNet, node: onnx.NodeProto) -> None:
    axis = _attributes(node)["axis"] % 4
    net.add("Concat", node.output[0], list(node.input), concat_param={"axis": axis})


OPERATORS: dict[str, Callable[[CaffeNet, onnx.NodeProto], None]] = {
    "Add": _sum,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Div": _quotient,
    "GlobalAveragePool": _average_all,
    "MaxPool": _max_pool,
    "Mul": _product,
    "Relu": _activation,
    "Resize": _resize,
    "Sigmoid": _activation,
    "Sub": _sum,
}
