"""Plugins, the packages that bring detectors: installed ones by their entry point, others by name."""

import argparse
import functools
import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points

GROUP = "d2x.detectors"


def add_plugin_argument(parser: argparse.ArgumentParser) -> None:
    """``--plugin PACKAGE``, which may be given several times, as ``args.plugin``."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="importable package that registers a further detector; may be given several times (config key PLUGINS)",
    )


def load_plugins(packages: Sequence[str] = ()) -> None:
    """Import every package with an entry point in the group ``d2x.detectors``, then those that are named.

    Raises:
        ValueError: a package cannot be imported; names it.
    """
    for package in (*_installed(), *packages):
        if not isinstance(package, str) or not package:
            raise ValueError(f"PLUGINS must be names of importable packages, got {package!r}")
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f"package '{package}' cannot be imported ({error}): install it, or add its folder to PYTHONPATH"
            ) from error


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple(dict.fromkeys(point.module for point in entry_points(group=GROUP)))
