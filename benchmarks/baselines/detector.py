"""Plain-DETR as the released program computes it: our model with plain modules, and 1800 queries at inference too."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess
from torch import nn

from benchmarks.baselines.attention import MaskedSelfAttention, MaterialisedCrossAttention
from benchmarks.baselines.matching import PerLayerCriterion
from benchmarks.baselines.swin import PlainStage
from d2x.backbones.swin_v2 import SwinV2Stage
from plain_detr.decode import decode
from plain_detr.decoder_layer import CrossAttention, SelfAttention
from plain_detr.plain_detr import PlainDETR

TWINS: dict[type, type] = {
    SelfAttention: MaskedSelfAttention,
    CrossAttention: MaterialisedCrossAttention,
    SwinV2Stage: PlainStage,
}


class ReleasedPlainDETR(PlainDETR):
    """``PlainDETR`` with every module that has a plain twin replaced by it, and the released program's order of work.

    Same parameters, same detections, same losses, for a config whose cross-attention has an axial bias.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        use_twins(self)
        self.criterion = PerLayerCriterion(self.criterion)

    def forward(self, batched_inputs: list[dict]):
        """As ``PlainDETR.forward``; at inference the one-to-many queries are computed and left aside."""
        if self.training:
            return super().forward(batched_inputs)
        images = [self.normalized(record["image"]) for record in batched_inputs]
        sizes = [tuple(image.shape[-2:]) for image in images]
        layers, _ = self.predict(self.encode(images), training=True)
        wanted, _ = layers[-1].split(self.groups.one_to_one)
        found = decode(wanted, sizes, coder=self.coder, topk=self.topk)
        return [
            {"instances": detector_postprocess(one, record.get("height", size[0]), record.get("width", size[1]))}
            for one, record, size in zip(found, batched_inputs, sizes)
        ]


def use_twins(model: nn.Module) -> None:
    """Replace the modules of ``model`` by their plain twins, in place; the parameters stay the same objects."""
    for name, child in list(model.named_children()):
        twin = TWINS.get(type(child))
        if twin is None:
            use_twins(child)
        else:
            setattr(model, name, twin(child))


def shared_parameters(baseline: nn.Module, ours: nn.Module) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(our name, parameter of the baseline, parameter of ours) of two models built from one config."""
    plain = {_our_name(name): parameter for name, parameter in baseline.named_parameters()}
    return [(name, plain[name], parameter) for name, parameter in ours.named_parameters()]


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Give one of two models built from one config the parameters of the other, whichever has the twins."""
    values = {_our_name(name): parameter for name, parameter in source.named_parameters()}
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            parameter.copy_(values[_our_name(name)])


def _our_name(name: str) -> str:
    """Without the level that a twin adds."""
    for level in ("self_attention.attention.", "cross_attention.attention."):
        name = name.replace(level, level.split(".")[0] + ".")
    return name.replace(".stage.", ".")
