"""The optional encoder: windows, and indifference to padding."""

import pytest
import torch

from plain_detr.encoder import Encoder


def build(window, norm_first=False):
    torch.manual_seed(0)
    return Encoder(
        num_layers=2, window=window, norm_first=norm_first, hidden_dim=16, num_heads=2, feedforward_dim=8
    ).eval()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("window", [0, 3])
def test_padding_changes_nothing(window, norm_first):
    encoder = build(window, norm_first)
    x, position = torch.randn(1, 16, 4, 5), torch.randn(1, 4, 5, 16)
    alone = encoder(x, position, torch.zeros(1, 4, 5, dtype=torch.bool))
    padded, padded_position = torch.randn(1, 16, 7, 11), torch.randn(1, 7, 11, 16)
    padding = torch.ones(1, 7, 11, dtype=torch.bool)
    padded[..., :4, :5], padded_position[:, :4, :5], padding[:, :4, :5] = x, position, False
    torch.testing.assert_close(encoder(padded, padded_position, padding)[..., :4, :5], alone, rtol=1e-4, atol=1e-5)


def influence(out, x):
    """(H, W): how much each cell of ``x`` moves one cell's outputs (C,).

    Through a random weighting of them: the sum of a layer norm's outputs is constant, so its gradients are rounding.
    """
    weighting = torch.randn(len(out), generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(out @ weighting, x)[0][0].abs().sum(0)


def test_a_window_sees_its_own_tokens_and_the_shift_carries_on():
    encoder = build(4)
    x, position = torch.randn(1, 16, 8, 8, requires_grad=True), torch.zeros(1, 8, 8, 16)
    padding = torch.zeros(1, 8, 8, dtype=torch.bool)
    seen = influence(encoder.layers[0](x.permute(0, 2, 3, 1), position, padding)[0, 1, 1], x)
    noise = 1e-5 * seen.max()  # 100 roundings of float32: what counts as seen is no rounding error
    assert (seen[:4, :4] > noise).all()
    assert not seen[4:].any() and not seen[:, 4:].any()  # no path at all, so exactly 0
    both = influence(encoder(x, position, padding)[0, :, 3, 3], x)
    assert (both > 1e-5 * both.max()).all()
