"""Where a detector's parameters, operations, time and memory are, module by module."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

_PREFIX = "module: "


class ModuleCost(NamedTuple):
    """One module, what lies inside it included.

    Attributes:
        name: in the model, empty for all of it.
        kind: its class.
        parameters: how many.
        flops: multiply-adds of one forward pass, matrix products and convolutions; None where they were not counted.
        calls: of one forward pass.
        seconds: of one forward pass.
        kept: bytes that a forward pass leaves allocated; in training mostly what the backward pass needs.
    """

    name: str
    kind: str
    parameters: int
    flops: int | None
    calls: int
    seconds: float
    kept: int


class ModelProfile(NamedTuple):
    """What ``profile_model`` found.

    Attributes:
        modules: parents before their children.
        backward_seconds: of one backward pass; None in evaluation.
        trace: the profiler, for ``export_chrome_trace``.
        uncounted: operations without a rule for FLOPs that are more than bookkeeping, by name.
    """

    modules: list[ModuleCost]
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
    training = model.training
    counts, uncounted = count_flops(model, batch) if flops else ({}, {})
    _pass(model, batch)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    modules = {name: part for name, part in model.named_modules() if not name or name.count(".") < depth}
    with _named_ranges(modules), profile(activities=activities, profile_memory=True) as trace:
        backward = _pass(model, batch)
    events = {event.key: event for event in trace.key_averages() if event.key.startswith(_PREFIX)}
    on_gpu = next(model.parameters()).is_cuda
    found = []
    for name, part in modules.items():
        event = events.get(_PREFIX + name)
        if event is None:  # not called, or not through its forward
            continue
        seconds = (event.device_time_total if on_gpu else event.cpu_time_total) * 1e-6
        kept = event.device_memory_usage if on_gpu else event.cpu_memory_usage
        parameters = sum(one.numel() for one in part.parameters())
        found.append(ModuleCost(name, type(part).__name__, parameters, counts.get(name), event.count, seconds, kept))
    return ModelProfile(found, backward if training else None, trace, uncounted)


def count_flops(model: nn.Module, batch: list[dict]) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-adds of every module on ``batch`` in evaluation mode, and the operations that have no rule."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            inputs = [{key: value for key, value in one.items() if key != "instances"} for one in batch]
            analysis = FlopCountAnalysis(model, inputs)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
            analysis.set_op_handle("torchvision::deform_conv2d", _deform_flops)
            counts = {_own_name(name): int(count) for name, count in analysis.by_module().items()}
            uncounted = {name: count for name, count in analysis.unsupported_ops().items() if name in _HEAVY}
    finally:
        model.train(training)
    return counts, uncounted


# Operations that would be worth counting; the rest of what has no rule works on single numbers.
_HEAVY = {"aten::lstm", "aten::fft_fft2", "aten::grid_sampler", "aten::_native_multi_head_attention"}


def _own_name(name: str) -> str:
    """detectron2 wraps the model to trace it."""
    return name.removeprefix("model").removeprefix(".")


def _attention_flops(inputs, outputs) -> int:
    *batch, queries, channels = inputs[0].type().sizes()
    keys, values = inputs[1].type().sizes()[-2], inputs[2].type().sizes()[-1]
    return math.prod(batch) * queries * keys * (channels + values)


def _deform_flops(inputs, outputs) -> int:
    weight = inputs[1].type().sizes()
    return math.prod(outputs[0].type().sizes()) * math.prod(weight[1:])


def _pass(model: nn.Module, batch: list[dict]) -> float | None:
    """Forward, and backward with its seconds in training mode."""
    if not model.training:
        with torch.no_grad():
            model(batch)
        _wait()
        return None
    model.zero_grad()
    total = sum(model(batch).values())
    _wait()
    start = time.perf_counter()
    with record_function("backward"):
        total.backward()
        _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def _named_ranges(modules: dict[str, nn.Module]) -> Iterator[None]:
    """While open, every call of the modules is a range of the profiler."""
    open_ranges: list[record_function] = []
    with ExitStack() as stack:
        for name, part in modules.items():

            def enter(module, inputs, name=name):
                open_ranges.append(record_function(_PREFIX + name))
                open_ranges[-1].__enter__()

            def leave(module, inputs, output):
                open_ranges.pop().__exit__(None, None, None)

            for handle in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave)):
                stack.callback(handle.remove)
        yield


def profile_table(found: ModelProfile) -> str:
    """Markdown, one line a module, children indented."""
    whole = found.modules[0]
    lines = [
        "| module | | parameters | GFLOPs | calls | forward ms | share | kept MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found.modules:
        indent = "&nbsp;&nbsp;" * (one.name.count(".") + 1) if one.name else ""
        flops = "-" if one.flops is None else f"{one.flops / 1e9:.2f}"
        share = one.seconds / whole.seconds if whole.seconds else 0.0
        lines.append(
            f"| {indent}{one.name or 'all'} | {one.kind} | {one.parameters:,} | {flops} | {one.calls} |"
            f" {one.seconds * 1e3:.1f} | {share:.0%} | {one.kept / 2**20:.1f} |"
        )
    if found.backward_seconds is not None:
        lines.append(f"| backward | | | | 1 | {found.backward_seconds * 1e3:.1f} | | |")
    text = "\n".join(lines) + "\n\nGFLOPs are multiply-adds of one pass in evaluation mode.\n"
    if found.uncounted:
        text += f"Not counted: {', '.join(f'{name} ({count} times)' for name, count in found.uncounted.items())}.\n"
    return text
