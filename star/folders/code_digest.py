"""Computes the digest of the code that a stage runs: its function and every star module reachable by imports.

The digest is part of the cache key of a result. An edit to the reward makes Sim-RL and the evaluation run again and
leaves the data alone. An edit of comments, docstrings, formatting or type annotations of functions reruns nothing,
because the digest is taken over the syntax tree without them. It is the same under every Python that the package
supports.

    def shout(text: str) -> str:
        '''Upper case.'''        # not in the digest, like this comment and both annotations
        return text.upper()

    canonical(...) == ["Module", ["body", [["FunctionDef",
        ["args", ["arguments", ["args", [["arg", ["arg", "'text'"]]]]]],
        ["body", [["Return", ["value", ["Call", ["func", ["Attribute", ["attr", "'upper'"], ["value", ["Name", ...]]]]]]]]],
        ["name", "'shout'"]]]]]

Modules that only show, check or store results are left out (LEFT_OUT): with them, an edit of an error message would
make every stage run again.
"""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]  # the package star
# These only show, check or store results. The settings that a stage reads are in its config digest.
LEFT_OUT = (
    "star.config", "star.digest_cache", "star.digest_notes", "star.errors", "star.folders", "star.progress",
    "star.redaction", "star.terminal", "star.tracking",
)  # fmt: skip
# Tables in star.config that stages read as constants, so that no config digest has them.
NOT_LEFT_OUT = ("star.config.bfcl_categories", "star.config.row_kinds")
# Fields of a syntax tree that do not change what runs. Some Pythons have them and others do not.
FIELDS_WITHOUT_EFFECT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})

CanonicalTree = str | list["CanonicalTree"]


def code_digest(function: Callable) -> str:
    """Returns the sha256 (hex) over the code of `function` and of all star modules it can reach by imports.

    Raises:
        RuntimeError: a module of LEFT_OUT or NOT_LEFT_OUT does not exist. Without this check a renamed module would
            silently become a part of every digest, or of none.
    """
    code = {module: _read(_file_of(module))[0] for module in reachable_modules(function)}
    return hashlib.sha256(json.dumps([_code_of(_tree_of(function)), code]).encode()).hexdigest()


def reachable_modules(function: Callable) -> list[str]:
    """Returns the names of the star modules that `function` imports in its body, and those that these import, sorted."""
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


def canonical(node: object) -> CanonicalTree:
    """Returns a syntax tree as nested lists of names and constants, equal for code that runs the same on every Python.

    It leaves out docstrings and other bare strings, `pass`, blocks under `if TYPE_CHECKING`, annotations of arguments
    and results, and empty fields. A newer Python has fields that an older one lacks; they are empty in all code that
    the older one can parse.
    """
    if isinstance(node, list):
        return [canonical(item) for item in node if not _is_without_effect(item)]
    if not isinstance(node, ast.AST):
        return ascii(node)  # repr() would escape a character or not, depending on the Unicode version of the Python
    fields = _fields_with_effect(node)
    return [type(node).__name__, *([name, canonical(value)] for name, value in sorted(fields.items()))]


def _fields_with_effect(node: ast.AST) -> dict[str, object]:
    """Returns the fields of a node that change what runs and are not empty."""
    fields: dict[str, object] = dict(ast.iter_fields(node))
    if isinstance(node, ast.arg):
        fields["annotation"] = None
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        fields["returns"] = None
    elif isinstance(node, ast.JoinedStr):
        fields["values"] = _join_constants(node.values)
    elif isinstance(node, ast.FormattedValue) and _is_empty_format(node.format_spec):
        fields["format_spec"] = None
    return {
        name: value
        for name, value in fields.items()
        if name not in FIELDS_WITHOUT_EFFECT and value is not None and value != []
    }


def _is_empty_format(format_spec: ast.expr | None) -> bool:
    """Whether a format is the empty one of `{value:}`, which some Pythons keep and others drop."""
    return isinstance(format_spec, ast.JoinedStr) and not format_spec.values


def _is_without_effect(item: object) -> bool:
    """Whether a statement does nothing when it runs: `pass`, a bare string, a block under `if TYPE_CHECKING`."""
    match item:
        case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not item.orelse:
            return True
    return False


def _join_constants(values: list[ast.expr]) -> list[ast.expr]:
    """Returns the parts of an f-string with neighbouring texts joined, because Pythons cut them differently."""
    joined: list[ast.expr] = []
    text = ""
    for value in values:
        if isinstance(value, ast.Constant):
            text += str(value.value)  # within an f-string a constant is always a text
            continue
        if text:
            joined.append(ast.Constant(text))
        joined.append(value)
        text = ""
    if text:
        joined.append(ast.Constant(text))
    return joined


def _code_of(tree: ast.AST) -> str:
    return hashlib.sha256(json.dumps(canonical(tree)).encode()).hexdigest()


def _tree_of(function: Callable) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


@cache
def _read(file: Path) -> tuple[str, tuple[str, ...]]:
    """Returns the digest of a file's code, and the star modules it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return _code_of(tree), tuple(_imports(tree))


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yields the star modules that are imported anywhere in a tree, except under `if TYPE_CHECKING`."""
    # ast.walk would descend into the skipped blocks too.
    for node in ast.iter_child_nodes(tree):
        if _is_without_effect(node):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "star":
            # `from star.a import b` may name a module or something inside one: only what is a file counts.
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in [*named, node.module] if _file_of(name).is_file())
        yield from _imports(node)


def _is_left_out(module: str) -> bool:
    return module not in NOT_LEFT_OUT and any(module == name or module.startswith(f"{name}.") for name in LEFT_OUT)


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
