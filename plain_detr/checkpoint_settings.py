"""Settings that give weights their meaning: kept in every checkpoint, compared when it is loaded.

Detectors of other settings mostly have the same parameters: a checkpoint that was trained with one box coder loads into
a model with the other, and detects nothing. The settings lie in the metadata that ``torch.save`` keeps beside the
tensors. Files without it (converted, or safetensors) are checked by names alone.
"""

import re

from torch import nn

METADATA_KEY = "plain_detr_variant"

# Parts whose names follow from the settings. Class layers may be left out on purpose.
_STRUCTURE = re.compile(r"^(decoder|encoder|proposals)\.(?!.*\.class_logits\.)")


def remember_settings(model: nn.Module, settings: dict[str, str]) -> None:
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
        saved = local_metadata.get(METADATA_KEY, {})
        other = [f"{key} {saved[key]}, not {mine}" for key, mine in settings.items() if saved.get(key, mine) != mine]
        if other:
            raise ValueError(f"checkpoint of another variant of Plain-DETR: it has MODEL.PLAIN_DETR.{'; '.join(other)}")
        theirs = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        theirs = set(filter(_STRUCTURE.match, theirs))
        if not any(name.startswith("decoder.layers.") for name in theirs):
            return  # a backbone's weights, say
        ours = set(filter(_STRUCTURE.match, _names(module)))
        if theirs != ours:
            missing, unknown = sorted(ours - theirs), sorted(theirs - ours)
            parts = [f"lacks {len(missing)} tensors such as {missing[0]}"] if missing else []
            parts += [f"has {len(unknown)} that the model has not, such as {unknown[0]}"] if unknown else []
            raise ValueError(f"checkpoint of another variant of Plain-DETR: it {' and '.join(parts)}")

    model.register_state_dict_post_hook(write)
    model.register_load_state_dict_pre_hook(check)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
