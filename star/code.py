"""The digest of the code a stage runs: its function and every star module it imports, directly or through others.

Results are cached by it: an edit to the reward makes Sim-RL and evaluation run again, and leaves the data alone.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
# What only shows, checks or stores does not change a result; of the configuration a stage's own sections are in its digest.
OUTSIDE = frozenset(
    {"star.config", "star.errors", "star.mirror", "star.progress", "star.registry.tracking", "star.storage"}
)


def code_digest(function: Callable) -> str:
    """sha256 over the source of `function` and of all star modules it can reach by imports, in hex."""
    digest = hashlib.sha256(inspect.getsource(function).encode())
    for module in reachable_modules(function):
        digest.update(_file_of(module).read_bytes())
    return digest.hexdigest()


def reachable_modules(function: Callable) -> list[str]:
    """The names of the star modules that `function` imports in its body, and those that these import, sorted."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found: set[str] = set()
    waiting = list(_imports(tree))
    while waiting:
        module = waiting.pop()
        if module not in found and module not in OUTSIDE:
            found.add(module)
            waiting.extend(_imports_of(module))
    return sorted(found)


@cache
def _imports_of(module: str) -> tuple[str, ...]:
    return tuple(_imports(ast.parse(_file_of(module).read_text(encoding="utf-8"))))


def _imports(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "star":
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in [*whole, node.module] if _file_of(name).is_file())


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
