"""What an exporter is asked for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor


class ExportRequest(NamedTuple):
    """Settings of one export.

    Attributes:
        example: inputs for tracing; their size and batch are the model's where it is not dynamic.
        dynamic: any size (a multiple of the graph's divisibility) and any batch.
        precision: "fp32", "fp16" or "int8".
        calibration: inputs by name, one dict an image; for "int8".
    """

    example: tuple[Tensor, ...]
    dynamic: bool = False
    precision: str = "fp32"
    calibration: Sequence[dict[str, np.ndarray]] = ()
