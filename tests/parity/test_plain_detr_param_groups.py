"""Learning rate and weight decay of every parameter, as the released training sets them."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

import plain_detr  # noqa: F401
from d2x.backbones.layer_decay import param_groups, param_groups_from_cfg
from d2x.config.keys import get_base_cfg
from d2x.config.load import load_cfg
from plain_detr import PlainDETR
from plain_detr.checkpoint_keys import convert
from tests.parity.golden import cases, load

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "PlainDETR" / "configs"
RELEASED = {
    "swinv2_small_mim_pt_boxrpe_reparam": "released/swinv2_s_mim_boxrpb_delta.yaml",
    "swinv2_small_mim_pt_boxrpe": "released/swinv2_s_mim_boxrpb.yaml",
    "swinv2_small_sup_pt_boxrpe": "released/swinv2_s_sup_boxrpb.yaml",
    "swinv2_small_sup_pt_ape": "released/swinv2_s_sup_ape.yaml",
}
# Blocks per stage by the size word in the official backbone name.
DEPTHS = {"tiny": (2, 2, 6, 2), "small": (2, 2, 18, 2), "base": (2, 2, 18, 2), "large": (2, 2, 18, 2)}


def tables() -> list[tuple[str, str]]:
    """(case, key) of every table of ``{name: [rate, decay]}`` in every case."""
    found = []
    for case in cases("plain_detr", "param_groups"):
        for key, value in load("plain_detr", case).info.items():
            if isinstance(value, dict) and any(name.startswith("transformer.") for name in value):
                found.append((case, key))
    return found


def numbers(pattern: str, names) -> int:
    return len({match[1] for match in map(re.compile(pattern).search, names) if match})


def tiny_cfg(swin: dict, names) -> CfgNode:
    """A model of the same parts as the table's; widths do not matter here."""
    cfg = get_base_cfg()
    cfg.MODEL.META_ARCHITECTURE = "PlainDETR"
    cfg.MODEL.BACKBONE.NAME = "build_swin_v2_backbone"
    node = cfg.MODEL.SWIN_V2
    node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS = swin["embed_dim"], swin["depths"], swin["num_heads"]
    node.WINDOW_SIZE, node.PRETRAINED_WINDOW_SIZES = swin["window_size"], swin["pretrained_window_size"]
    node.GLOBAL_BLOCKS, node.OUT_FEATURES = swin["global_blocks"], [f"p{i + 2}" for i in swin["out_indices"]]
    head = cfg.MODEL.PLAIN_DETR
    head.NUM_CLASSES, head.HIDDEN_DIM, head.FEEDFORWARD_DIM = 5, 32, 64
    head.IN_FEATURE = node.OUT_FEATURES[-1]
    head.DECODER_LAYERS = numbers(r"transformer\.decoder\.layers\.(\d+)\.", names)
    if not any("cpb_mlp1" in name for name in names):
        head.BOX_RPB.KIND = "none"
    if not any("enc_output_proj" in name for name in names):
        head.PROPOSALS.STRIDES = (head.FEATURE_STRIDE,)
    return cfg


def build(cfg: CfgNode) -> PlainDETR:
    with torch.device("meta"):
        return PlainDETR(cfg)


def official_rates(model: PlainDETR, groups: list[dict]) -> dict[str, list[float]]:
    """{official name: [rate, decay]}; the heads under the name the official optimizer lists."""
    values = {id(p): [group["lr"], group["weight_decay"]] for group in groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    conversion = convert(parameters, reverse=True)
    assert conversion.unmatched == []
    aliased = re.compile(r"^(?=(class|bbox)_embed\.)")
    return {
        aliased.sub("transformer.decoder.", theirs): values[id(parameters[ours])]
        for ours, theirs in conversion.renamed.items()
    }


@pytest.mark.parametrize("case, key", tables())
def test_rate_and_decay_of_every_parameter(case, key):
    info = load("plain_detr", case).info
    expected = info[key]
    released = re.match(r"released_config_(.*)", key)
    if released:
        # The config's own numbers count here, so this pins the config as well.
        cfg = load_cfg(str(CONFIGS / RELEASED[released[1]]), ["MODEL.PLAIN_DETR.NUM_CLASSES", "91"])
        model = build(cfg)
        groups = param_groups_from_cfg(cfg, model)
    else:
        options = info["options"]
        model = build(tiny_cfg(info["model_options"]["swin"], expected))
        factor = options["lr_backbone"] / options["lr"]
        factors = {}
        for name in options["lr_backbone_names"]:
            factors["backbone."] = factor
            if "backbone.0.upsample.0.weight".startswith(name):
                factors["upsample."] = factor
        layerwise = key.endswith("_layerwise") and not key.endswith("no_layerwise")
        size = next(word for word in DEPTHS if word in options["backbone"])
        groups = param_groups(
            model,
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            weight_decay_norm=options["weight_decay"] * options["wd_norm_mult"],
            lr_factors=None if layerwise else factors,
            layer_decay=options["lr_decay_rate"] if layerwise else 0.0,
            depths=DEPTHS[size] if layerwise else None,
            released_norm_decay=True,
        )
    ours = official_rates(model, groups)
    assert sorted(ours) == sorted(expected)
    wrong = {name: (ours[name], value) for name, value in expected.items() if ours[name] != pytest.approx(value)}
    assert wrong == {}
