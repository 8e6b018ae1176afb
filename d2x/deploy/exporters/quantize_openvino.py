"""Int8 by OpenVINO's own quantizer, NNCF, from calibration images."""

import re
from collections.abc import Sequence

import nncf
import numpy as np
import openvino
from nncf.quantization.range_estimator import RangeEstimatorParametersSet


def quantize(model: openvino.Model, feeds: Sequence[dict[str, np.ndarray]], *, keep: Sequence[str]) -> openvino.Model:
    """The quantized model. What the graph does outside of any layer, such as reading boxes, stays in float32, and so
    do layer norms.

    Args:
        model: float32.
        feeds: inputs by name, one dict a calibration image.
        keep: layers that stay in float32, by the prefix of their operations' names.
    """
    patterns = ["^/.*", *(f"^{re.escape(layer)}[./].*" for layer in keep)]
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        # NNCF's defaults cost CenterX's quick-start 1.0 AP, these two nothing.
        fast_bias_correction=False,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        ),
        # OpenVINO's layer norms, of type MVN, have lost the names of their layers.
        ignored_scope=nncf.IgnoredScope(patterns=patterns, types=["MVN"], validate=False),
    )
