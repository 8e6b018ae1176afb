"""Weights remember which variant of the detector they are of, and are refused by another.

Most variants have the same parameters: a checkpoint that was trained with one box coder loads into a model with the
other, and detects nothing. So every state dict carries the settings that give weights their meaning, in the metadata
that ``torch.save`` keeps beside the tensors. Files without it (converted, or safetensors) are checked by names alone.
"""

import re

from torch import nn

METADATA_KEY = "plain_detr_variant"

# Parts whose names follow from the variant. Class layers may be left out on purpose.
_STRUCTURE = re.compile(r"^(decoder|encoder|proposals)\.(?!.*\.class_logits\.)")


def remember_variant(model: nn.Module, settings: dict[str, str]) -> None:
    """Write ``settings`` into every state dict of ``model`` and compare those of every state dict it loads.

    Args:
        model: the detector.
        settings: config key below MODEL.PLAIN_DETR -> value.

    Raises (``model.load_state_dict``, from now on):
        ValueError: the weights are a detector's of other settings, or lack or exceed parts of this one.
    """

    def write(module, state, prefix, local_metadata):
        local_metadata[METADATA_KEY] = dict(settings)

    def check(module, state, prefix, local_metadata, *_):
        theirs = local_metadata.get(METADATA_KEY, {})
        other = [f"{key} {theirs[key]}, not {ours}" for key, ours in settings.items() if theirs.get(key, ours) != ours]
        if other:
            raise ValueError(f"checkpoint of another variant of Plain-DETR: it has MODEL.PLAIN_DETR.{'; '.join(other)}")
        found = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        found = set(filter(_STRUCTURE.match, found))
        if not any(name.startswith("decoder.layers.") for name in found):
            return  # a backbone's weights, say
        wanted = set(filter(_STRUCTURE.match, _names(module)))
        if found != wanted:
            missing, unknown = sorted(wanted - found), sorted(found - wanted)
            parts = [f"lacks {len(missing)} tensors such as {missing[0]}"] if missing else []
            parts += [f"has {len(unknown)} that the model has not, such as {unknown[0]}"] if unknown else []
            raise ValueError(f"checkpoint of another variant of Plain-DETR: it {' and '.join(parts)}")

    model.register_state_dict_post_hook(write)
    model.register_load_state_dict_pre_hook(check)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
