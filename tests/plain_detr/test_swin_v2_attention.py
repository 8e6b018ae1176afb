"""Swin V2's attention: what is kept, and windows of four kinds instead of a mask for each."""

import copy
import math

import pytest
import torch
from timm.models.swin_transformer_v2 import window_partition

from d2x.backbones.shared_bias_attention import shared_bias_attention
from d2x.backbones.swin_v2_attention import CosineAttention, shift_mask
from tests.plain_detr.builders import randomise

WINDOW, SHIFT = 4, 2


def attention(window=WINDOW):
    made = CosineAttention(dim=8, num_heads=2, window=window, pretrained_window=6, bias_hidden_dim=12)
    randomise(made)
    return made


@pytest.fixture
def counted():
    """An attention in evaluation mode, and the list that grows when its bias network runs."""
    made, runs = attention().eval(), []
    made.cpb_mlp.register_forward_hook(lambda *_: runs.append(1))
    return made, runs


def test_the_bias_is_kept_while_weights_and_size_are_the_same(counted):
    made, runs = counted
    x = torch.randn(3, WINDOW**2, 8)
    with torch.no_grad():
        outs = [made(x, (WINDOW, WINDOW)) for _ in range(3)]
    assert len(runs) == 1 and all(torch.equal(outs[0], out) for out in outs)
    with_gradients = made(x, (WINDOW, WINDOW))
    assert len(runs) == 2 and with_gradients.requires_grad
    torch.testing.assert_close(with_gradients, outs[0])


def _step(made):
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    made(torch.randn(1, WINDOW**2, 8), (WINDOW, WINDOW)).square().sum().backward()
    optimizer.step()


def _load(made):
    made.load_state_dict({name: value + 0.3 for name, value in made.state_dict().items()})


def _swap(made):
    made.cpb_mlp[2].weight.data = made.cpb_mlp[2].weight.data + 0.3


def _through_data(made):
    made.train()
    made.cpb_mlp[2].weight.data.add_(0.3)
    made.eval()


@pytest.mark.parametrize("change", [_step, _load, _swap, _through_data])
def test_new_weights_give_a_new_bias(counted, change):
    made, _ = counted
    with torch.no_grad():
        before = made.position_bias((WINDOW, WINDOW))
        change_grad = torch.enable_grad() if change is _step else torch.no_grad()
        with change_grad:
            change(made)
        after = made.position_bias((WINDOW, WINDOW))
    assert (before - after).abs().max() > 1e-3
    torch.testing.assert_close(after, made.position_bias((WINDOW, WINDOW)).clone())
    torch.testing.assert_close(after, made._position_bias((WINDOW, WINDOW)))


def test_maps_of_other_sizes_types_and_copies_have_a_bias_of_their_own():
    made = attention(window=0).eval()
    with torch.no_grad():
        first = made.position_bias((2, 3))
        assert made.position_bias((3, 2)).shape == (2, 6, 6)
        assert torch.equal(made.position_bias((2, 3)), first)
        other = copy.deepcopy(made)
        other.cpb_mlp[2].weight.add_(0.3)
        assert not torch.equal(other.position_bias((2, 3)), first)
        assert torch.equal(made.position_bias((2, 3)), first)
        assert made.double().position_bias((2, 3)).dtype == torch.float64


@pytest.mark.parametrize("value", [-math.inf, -100.0])
@pytest.mark.parametrize("rows_columns", [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_four_kinds_of_windows_equal_a_mask_for_every_window(rows_columns, value):
    made = attention()
    hw = tuple(WINDOW * count for count in rows_columns)
    everywhere = shift_mask(hw, WINDOW, SHIFT, value, torch.device("cpu"))
    kinds = shift_mask((2 * WINDOW, 2 * WINDOW), WINDOW, SHIFT, value, torch.device("cpu"))
    x, results = torch.randn(2, *hw, 8), []
    for attend in (
        lambda windows: made(windows, (WINDOW, WINDOW), everywhere),
        lambda windows: made.attend_in_shifted_windows(windows, hw, kinds),
    ):
        made.zero_grad()
        leaf = x.clone().requires_grad_()
        out = attend(window_partition(leaf, (WINDOW, WINDOW)).flatten(1, 2))
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, leaf.grad, *(one.grad.clone() for one in made.parameters())])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 60, 1 << 20])
def test_shared_bias_attention_equals_the_formula(limit, monkeypatch):
    monkeypatch.setattr("d2x.backbones.shared_bias_attention.BLOCK_LOGITS", limit)
    shapes = [(5, 2, 9, 4)] * 3 + [(2, 9, 9)]
    tensors, results = [torch.randn(shape) for shape in shapes], []
    for attend in (shared_bias_attention, lambda q, k, v, bias: (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v):
        leaves = [one.clone().requires_grad_() for one in tensors]
        out = attend(*leaves)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(shared_bias_attention(*tensors), results[1][0], rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_its_type_and_trains():
    made = attention()
    x = torch.randn(3, WINDOW**2, 8)
    exact = made(x, (WINDOW, WINDOW))
    with torch.autocast("cpu", torch.bfloat16):
        out = made(x, (WINDOW, WINDOW))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1 * float(exact.detach().abs().max()))
    out.float().square().sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in made.parameters())
