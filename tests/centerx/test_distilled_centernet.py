"""A student with teachers: what it holds, what it learns from, and what is refused before training."""

import copy

import pytest
import torch

from centerx.distill.student import DistillationHook
from centerx.distill.teachers import EmaTeacher, Teacher, make_routes, pair_classes, require_coverage
from centerx.distill.terms import DistillationLoss

from .distillation_parts import centernet_parts, make_batch, make_spec, make_student, make_teacher


def prepared(**options):
    student = make_student(**options)
    student.prepare_teachers([make_teacher(("a", "b")) for _ in student.teacher_specs])
    return student


def test_teachers_are_no_part_of_the_student():
    student, plain = prepared(), make_student()
    assert list(student.state_dict()) == list(plain.state_dict())
    assert len(list(student.parameters())) == len(list(plain.parameters()))
    assert len(list(student.modules())) == len(list(plain.modules()))


def test_teachers_stay_frozen_in_evaluation_mode_and_move_along():
    student = prepared().train().double()
    (teacher,) = student.teachers
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert next(teacher.model.parameters()).dtype == torch.float64


def test_labels_and_teachers_make_the_loss_dict():
    student = prepared().train()
    losses = student(make_batch())
    kd = ["kd_cls_loss0", "kd_wh_loss0", "kd_off_loss0"]
    assert list(losses) == [*kd, "loss_cls", "loss_box_wh", "loss_off_reg"]
    before = copy.deepcopy(student.teachers[0].model.state_dict())
    sum(losses.values()).backward()
    after = student.teachers[0].model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_label_free_needs_no_instances():
    losses = prepared(use_labels=False).train()(make_batch(labels=False))
    assert set(losses) == {"kd_cls_loss0", "kd_wh_loss0", "kd_off_loss0"}


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    student = make_student(student_normalisation=True).train()
    teacher = make_teacher(("a", "b"))
    teacher.model.load_state_dict(student.state_dict())
    student.prepare_teachers([teacher])
    student.eval()
    images = student.preprocess_image(make_batch())
    losses = student.losses(make_batch(), images, student.predict(images.tensor))
    assert sum(losses[name].item() for name in losses if name.startswith("kd_")) < 1e-6


def test_each_teacher_sees_its_own_normalisation_and_channel_order():
    teacher = make_teacher(("a",), mean=10.0, input_format="BGR")
    seen = []
    teacher.model.predict = lambda images: seen.append(images)
    batch = make_batch(sizes=((8, 8),))
    student = make_student()
    teacher.predict(batch, "RGB", student.preprocess_image(batch))
    expected = (batch[0]["image"].flip(0) - 10.0) / 50.0
    assert torch.allclose(seen[0][0, :, :8, :8], expected)


def test_a_teacher_with_other_divisibility_covers_the_students_grid():
    student = make_student().train()
    teacher = make_teacher(("a", "b"))
    teacher.model.backbone._divisibility = 32
    student.prepare_teachers([teacher])
    assert all(torch.isfinite(value) for value in student(make_batch()).values())


def test_teacher_of_another_stride():
    specs = [make_spec()]
    with pytest.raises(ValueError, match="teacher.yaml has stride 8, the student 4: set DISTILL.STRIDE_MISMATCH"):
        make_student(specs=specs).prepare_teachers([make_teacher(("a", "b"), stride=8)])
    student = make_student(specs=specs, stride_mismatch="resize").train()
    student.prepare_teachers([make_teacher(("a", "b"), stride=8)])
    assert all(torch.isfinite(value) for value in student(make_batch()).values())


def test_broken_teacher_is_found_before_training():
    broken = make_teacher(("a", "b"))
    broken.model.head.heatmap.out.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="teacher teacher.yaml: weight head.heatmap.out.bias is not finite"):
        make_student().prepare_teachers([broken])
    overflowing = make_teacher(("a", "b"))
    overflowing.model.head.size.out.weight.data.fill_(3e38)
    with pytest.raises(ValueError, match="predictions are not finite"):
        make_student().prepare_teachers([overflowing])


def test_a_model_that_is_no_centernet_cannot_teach():
    class Other(torch.nn.Module):
        def predict(self, images):
            return images

    teacher = Teacher(name="x.yaml", model=Other(), input_format="RGB", class_names=["a"], loss=DistillationLoss())
    with pytest.raises(ValueError, match="teacher x.yaml is no CenterNet"):
        make_student().prepare_teachers([teacher])


def test_classes_are_paired_by_name_slice_or_map():
    assert pair_classes(make_spec(), ["b", "x"], ["a", "b"]) == [(0, 1)]
    assert pair_classes(make_spec(classes={"car": "vehicle"}), ["cat", "car"], ["vehicle"]) == [(1, 0)]
    assert pair_classes(make_spec(student_slice=(1, 3)), ["x", "y"], ["a", "b", "c"]) == [(0, 1), (1, 2)]
    assert pair_classes(make_spec(student_slice=(0, 1), teacher_slice=(1, 2)), ["x", "y"], ["a"]) == [(1, 0)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, r"none of its classes \(x\) is the student's \(a, b\)"),
        ({"classes": {"y": "a"}}, r"class 'y' is not one of its classes \(x\)"),
        ({"classes": {"x": "c"}}, r"class 'c' is not one of the student's classes \(a, b\)"),
        ({"student_slice": (0, 2)}, "1 classes cannot teach 2"),
        ({"student_slice": (1, 3)}, "STUDENT_SLICE ends at 3, the student has 2 classes"),
    ],
)
def test_wrong_classes_name_the_teacher(options, message):
    with pytest.raises(ValueError, match=f"teacher teacher.yaml: {message}"):
        pair_classes(make_spec(**options), ["x"], ["a", "b"])


def test_overlapping_classes_are_averaged_or_prioritised():
    pairs = [[(0, 0), (1, 1)], [(0, 1)]]
    averaged = make_routes(pairs, "average")
    assert averaged[0].shares == (1.0, 0.5) and averaged[1].shares == (0.5,)
    with pytest.raises(ValueError, match=r"TEACHERS\[1\] has nothing to teach"):
        make_routes(pairs, "first")
    first = make_routes([[(0, 0)], [(0, 0), (1, 1)]], "first")
    assert first[1].student_channels == (1,) and first[1].teacher_channels == (1,)


def test_a_class_without_teacher_or_label_is_refused():
    routes = make_routes([[(0, 0)]])
    require_coverage(routes, ["a", "b"], [1])
    with pytest.raises(ValueError, match="no teacher teaches and no training label covers: b"):
        require_coverage(routes, ["a", "b"], [])
    student = make_student(use_labels=False)
    with pytest.raises(ValueError, match="no training label covers: b"):
        student.prepare_teachers([make_teacher(("a",))])


def test_two_teachers_of_one_class_each():
    student = make_student(specs=[make_spec(), make_spec()], use_labels=False).train()
    student.prepare_teachers([make_teacher(("b",)), make_teacher(("a",))])
    assert [route.student_channels for route in student.routes] == [(1,), (0,)]
    assert len(student(make_batch(labels=False))) == 6


class Trainer:
    start_iter = 0


def ema(decay=0.5, start=0):
    return lambda student: EmaTeacher(
        student=student, decay=decay, start=start, input_format="RGB", class_names=["a", "b"], loss=DistillationLoss()
    )


def test_moving_average_teacher_follows_starts_late_and_is_saved():
    student = make_student(specs=(), teacher_specs=[], make_ema=ema(start=1)).train()
    hook = DistillationHook(student)
    hook.trainer = Trainer()
    hook.before_train()
    assert "kd_cls_loss0" not in student(make_batch())
    start = student.head.size.out.bias.detach().clone()
    student.head.size.out.bias.data += 1.0
    hook.before_step()
    # the first decay is (1 + 0) / (10 + 0) = 0.1
    assert torch.allclose(student.ema_teacher.model.head.size.out.bias, start + 0.9)
    assert "kd_cls_loss0" in student(make_batch())
    other = DistillationHook(make_student(specs=(), teacher_specs=[], make_ema=ema()))
    other.load_state_dict(hook.state_dict())
    assert torch.equal(other._model.ema_teacher.model.head.size.out.bias, student.ema_teacher.model.head.size.out.bias)


def test_warm_start_copies_weights_and_the_classes_taught():
    student = make_student(labelled=[0, 1])
    teacher = make_teacher(("b",))
    student.prepare_teachers([teacher])
    own = student.head.heatmap.out.bias.detach().clone()
    teacher.model.head.heatmap.out.bias.data.fill_(7.0)
    hook = DistillationHook(student, warm_start=0)
    hook.trainer = Trainer()
    hook.before_train()
    assert student.head.heatmap.out.bias.tolist() == [own[0].item(), 7.0]
    assert torch.equal(student.head.size.out.weight, teacher.model.head.size.out.weight)


def test_no_teacher_at_all_is_an_error():
    student = make_student(teacher_specs=[])
    with pytest.raises(ValueError, match="DISTILL.TEACHERS is empty"):
        student.prepare_teachers()


def test_missing_files_are_named(tmp_path):
    student = make_student()
    with pytest.raises(FileNotFoundError, match="teacher.yaml"):
        student.prepare_teachers()


def test_evaluation_needs_no_teacher():
    student = make_student().eval()
    assert len(student(make_batch(labels=False))) == 2 and student.teachers == ()
    assert centernet_parts(2)["num_classes"] == 2
