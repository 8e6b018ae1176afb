"""Released names to ours and back."""

import torch

from centerx.checkpoint_keys import convert

PAIRS = {
    "backbone.layer2.0.downsample.1.running_var": "backbone.bottom_up.layer2.0.downsample.1.running_var",
    "backbone.stem.conv.weight": "backbone.bottom_up.stem.0.weight",
    "backbone.s3.b2.f.a_bn.bias": "backbone.bottom_up.trunk_output.block3.block3-1.f.a.1.bias",
    "backbone.s1.b1.f.se.f_ex.2.bias": "backbone.bottom_up.trunk_output.block1.block1-0.f.se.fc2.bias",
    "upsample.deconv1.dcn.offset_mask_conv.weight": "backbone.neck.stages.0.conv.offset.weight",
    "upsample.deconv3.dcn.conv.bias": "backbone.neck.stages.2.conv.bias",
    "head.reg_head.out_conv.weight": "head.offset.out.weight",
}


def test_names_both_ways():
    state = {name: torch.zeros(27) for name in PAIRS}
    there = convert(state)
    assert there.renamed == PAIRS and there.unmatched == []
    back = convert(there.state, reverse=True)
    assert list(back.state) == list(PAIRS)


def test_unmodulated_deformable_convolution_is_known_by_its_offsets():
    state = {
        "upsample.deconv2.dcn.offset_conv.bias": torch.zeros(18),
        "upsample.deconv2.dcn.dcn.weight": torch.zeros(4, 4, 3, 3),
    }
    assert list(convert(convert(state).state, reverse=True).state) == list(state)


def test_unknown_names_are_reported():
    result = convert({"backbone.conv1.weight": torch.zeros(1), "head.extra": torch.zeros(1)})
    assert list(result.state) == ["backbone.bottom_up.conv1.weight"] and result.unmatched == ["head.extra"]
