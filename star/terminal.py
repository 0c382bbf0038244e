r"""The one door to the terminal: makes control characters visible and masks secrets in all that the process prints.

Tool names, models' answers, reasons in the ledger, tags, logs of pods, names of files: all of it may hold escape sequences, which can
rewrite the screen, the window's title or the clipboard. `guard_terminal` is called once, where the `star` command or a task of a pipeline
starts. From then on

    print("\x1b]0;title\x07")          prints    \x1b]0;title\x07

for print, typer.echo, logging, warnings and tracebacks, and for every text within rich's tables and bars. Colours of our own are rich's
styles, never escape sequences in a text. `console` makes the consoles: square brackets in a text are then no markup of rich. Line breaks
stay; `continued` keeps further lines of a text from looking like lines of the command.

A bar of tqdm passes as long as it has one line. Several at once move the cursor by escape sequences; nothing in STAR draws such bars.

Secrets are masked as star/redaction.py says. stdout of a command may be data, such as the calls of `star call`, so only secrets of the
environment are masked there. A stage guards its process too: in a pod or under `star run` nobody else would.
"""

import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from star.redaction import known_masked, redacted

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

# C0 and C1 controls but tab and newline, text direction, line separators, lone surrogates, noncharacters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def visible_controls(text: str) -> str:
    r"""The text with each character that could act on a terminal written as \x1b or \u202e. JSON stays the same document.

    JSON has no raw character below a space, and reads \u009b, but not \x9b.
    """
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < " " else f"\\u{ord(found[0]):04x}", text)


def continued(text: str) -> str:
    """The text of somebody else with every line but its first indented."""
    return text.replace("\n", "\n    ")


def guard_terminal(*, data_on_stdout: bool = False) -> None:
    """Puts the door before stdout and stderr of this process, before its last traceback, and into rich. A second call does nothing."""
    if not isinstance(sys.stdout, _Door):
        sys.stdout = guarded(sys.stdout, mask=known_masked if data_on_stdout else redacted)
    if not isinstance(sys.stderr, _Door):
        sys.stderr = guarded(sys.stderr)
    sys.excepthook = _print_traceback
    threading.excepthook = _print_traceback_of_thread
    _guard_rich()


def guarded(stream: TextIO, *, mask: Callable[[str], str] = redacted) -> TextIO:
    """A stream with the door before it."""
    return cast(TextIO, _Door(stream, mask))


def console(file: TextIO | None = None) -> "Console":
    """A console of rich that takes texts as they are: no markup in square brackets, no emoji codes. Without a file it prints to stdout."""
    from rich.console import Console

    return Console(file=file, markup=False, emoji=False)


class _Door:
    """A text stream that masks secrets and makes control characters visible on their way to another stream."""

    def __init__(self, stream: TextIO, mask: Callable[[str], str] = redacted) -> None:
        self._stream = stream
        self._mask = mask
        self._at_start = True  # of a line, or in one that a progress bar redraws

    @property
    def rich_proxied_file(self) -> TextIO:
        """The stream itself, for rich: its own escape sequences must pass, and _guard_rich has looked at its texts."""
        return self._stream

    def write(self, text: str) -> int:
        # tqdm redraws its bar by a carriage return at the start of a line. It can hide nothing but that line.
        body = text.strip("\r") if self._at_start and text.startswith("\r") and "\n" not in text else text
        before, _, after = text.partition(body) if body else (text, "", "")
        redrawn = not text or (bool(before) and "\n" not in body)
        self._at_start = text.endswith("\n") or (self._at_start and redrawn)
        self._stream.write(before + visible_controls(self._mask(body)) + after)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
    """Prints a traceback as Python does, in one piece: Python's own pieces could end within a secret."""
    # A stream may be gone where the process ends.
    if sys.stderr is not None:
        sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))


def _print_traceback_of_thread(arguments: "threading.ExceptHookArgs") -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        _print_traceback(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)


def _guard_rich() -> None:
    """Replaces Console.render, through which every text of rich passes.

    A class of our own would not do: typer shows wrong options, which are names of files and other words, on consoles that it makes itself.
    """
    from rich.console import Console
    from rich.segment import Segment

    plain, plain_text = Console.render, Console.render_str
    if hasattr(plain, "_is_guarded"):
        return

    def render(self: "Console", renderable: Any, options: Any = None) -> "Iterator[Segment]":
        for segment in plain(self, renderable, options):
            # A control segment is rich's own, such as the movement of the cursor by a bar.
            yield segment if segment.control else Segment(visible_controls(known_masked(segment.text)), segment.style)

    def render_text(self: "Console", text: str, **options: Any) -> "Text":
        # Before a table wraps it: a secret in two lines would not be found.
        return plain_text(self, known_masked(text), **options)

    render._is_guarded = True  # type: ignore[attr-defined]
    Console.render = render  # type: ignore[method-assign]
    Console.render_str = render_text  # type: ignore[method-assign]
