"""Two doors: requests to servers go through star/http_client.py, and consoles are made by star/terminal.py. Nobody goes round them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NETWORK = (
    "requests",
    "urllib3",
    "httpx",
    "aiohttp",
    "http",
    "urllib.request",
    "socket",
    "ssl",
    "openai",
    "websockets",
    "kubernetes",
)
# Who may, and why.
MAY_USE_THE_NETWORK = {
    "star/http_exchange.py": "the client itself",
    "star/cluster/trainer_api.py": "Kubernetes' API, by its own client",
    "pipelines/kfp_client.py": "kfp's own client, under a deadline and without redirects",
    "star/cluster/run_pods.py": "Kubernetes' own client, under a deadline",
    **{
        f"star/doctor/{name}.py": "Kubernetes' own client, each question with a deadline"
        for name in ("kubernetes_api", "kubernetes_checks", "node_room")
    },
    "star/registry/promotion/records.py": "the name of this machine",
}
MAY_MAKE_CONSOLES = {"star/terminal.py"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("star", "pipelines", "components"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of every import that runs; types under `if TYPE_CHECKING` are used as well, so they count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def test_no_module_sends_requests_round_the_client() -> None:
    users = {
        file
        for file, tree in sources()
        for module, name in imported(tree)
        if any(f"{module}.{name}.".startswith(f"{package}.") for package in NETWORK)
    }
    assert users == set(MAY_USE_THE_NETWORK)


def test_no_module_makes_a_console_of_its_own() -> None:
    makers = {
        file
        for file, tree in sources()
        for module, name in imported(tree)
        if (module, name) in (("rich.console", "Console"), ("rich", "print"), ("rich", "get_console"), ("rich", ""))
        or module in ("rich.markup", "rich.prompt", "rich.logging", "rich.traceback", "rich.pretty")
    }
    assert makers == MAY_MAKE_CONSOLES


def test_no_text_of_ours_is_markup() -> None:
    """A column of a bar reads square brackets as markup unless told otherwise, also those in a label."""
    for file, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TextColumn":
                template = ast.literal_eval(node.args[0])
                plain = any(word.arg == "markup" and ast.literal_eval(word.value) is False for word in node.keywords)
                assert plain or "task.description" not in template, (file, template)
            if isinstance(node, ast.Attribute):
                assert node.attr != "from_markup", file
