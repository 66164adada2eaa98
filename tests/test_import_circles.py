"""No module imports itself through others, be it inside a function or for types only."""

from __future__ import annotations

import ast
from collections.abc import Set
from pathlib import Path

import pytest

import regcache_deploy
import regcache_engines
import regcache_export

PACKAGES = [regcache_deploy, regcache_engines, regcache_export]


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the same package that its imports run, wherever they stand.

    An import runs the `__init__` of every package around its target that the importer is not in.
    """
    modules = {_module(root, path): path for path in root.rglob("*.py")}
    graph = {}
    for name, path in modules.items():
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets |= _targets(node, inside, modules.keys())
        around = {parent for target in targets for parent in _parents(target)}
        graph[name] = (targets | (around - {*_parents(name)})) & modules.keys() - {name}
    return graph


def import_circles(root: Path) -> list[list[str]]:
    """Groups of modules that import one another."""
    graph = import_graph(root)
    reached = {name: _reach(graph, name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return sorted(map(list, groups))


def _module(root: Path, path: Path) -> str:
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _targets(node: ast.AST, package: str, modules: Set[str]) -> set[str]:
    """The modules that an import names; what is no module of ours is a name in one."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    home = ".".join([*base, *([node.module] if node.module else [])])
    names = [f"{home}.{alias.name}" for alias in node.names]
    return {name if name in modules else home for name in names}


def _reach(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_import_circle(package) -> None:
    root = Path(package.__file__).parent
    assert sum(map(len, import_graph(root).values())) > 20
    assert import_circles(root) == []


@pytest.mark.parametrize(
    ("files", "circles"),
    [
        ({"a.py": "from .b import x", "b.py": "import os"}, []),
        ({"a.py": "from .b import x", "b.py": "def f():\n from . import a"}, [["p.a", "p.b"]]),
        (
            {"a.py": "import p.b", "b.py": "if TYPE_CHECKING:\n from p.a import y"},
            [["p.a", "p.b"]],
        ),
        # importing p.q.c runs p.q, which imports p.a
        (
            {"a.py": "from .q.c import x", "q/__init__.py": "from ..a import y", "q/c.py": ""},
            [["p.a", "p.q"]],
        ),
        ({"q/__init__.py": "from .c import x", "q/c.py": "from .d import y", "q/d.py": ""}, []),
        ({"q/__init__.py": "from .c import x", "q/c.py": "from . import d", "q/d.py": ""}, []),
        (
            {"q/__init__.py": "from .c import x", "q/c.py": "from . import y"},
            [["p.q", "p.q.c"]],
        ),
    ],
)
def test_circles_are_found(files: dict[str, str], circles: list[list[str]], tmp_path: Path) -> None:
    root = tmp_path / "p"
    for name, text in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert import_circles(root) == circles
