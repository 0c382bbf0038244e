"""Answers are kept as they come: nothing is asked twice, and a line that a kill cut short is asked again."""

from pathlib import Path

import pytest

from star.evaluation.journal import Journal


def test_an_answer_is_recalled_by_its_question(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    first = Journal(file)
    assert [first.once({"prompt": n}, lambda n=n: [n * n]) for n in (1, 2, 1)] == [[1], [4], [1]]
    assert (first.asked, first.recalled) == (2, 1)
    again = Journal(file)
    assert again.once({"prompt": 2}, lambda: pytest.fail("asked again")) == [4]
    assert again.once({"prompt": 3}, lambda: "ü\u2028") == "ü\u2028"
    assert Journal(file).once({"prompt": 3}, lambda: pytest.fail("asked again")) == "ü\u2028"


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_line_cut_short_is_asked_again(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "answers.jsonl"
    journal = Journal(file)
    for n in range(3):
        journal.once(n, lambda n=n: n)
    file.write_bytes(file.read_bytes()[:-cut])
    again = Journal(file)
    assert [again.once(n, lambda n=n: n) for n in range(3)] == [0, 1, 2]
    assert (again.asked, again.recalled) == (1, 2)
    whole = Journal(file)
    assert [whole.once(n, lambda: pytest.fail("asked again")) for n in range(3)] == [0, 1, 2]
