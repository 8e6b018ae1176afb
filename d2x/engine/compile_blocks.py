"""torch.compile for models whose input sizes change from batch to batch."""

from torch import nn


def compile_blocks(model: nn.Module) -> list[str]:
    """Compile a model's repeated blocks in place, or the whole of a model that has none.

    A detector's forward is Python around a few kinds of blocks: lists of dicts, images of many sizes, an assignment on
    the CPU. Compiled as a whole it breaks into pieces that are traced again for every new combination of sizes. Its
    blocks take tensors only, are the bulk of the work, and one of each kind is compiled for all of its kind.

    Parameter names do not change. Blocks compile when they first run.

    Returns:
        Names of the compiled modules.
    """
    lists = {
        name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and not _has_list(part)
    }
    names = [f"{name}.{index}" for name, part in lists.items() for index in range(len(part))]
    for name in names:
        model.get_submodule(name).compile(dynamic=True)
    if not names:
        model.compile(dynamic=True)
    return names or [""]


def _has_list(blocks: nn.ModuleList) -> bool:
    return any(isinstance(part, nn.ModuleList) for block in blocks for part in block.modules())
