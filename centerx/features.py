"""The feature maps of a backbone that a neck or head reads: names, channels and strides, finest first."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from detectron2.layers import ShapeSpec


class Feature(NamedTuple):
    """One feature map of a backbone; ``stride`` in input pixels per cell."""

    name: str
    channels: int
    stride: int


def finest_first(shapes: Mapping[str, ShapeSpec]) -> list[Feature]:
    """A backbone's ``output_shape()`` by ascending stride; of equal strides in its own order."""
    features = [Feature(name, spec.channels or 0, spec.stride or 1) for name, spec in shapes.items()]
    return sorted(features, key=lambda feature: feature.stride)


def select_features(shapes: Mapping[str, ShapeSpec], names: Sequence[str], key: str) -> dict[str, ShapeSpec]:
    """The features that a config key names; all if it names none.

    Raises:
        ValueError: the backbone has no such feature; names the key.
    """
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ValueError(f"{key} {unknown}: the backbone has {sorted(shapes)}")
    return {name: shapes[name] for name in names or shapes}
