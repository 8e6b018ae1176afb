"""Released state dicts fit the models of our configs, name by name and shape by shape, and come back."""

import json
from pathlib import Path

import pytest
import torch

import plain_detr  # noqa: F401
from d2x.config.load import load_cfg
from plain_detr import PlainDETR
from plain_detr.checkpoint_keys import COCO_IDS, convert, to_official
from tests.parity.golden import COMMITTED, cases, load

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "PlainDETR" / "configs"
RELEASED = {
    "swinv2_small_mim_pt_boxrpe_reparam": "released/swinv2_s_mim_boxrpb_delta.yaml",
    "swinv2_small_mim_pt_boxrpe": "released/swinv2_s_mim_boxrpb.yaml",
    "swinv2_small_sup_pt_boxrpe": "released/swinv2_s_sup_boxrpb.yaml",
    "swinv2_small_sup_pt_ape": "released/swinv2_s_sup_ape.yaml",
    "dinov3_vit7b16_detector": "dinov3_vit_7b_frozen.yaml",
    "dinov3_vitl16plus_detector": "dinov3_vit_l_plus_frozen.yaml",
}


def official(info: dict) -> dict[str, torch.Tensor]:
    """Every released name, on the meta device; a backbone that is a file of its own under its name in the detector."""
    shapes = dict(info["keys"])
    prefix = info.get("backbone_prefix_inside_detector", "")
    shapes |= {prefix + name: shape for name, shape in info.get("backbone_keys", {}).items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def settings(options: list[str] | dict) -> list:
    """Our settings for the options of a released model that no config of ours has been made for."""
    if isinstance(options, list):
        flags = [index for index, word in enumerate(options) if word.startswith("--")]
        ends = [*flags[1:], len(options)]
        options = {options[i][2:]: (options[i + 1] if end > i + 1 else True) for i, end in zip(flags, ends)}
    head = "MODEL.PLAIN_DETR."
    kinds = {"global_ape": "none", "global_rpe_decomp": "axial"}
    settings = [f"{head}BOX_RPB.KIND", kinds[options.get("decoder_type", "global_rpe_decomp")]]
    settings += [f"{head}BOX_CODER", "delta" if options.get("reparam") else "sigmoid"]
    for key, ours in (
        ("num_queries_one2one", "NUM_QUERIES"),
        ("num_queries_one2many", "ONE_TO_MANY.QUERIES"),
        ("dec_layers", "DECODER_LAYERS"),
        ("hidden_dim", "HIDDEN_DIM"),
        ("dim_feedforward", "FEEDFORWARD_DIM"),
        ("decoder_rpe_hidden_dim", "BOX_RPB.HIDDEN_DIM"),
    ):
        if key in options:
            settings += [head + ours, int(options[key])]
    if "tiny" in options.get("backbone", ""):
        settings += ["MODEL.SWIN_V2.DEPTHS", (2, 2, 6, 2)]
    return settings


def model_for(case: str, info: dict) -> PlainDETR:
    name = RELEASED.get(case.split("__", 1)[-1])
    opts = ["MODEL.PLAIN_DETR.NUM_CLASSES", info.get("num_classes") or info["options"]["num_classes"]]
    opts += [] if name else settings(info["options"])
    cfg = load_cfg(str(CONFIGS / (name or "Base-PlainDETR.yaml")), opts)
    with torch.device("meta"):
        return PlainDETR(cfg)


@pytest.mark.parametrize("case", cases("plain_detr", "checkpoint_keys"))
def test_released_names_are_those_of_our_model_and_back(case):
    info = load("plain_detr", case).info
    check_names(info, model_for(case, info))


def check_names(info: dict, model: PlainDETR) -> None:
    released = official(info)
    conversion = convert(released)
    assert conversion.unmatched == []
    assert set(conversion.dropped) & set(info["keys"]) <= set(info["buffers"])
    ours = {name: tuple(value.shape) for name, value in conversion.state.items()}
    assert ours == {name: tuple(value.shape) for name, value in model.state_dict().items()}

    back = to_official(model, keep_outputs=True)
    assert back.unmatched == []
    # What only pre-training uses has no counterpart to come back from.
    lost = set(conversion.dropped) - set(info["keys"])
    theirs = {name: tuple(value.shape) for name, value in released.items() if name not in lost}
    assert {name: tuple(value.shape) for name, value in back.state.items()} == theirs


# The other ViTs of DINOv3: width, blocks, and width inside a block's MLP, which is gated in the "plus" models.
DINOV3_VITS = {
    "vit_small_patch16_dinov3_qkvb": (384, 12, 1536),
    "vit_small_plus_patch16_dinov3_qkvb": (384, 12, 1536),
    "vit_base_patch16_dinov3_qkvb": (768, 12, 3072),
    "vit_large_patch16_dinov3_qkvb": (1024, 24, 4096),
    "vit_large_plus_patch16_dinov3_qkvb": (1024, 24, 4096),
    "vit_huge_plus_patch16_dinov3_qkvb": (1280, 32, 5120),
}


def dinov3_names(width: int, blocks: int, inner: int, gated: bool) -> dict[str, list[int]]:
    """Names and shapes in the release's file of a ViT; unlike the 7B's they have biases of query, key and value."""
    norms = {f"{name}.{part}": [width] for name in ("norm1", "norm2") for part in ("weight", "bias")}
    block = norms | {"attn.qkv.weight": [3 * width, width], "attn.proj.weight": [width, width]}
    block |= {"attn.qkv.bias": [3 * width], "attn.qkv.bias_mask": [3 * width], "attn.proj.bias": [width]}
    block |= {"ls1.gamma": [width], "ls2.gamma": [width]}
    into, out = (("w1", "w2"), "w3") if gated else (("fc1",), "fc2")
    block |= {f"mlp.{name}.weight": [inner, width] for name in into} | {f"mlp.{name}.bias": [inner] for name in into}
    block |= {f"mlp.{out}.weight": [width, inner], f"mlp.{out}.bias": [width]}
    names = {"cls_token": [1, 1, width], "storage_tokens": [1, 4, width], "mask_token": [1, width]}
    names |= {"patch_embed.proj.weight": [width, 3, 16, 16], "patch_embed.proj.bias": [width]}
    names |= {"rope_embed.periods": [16], "norm.weight": [width], "norm.bias": [width]}
    return names | {f"blocks.{index}.{name}": shape for index in range(blocks) for name, shape in block.items()}


@pytest.mark.parametrize("name", DINOV3_VITS)
def test_the_detector_on_any_vit_of_dinov3_converts(name):
    """As the released detector on the 7B, whose head has the same names."""
    width, blocks, inner = DINOV3_VITS[name]
    info = json.loads((COMMITTED / "plain_detr" / "checkpoint_keys__dinov3_vit7b16_detector.json").read_text())
    info["keys"]["input_proj.0.0.weight"] = [768, 2 * 4 * width, 1, 1]  # whole image and windows, four blocks each
    info["backbone_keys"] = dinov3_names(width, blocks, inner, gated="plus" in name)
    layers = [blocks // 4 * part - 1 for part in (1, 2, 3, 4)]
    opts = ["MODEL.TIMM_VIT.NAME", name, "MODEL.TIMM_VIT.LAYERS", layers, "MODEL.PLAIN_DETR.NUM_CLASSES", 91]
    cfg = load_cfg(str(CONFIGS / RELEASED["dinov3_vit7b16_detector"]), opts)
    with torch.device("meta"):
        model = PlainDETR(cfg)
    check_names(info, model)


@pytest.mark.parametrize("case", cases("plain_detr", "checkpoint_keys"))
def test_class_heads_become_cocos_80_contiguous_classes(case):
    info = load("plain_detr", case).info
    released = official(info)
    for name, value in released.items():
        if "class_embed" in name and name.endswith("bias"):
            released[name] = torch.arange(float(len(value)))
    if not all(len(value) == 91 for name, value in released.items() if "class_embed" in name):
        pytest.skip("no COCO head")
    state = convert(released, keep_outputs=False).state
    biases = {name: value.tolist() for name, value in state.items() if name.endswith("class_logits.bias")}
    proposals = biases.pop("proposals.head.class_logits.bias")
    # The proposals' head is read in its channel 0 alone, so that one must stay where it is.
    assert proposals == list(range(80))
    assert biases and all(rows == COCO_IDS for rows in biases.values())
