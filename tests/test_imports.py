"""The direction of imports: tools -> centerx | plain_detr -> d2x -> detectron2, and no cycle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("centerx", "plain_detr", "d2x")
ALLOWED = {"d2x": {"d2x"}, "centerx": {"centerx", "d2x"}, "plain_detr": {"plain_detr", "d2x"}}


def modules() -> dict[str, Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(name: str, path: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names of what a module imports (modules and, for ``from x import y``, also ``x.y``)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            found |= {full} | {f"{full}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(modules()))
def test_packages_import_only_downwards(name):
    ours = {item.split(".")[0] for item in imports(name, modules()[name])} & {*PACKAGES, "tools", "tests"}
    assert ours <= ALLOWED[name.split(".")[0]]


def test_nothing_needs_compiled_detectron2():
    users = [name for name, path in modules().items() if any("_C" in i.split(".") for i in imports(name, path))]
    assert users == []


def test_no_import_cycle():
    known = modules()
    graph = {
        name: {item for item in imports(name, path, top_level_only=True) if item in known and item != name}
        for name, path in known.items()
    }
    done, active = set(), []

    def visit(name):
        assert name not in active, f"import cycle: {' -> '.join(active[active.index(name) :] + [name])}"
        if name in done:
            return
        active.append(name)
        for other in graph[name]:
            if not name.startswith(other + "."):  # a package's __init__ is imported before its modules by design
                visit(other)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_d2x_names_no_detector():
    """What both share knows neither: a third detector is on an equal footing."""
    named = re.compile(r"center_?x|center_?net|plain_?-?detr", re.IGNORECASE)
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "d2x").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line)
    ]
    assert lines == []


def test_no_drawers():
    drawers = [path for path in modules().values() if path.stem in ("utils", "misc", "common", "helpers")]
    assert drawers == []


# From the bottom to the top: a room of d2x knows those before it.
ROOMS = (
    "errors", "atomic_files", "distributed", "config", "detectors", "checkpoint", "data", "backbones", "evaluation",
    "report", "engine", "inference", "deploy",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("d2x.")))
def test_rooms_of_d2x_import_only_lower_ones(name):
    room = name.split(".")[1]
    used = {item.split(".")[1] for item in imports(name, modules()[name]) if item.startswith("d2x.")} & set(ROOMS)
    assert used <= set(ROOMS[: ROOMS.index(room) + 1]), f"{name} imports {used - set(ROOMS[: ROOMS.index(room) + 1])}"
