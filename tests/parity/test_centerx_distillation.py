"""Distillation, the adaptive loss and skipped steps against the original's numbers."""

import pytest
import torch

from centerx.checkpoint_keys import convert
from centerx.distill.distilled_centernet import DistilledCenterNet
from centerx.distill.teachers import Teacher, TeacherSpec
from centerx.distill.terms import DistillationLoss
from d2x.engine.losses.adaptive_loss import AdaptiveLoss
from d2x.engine.losses.loss_guard import LossGuard

from .centerx_parts import allowed, check_whole, load_released, model_for, released_state
from .golden import cases, load
from .test_centerx_model import batch, check_gradients, check_maps, in_either_precision

# The original goes through the letters in this order, whatever their place in the name.
NAMES = {"CLS_LOSS": "*cls*", "WH_LOSS": "*wh*", "OFF_LOSS": "*off*"}


def slices(options: dict) -> list[tuple[int, int]]:
    """Student channels of each teacher."""
    ends = options["KD_CLS_INDEX"]
    return list(zip([0, *ends[:-1]], ends))


def released_losses(kd: dict) -> list[DistillationLoss]:
    return [
        DistillationLoss(
            weight=kd["KD_WEIGHT"][t],
            heatmap_weight=kd["KD_CLS_WEIGHT"][t],
            size_weight=kd["KD_WH_WEIGHT"][t],
            offset_weight=kd["KD_REG_WEIGHT"][t],
            norm_size=kd["NORM_WH"][t],
        )
        for t in range(len(kd["KD_WEIGHT"]))
    ]


@pytest.mark.parametrize("case", cases("centerx", "kd_loss"))
def test_distillation_loss(case):
    golden = load("centerx", case)
    kd = golden.info["options"]["KD"]
    student = {head: golden.tensors[f"input.student.{head}"].clone().requires_grad_() for head in ("cls", "wh", "reg")}
    entries, heads = {}, {"cls": "cls", "wh": "wh", "off": "reg"}
    for t, (loss, (start, stop)) in enumerate(zip(released_losses(kd), slices(kd))):
        teacher = {head: golden.tensors[f"input.teacher{t}.{head}"] for head in ("cls", "wh", "reg")}
        mask = loss.mask(teacher["cls"]).amax(1, keepdim=True)
        if f"output.peak_mask{t}" in golden.tensors:
            torch.testing.assert_close(mask, golden.tensors[f"output.peak_mask{t}"], rtol=1e-6, atol=0)
        terms = loss.from_heatmaps(
            student["cls"][:, start:stop],
            teacher["cls"],
            (student["wh"], teacher["wh"]),
            (student["reg"], teacher["reg"]),
        )
        entries.update({f"kd_{term}_loss{t}": value for term, value in terms.items()})
    assert {name.removeprefix("output.") for name in golden.tensors if name.startswith("output.kd_")} == set(entries)
    for name, value in entries.items():
        torch.testing.assert_close(value, golden.tensors[f"output.{name}"], rtol=1e-5, atol=1e-9)
        head = heads[name.split("_")[1]]
        if f"grad.{name}.{head}" in golden.tensors:
            (found,) = torch.autograd.grad(value, student[head], retain_graph=True)
            expected = golden.tensors[f"grad.{name}.{head}"]
            scale = max(1.0, _entry_weight(kd, name))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7 * scale)
    total = sum(entries.values())
    torch.testing.assert_close(total, golden.tensors["output.total"], rtol=1e-5, atol=1e-9)
    gradients = dict(zip(student, torch.autograd.grad(total, list(student.values()))))
    for head, found in gradients.items():
        if f"grad.total.{head}" in golden.tensors:
            scale = max(1.0, *(_entry_weight(kd, name) for name in entries if heads[name.split("_")[1]] == head))
            torch.testing.assert_close(found, golden.tensors[f"grad.total.{head}"], rtol=1e-4, atol=1e-7 * scale)


def _entry_weight(kd: dict, name: str) -> float:
    t, key = int(name.split("loss")[1]), {"cls": "CLS", "wh": "WH", "off": "REG"}[name.split("_")[1]]
    return kd["KD_WEIGHT"][t] * kd[f"KD_{key}_WEIGHT"][t]


@in_either_precision
@pytest.mark.parametrize("case", cases("centerx", "model_kd"))
def test_whole_student_with_teachers(case, dtype):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    prefix = "MODEL.CENTERNET.KD."
    kd = {k.removeprefix(prefix): v for k, v in options["student"]["opts"].items() if k.startswith(prefix)}
    classes = [str(index) for index in range(kd["KD_CLS_INDEX"][-1])]
    specs, teachers = [], []
    for t, (loss, part) in enumerate(zip(released_losses(kd), slices(kd))):
        model = model_for(options["teachers"][t])
        load_released(model, golden.group(f"state.teacher{t}"))
        model.to(dtype)
        specs.append(TeacherSpec(config=f"teacher {t}", weights="", loss=loss, student_slice=part))
        names = classes[part[0] : part[1]]
        teachers.append(Teacher(name=f"teacher {t}", model=model, input_format="RGB", class_names=names, loss=loss))
    student = model_for(
        options["student"],
        DistilledCenterNet,
        teacher_specs=specs,
        class_names=classes,
        labelled=range(len(classes)),
        use_labels=not kd.get("KD_WITHOUT_LABEL", False),
        student_normalisation=True,
    )
    load_released(student, golden.group("state.student"))
    student.to(dtype)
    student.prepare_teachers(teachers)
    student.train()
    kept = {}
    student.head.register_forward_hook(lambda module, args, out: kept.update(student=out))
    for t, teacher in enumerate(teachers):
        teacher.model.head.register_forward_hook(lambda module, args, out, t=t: kept.update({t: out}))
    losses = student(batch(golden))
    assert set(losses) == set(golden.group("output.loss"))
    for name, value in losses.items():
        tolerance = allowed(golden, f"output.loss.{name}", dtype)
        check_whole(name, value, tensors[f"output.loss.{name}"], tolerance)
    total = sum(losses.values())
    check_whole("total", total, tensors["output.total"], allowed(golden, "output.total", dtype))
    check_maps(kept["student"], golden, "output.student", dtype)
    for t in range(len(teachers)):
        check_maps(kept[t], golden, f"output.teacher{t}", dtype)
    total.backward()
    names = convert(released_state(golden, "state.student")).renamed
    check_gradients(student, golden, names, tensors["output.grad_norm"], "output.grad_norm", dtype)


@pytest.mark.parametrize("case", [c for c in cases("centerx", "communism") if "BUG" not in c])
def test_adaptive_loss(case):
    golden = load("centerx", case)
    options = golden.info["options"]
    losses = {name: golden.tensors[f"input.loss.{name}"].clone().requires_grad_() for name in options["names"]}
    weighted = losses
    if options["enable"]:
        weighted = AdaptiveLoss(targets=[(pattern, options[key]) for key, pattern in NAMES.items()])(losses)
    total = sum(weighted.values())
    total.backward()
    torch.testing.assert_close(total, golden.tensors["output.total"].to(total), rtol=1e-6, atol=1e-7)
    for name, loss in losses.items():
        torch.testing.assert_close(loss.grad, golden.tensors[f"grad.{name}"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", cases("centerx", "skip_loss"))
def test_skipped_steps(case):
    golden = load("centerx", case)
    guard = LossGuard(factor=golden.info["options"]["SKIP_WEIGHT"], step_anyway=True)
    totals, history, gradients = [], [], []
    for value in golden.tensors["input.loss_sequence"]:
        loss = value.clone().requires_grad_()
        total = sum(guard({"loss": loss}).values())
        total.backward()
        totals.append(total.detach())
        history.append(guard.reference)
        gradients.append(torch.zeros(()) if loss.grad is None else loss.grad)
        assert not guard.forbids_step
    close = {"rtol": 1e-6, "atol": 0}
    expected = golden.tensors["output.backward_total"]  # NaN where the original back-propagates 0 * NaN; ours is 0
    torch.testing.assert_close(torch.stack(totals), expected.nan_to_num(0.0), **close)
    torch.testing.assert_close(
        torch.tensor(history, dtype=torch.float64), golden.tensors["output.history"].double(), **close
    )
    torch.testing.assert_close(torch.stack(gradients), golden.tensors["grad.loss"], **close)
