"""The whole detector: independence of the batch, odd images, odd annotations, precision, reproducibility."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from tests.plain_detr.builders import VARIANTS, random_record, randomise, record, tiny_config, tiny_model

SIZES = [(64, 96), (96, 64), (50, 101), (64, 96), (33, 70), (128, 40), (17, 90), (75, 75)]
parametrize_variants = pytest.mark.parametrize("variant", VARIANTS)


def total(losses):
    return sum(losses.values())


def detections(model, records):
    with torch.no_grad():
        return [result["instances"] for result in model.eval()(records)]


@parametrize_variants
def test_training_gives_finite_losses_and_gradients_everywhere(variant):
    model = tiny_model(**VARIANTS[variant]).train()
    losses = model([random_record(128, 160, 3, 0), random_record(112, 147, 2, 1)])
    names = {f"loss_{part}_{place}" for part in ("class", "box", "giou") for place in ("d0", "d1", "enc")}
    names |= {f"loss_{part}_d{layer}_o2m" for part in ("class", "box", "giou") for layer in (0, 1)}
    assert set(losses) == names
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@parametrize_variants
def test_detections_are_in_the_file_and_sorted(variant):
    (found,) = detections(tiny_model(**VARIANTS[variant]), [record(70, 90)])
    assert found.image_size == (140, 180)
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 180).all() and (boxes[:, [1, 3]] <= 140).all()
    assert (found.scores.diff() <= 0).all() and found.pred_classes.dtype == torch.int64


@torch.no_grad()
def clearly_ranked(model, image) -> bool:
    """Whether no two of the proposals that compete for a query are nearly tied: which comes first is rounding then."""
    _, selection = model.eval().predict(model.encode([model.normalized(image)]), training=True)
    scores = selection.prediction.logits[0]
    scores = scores.amax(-1) if model.proposals.class_aware else scores[:, 0]
    if selection.prediction.valid is not None:
        scores = scores[selection.prediction.valid[0]]
    best = scores.sort(descending=True).values[: sum(model.groups.sizes(training=False)) + 1]
    return bool((best.diff() < -1e-4).all())


def require_batch_independence(model, seed):
    records = [record(*size, seed=10 * seed + index) for index, size in enumerate(SIZES)]
    alone = [detections(model, [one])[0] for one in records]
    ranked = [clearly_ranked(model, one["image"]) for one in records]
    assert sum(ranked) >= len(records) - 2  # ties are rare
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    for count in (2, 3, len(records)):
        chosen = order[:count]
        for index, found in zip(chosen, detections(model, [records[index] for index in chosen])):
            wanted = alone[index]
            if not ranked[index]:
                continue
            assert len(found) == len(wanted)
            torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor, rtol=0, atol=1e-2)


@parametrize_variants
def test_detections_do_not_depend_on_the_batch(variant):
    model = tiny_model(**VARIANTS[variant])
    for seed in range(4):
        randomise(model, seed)
        require_batch_independence(model, seed)


@parametrize_variants
def test_detections_of_a_trained_model_do_not_depend_on_the_batch(variant):
    torch.manual_seed(0)
    model = build_model(tiny_config(**VARIANTS[variant])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for step in range(60):
        optimizer.zero_grad()
        loss = total(model([random_record(64, 96, 3, step % 5), random_record(50, 70, 2, step % 5 + 5)]))
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-5:]) < 0.8 * sum(values[:5]), "it has learnt nothing"
    require_batch_independence(model, seed=0)


@parametrize_variants
def test_losses_do_not_depend_on_the_batch(variant):
    model = tiny_model(**VARIANTS[variant]).train()
    records = [random_record(*size, count, seed) for seed, (size, count) in enumerate(zip(SIZES, (2, 1, 3, 5, 0, 4)))]
    counts = [len(one["instances"]) for one in records]

    def divisor(name, boxes):  # what a loss is a mean over
        return max(1, boxes * (model.groups.repeats if name.endswith("o2m") else 1))

    sums = {}
    for one, count in zip(records, counts):
        for name, value in model([one]).items():
            sums[name] = sums.get(name, 0) + value.detach() * divisor(name, count)
    for name, value in model(records).items():
        wanted = sums[name] / divisor(name, sum(counts))
        assert value.item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-4), name


def test_released_behaviour_depends_on_the_batch():
    """What the option is for: it must not be the default, and must be there."""
    released = {"BATCH_INDEPENDENT": False, "VALID_AREA": "nearest", "KEEP_INVALID_PROPOSALS": True}
    model = tiny_model(PADDING_LOGIT=-100.0, **released)
    records = [record(64, 96, seed=1), record(50, 101, seed=2)]
    (alone,), (together, _) = detections(model, records[:1]), detections(model, records)
    assert len(alone) != len(together) or not torch.allclose(alone.scores, together.scores, atol=1e-4)


def test_one_to_many_queries_are_not_computed_at_inference():
    model = tiny_model()
    with torch.no_grad():
        layers, selection = model.predict(model.encode([torch.randn(3, 64, 64)]), training=False)
    assert [layer.logits.shape[1] for layer in layers] == [8, 8]
    assert selection.reference.shape[1] == 8 and selection.prediction is None


def test_one_to_many_queries_do_not_change_the_others():
    with_group, without = tiny_model(), tiny_model(**{"ONE_TO_MANY.QUERIES": 0})
    state = with_group.state_dict()
    state["queries.content.weight"] = state["queries.content.weight"][:8]
    without.load_state_dict(state)
    records = [random_record(64, 96, 3, 0)]
    ours, theirs = with_group.train()(records), without.train()(records)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("boxes", [(0, 3), (0, 0)])
@parametrize_variants
def test_images_without_boxes(variant, boxes):
    model = tiny_model(**VARIANTS[variant]).train()
    losses = model([random_record(64, 64, count, seed) for seed, count in enumerate(boxes)])
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    if not any(boxes):
        assert all(value == 0 for name, value in losses.items() if "class" not in name)
        assert all(value > 0 for name, value in losses.items() if "class" in name)


@parametrize_variants
def test_more_boxes_than_queries(variant):
    model = tiny_model(**VARIANTS[variant]).train()
    losses = model([random_record(64, 96, 40, 0), random_record(96, 64, 1, 1)])
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())


def test_boxes_beyond_the_image_are_clipped_and_those_outside_dropped():
    model = tiny_model().train()
    over = record(64, 96, [[-30, -10, 40, 50], [200, 200, 300, 300], [10, 10, 10, 40]])
    inside = record(64, 96, [[0, 0, 40, 50]])
    for name, value in model([inside]).items():
        torch.testing.assert_close(model([over])[name], value)
    assert len(over["instances"]) == 3  # the batch is left as it was


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_pixels_that_are_not_finite(training, value):
    model = tiny_model().train(training)
    bad = random_record(64, 64, 1, 7)
    bad["image"] = bad["image"].float()
    bad["image"][1, 5, 5] = value
    with pytest.raises(ValueError, match="image_7.png: the image has pixels that are not finite"):
        model([random_record(64, 64, 1, 0), bad])


def test_boxes_that_are_not_finite():
    with pytest.raises(ValueError, match="image_0.png: a box is not finite"):
        tiny_model().train()([record(64, 64, [[0, 0, float("nan"), 5]])])


@pytest.mark.parametrize("label", [3, -1])
def test_classes_the_model_does_not_have(label):
    with pytest.raises(ValueError, match="image_0.png: classes .* but the model has 3"):
        tiny_model().train()([record(64, 64, [[0, 0, 5, 5], [1, 1, 9, 9]], [0, label])])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 5), (16, 16), (31, 2)])
@parametrize_variants
def test_tiny_and_thin_images(variant, size):
    """Smaller than a patch, a window or a cell."""
    model = tiny_model(**VARIANTS[variant])
    height, width = size
    for found in detections(model, [record(height, width), record(64, 64)]):
        assert found.scores.isfinite().all() and found.pred_boxes.tensor.isfinite().all()
    losses = model.train()([record(height, width, [[0, 0, width, height]]), random_record(64, 64, 2, 1)])
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_fewer_anchors_than_queries():
    model = tiny_model(NUM_QUERIES=60)
    (found,) = detections(model, [record(16, 16)])
    assert found.scores.isfinite().all()


def test_classes_an_image_is_not_labelled_for_are_left_out():
    model = tiny_model().train()
    one = random_record(64, 96, 0, 0)
    every = {**one, "labelled_classes": torch.tensor([0, 1, 2])}
    some = {**one, "labelled_classes": torch.tensor([0, 2])}
    plain, all_labelled, partly = (model([one]) for one in (one, every, some))
    assert all(torch.equal(plain[name], all_labelled[name]) for name in plain)
    for name, value in partly.items():
        if name.startswith("loss_class_d"):
            assert value < plain[name]
        if name == "loss_class_enc":
            assert value == plain[name]  # it scores objectness, whatever the classes
    total(partly).backward()
    for head in model.decoder.heads:
        assert head.class_logits.weight.grad[1].abs().max() == 0
        assert head.class_logits.weight.grad[0].abs().max() > 0


def training_state(seed: int) -> dict:
    torch.manual_seed(seed)
    model = build_model(tiny_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        total(model([random_record(64, 96, 3, step), random_record(50, 70, 2, step + 5)])).backward()
        optimizer.step()
    return model.state_dict()


def test_training_is_reproducible_bit_for_bit():
    first, second = training_state(3), training_state(3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in training_state(4).items())


@parametrize_variants
def test_bfloat16_is_near_float32(variant):
    model = tiny_model(**VARIANTS[variant]).train()
    records = [random_record(64, 96, 3, 0), random_record(96, 64, 2, 1)]
    exact = total(model(records))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(records)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(total(losses), exact, rtol=0.3, atol=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert detections(model, records)[0].scores.isfinite().all()


def test_activation_checkpointing_changes_nothing():
    records = [random_record(64, 96, 3, 0), random_record(96, 64, 2, 1)]
    plain = tiny_model().train()
    lean = tiny_model(**{"CHECKPOINT_DECODER": True, "MODEL.SWIN_V2.ACTIVATION_CHECKPOINTING": True}).train()
    losses, same = plain(records), lean(records)
    for name, value in losses.items():
        torch.testing.assert_close(same[name], value, rtol=0, atol=0)
    total(losses).backward()
    total(same).backward()
    for (name, one), other in zip(plain.named_parameters(), lean.parameters()):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("implementation", ["fused", "chunked", "cpp"])
def test_every_form_of_attention_gives_the_same_step(implementation):
    records = [random_record(64, 96, 3, 0), random_record(96, 64, 2, 1)]
    losses = {}
    for form in ("naive", implementation):
        model = tiny_model(ATTENTION=form).train()
        losses[form] = model(records)
    for name, value in losses["naive"].items():
        torch.testing.assert_close(losses[implementation][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"ENCODER.LAYERS": 2},
        {"ENCODER.LAYERS": 2, "ENCODER.WINDOW": 3, "ENCODER.NORM_FIRST": True},
        {"NORM_FIRST": False},
        {"PROPOSALS.STRIDES": (16,)},
        {"PROPOSALS.MIXED_SELECTION": False},
        {"BOX_RPB.KIND": "full", "BOX_RPB.CORNERS": False, "BOX_RPB.OFFSETS": "abs_log8"},
        {"FEATURE_STRIDE": 8},
        {"LOOK_FORWARD_TWICE": False},
        {"VALID_AREA": "nearest"},
        {"PAD_MULTIPLE": 64},
        {"PAD_MULTIPLE": 40, "VALID_AREA": "nearest", "ENCODER.LAYERS": 1},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_options_train_detect_and_stay_independent_of_the_batch(changes):
    model = tiny_model(**changes)
    records = [random_record(64, 96, 2, 0), random_record(96, 50, 1, 1), random_record(70, 120, 2, 2)]
    for one, together in zip(records, detections(model, records)):
        (alone,) = detections(model, [one])
        torch.testing.assert_close(together.scores, alone.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(together.pred_boxes.tensor, alone.pred_boxes.tensor, rtol=0, atol=1e-2)
    losses = model.train()(records)
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BOX_CODER": "corners"}, "BOX_CODER must be one of sigmoid, delta, got 'corners'"),
        ({"BOX_RPB.KIND": "yes"}, "BOX_RPB.KIND must be one of none, axial, full"),
        ({"BOX_RPB.OFFSETS": "log"}, "BOX_RPB.OFFSETS must be one of"),
        ({"POSITION_ENCODING": "learned"}, "POSITION_ENCODING must be one of"),
        ({"VALID_AREA": "cells"}, "VALID_AREA must be"),
        ({"HIDDEN_DIM": 40}, "multiple of 32"),
        ({"IN_FEATURE": "p9"}, "not an output of the backbone: p5"),
        ({"FEATURE_STRIDE": 12}, "power of two"),
        ({"NUM_HEADS": 3}, "not a multiple of NUM_HEADS"),
        ({"ATTENTION": "flash"}, "must be one of auto"),
        ({"PAD_MULTIPLE": 0}, "PAD_MULTIPLE must be at least 1"),
    ],
)
def test_config_errors_name_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_config(**changes))


def test_a_copy_of_the_model_is_the_model():
    model = tiny_model()
    (one,), (other,) = detections(model, [record(64, 64)]), detections(copy.deepcopy(model), [record(64, 64)])
    assert torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("norm_first", [True, False])
@parametrize_variants
def test_attention_weights_are_what_the_layer_uses(variant, norm_first):
    model = tiny_model(NORM_FIRST=norm_first, **VARIANTS[variant])
    image = record(70, 90)["image"]
    for index, layer in enumerate(model.decoder.layers):
        weights = model.attention_weights(image, layer=index)
        assert weights.shape == (2, 8, 5, 6)
        torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 8))
        # The attention must put out these weights times its values.
        attention = layer.cross_attention
        seen = {}
        handles = [
            attention.output.register_forward_hook(lambda module, args, out, seen=seen: seen.update(attended=args[0])),
            attention.value.register_forward_hook(lambda module, args, out, seen=seen: seen.update(values=out)),
        ]
        detections(model, [record(70, 90)])
        for handle in handles:
            handle.remove()
        values = seen["values"][0].unflatten(-1, (2, -1)).transpose(0, 1)  # (heads, L, d)
        attended = (weights.flatten(2) @ values).transpose(0, 1).flatten(1)
        # Logits go up to 180 here, where float32 steps are 1.5e-5 wide, and weights are known no better; values to 2.6.
        torch.testing.assert_close(seen["attended"][0], attended, rtol=1e-4, atol=5e-5)
        without = model.attention_weights(image, layer=index, with_bias=False)
        assert torch.allclose(without, weights) == (variant == "absolute")


def test_images_of_equal_padded_size_share_a_pass():
    model = tiny_model(PAD_MULTIPLE=64)
    seen = []
    handle = model.backbone.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    detections(model, [record(64, 96), record(50, 101), record(65, 65), record(128, 100)])
    handle.remove()
    assert seen == [(2, 3, 64, 128), (2, 3, 128, 128)]


@pytest.mark.parametrize("multiple", [1, 32])
def test_memory_is_zero_on_padding_and_no_larger_than_the_images(multiple):
    model = tiny_model(PAD_MULTIPLE=multiple)
    with torch.no_grad():
        memory = model.encode([torch.randn(3, 33, 70), torch.randn(3, 40, 20)])
    assert memory.grid.hw == (3, 5) and memory.features.shape[2:] == (3, 5)
    assert (memory.features[1, :, :, 2:] == 0).all() and (memory.features[0] != 0).any(0).all()
