"""Keeps a model's answers on disk as they come, so that a resumed evaluation asks no question twice."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from star.hashing import digest_of


class Journal:
    """JSON answers by the digest of their question, one per line. A line that a kill cut short is removed.

    Attributes:
        recalled: how many questions were answered from the file.
        asked: how many were not.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.recalled, self.asked = file, 0, 0
        self._answers: dict[str, Any] = {}
        if file.exists():
            # Cut off, so that the next answer does not continue a line that a kill cut short.
            os.truncate(file, self._read_complete_lines())

    def once(self, question: object, answer: Callable[[], Any]) -> Any:
        """Returns the answer on file, or calls `answer()` and appends its result.

        Args:
            question: any JSON value that names the question and all settings that change its answer.
        """
        key = digest_of(question)
        if key in self._answers:
            self.recalled += 1
            return self._answers[key]
        found = answer()
        self.asked += 1
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"question": key, "answer": found}) + "\n")
            # On disk before the next question is asked: an answer can have taken minutes.
            lines.flush()
            os.fsync(lines.fileno())
        # After the file, so that only what is on disk counts as answered.
        self._answers[key] = found
        return found

    def _read_complete_lines(self) -> int:
        """Reads the answers up to the first incomplete line, and returns how many bytes they take."""
        size = 0
        for line in self.file.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            # JSON may be complete where its line is not: only the line's end says that all of it was written.
            if not line.endswith(b"\n"):
                break
            self._answers[entry["question"]] = entry["answer"]
            size += len(line)
        return size
