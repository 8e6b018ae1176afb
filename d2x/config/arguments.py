"""The command-line arguments with which a tool is given its config."""

import argparse

from detectron2.config import CfgNode

from d2x.config.load import load_cfg
from d2x.config.plugins import add_plugin_argument


def config_parser(description: str | None, epilog: str, *, required: bool = True) -> argparse.ArgumentParser:
    """A parser with ``--config-file``, ``--plugin`` and ``KEY VALUE`` overrides; its texts are shown as they are."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=formatter)
    parser.add_argument("--config-file", required=required, help="of the run, e.g. output/quickstart/config.yaml")
    add_plugin_argument(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, at the end")
    return parser


def read_config(args: argparse.Namespace, *overrides: str) -> CfgNode:
    """The config that the parsed arguments ask for; ``overrides`` are KEY, VALUE, ... over it."""
    return load_cfg(args.config_file, [*args.opts, *overrides], plugins=args.plugin)
