"""FCOS students and teachers through the same component."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import centerx  # noqa: F401
from centerx.distill.student import copy_weights
from centerx.distill.teachers import Teacher
from centerx.distill.terms import DistillationLoss
from d2x.config.keys import get_base_cfg

from .distillation_parts import make_batch, make_spec, make_teacher


def build(meta_arch: str, class_names, *, out_features=("res3", "res4"), **distill):
    cfg = get_base_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = meta_arch
    cfg.MODEL.BACKBONE.NAME = "build_small_conv_backbone"
    cfg.MODEL.SMALL_RESNET.WIDTHS = [4, 8, 16]
    cfg.MODEL.SMALL_RESNET.BLOCKS = [1, 1, 1]
    cfg.MODEL.SMALL_RESNET.OUT_FEATURES = list(out_features)
    cfg.MODEL.FCOS.NUM_CLASSES = len(class_names)
    cfg.MODEL.FCOS.FPN_CHANNELS = 8
    cfg.MODEL.FCOS.HEAD_CONVS = [8]
    cfg.MODEL.FCOS.NORM = ""
    cfg.MODEL.FCOS.SCORE_THRESH = 0.0
    cfg.DATASETS.CLASS_NAMES = list(class_names)
    cfg.DATASETS.TRAIN = ()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    for key, value in distill.items():
        cfg.DISTILL[key] = value
    return build_model(cfg)


def teacher(class_names, **options):
    return Teacher(
        name="fcos.yaml",
        model=build("FCOSDetector", class_names, **options),
        input_format="RGB",
        class_names=class_names,
        loss=DistillationLoss(),
    )


def student(*teachers, **distill):
    model = build("DistilledFCOS", ["a", "b"], **distill)
    model.teacher_specs = tuple(make_spec() for _ in teachers)
    model.labelled = [0, 1]
    model.prepare_teachers(teachers)
    return model


def test_plain_detector_trains_and_detects():
    model = build("FCOSDetector", ["a", "b"])
    with EventStorage():
        losses = model.train()(make_batch())
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    results = model.eval()(make_batch(labels=False))
    assert len(results) == 2 and results[0]["instances"].has("pred_boxes")


def test_two_binary_teachers_without_labels():
    model = student(teacher(["b"]), teacher(["a"]), LABELS=False).train()
    losses = model(make_batch(labels=False))
    assert set(losses) == {f"kd_{term}_loss{t}" for term in ("cls", "box", "ctr") for t in (0, 1)}
    losses["kd_cls_loss0"].backward()
    touched = model.head.cls_score.weight.grad.abs().sum((1, 2, 3)) > 0
    assert touched.tolist() == [False, True]  # the first teacher knows "b" only


def test_labels_and_teacher():
    model = student(teacher(["a", "b"])).train()
    with EventStorage():
        losses = model(make_batch())
    assert "loss_fcos_cls" in losses and "kd_box_loss0" in losses
    sum(losses.values()).backward()
    assert set(model.state_dict()) == set(build("FCOSDetector", ["a", "b"]).state_dict())


def test_a_copy_has_nothing_to_learn_but_negative_distances():
    source = teacher(["a", "b"])
    source.model.head.bbox_pred.bias.data.fill_(5.0)  # all distances positive
    model = student(source, STUDENT_NORMALISATION=True)
    model.load_state_dict(source.model.state_dict())
    images = model.preprocess_image(make_batch())
    losses = model.distillation_losses(make_batch(), images, model.predict(images.tensor))
    assert all(value.item() < 1e-6 for value in losses.values())


def test_other_levels_and_other_detectors_are_refused():
    with pytest.raises(ValueError, match=r"fcos.yaml has levels of strides \[8, 16\], the student \[8, 16, 32\]"):
        student(teacher(["a", "b"], out_features=("res3",)))
    with pytest.raises(ValueError, match="teacher teacher.yaml is no FCOS"):
        student(make_teacher(("a", "b")))


def test_start_from_a_teacher_of_one_class():
    source = teacher(["b"])
    source.model.head.cls_score.bias.data.fill_(3.0)
    model = student(source)
    assert copy_weights(model, source.model, model.routes[0]) == len(model.state_dict())
    assert model.head.cls_score.bias[1] == 3.0 and model.head.cls_score.bias[0] != 3.0
    assert torch.equal(model.head.ctrness.weight, source.model.head.ctrness.weight)
