"""Searches MLflow: texts in its filters, and answers that come in pages, which are read to their end."""

from collections.abc import Callable, Iterator
from typing import Any


def read_pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yields every entry that one of MLflow's searches finds, page by page.

    What is done to an entry must not change what the search finds, because MLflow counts the entries before the next page.
    """
    token: str | None = None
    while token != "":
        page = search(*arguments, **options, page_token=token)
        yield from page
        token = page.token or ""


def quoted_text(text: str) -> str | None:
    """A text in quotes for a filter of MLflow's searches; None for one that no quotes can hold.

    MLflow knows no way to write a quote inside quotes, and reads a backslash before the last one as part of the text.
    """
    quote = '"' if "'" in text else "'"
    return None if quote in text or text.endswith("\\") else f"{quote}{text}{quote}"
