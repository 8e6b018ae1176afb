"""``torch.export``'s own format: needs torch, but neither detectron2 nor this project's model code."""

from pathlib import Path

import torch

from d2x.deploy.manifest import Manifest
from d2x.deploy.runtimes import Arrays, Runtime


def open_model(file: Path, manifest: Manifest, *, threads: int | None, precision: str) -> Runtime:
    """Run ``model.pt2``."""
    if threads:
        torch.set_num_threads(threads)
    # The guards say what was assumed of sizes in tracing, such as maps of more than one cell, which nothing needs.
    module = torch.export.load(file).module(check_guards=False)

    @torch.inference_mode()
    def run(inputs: Arrays) -> Arrays:
        outputs = module(*(torch.from_numpy(inputs[name]) for name in manifest.inputs))
        return {name: value.numpy() for name, value in zip(manifest.outputs, outputs)}

    return run
