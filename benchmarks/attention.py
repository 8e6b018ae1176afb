"""BoxRPB cross-attention against the materialised bias, and against the same attention without any bias.

Forward alone and forward with backward; time, and memory above that of the inputs. The same queries x map as a decoder
layer meets in an image of 800 x 1333 pixels at stride 16.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.baselines.attention import MaterialisedCrossAttention
from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.memory import peak_memory
from benchmarks.report import write
from d2x.errors import one_line_errors
from plain_detr.decoder_layer import CrossAttention
from plain_detr.modulation.box_rpb import BoxRPB

MATERIALISED, AXIAL, NO_BIAS = "materialised", "BoxRPB", "no bias"
STRIDE = 16
BARS = {
    False: Bar(time=0.5, memory=0.35),  # forward
    True: Bar(time=0.75, memory=0.35),  # forward and backward
}
NO_BIAS_BAR = {"cpu": 1.3, "cuda": 1.05}


class Size(NamedTuple):
    """Of one attention: queries, (Hf, Wf), images."""

    queries: int
    hw: tuple[int, int]
    batch: int = 1
    hidden_dim: int = 256
    heads: int = 8


def build(variant: str, size: Size, backward: bool, device: str = "cpu", dtype: str = "float32") -> Callable:
    """The attention of one variant as something to run; all variants have the same weights and inputs."""
    torch.manual_seed(0)
    box_rpb = BoxRPB(num_heads=size.heads)
    attention = CrossAttention(hidden_dim=size.hidden_dim, num_heads=size.heads, box_rpb=box_rpb)
    if variant == NO_BIAS:
        attention.box_rpb = None
    module = (MaterialisedCrossAttention(attention) if variant == MATERIALISED else attention).to(device)
    height, width = size.hw
    queries = torch.randn(size.batch, size.queries, size.hidden_dim, device=device, requires_grad=backward)
    keys = torch.randn(size.batch, height * width, size.hidden_dim, device=device, requires_grad=backward)
    values = torch.randn(size.batch, height * width, size.hidden_dim, device=device, requires_grad=backward)
    extent = torch.tensor([width, height], device=device) * float(STRIDE)
    centre, side = torch.rand(2, size.batch, size.queries, 2, device=device)
    boxes = torch.cat([centre * extent, side * extent / 2], dim=-1)
    precision = getattr(torch, dtype)

    def run():
        with torch.set_grad_enabled(backward), torch.autocast(device, precision, enabled=precision != torch.float32):
            out = module(queries, keys, values, boxes, size.hw, STRIDE)
        if backward:
            module.zero_grad()
            queries.grad = keys.grad = values.grad = None
            out.float().square().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def run(size: Size, *, repeats: int, device: str = "cpu", dtype: str = "float32", memory: bool = True) -> list:
    """All comparisons of one size."""
    found: list[Comparison] = []
    for backward, passes in ((False, "forward"), (True, "forward+backward")):
        what = f"{passes}, {size.queries} queries x {size.hw[0]}x{size.hw[1]}, {size.heads} heads, {dtype}"
        make = partial(build, size=size, backward=backward, device=device, dtype=dtype)
        peaks = {}
        if memory and device == "cpu":
            peaks = {name: peak_memory(build, name, size, backward, device, dtype) for name in (MATERIALISED, AXIAL)}
        pair = {name: make(name) for name in (MATERIALISED, AXIAL)}
        bars = {AXIAL: BARS[backward]}
        found += compare(what, pair, baseline=MATERIALISED, repeats=repeats, bars=bars, memory=peaks)
        pair = {name: make(name) for name in (NO_BIAS, AXIAL)}
        found += compare(what, pair, baseline=NO_BIAS, repeats=repeats, bars={AXIAL: Bar(NO_BIAS_BAR[device])})
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="bars: time <= 0.5x forward, <= 0.75x forward+backward, memory <= 0.35x of the materialised bias;\n"
        "time <= 1.3x (GPU: 1.05x) of attention without bias",
    )
    parser.add_argument("--queries", type=int, default=1800, help="default %(default)s")
    parser.add_argument("--hw", type=int, nargs=2, default=(50, 84), help="rows and columns of the map (default 50 84)")
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 is autocast")
    add_options(parser, "attention")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns the comparisons."""
    args = parse_args(argv)
    prepare(args)
    size = Size(args.queries, tuple(args.hw), args.batch)
    if args.quick:
        size = Size(40, (5, 8), 1, hidden_dim=32, heads=2)
    found = run(size, repeats=args.repeats, device=args.device, dtype=args.dtype, memory=not args.quick)
    write(found, args.output, args.name, quick=args.quick)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
