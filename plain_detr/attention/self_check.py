"""Whether a compiled kernel can be trusted on the machine at hand: it must compute a small case as the formula does."""

import functools
import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plain_detr.attention.naive import naive_biased_attention

_CPU = torch.device("cpu")
_ROWS, _COLUMNS, _PADDED = 5, 18, 3  # of the map that attention is tried on; its last columns are padding


def once(check: Callable[[], bool]) -> Callable[[], bool]:
    """A check that runs once a process, and whose result torch.compile takes as it is."""
    kept = functools.cache(check)

    @torch.compiler.assume_constant_result
    def result() -> bool:
        return kept()

    return result


def computes_the_same(
    name: str,
    kernel: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    shapes: Sequence[Sequence[int]],
    *,
    device: torch.device = _CPU,
    dtype: torch.dtype = torch.float32,
    rtol: float = 1e-4,
) -> bool:
    """Whether ``kernel`` has the value and the gradients of ``formula``; the log says so where it has not.

    The answer is the machine's: it does not depend on the caller's autocast, gradient mode, default type and device,
    or number of threads.

    Args:
        name: of the kernel, for the log.
        kernel, formula: functions of the same tensors; ``formula`` gets them in float32.
        shapes: of these tensors, which are random.
        device, dtype: of what the kernel gets.
        rtol: largest error over the largest value.
    """
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device(device),
            torch.autocast(device.type, enabled=False),
        ):
            generator = torch.Generator("cpu").manual_seed(0)
            tensors = [torch.randn(*shape, generator=generator, device="cpu").to(device, dtype) for shape in shapes]
            exact = _value_and_gradients(formula, [tensor.float() for tensor in tensors])
            for mine, other in zip(_value_and_gradients(kernel, tensors), exact):
                error = float((mine.float() - other).abs().max() / other.abs().max())
                if not error < rtol:
                    raise ArithmeticError(f"relative error {error:.2g}")
    except Exception as error:  # whatever a compiler or driver raises: there are other ways to compute this
        logging.getLogger(__name__).warning("%s is wrong on this machine and not used: %s", name, error)
        return False
    finally:
        torch.set_default_dtype(default)
        torch.set_num_threads(threads)
    return True


def attention_is_right(
    name: str,
    attend: Callable[..., Tensor],
    channels: int,
    *,
    device: torch.device = _CPU,
    dtype: torch.dtype = torch.float32,
    rtol: float = 1e-4,
) -> bool:
    """``computes_the_same`` for ``attend(q, k, v, bias_x, bias_y, mask)`` with heads of ``channels``."""

    def padding() -> Tensor:
        return (torch.arange(_ROWS * _COLUMNS, device=device) % _COLUMNS >= _COLUMNS - _PADDED)[None]

    def kernel(*tensors: Tensor) -> Tensor:
        return attend(*tensors, torch.zeros(padding().shape, device=device).masked_fill(padding(), -math.inf))

    def formula(*tensors: Tensor) -> Tensor:
        q, k, v, bias_x, bias_y = tensors
        return naive_biased_attention(q, k, v, bias_x, bias_y, padding())

    sizes = [(70, channels), (_ROWS * _COLUMNS, channels), (_ROWS * _COLUMNS, channels), (70, _COLUMNS), (70, _ROWS)]
    shapes = [(1, 2, *size) for size in sizes]
    return computes_the_same(name, kernel, formula, shapes, device=device, dtype=dtype, rtol=rtol)


def _value_and_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value.float().square().sum(), leaves)]
