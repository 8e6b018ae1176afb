"""A Caffe network as it is put together: layers by name, blobs named for the layer that makes them."""

import numpy as np

from d2x.deploy.exporters.caffe_proto import NetParameter


class CaffeNet:
    """Adds layers; each method takes names of blobs and gives the name of the new one.

    Args:
        name: of the network.
    """

    def __init__(self, name: str):
        self.proto = NetParameter(name=name)

    def input(self, top: str, shape: tuple[int, ...]) -> str:
        """The network's input."""
        self._add("Input", top, [], input_param={"shape": [{"dim": list(shape)}]})
        return top

    def convolution(
        self,
        top: str,
        bottom: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        *,
        stride: tuple[int, int],
        pad: tuple[int, int],
        dilation: tuple[int, int] = (1, 1),
        group: int = 1,
        transposed: bool = False,
    ) -> str:
        """Convolution or deconvolution; the weights have torch's layout, which is Caffe's."""
        self._add(
            "Deconvolution" if transposed else "Convolution",
            top,
            [bottom],
            blobs=[weight] if bias is None else [weight, bias],
            convolution_param={
                "num_output": weight.shape[1] * group if transposed else weight.shape[0],
                "bias_term": bias is not None,
                "group": group,
                "kernel_h": weight.shape[2],
                "kernel_w": weight.shape[3],
                "stride_h": stride[0],
                "stride_w": stride[1],
                "pad_h": pad[0],
                "pad_w": pad[1],
                "dilation": list(dilation) if dilation != (1, 1) else [],
            },
        )
        return top

    def scale(self, top: str, bottom: str, factor: np.ndarray, shift: np.ndarray) -> str:
        """x * factor + shift, both (C,)."""
        self._add("Scale", top, [bottom], blobs=[factor, shift], scale_param={"axis": 1, "bias_term": True})
        return top

    def scale_into(self, top: str, bottom: str, factor: np.ndarray, shift: np.ndarray) -> bool:
        """``scale`` inside the layer that makes ``bottom``, which nothing else may read: False where that cannot be.

        For deconvolutions of one channel a group: OpenCV's own fusion of the two layers gets these wrong.
        """
        layer = next((one for one in self.proto.layer if one.name == bottom), None)
        if layer is None or layer.type != "Deconvolution" or len(layer.blobs) != 1 or layer.blobs[0].shape.dim[1] != 1:
            return False
        weight = np.array(layer.blobs[0].data, dtype=np.float64).reshape(len(factor), -1) * factor[:, None]
        del layer.blobs[0].data[:]
        layer.blobs[0].data.extend(weight.astype(np.float32).ravel().tolist())
        layer.blobs.add(shape={"dim": [len(shift)]}, data=shift.astype(np.float32).tolist())
        layer.convolution_param.bias_term = True
        layer.name = layer.top[0] = top
        return True

    def power(self, top: str, bottom: str, *, scale: float = 1.0, shift: float = 0.0) -> str:
        """x * scale + shift."""
        self._add("Power", top, [bottom], power_param={"power": 1.0, "scale": scale, "shift": shift})
        return top

    def activation(self, kind: str, top: str, bottom: str) -> str:
        """ "ReLU" or "Sigmoid"."""
        self._add(kind, top, [bottom])
        return top

    def eltwise(self, kind: str, top: str, bottoms: list[str], coeff: tuple[float, ...] = ()) -> str:
        """ "SUM" (with coefficients), "PROD" or "MAX" of blobs of one shape."""
        self._add("Eltwise", top, bottoms, eltwise_param={"operation": kind, "coeff": list(coeff)})
        return top

    def pooling(
        self, kind: str, top: str, bottom: str, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]
    ) -> str:
        """ "MAX" or "AVE"; Caffe rounds the output's size up."""
        parameters = {"pool": kind, "kernel_h": kernel[0], "kernel_w": kernel[1]}
        parameters |= {"stride_h": stride[0], "stride_w": stride[1], "pad_h": pad[0], "pad_w": pad[1]}
        self._add("Pooling", top, [bottom], pooling_param=parameters)
        return top

    def concat(self, top: str, bottoms: list[str], axis: int) -> str:
        """One after the other along an axis."""
        self._add("Concat", top, bottoms, concat_param={"axis": axis})
        return top

    def slice(self, tops: list[str], bottom: str, axis: int, points: list[int]) -> list[str]:
        """Cut along an axis before each of the points."""
        self._add("Slice", tops[0], [bottom], tops=tops, slice_param={"axis": axis, "slice_point": points})
        return tops

    def shrink(self, top: str, bottom: str, axis: int, length: int) -> str:
        """The first ``length`` entries along an axis; the rest becomes an output nobody reads."""
        return self.slice([top, f"{top}_rest"], bottom, axis, [length])[0]

    def replicate_border(self, top: str, bottom: str, axis: int, length: int) -> str:
        """The first and last entry along an axis repeated once; the axis has ``length`` entries.

        Repeated are copies, since OpenCV puts a blob into one place of a concatenation only.
        """
        parts = [bottom]
        if length > 1:
            points = [1] if length == 2 else [1, length - 1]
            parts = self.slice([f"{top}_part{i}" for i in range(len(points) + 1)], bottom, axis, points)
        first, last = self.power(f"{top}_first", parts[0]), self.power(f"{top}_last", parts[-1])
        return self.concat(top, [first, *parts, last], axis)

    def _add(self, kind: str, name: str, bottoms: list[str], *, tops: list[str] | None = None, blobs=(), **parameters):
        layer = self.proto.layer.add(name=name, type=kind, bottom=bottoms, top=tops or [name], **parameters)
        for value in blobs:
            blob = layer.blobs.add()
            blob.shape.dim.extend(value.shape)
            blob.data.extend(np.asarray(value, dtype=np.float32).ravel().tolist())
