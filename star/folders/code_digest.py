"""Computes the digest of the code that a stage runs: its function and every star module it imports, directly or through others.

Results are cached by this digest. An edit to the reward makes Sim-RL and the evaluation run again and leaves the data
alone. An edit of words reruns nothing: the digest is taken over the syntax tree without comments, docstrings,
formatting and the type annotations of functions, and is the same under every Python that the package supports.
"""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]  # the package star
# These only show, check or store results. A stage's own sections of the configuration are in its config digest.
LEFT_OUT = ("star.config", "star.errors", "star.folders", "star.progress", "star.tracking")
# Tables in star.config that stages read beside their own sections. The scores of BFCL depend on its groups of categories.
NOT_LEFT_OUT = ("star.config.bfcl_categories", "star.config.row_kinds")
# Fields of a syntax tree that do not change what runs. Some Pythons have them and others do not.
WITHOUT_EFFECT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def code_digest(function: Callable) -> str:
    """sha256 (hex) over the code of `function` and of all star modules it can reach by imports.

    Raises:
        RuntimeError: a module of LEFT_OUT or NOT_LEFT_OUT does not exist. A renamed module would silently become a part of every digest,
            or of none.
    """
    code = {module: _read(_file_of(module))[0] for module in reachable_modules(function)}
    return hashlib.sha256(json.dumps([_code_of(_tree_of(function)), code]).encode()).hexdigest()


def reachable_modules(function: Callable) -> list[str]:
    """The names of the star modules that `function` imports in its body, and those that these import, sorted."""
    for module in (*LEFT_OUT, *NOT_LEFT_OUT):
        if not _file_of(module).is_file():
            raise RuntimeError(f"{module} does not exist: correct LEFT_OUT and NOT_LEFT_OUT of the code digest")
    found: set[str] = set()
    waiting = list(_imports(_tree_of(function)))
    while waiting:
        module = waiting.pop()
        if module not in found and not _is_left_out(module):
            found.add(module)
            waiting.extend(_read(_file_of(module))[1])
    return sorted(found)


def canonical(node: object) -> object:
    """A syntax tree as nested lists of names and constants, equal for code that runs the same on every Python.

    Leaves out docstrings and other bare strings, `pass`, blocks under `if TYPE_CHECKING`, annotations of arguments
    and results, and fields that are empty: a newer Python has fields that an older one lacks, and they are empty
    where the older one can parse the code.
    """
    if isinstance(node, list):
        return [canonical(item) for item in node if not _is_without_effect(item)]
    if not isinstance(node, ast.AST):
        return ascii(node)  # repr() shows a character as such or escaped, by the Unicode version of the Python
    fields = {name: value for name, value in ast.iter_fields(node) if name not in WITHOUT_EFFECT}
    if isinstance(node, ast.arg):
        fields.pop("annotation", None)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        fields.pop("returns", None)
    if isinstance(node, ast.JoinedStr):
        fields["values"] = _joined(node.values)
    if (
        isinstance(node, ast.FormattedValue)
        and isinstance(node.format_spec, ast.JoinedStr)
        and not node.format_spec.values
    ):
        fields["format_spec"] = None
    kept = [[name, canonical(value)] for name, value in sorted(fields.items()) if value is not None and value != []]
    return [type(node).__name__, *kept]


def _is_without_effect(item: object) -> bool:
    match item:
        case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not item.orelse:
            return True
    return False


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring constants made one: Pythons differ in where they cut the text between two fields."""
    joined: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(joined[-1].value + value.value)
        else:
            joined.append(value)
    return [value for value in joined if not (isinstance(value, ast.Constant) and value.value == "")]


def _code_of(tree: ast.AST) -> str:
    return hashlib.sha256(json.dumps(canonical(tree)).encode()).hexdigest()


def _tree_of(function: Callable) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


@cache
def _read(file: Path) -> tuple[str, tuple[str, ...]]:
    """The digest of a file's code, and the star modules it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return _code_of(tree), tuple(_imports(tree))


def _imports(tree: ast.AST) -> Iterable[str]:
    """The star modules that are imported anywhere in a tree, except under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if _is_without_effect(node):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "star":
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in [*named, node.module] if _file_of(name).is_file())
        yield from _imports(node)


def _is_left_out(module: str) -> bool:
    return module not in NOT_LEFT_OUT and any(module == name or module.startswith(f"{name}.") for name in LEFT_OUT)


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
