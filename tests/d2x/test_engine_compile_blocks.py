"""Which parts of a model get compiled."""

import torch
from torch import nn

from d2x.engine.compile_blocks import compile_blocks


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([Stage(), Stage()])
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.last(x)


def test_innermost_blocks_are_compiled_and_names_stay():
    model = Net()
    names = list(model.state_dict())
    assert compile_blocks(model) == ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0", "stages.1.blocks.1"]
    assert list(model.state_dict()) == names
    assert model.stages[0].blocks[0]._compiled_call_impl is not None and model.last._compiled_call_impl is None


def test_a_model_without_blocks_is_compiled_whole():
    model = nn.Sequential(nn.Linear(2, 2))
    assert compile_blocks(model) == [""] and model._compiled_call_impl is not None


def test_results_stay(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", _eagerly)
    model, x = Net(), torch.randn(4, 3)
    wanted = model(x)
    compile_blocks(model)
    torch.testing.assert_close(model(x), wanted)


def _eagerly(module: nn.Module, **options) -> None:
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", **options)
