"""The compiled kernels against the formulas that they stand for, and what happens where there are none."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plain_detr.attention import cpp as cpp_attention
from plain_detr.attention import cpp_library
from plain_detr.attention.biased import biased_attention
from plain_detr.attention.cpp import cpp_works
from plain_detr.attention.self_check import computes_the_same
from plain_detr.decoder_layer import CrossAttention
from plain_detr.modulation.axis_mlp import axis_mlp, axis_mlp_works
from plain_detr.modulation.box_rpb import BoxRPB
from tests import fork_server
from tests.plain_detr.test_attention import inputs, padding_of

needs_compiler = pytest.mark.skipif(cpp_library.library() is None, reason="no C++ compiler")

# Blocks are 48 queries by whole rows of up to 264 columns; vectors are 8 columns, and heads are padded to whole ones.
SIZES = [
    {"queries": 9, "height": 5, "width": 6, "channels": 4},
    {"queries": 50, "height": 7, "width": 11, "channels": 10},
    {"queries": 1, "height": 1, "width": 1, "channels": 8},
    {"queries": 100, "height": 9, "width": 8, "channels": 16},
    {"queries": 49, "height": 40, "width": 13, "channels": 24, "heads": 1},
    {"queries": 5, "height": 2, "width": 300, "channels": 32},
    {"queries": 7, "height": 3, "width": 17, "channels": 64},
    {"queries": 2, "height": 3, "width": 9, "channels": 256, "heads": 1},
]


def run(tensors, padding, implementation, **options):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = biased_attention(*leaves, padding, implementation=implementation, **options)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out, *(leaf.grad for leaf in leaves)]


@needs_compiler
@pytest.mark.parametrize("value", [None, -math.inf, -100.0, -1.0])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size.values())))
def test_attention_equals_the_formula_in_value_and_gradient(size, value):
    tensors = [tensor.float() for tensor in inputs(**size)]
    padding = None if value is None else padding_of(2, size["height"], size["width"])
    options = {} if value is None else {"padding_value": value}
    found = run(tensors, padding, "cpp", **options)
    wanted = run([tensor.double() for tensor in tensors], padding, "naive", **options)
    for name, one, other in zip(("out", "q", "k", "v", "bias_x", "bias_y"), found, wanted):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@needs_compiler
def test_auto_takes_the_kernels_where_they_fit():
    q = torch.zeros(1, 1, 1, 32)
    assert cpp_works(q) and cpp_works(q.bfloat16())
    assert cpp_works(q[..., :4]) and not cpp_works(torch.zeros(1, 1, 1, 257))
    assert not cpp_works(q.double()) and not cpp_works(q.to("meta"))


@needs_compiler
def test_results_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(cpp_attention, "PRODUCTS_A_THREAD", 1)
    tensors = [tensor.float() for tensor in inputs(queries=130, height=9, width=13, channels=32)]
    attention = CrossAttention(hidden_dim=32, num_heads=4, box_rpb=BoxRPB(num_heads=4, hidden_dim=40))
    boxes = torch.rand(2, 800, 4) * 150
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        attention.zero_grad()
        bias = attention.box_rpb(boxes, (9, 13), 16)
        (bias.x.square().sum() + bias.y.square().sum()).backward()
        grads = [parameter.grad for parameter in attention.box_rpb.parameters()]
        results.append([*run(tensors, None, "cpp"), bias.x, bias.y, *grads])
    assert all(torch.equal(one, other) for one, other in zip(*results))


@needs_compiler
@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_attention_is_exact_for_logits_of_any_size(scale):
    """Biases of thousands are what boxes of a thousand pixels give; some weights then are exactly 0."""
    q, k, v, bias_x, bias_y = (tensor.detach().float() for tensor in inputs(queries=20, channels=8, width=40))
    found = biased_attention(q, k, v, bias_x * scale, bias_y * scale, implementation="cpp")
    exact = (tensor.double() for tensor in (q, k, v, bias_x * scale, bias_y * scale))
    torch.testing.assert_close(found.double(), biased_attention(*exact, implementation="naive"), rtol=0, atol=1e-3)


@needs_compiler
def test_attention_passes_on_what_is_not_a_number():
    """A diverged model must be seen to be one."""
    q, k, v, bias_x, bias_y = (tensor.detach().float() for tensor in inputs(channels=8))
    bias_x[0, 0, 2, 3] = math.nan
    found = biased_attention(q, k, v, bias_x, bias_y, implementation="cpp")
    assert found[0, 0, 2].isnan().all()
    found[0, 0, 2] = 0
    assert found.isfinite().all()


@needs_compiler
def test_a_query_that_may_look_nowhere_is_not_a_number():
    tensors = [tensor.detach().float() for tensor in inputs(channels=8)]
    padding = torch.zeros(2, 21, dtype=torch.bool)
    padding[1] = True
    for form in ("cpp", "naive"):
        out = biased_attention(*tensors, padding, implementation=form)
        assert out[0].isfinite().all() and out[1].isnan().all()


@needs_compiler
def test_attention_under_autocast_is_float32_inside():
    tensors = [tensor.detach().bfloat16() for tensor in inputs(channels=8)]
    with torch.autocast("cpu", torch.bfloat16):
        out = biased_attention(*tensors, implementation="auto")
    assert out.dtype == torch.bfloat16
    wanted = biased_attention(*(tensor.float() for tensor in tensors), implementation="naive")
    torch.testing.assert_close(out, wanted.bfloat16(), rtol=0, atol=2e-2)


def plain_mlp(mlp: nn.Sequential, ends: torch.Tensor, cells: int, step: float) -> torch.Tensor:
    centres = (torch.arange(cells, dtype=ends.dtype) + 0.5) * step
    return mlp(ends[:, None] - centres[:, None]).permute(2, 0, 1)


def mlp_of(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=False))


@needs_compiler
@pytest.mark.parametrize("outputs", [1, 3, 8, 11])
@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("cells", [1, 13, 84])
def test_axis_mlp_equals_the_network_at_every_cell(cells, inputs, outputs):
    torch.manual_seed(cells + inputs + outputs)
    mlp, step = mlp_of(inputs, 37, outputs), 16
    with torch.no_grad():
        mlp[0].weight[:3] = torch.tensor([[1.0, -1.0], [0.0, 0.0], [-1.0, 0.0]])[:, :inputs]  # a width; nothing; steep
    ends = (torch.rand(301, inputs) * 3 - 1) * cells * step  # also far outside of the map
    exact = mlp_of(inputs, 37, outputs).double()
    exact.load_state_dict(mlp.state_dict())
    results = []
    for function, module, points in ((axis_mlp, mlp, ends), (plain_mlp, exact, ends.double())):
        points = points.clone().requires_grad_()
        out = function(module, points, cells, step)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out, points.grad, *(parameter.grad for parameter in module.parameters())])
    with torch.no_grad():
        # What a value is made of, signs aside: each of 37 units and of the cells before it is a step of a float32 sum,
        # and their roundings add up like a random walk.
        weight, bias, out_weight = (parameter.abs() for parameter in exact.parameters())
        terms = ((ends.double().abs() + cells * step) @ weight.t() + bias) @ out_weight.t()
        off = (results[0][0].double() - results[1][0]).abs().amax(-1)
        assert (off <= 4 * math.sqrt(37 + cells) * 2**-24 * terms.t()).all()
    # Gradients jump where a unit bends. A cell on which one bends, up to rounding, may count on either side.
    for name, one, other in zip(("ends", "weight", "bias", "out_weight"), *(result[1:] for result in results)):
        torch.testing.assert_close(
            one.double() / other.abs().max(), other / other.abs().max(), rtol=0, atol=2e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_axis_mlp_for_any_numbers(data):
    numbers = st.floats(-1000, 1000, width=32)
    weight = torch.tensor(data.draw(st.lists(numbers, min_size=12, max_size=12))).view(6, 2)
    bias = torch.tensor(data.draw(st.lists(numbers, min_size=6, max_size=6)))
    ends = torch.tensor(data.draw(st.lists(numbers, min_size=4, max_size=4))).view(2, 2)
    mlp = mlp_of(2, 6, 2)
    with torch.no_grad():
        mlp[0].weight.copy_(weight)
        mlp[0].bias.copy_(bias)
        found = axis_mlp(mlp, ends, 5, 16)
        wanted = plain_mlp(mlp.double(), ends.double(), 5, 16)
    largest = (weight.abs() @ (ends.abs() + 80).t()).max() + bias.abs().max()  # of what is added up
    assert (found - wanted).abs().max() <= 1e-5 * float(largest) + 1e-30


@needs_compiler
def test_axis_mlp_passes_on_what_is_not_a_number():
    mlp, ends = mlp_of(2, 20, 4), torch.rand(3, 2) * 50
    ends[1, 0] = math.nan
    with torch.no_grad():
        out = axis_mlp(mlp, ends, 6, 16)
        out_of_infinite = axis_mlp(mlp, torch.tensor([[math.inf, 1.0]]), 6, 16)
    assert out[:, 1].isnan().all() and out[:, [0, 2]].isfinite().all()
    assert not out_of_infinite.isfinite().any()


@needs_compiler
def test_the_operators_keep_torchs_rules():
    tensors = [tensor.detach().float().requires_grad_() for tensor in inputs(channels=8)]
    mask = torch.zeros(2, 21)
    torch.library.opcheck(torch.ops.plain_detr.axial_attention.default, (*tensors, mask))
    mlp, ends = mlp_of(2, 20, 3), torch.rand(5, 2, requires_grad=True)
    parts = (ends, mlp[0].weight, mlp[0].bias, mlp[2].weight)
    torch.library.opcheck(torch.ops.plain_detr.axis_mlp.default, (*parts, 6, 0.25))


@needs_compiler
@pytest.mark.parametrize("channels", [8, 10])
def test_a_compiled_model_contains_the_kernels(channels):
    dim = 4 * channels
    attention = CrossAttention(hidden_dim=dim, num_heads=4, box_rpb=BoxRPB(num_heads=4, hidden_dim=8))
    q, k, boxes = torch.randn(2, 9, dim), torch.randn(2, 35, dim), torch.rand(2, 9, 4) * 90
    compiled = torch.compile(attention, dynamic=True, fullgraph=True, backend="aot_eager")
    results = []
    for module in (attention, compiled):
        attention.zero_grad()
        out = module(q, k, k, boxes, (5, 7), 16)
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in attention.parameters())])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


def test_bad_arguments():
    with pytest.raises(ValueError, match="heads of 264 channels"):
        biased_attention(*(tensor.float() for tensor in inputs(channels=264)), implementation="cpp")
    with pytest.raises(ValueError, match="takes contiguous float32"):
        cpp_library.call("axial_attention_forward", torch.zeros(2, dtype=torch.float64))


WITHOUT = """
import torch
from plain_detr.attention.biased import biased_attention
from plain_detr.modulation.box_rpb import BoxRPB
from plain_detr.attention.cpp import cpp_works
from plain_detr.attention.self_check import computes_the_same
q, k, x, y = torch.ones(1, 1, 2, 8), torch.ones(1, 1, 12, 8), torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 3)
print("works", cpp_works(q), tuple(biased_attention(q, k, k, x, y).shape))
BoxRPB(num_heads=2, hidden_dim=8)(torch.rand(1, 2, 4), (3, 4), 16)
try:
    biased_attention(q, k, k, x, y, implementation="cpp")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PLAIN_DETR_CPP": "0"}, 0),
        ({"CXX": "/nowhere/c++"}, 1),
        ({"CXX": "false"}, 1),
        ({"PATH": "/nowhere", "CXX": ""}, 1),
    ],
    ids=["not wanted", "no such file", "fails", "none"],
)
def test_without_a_compiler_torch_does_it(variables, said, tmp_path):
    done = fork_server.run("-c", WITHOUT, XDG_CACHE_HOME=str(tmp_path), **variables)
    assert "works False (1, 1, 2, 8)" in done.stdout and "needs a C++ compiler" in done.stdout, done.stderr
    assert done.stderr.count("no C++ kernels") == said


@needs_compiler
def test_processes_that_compile_at_once_do_not_disturb_each_other(tmp_path):
    cache, logs = tmp_path / "cache", [tmp_path / f"{i}.txt" for i in range(2)]
    started = [fork_server.Program(["-c", WITHOUT], log, XDG_CACHE_HOME=str(cache)) for log in logs]
    for process, log in zip(started, logs):
        assert process.wait() == 0 and "works True" in log.read_text(), log.read_text()
    assert len(list((cache / "plain_detr").iterdir())) == 1  # the library, nothing unfinished


@needs_compiler
def test_a_read_only_cache_is_no_obstacle(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    assert cpp_library._load() is not None


@needs_compiler
def test_kernels_are_not_traced_into_an_export():
    assert axis_mlp_works(torch.zeros(1, 2))

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = BoxRPB(num_heads=2, hidden_dim=8)

        def forward(self, boxes, q, k):
            bias = self.bias(boxes, (3, 4), 16)
            return biased_attention(q, k, k, bias.x, bias.y)

    arguments = (torch.rand(1, 2, 4), torch.rand(1, 2, 2, 8), torch.rand(1, 2, 12, 8))
    module = Module().eval()
    program = torch.export.export(module, arguments)
    assert "plain_detr" not in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), module(*arguments))


CALLERS = """
import contextlib, torch
from plain_detr.attention.cpp import cpp_works
from plain_detr.attention.self_check import computes_the_same
from plain_detr.modulation.axis_mlp import axis_mlp_works
contexts = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "default type": contextlib.nullcontext,
}
if CALLER == "default type":
    torch.set_default_dtype(torch.float64)
with contexts[CALLER]():
    q, ends = torch.zeros(1, 1, 1, 32, dtype=torch.float32, device="cpu"), torch.zeros(1, 2, device="cpu")
    print("works", cpp_works(q), axis_mlp_works(ends))
"""


@needs_compiler
@pytest.mark.parametrize("caller", ["autocast", "no gradients", "inference mode", "default device", "default type"])
def test_the_self_check_does_not_depend_on_its_caller(caller):
    """A fresh process each: the answer is kept for the process."""
    done = fork_server.run("-c", f"CALLER = {caller!r}\n{CALLERS}")
    assert done.stdout == "works True True\n" and "is wrong" not in done.stderr, done.stderr


@needs_compiler
@pytest.mark.parametrize("wrong", ["value", "gradient", "error"])
def test_the_self_check_refuses_a_wrong_kernel_and_leaves_everything_as_it_was(wrong, caplog):
    def kernel(x):
        if wrong == "error":
            raise RuntimeError("illegal instruction")
        return x.detach() * 2 + x * 0 if wrong == "gradient" else x * 2.001

    threads = torch.get_num_threads()
    assert not computes_the_same("the kernel", kernel, lambda x: x * 2, [(3, 4)])
    assert "the kernel is wrong on this machine and not used" in caplog.text
    assert torch.get_num_threads() == threads and torch.get_default_dtype() == torch.float32
    assert computes_the_same("the kernel", lambda x: x + x, lambda x: x * 2, [(3, 4)])
