import pytest

from plain_detr.decoder_layer import CrossAttention
from plain_detr.modulation.box_rpb import BoxRPB
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import (
    RELEASED_PADDING_LOGIT,
    check,
    check_gradient,
    official_names,
    our_name,
    parametrize_implementations,
)

PREFIX = "transformer.decoder.layers.0.cross_attn."


def build(case, implementation):
    options = case.info["options"]
    box_rpb = BoxRPB(num_heads=options["num_heads"], hidden_dim=options["rpe_hidden_dim"], offsets=options["rpe_type"])
    attention = CrossAttention(
        hidden_dim=options["dim"],
        num_heads=options["num_heads"],
        box_rpb=box_rpb,
        padding_value=RELEASED_PADDING_LOGIT,
        implementation=implementation,
    )
    state = official_names(case.state, PREFIX)
    names = {name: our_name(name, state).removeprefix("decoder.layers.0.cross_attention.") for name in state}
    attention.load_state_dict({names[name]: value for name, value in state.items()})
    return attention, {name.removeprefix(PREFIX): ours for name, ours in names.items()}


@pytest.mark.parametrize("name", cases("plain_detr", "boxrpb_attention"))
@parametrize_implementations
def test_cross_attention_equals_the_released_one(name, implementation):
    case = load("plain_detr", name)
    attention, names = build(case, implementation)
    options, tolerance, given = case.info["options"], case.info["tolerance"], case.group("input")
    stride = options["feature_stride"]
    hw = tuple(given["spatial_shapes"][0].tolist())
    scale = given["reference_points"].new_tensor([hw[1], hw[0], hw[1], hw[0]]) * stride
    scale = scale.fill_(1) if options["reparam"] else scale
    for run, padding in (("unmasked", None), ("masked", given["padding_mask"])):
        wanted = case.group(f"output.{run}")
        inputs = {key: given[key].clone().requires_grad_() for key in ("query", "key_input", "value_input")}
        reference = given["reference_points"].clone().requires_grad_()
        boxes = reference.squeeze(2) * scale
        attention.zero_grad()
        out = attention(*inputs.values(), boxes, hw, stride, padding)
        check(f"{run} out", out, wanted["out"], tolerance["output"])
        (out * given["grad_weight"]).sum().backward()
        inputs["reference_points"] = reference
        for key in case.group(f"grad_input.{run}"):
            check_gradient(case, f"grad_input.{run}.{key}", inputs[key].grad)
        ours = dict(attention.named_parameters())
        for key in case.group(f"grad.{run}"):
            check_gradient(case, f"grad.{run}.{key}", ours[names[key]].grad)
        bias = attention.box_rpb(boxes, hw, stride)
        if "rpe_x" in wanted:
            check("rpe_x", bias.x.permute(0, 2, 3, 1), wanted["rpe_x"], tolerance["output"])
            check("rpe_y", bias.y.permute(0, 2, 3, 1), wanted["rpe_y"], tolerance["output"])
        if "attn" in wanted:
            weights = attention.weights(given["query"], given["key_input"], boxes.detach(), hw, stride, padding)
            check("attn", weights.flatten(3), wanted["attn"], tolerance["output"])
