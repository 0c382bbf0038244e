"""The commands in the documents are ones that `star` knows, with options that it has, and the files that they name exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from star.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app)


def commands_of(page: Path) -> list[list[str]]:
    """The words after `star` of each line in a block of commands, and of each command in a line of text, but for outputs."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ )?((?:[A-Z_]+=\S+ )*(?:\S*/)?star (?!version \d).*)", blocks, re.MULTILINE)
    lines += re.findall(r"`(star [^`]*)`", text)
    return [shlex.split(line.partition(" star ")[2] or line.partition("star ")[2], comments=True) for line in lines]


def unknown_word(words: list[str]) -> str | None:
    """The first command or option of a command line that `star` does not have."""
    command = COMMANDS
    while (names := getattr(command, "commands", None)) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        if words[0] not in names:
            return words[0]
        command, words = names[words[0]], words[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return next((option for option in options if option not in {*known, "--help"}), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    assert {tuple(words): word for words in commands_of(page) if (word := unknown_word(words))} == {}


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    assert unknown_word(["pipeline", "sumbit", "--wait"]) == "sumbit"
    assert unknown_word(["pipeline", "submit", "--waits"]) == "--waits"
    assert len(commands_of(ROOT / "docs" / "kubernetes.md")) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])(?<!exec )((?:deploy|configs|tests|benchmarks|requirements)/[\w./-]+\w)",
        page.read_text(encoding="utf-8"),
    )
    assert [name for name in sorted(set(named)) if not (ROOT / name).exists()] == []


def test_the_list_of_benchmarks_is_whole() -> None:
    listed = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition("## All benchmarks")[2]
    scripts = [file for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text(encoding="utf-8")]
    assert len(scripts) > 20
    assert [file.name for file in scripts if f"`benchmarks/{file.name}`" not in listed] == []
