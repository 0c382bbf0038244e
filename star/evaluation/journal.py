"""What a model answered, kept on disk as it comes, so that a killed evaluation does not ask the same twice."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from star.hashing import digest_of


class Journal:
    """JSON answers by the question they answer, one line each, appended and flushed; a line that a kill cut short counts as not written.

    Attributes:
        recalled: how many questions were answered from the file.
        asked: how many were not.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.recalled, self.asked = file, 0, 0
        self._answers: dict[str, Any] = {}
        whole = 0
        for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._answers[entry["question"]] = entry["answer"]
            whole += len(line)
        if file.exists():
            os.truncate(file, whole)

    def once(self, question: object, answer: Callable[[], Any]) -> Any:
        """The answer to `question` (any JSON value): the one on file, else `answer()`, which then goes on file."""
        key = digest_of(question)
        if key in self._answers:
            self.recalled += 1
            return self._answers[key]
        found = answer()
        self.asked += 1
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"question": key, "answer": found}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self._answers[key] = found
        return found
