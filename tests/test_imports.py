"""The direction of imports: tools -> centerx | plain_detr -> d2x -> detectron2, and no cycle."""

import ast
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


def test_no_drawers():
    drawers = [path for path in modules().values() if path.stem in ("utils", "misc", "common", "helpers")]
    assert drawers == []
