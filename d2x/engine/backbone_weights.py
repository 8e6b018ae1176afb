"""Pre-trained weights for a backbone alone, from a file or by name."""

import logging
import os

from detectron2.engine import HookBase
from torch import Tensor, nn

from d2x.checkpoint.files import read_checkpoint

logger = logging.getLogger(__name__)

# What detectors and wrappers put before a backbone's own names, longest first.
PREFIXES = ("module.backbone.bottom_up.", "backbone.bottom_up.", "module.backbone.", "backbone.", "module.")


def load_backbone_weights(backbone: nn.Module, source: str) -> list[str]:
    """Load weights into a backbone in place and log what was found.

    Args:
        backbone: its tensors that the file lacks keep their values; an error if those are most of them.
        source: a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file with the backbone's names, or a detector that
            has this backbone; or, if there is no such file and the backbone has ``download``, a name for that.

    Returns:
        Names of the backbone that the file does not have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, another backbone's, or the name cannot be had.
    """
    if os.path.isfile(source):
        state = read_checkpoint(source)
    elif hasattr(backbone, "download") and not os.path.splitext(source)[1]:
        state = backbone.download(source)
    else:
        raise FileNotFoundError(f"MODEL.BACKBONE.WEIGHTS: file not found: {source}")
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    wanted = {name: value for name, value in backbone.state_dict().items() if not name.endswith("num_batches_tracked")}
    found = _under_own_names(state, wanted)
    if len(found) < len(wanted) / 2:
        raise ValueError(
            f"{source}: weights of another network: it has {len(found)} of the {len(wanted)} tensors of"
            f" {type(backbone).__name__}; it holds '{next(iter(state), 'nothing')}' and so on, the backbone"
            f" '{next(iter(wanted), 'nothing')}'"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(value.shape)}, {type(backbone).__name__} needs"
                f" {tuple(wanted[name].shape)}: weights of another size of this backbone"
            )
    backbone.load_state_dict(found, strict=False)
    missing = sorted(set(wanted) - set(found))
    logger.info("%s: loaded %d tensors into the backbone, left %d as they were", source, len(found), len(missing))
    return missing


class LoadBackboneWeights(HookBase):
    """Loads weights before the first iteration of a run that is not resumed."""

    def __init__(self, backbone: nn.Module, source: str):
        self._backbone, self._source = backbone, source

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            load_backbone_weights(self._backbone, self._source)


def _under_own_names(state: dict, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    best: dict[str, Tensor] = {}
    for prefix in (*PREFIXES, ""):
        found = {
            name[len(prefix) :]: value
            for name, value in tensors.items()
            if name.startswith(prefix) and name[len(prefix) :] in wanted
        }
        best = max(best, found, key=len)
    return best
