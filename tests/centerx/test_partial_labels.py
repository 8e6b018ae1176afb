"""Images labelled for some classes only: the others get no gradient, wherever the knowledge comes from."""

import torch

from centerx.centernet import CenterNet

from .distillation_parts import centernet_parts, make_batch


def heatmap_gradient(batch) -> list[bool]:
    model = CenterNet(**centernet_parts(3)).train()
    model(batch)["loss_cls"].backward()
    return (model.head.heatmap.out.bias.grad.abs() > 0).tolist()


def test_only_labelled_classes_are_negatives():
    (one,) = make_batch(sizes=((32, 32),))
    assert heatmap_gradient([one]) == [True, True, True]
    one["labelled_classes"] = torch.tensor([0, 2])
    assert heatmap_gradient([one]) == [True, False, True]


def test_an_empty_image_is_background_for_its_own_classes():
    (one,) = make_batch(sizes=((32, 32),))
    one["instances"] = one["instances"][:0]
    one["labelled_classes"] = torch.tensor([1])
    assert heatmap_gradient([one]) == [False, True, False]


def test_an_unlabelled_image_teaches_nothing():
    (one,) = make_batch(sizes=((32, 32),))
    one["instances"] = one["instances"][:0]
    one["labelled_classes"] = torch.tensor([], dtype=torch.int64)
    assert heatmap_gradient([one]) == [False, False, False]
