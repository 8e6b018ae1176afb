"""One module for each format that can be written.

Each has

- ``FILE``: name of the model in its folder;
- ``FORMS``: the forms it can hold, best first, keys of ``d2x.deploy.manifest.OUTPUTS``;
- ``PRECISIONS``: those it can be written in;
- ``DYNAMIC``: whether it can take any size and batch;
- ``PACKAGES``: modules whose versions are noted in the manifest where they took part;
- ``export(graph, folder, request)``: writes the model of a ``DetectionGraph`` for an ``ExportRequest``.
"""

import importlib
from types import ModuleType

from d2x.deploy.runtimes import FORMATS
from d2x.detectors import detector_packages


def get_exporter(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        ValueError: an unknown format, or what it needs is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"format '{name}' is not one of {', '.join(FORMATS)}")
    try:
        return importlib.import_module(f"d2x.deploy.exporters.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("d2x", "detectron2", *detector_packages()):
            raise
        packages, extra = FORMATS[name]
        needed = " or ".join(packages) if package in packages else package
        raise ValueError(
            f"format {name} needs {needed}, not installed here: pip install 'plain-detectors[{extra or 'export'}]'"
        ) from error
