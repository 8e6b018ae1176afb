"""Parameters, operations, time and memory of a detector by module: fvcore's count beside torch's profiler."""

import math
from typing import Any, NamedTuple

import torch
from detectron2.evaluation import inference_context
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import FlopCountAnalysis
from tabulate import tabulate
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function


class ModelProfile(NamedTuple):
    """What ``profile_model`` found.

    Attributes:
        modules: one forward pass, a dict a module, what lies inside it included, parents before their children: its
            ``name``, empty for the whole model; ``kind``, its class; ``parameters``; ``flops``, multiply-adds, or None
            where they were not counted; ``calls``; ``seconds`` of all calls; ``kept``, bytes that are left allocated,
            in training mostly what the backward pass needs.
        backward_seconds: of one backward pass; None in evaluation.
        trace: the profiler, for ``export_chrome_trace`` and its tables by operation.
        uncounted: operations of others than torch that fvcore has no rule for, and how many there are.
    """

    modules: list[dict[str, Any]]
    backward_seconds: float | None
    trace: profile
    uncounted: dict[str, int]


def profile_model(model: nn.Module, batch: list[dict], *, depth: int = 2, flops: bool = True) -> ModelProfile:
    """Run a detector once to warm up and once under the profiler, forward and, in training mode, backward.

    Args:
        model: in training or evaluation mode; it stays there.
        batch: detectron2's dicts, with ``instances`` in training.
        depth: modules are listed down to this many dots in their names, plus one.
        flops: whether to count operations, in an extra pass in evaluation mode.
    """
    counts, uncounted = _count_flops(model, batch) if flops else ({}, {})
    _pass(model, batch)
    names = {part: name for name, part in model.named_modules() if not name or name.count(".") < depth}
    ranges: list[record_function] = []

    def enter(part: nn.Module, inputs) -> None:
        if part in names:
            ranges.append(record_function(f"module: {names[part]}").__enter__())

    def leave(part: nn.Module, inputs, output) -> None:
        if part in names:
            ranges.pop().__exit__(None, None, None)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with register_module_forward_pre_hook(enter), register_module_forward_hook(leave):
        with profile(activities=activities, profile_memory=True) as trace:
            _pass(model, batch)
    events = {event.key: event for event in trace.key_averages()}
    device = "device" if next(model.parameters()).is_cuda else "cpu"
    modules = [
        {
            "name": name,
            "kind": type(part).__name__,
            "parameters": sum(one.numel() for one in part.parameters()),
            "flops": counts.get(name),
            "calls": event.count,
            "seconds": getattr(event, f"{device}_time_total") * 1e-6,
            "kept": getattr(event, f"{device}_memory_usage"),
        }
        for part, name in names.items()
        if (event := events.get(f"module: {name}"))  # else it was not called, or not through its forward
    ]
    return ModelProfile(modules, events["backward"].cpu_time_total * 1e-6 if model.training else None, trace, uncounted)


def _count_flops(model: nn.Module, batch: list[dict]) -> tuple[dict[str, int], dict[str, int]]:
    with inference_context(model), torch.no_grad():
        inputs = [{key: value for key, value in one.items() if key != "instances"} for one in batch]
        analysis = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        analysis.set_op_handle("torchvision::deform_conv2d", _deform_flops)
        # detectron2 traces the model as the part "model" of a wrapper
        counts = {name.removeprefix("model").removeprefix("."): int(n) for name, n in analysis.by_module().items()}
        return counts, {op: n for op, n in analysis.unsupported_ops().items() if not op.startswith(("aten:", "prim:"))}


def _attention_flops(inputs, outputs) -> int:
    query, key, value = (one.type().sizes() for one in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _deform_flops(inputs, outputs) -> int:
    return math.prod(outputs[0].type().sizes()) * math.prod(inputs[1].type().sizes()[1:])


def _pass(model: nn.Module, batch: list[dict]) -> None:
    """Forward and, in training mode, backward, to the end of what was queued on a GPU."""
    with torch.set_grad_enabled(model.training):
        found = model(batch)
        _wait()
    if model.training:
        with record_function("backward"):
            torch.stack(list(found.values())).sum().backward()
            _wait()
        model.zero_grad()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def profile_table(found: ModelProfile) -> str:
    """Markdown, one line a module."""
    names = ("module", "", "parameters", "GFLOPs", "calls", "forward ms", "share", "kept MiB")
    digits = ("", "", "", ".2f", "", ".1f", ".0%", ".1f")
    rows = []
    for name, kind, parameters, flops, calls, seconds, kept in map(dict.values, found.modules):
        share = seconds / (found.modules[0]["seconds"] or 1)
        flops = None if flops is None else flops * 1e-9
        rows.append((name or "all", kind, parameters, flops, calls, seconds * 1e3, share, kept / 2**20))
    if found.backward_seconds is not None:
        rows.append(("backward", None, None, None, 1, found.backward_seconds * 1e3))
    table = tabulate(rows, names, tablefmt="pipe", intfmt=",", floatfmt=digits, missingval="-")
    uncounted = "".join(f" Not counted: {name} ({count} times)." for name, count in found.uncounted.items())
    return f"{table}\n\nGFLOPs are multiply-adds of one pass in evaluation mode.{uncounted}\n"


def noise_batch(count: int, hw: tuple[int, int], num_classes: int, objects: int = 8) -> list[dict]:
    """Always the same noise with random boxes: ``count`` images of ``hw`` pixels in detectron2's format."""
    generator, batch = torch.Generator().manual_seed(0), []
    for _ in range(count):
        corners, sizes = torch.rand(2, objects, 2, generator=generator)
        instances = Instances(hw)
        boxes = torch.cat([0.6 * corners, 0.6 * corners + 0.05 + 0.35 * sizes], dim=1)  # of the image's size
        instances.gt_boxes = Boxes(boxes * torch.tensor(hw[::-1] * 2))
        instances.gt_classes = torch.randint(0, num_classes, (objects,), generator=generator)
        image = torch.randint(0, 256, (3, *hw), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": hw[0], "width": hw[1]})
    return batch
