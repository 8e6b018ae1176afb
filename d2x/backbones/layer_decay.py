"""Optimizer groups: which parameters decay, and how far the learning rate falls with depth in the backbone."""

import re
from collections.abc import Iterator, Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.solver.build import reduce_param_groups
from timm.layers.norm import LayerNorm2d
from torch import nn

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
# Norms whose names the released recipe does not recognise, so that it decays their weights.
_RELEASED_DECAYED_NORMS = (LayerNorm2d, nn.GroupNorm)
# Besides norms and biases: position biases and embeddings, scales, tokens.
_NO_DECAY = re.compile(
    r"box_rpb|cpb_mlp|logit_scale|gamma_\d|level_embed|pos_embed|rel_pos_|relative_position_bias_table|cls_token|reg_token"
)
# timm's features are named layers_0 and stages_0, and its patch merging counts to the stage after it.
_BLOCK = re.compile(r"(?:\b(?:layers|stages)[._](\d+)\.)?\bblocks\.(\d+)\.")
_MERGE = re.compile(r"\b(layers\.|layers_|stages_)(\d+)\.downsample\.")
_EMBEDDING = re.compile(r"patch_embed|pos_embed|cls_token|reg_token|mask_token|\brope|\bstem|\bconv_stem|^model\.bn1\.")


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    weight_decay_norm: float = 0.0,
    lr_factors: Mapping[str, float] | None = None,
    layer_decay: float = 0.0,
    depths: Sequence[int] | None = None,
    released_norm_decay: bool = False,
) -> list[dict]:
    """Group the trainable parameters of a detector by learning rate and weight decay.

    Less or no decay on norms, biases, position-bias networks and tables, scales, embeddings of position and level.

    Args:
        model: with layer decay, has ``.backbone``.
        lr, weight_decay: of parameters nothing else is said about.
        weight_decay_norm: decay of norms, biases and the like.
        lr_factors: name prefix -> factor of the learning rate; the longest matching prefix counts. Ignored inside the
            backbone with layer decay.
        layer_decay: 0 is off; else a backbone parameter's rate is ``lr * layer_decay ** depth``, see
            :func:`backbone_depths`.
        depths: see :func:`backbone_depths`.
        released_norm_decay: decay the weights of LayerNorm2d and GroupNorm, as the released recipe does because their
            names do not contain "norm".

    Returns:
        ``[{"params": [...], "lr": ..., "weight_decay": ...}]``, one for each pair of values, in order of appearance.
    """
    groups, factors = [], lr_factors or {}
    for name, parameter, owner in _trainable(model):
        prefixes = [prefix for prefix in factors if name.startswith(prefix)]
        if layer_decay and name.startswith("backbone."):
            prefixes = []
        rate = lr * (factors[max(prefixes, key=len)] if prefixes else 1.0)
        decay = weight_decay if _decays(name, owner, released_norm_decay) else weight_decay_norm
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    # Joined last: saved optimizers count parameters in the order of the groups, the first of each as in the model.
    groups = scale_backbone_rates(groups, model, "backbone", layer_decay=layer_decay, depths=depths)
    return reduce_param_groups(groups)


def scale_backbone_rates(
    groups: list[dict],
    model: nn.Module,
    backbone: str,
    *,
    factor: float | None = None,
    layer_decay: float = 0.0,
    depths: Sequence[int] | None = None,
) -> list[dict]:
    """Multiply a backbone's learning rates in finished groups, split and joined as that makes necessary.

    Args:
        groups: ``[{"params": [...], "lr": ..., ...}]``.
        backbone: its name in the model, such as "backbone".
        factor: of all its rates, without layer decay; None is 1.
        layer_decay: 0 is off; else a rate is multiplied by ``layer_decay ** depth``, see :func:`backbone_depths`.
    """
    if not layer_decay and factor in (None, 1.0):
        return groups
    module = model.get_submodule(backbone)
    by_depth = backbone_depths(module, depths) if layer_decay else {}
    factors = {p: layer_decay ** by_depth[name] if layer_decay else factor for name, p in module.named_parameters()}
    return reduce_param_groups(
        [{**group, "params": [p], "lr": group["lr"] * factors.get(p, 1.0)} for group in groups for p in group["params"]]
    )


def backbone_depths(backbone: nn.Module, depths: Sequence[int] | None = None) -> dict[str, int]:
    """How far every parameter of a transformer backbone is from its output, in blocks.

    Block i of n, counted over all stages, is at ``n - i``; the patch merging after it at the same depth as the block;
    what comes before the first block at ``n + 1``; norms of the output at 0.

    Args:
        depths: blocks per stage to count with instead of the backbone's own (the released recipe takes them from the
            size word in the backbone's name).

    Raises:
        ValueError: the backbone has no transformer blocks.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if depths is None:
        blocks = {(int(m[1] or 0), int(m[2])) for m in map(_BLOCK.search, names) if m}
        last_stage = max((stage for stage, _ in blocks), default=-1)
        depths = [sum(stage == s for stage, _ in blocks) for s in range(last_stage + 1)]
    total = sum(depths)
    if not total:
        raise ValueError(f"SOLVER.LAYER_DECAY: {type(backbone).__name__} has no transformer blocks to count")
    return {name: _depth(name, depths, total) for name in names}


def _depth(name: str, depths: Sequence[int], total: int) -> int:
    if block := _BLOCK.search(name):
        return total - sum(depths[: int(block[1] or 0)]) - int(block[2])
    if merge := _MERGE.search(name):
        return total + 1 - sum(depths[: int(merge[2]) + (merge[1] == "layers.")])
    return total + 1 if _EMBEDDING.search(name) else 0


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Name, parameter and the module it belongs to; a shared parameter once."""
    owners = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, owners[name.rpartition(".")[0]]


def _decays(name: str, owner: nn.Module, released_norm_decay: bool) -> bool:
    if name.endswith("bias") or _NO_DECAY.search(name):
        return False
    if isinstance(owner, _NORMS):
        return released_norm_decay and isinstance(owner, _RELEASED_DECAYED_NORMS)
    return True


def param_groups_from_cfg(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """:func:`param_groups` with the settings in ``SOLVER``; ``BACKBONE_LR_FACTOR`` unset is DETR's 0.1."""
    factor = 0.1 if cfg.SOLVER.BACKBONE_LR_FACTOR is None else cfg.SOLVER.BACKBONE_LR_FACTOR
    return param_groups(
        model,
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        lr_factors={"backbone.": factor},
        layer_decay=cfg.SOLVER.LAYER_DECAY,
        released_norm_decay=cfg.SOLVER.RELEASED_NORM_DECAY,
    )
