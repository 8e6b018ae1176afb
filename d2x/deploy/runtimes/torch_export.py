"""``torch.export``'s own format: needs torch, but neither detectron2 nor this project's model code."""

from pathlib import Path

import numpy as np
import torch

from d2x.deploy.manifest import Manifest


class Runtime:
    """Runs ``model.pt2``."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None, precision: str = "fp32"):
        if threads:
            torch.set_num_threads(threads)
        # The guards say what was assumed of sizes in tracing, such as maps of more than one cell, which nothing needs.
        self._module = torch.export.load(folder / manifest.file).module(check_guards=False)
        self._inputs, self._outputs = list(manifest.inputs), list(manifest.outputs)

    @torch.inference_mode()
    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._module(*(torch.from_numpy(inputs[name]) for name in self._inputs))
        return {name: value.numpy() for name, value in zip(self._outputs, outputs)}
