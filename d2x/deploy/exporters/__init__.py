"""One module for each format that can be written, each an ``Exporter``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from d2x.deploy.graph import DetectionGraph, ExportRequest
from d2x.deploy.runtimes import import_format


class Exporter(Protocol):
    """What the module of a format has.

    Attributes:
        FILE: name of the model in its folder.
        FORMS: the forms it can hold, best first, keys of ``d2x.deploy.manifest.OUTPUTS``.
        PRECISIONS: those it can be written in.
        DYNAMIC: what of "size" and "batch" can vary.
        PACKAGES: modules whose versions are noted in the manifest where they took part.
    """

    FILE: str
    FORMS: Sequence[str]
    PRECISIONS: Sequence[str]
    DYNAMIC: Sequence[str]
    PACKAGES: Sequence[str]

    def export(self, graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
        """Write the model of a graph into a folder."""
        ...


def get_exporter(name: str) -> Exporter:
    """The module of a format; see ``import_format`` for errors."""
    return cast(Exporter, import_format(__name__, name))
