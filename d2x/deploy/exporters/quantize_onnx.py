"""Int8 by ONNX Runtime's own quantizer: the convolutions' weights by channel, their inputs from calibration images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

# What takes the time. Sums, norms and the reading of boxes stay as they are.
OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: Sequence[dict[str, np.ndarray]]):
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(feeds)

    def get_next(self) -> dict:
        return next(self._feeds, None)  # pyright: ignore[reportReturnType]  (None at the end, its stub leaves out)


def quantize(path: Path, feeds: Sequence[dict[str, np.ndarray]], *, keep: Sequence[str], symmetric: bool) -> None:
    """Replace a float32 file by its quantized form (quantize and dequantize nodes around the operators).

    Args:
        path: the file.
        feeds: inputs by name, one dict a calibration image.
        keep: layers that stay in float32, by the prefix of their nodes' names.
        symmetric: int8 activations without a zero point and float32 biases, as TensorRT needs, else uint8 with one.
    """
    source = path.with_name(f"float_{path.name}")
    path.rename(source)
    names = [node.name for node in onnx.load(source, load_external_data=False).graph.node]
    kept = tuple(f"{layer}{end}" for layer in keep for end in "./")
    quantize_static(
        str(source),
        str(path),
        _Feeds(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(OPERATORS),
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[name for name in names if name.startswith(kept)],
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "MatMulConstBOnly": True,
            "QuantizeBias": not symmetric,
        },
    )
    source.unlink()
