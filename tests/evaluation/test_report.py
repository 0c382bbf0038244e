"""The report as a reader and a browser meet it: what it shows, what it leaves out, and that model text cannot act."""

import copy
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star import html_kit, svg_charts
from star.evaluation.report import markdown_table, write_report

_VOID = {"meta", "link"}
_HOSTILE = (
    "<script>alert(1)</script>\"' onload=x \ud800\udfff \x00\x1b[31m \u202eevil\u2066 <img src=http://x.example/>"
)


class _Page(HTMLParser):
    """The page's elements and text, checked to be well nested while read."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert self.stack == [], f"left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-1:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        for tag in self.stack:
            self.words.setdefault(tag, []).append(data)

    def text(self, tag: str = "body") -> str:
        return " ".join(" ".join(self.words.get(tag, [])).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _score(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _model(name: str, parameters: int, speed: float, skill: float) -> dict:
    kinds = {"single": 180, "parallel": 96, "multi_step": 74, "irrelevance": 110, "follow_up": 52}
    ease = {"single": 0.12, "parallel": -0.09, "multi_step": -0.2, "irrelevance": 0.08, "follow_up": 0.02}
    rows = sum(kinds.values())
    wrong = round(rows * (1 - skill) / 3)
    return {
        "name": name,
        "parameters": parameters,
        "seconds": 400_000 / speed,
        "tokens_per_second": speed,
        "scores": {
            "exact_match": _score(skill, 0.037),
            "mean_reward": _score(skill + 0.061, 0.031),
            "format_errors": _score((1 - skill) / 9, 0.008),
            "pass_at_1": _score(skill - 0.021, 0.034),
            "pass_at_4": _score(min(0.97, skill + 0.096), 0.029),
            "pass_at_8": _score(min(0.98, skill + 0.134), 0.026),
            "entropy": _score(0.11 + (1 - skill) / 4, 0.009),
        },
        "by_kind": {
            kind: {"rows": n, "exact_match": skill + ease[kind], "mean_reward": skill + ease[kind] * 0.8 + 0.05}
            for kind, n in kinds.items()
        },
        "call_confusion": {
            "call_call": 350 - wrong,
            "call_none": wrong,
            "none_call": wrong // 2,
            "none_none": 162 - wrong // 2,
        },
    }


def _failure(number: int, kind: str, query: str, expected: str, predicted: str, reward: float) -> dict:
    return {
        "id": f"held-{number:04d}",
        "kind": kind,
        "model": "refined",
        "query": query,
        "expected": expected,
        "predicted": predicted,
        "reward": reward,
    }


def _call(body: str) -> str:
    return f"<think>\n\n</think>\n\n<tool_call>\n{body}\n</tool_call>"


@pytest.fixture
def evaluation() -> dict:
    """An evaluation with every part; the numbers are invented."""
    return {
        "title": "STAR, 0.6B student from an 8B teacher",
        "created": "2026-02-11 14:05 UTC",
        "suite": {"heldout": {"rows": 512}},
        "models": [
            _model("teacher", 8_190_735_360, 310.0, 0.792),
            _model("distilled", 596_049_920, 2480.0, 0.681),
            _model("refined", 596_049_920, 2514.0, 0.744),
        ],
        "comparisons": [
            {"a": a, "b": b, "metric": metric, "difference": d, "low": d - half, "high": d + half, "p_value": p}
            for a, b, metric, d, half, p in [
                ("refined", "distilled", "exact_match", 0.063, 0.029, 0.0002),
                ("refined", "distilled", "mean_reward", 0.058, 0.021, 0.0001),
                ("refined", "distilled", "format_errors", -0.007, 0.009, 0.182),
                ("refined", "distilled", "entropy", -0.016, 0.006, 0.004),
                ("refined", "teacher", "exact_match", -0.048, 0.026, 0.0014),
            ]
        ],
        "curves": {
            "distill": [
                {
                    "step": 10 * i,
                    "loss": 1.9 * math.exp(-i / 22) + 0.41 + 0.05 * math.sin(i * 1.7),
                    "fkl": 1.1 * math.exp(-i / 25) + 0.22 + 0.03 * math.sin(i * 2.3),
                    "tail": 0.08 * math.exp(-i / 15) + 0.019 + 0.002 * math.sin(i * 3.1),
                    "learning_rate": 3e-6 * min(1, (i + 1) / 8) * (1 - i / 110),
                }
                for i in range(100)
            ],
            "refine": [
                {"step": i, "reward": 0.8 - 0.14 * math.exp(-i / 14) + 0.02 * math.sin(i), "kl": 0.0004 * i}
                | ({"kept_groups": 0.62 - 0.003 * i} if i % 5 == 0 else {})
                for i in range(60)
            ],
        },
        "failures": _failures(),
        "lineage": {
            "code": "2f9c1d7",
            "config": "sha256:9a1e6c0f7f2d4f2bb7a0f6a8f5b7e8c3d1f4a9b2c6d8e0f1a3b5c7d9e1f3a5b7",
            "training data": "sha256:4be0a1c29d77f0aa51c3",
            "teacher": "Qwen/Qwen3-8B",
            "student": "Qwen/Qwen3-0.6B",
        },
    }


def _failures() -> list[dict]:
    weather = '{"name": "get_forecast", "arguments": {"city": "Oslo", "days": 3, "units": "metric"}}'
    table = '{"name": "book_table", "arguments": {"restaurant": "Chez Nous", "people": 4, "time": "19:30"}}'
    return [
        _failure(88, "irrelevance", "Thanks, that is all for today!", "You are welcome. Have a good day!", "", -1.0),
        _failure(
            317,
            "single",
            "What will the weather be in Oslo over the next three days? Metric, please.",
            _call(weather),
            _call(weather.replace("3", "5").replace(', "units": "metric"', "")),
            0.417,
        ),
        _failure(
            42,
            "parallel",
            "Book a table for four at Chez Nous at half past seven and tell me if it will rain in Lyon.",
            _call(table) + "\n<tool_call>\n" + weather.replace("Oslo", "Lyon") + "\n</tool_call>",
            _call(table.replace("19:30", "7:30 tomorrow evening").replace('"people": 4', '"guests": "four"')),
            -1.0,
        ),
    ]


def _read(tmp_path: Path, evaluation: dict) -> _Page:
    path = tmp_path / "out" / "report.html"
    write_report(path, evaluation)
    return _Page(path.read_bytes().decode("utf-8"))


def test_the_page_says_the_outcome_and_holds_every_part(tmp_path: Path, evaluation: dict) -> None:
    report = _read(tmp_path, evaluation)
    assert report.text("title").startswith("STAR, 0.6B student from an 8B teacher")
    assert "refined answers 74.4% of the rows exactly right against the teacher's 79.2%" in report.text()
    assert "596M parameters instead of 8.19B and 8.1 times the tokens per second" in report.text()
    assert "512 held-out rows" in report.text()
    headings = ["Headline", "Comparison", "By kind", "pass@k", "Learning curves", "Call or no call"]
    for heading in [*headings, "Worst failures", "Lineage"]:
        assert heading in report.text("h2")
        assert heading in report.text("nav")
    anchors = {element["id"] for element in report.all("section")}
    assert {link["href"] for link in report.all("a")} == {f"#{anchor}" for anchor in anchors}
    # 4 cards, 2 charts by kind, pass@k, 4 distill + 3 refine curves
    assert len(report.all("svg")) == 14


def test_the_page_is_accessible(tmp_path: Path, evaluation: dict) -> None:
    report = _read(tmp_path, evaluation)
    assert report.all("html") == [{"lang": "en"}]
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in report.all("svg"))
    assert len([title for title in report.elements if title[0] == "title"]) >= len(report.all("svg")) + 1
    assert all(header["scope"] in ("row", "col") for header in report.all("th"))
    assert len(report.all("caption")) == len(report.all("table")) == 6
    assert "Exact match: teacher 79.2%, distilled 68.1%, refined 74.4%" in [
        svg["aria-label"] for svg in report.all("svg")
    ]


def test_the_page_asks_the_network_for_nothing(tmp_path: Path, evaluation: dict) -> None:
    report = _read(tmp_path, evaluation)
    source = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in report.all("meta")[1]["content"]
    assert not {"script", "iframe", "img", "object", "form"} & {tag for tag, _ in report.elements}
    assert not re.search(r"https?://|url\(|@import|src=", source)


def test_curves_that_tell_little_are_folded_away(tmp_path: Path, evaluation: dict) -> None:
    records = [{"step": step, "loss": 1 / (step + 1), "epoch": step / 9, "clip_ratio": 0.0} for step in range(9)]
    evaluation["curves"] = {"distill": records}
    report = _read(tmp_path, evaluation)
    assert report.text("details") and "epoch" in report.text("details") and "clip ratio" in report.text("details")
    assert "loss" not in report.text("details") and report.text("summary") == "2 more figures"


def test_the_stages_above_the_model_are_in_the_lineage(tmp_path: Path, evaluation: dict) -> None:
    digests = {"digest": "a" * 64, "config_digest": "b" * 64, "code_digest": "c" * 64, "code_version": "0.1.0"}
    evaluation["stages"] = [{"stage": _HOSTILE, **digests}]
    report = _read(tmp_path, evaluation)
    assert f"{'a' * 12} {'b' * 12} {'c' * 12} 0.1.0" in report.text("code")
    assert not report.all("script")


def test_differences_say_better_worse_or_nothing(tmp_path: Path, evaluation: dict) -> None:
    text = _read(tmp_path, evaluation).text("tbody")
    assert "refined − distilled Exact match +6.3 pp +3.4 to +9.2 pp < 0.001 better" in text
    assert "Format errors −0.7 pp −1.6 to +0.2 pp 0.182 unclear" in text
    assert "Policy entropy (nats) −0.016 −0.022 to −0.010 0.004 lower" in text
    assert "refined − teacher Exact match −4.8 pp −7.4 to −2.2 pp 0.001 worse" in text
    fewer_errors = {"difference": -0.02, "low": -0.03, "high": -0.01, "p_value": 0.01, "metric": "format_errors"}
    evaluation["comparisons"] = [evaluation["comparisons"][0] | fewer_errors]
    assert "−2.0 pp −3.0 to −1.0 pp 0.010 better" in _read(tmp_path, evaluation).text("tbody")


def test_failures_come_worst_first_with_the_difference_marked(tmp_path: Path, evaluation: dict) -> None:
    report = _read(tmp_path, evaluation)
    articles = report.text("article")
    assert articles.index("held-0042") < articles.index("held-0317")
    marked = report.text("mark")
    for word in ("guests", "tomorrow", "5", "units"):
        assert word in marked
    assert "restaurant" not in marked
    assert "nothing" in report.text("p")  # the empty prediction


def test_only_the_worst_failures_are_shown_and_long_texts_are_cut(tmp_path: Path, evaluation: dict) -> None:
    failure = evaluation["failures"][0]
    evaluation["failures"] = [failure | {"id": f"n{i}", "reward": i / 40} for i in reversed(range(40))]
    evaluation["failures"][0]["predicted"] = "word " * 5000  # the mildest: not shown
    evaluation["failures"][-1]["predicted"] = "word " * 5000
    report = _read(tmp_path, evaluation)
    assert "The 30 worst of 40." in report.text("p")
    assert "n29" in report.text("article") and "n30" not in report.text("article")
    assert report.text("pre").count("word") == 800
    assert "… (20,999 more characters)" in report.text("pre") or "… (20,9" in report.text("pre")


@pytest.mark.parametrize("key", ["title", "created", "suite", "comparisons", "curves", "failures", "lineage", "models"])
def test_a_missing_part_leaves_no_trace(tmp_path: Path, evaluation: dict, key: str) -> None:
    full = _read(tmp_path, evaluation)
    for absent in ({}, {key: None}, {key: type(evaluation[key])()}):
        rest = {name: value for name, value in evaluation.items() if name != key} | absent
        report = _read(tmp_path, rest)
        lost = {
            "curves": ["Learning curves"],
            "failures": ["Worst failures"],
            "lineage": ["Lineage"],
            "models": ["Headline", "By kind", "pass@k", "Call or no call"],
        }.get(key, [])
        kept = [heading for heading in ("Headline", "Comparison", "Lineage", "Worst failures") if heading not in lost]
        assert not any(heading in report.text("h2") for heading in lost)
        assert all(heading in report.text("h2") for heading in kept)
        assert len(report.text()) < len(full.text())
        assert "None" not in report.text() and "nan" not in report.text()


def test_an_empty_evaluation_is_a_page_with_a_title(tmp_path: Path) -> None:
    report = _read(tmp_path, {})
    assert report.text() == "Evaluation"
    assert report.all("section") == report.all("nav") == []
    assert markdown_table({}) == ""


def test_unmeasured_scores_are_dashes_not_numbers(tmp_path: Path, evaluation: dict) -> None:
    student = evaluation["models"][1]
    student["scores"]["exact_match"] = {"mean": float("nan"), "low": None, "high": None}
    student["scores"]["mean_reward"] = {"mean": 0.5}
    del student["by_kind"], student["call_confusion"], student["scores"]["pass_at_4"], student["parameters"]
    evaluation["curves"]["refine"][3]["reward"] = float("inf")
    report = _read(tmp_path, evaluation)
    assert "nan" not in report.text() and "inf" not in report.text()
    row = next(line for line in markdown_table(evaluation).splitlines() if line.startswith("| Exact match"))
    assert row == "| Exact match | 79.2% [75.5 to 82.9%] | – | 74.4% [70.7 to 78.1%] |"
    assert "| 0.500 |" in markdown_table(evaluation)


def test_model_text_cannot_act(tmp_path: Path, evaluation: dict) -> None:
    hostile = _poisoned(copy.deepcopy(evaluation))
    report = _read(tmp_path, hostile)
    raw = (tmp_path / "out" / "report.html").read_bytes()
    raw.decode("utf-8")
    assert not re.search(rb"<script|<img|\x00|\x1b", raw)
    assert "\u202e" not in raw.decode() and "\u2066" not in raw.decode()
    assert "<script>alert(1)</script>" in report.text()  # as words
    assert "⟨U+D800⟩⟨U+DFFF⟩" in report.text() and "⟨U+202E⟩evil" in report.text()
    assert not any(name.startswith("on") for _, attributes in report.elements for name in attributes)
    table = markdown_table(hostile)
    table.encode("utf-8")
    assert "<script" not in table
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {5}


def _poisoned(value: object) -> object:
    """`value` with hostile text appended to every free text and every key that is not the evaluation's own."""
    if isinstance(value, dict):
        return {key: _poisoned(found) if key != "metric" else found + _HOSTILE for key, found in value.items()} | (
            {_HOSTILE: {"rows": 3, "exact_match": 0.5, "mean_reward": -0.4}} if "single" in value else {}
        )
    if isinstance(value, list):
        return [_poisoned(found) for found in value]
    return value + _HOSTILE + " | new\nline" if isinstance(value, str) else value


@given(st.text(), st.text())
def test_a_diff_shows_both_texts_whole(expected: str, predicted: str) -> None:
    for raw, block in zip((expected, predicted), html_kit.word_diff(expected, predicted), strict=True):
        shown = _Page(block).words.get("pre", [])
        assert "".join(shown) == html_kit.visible(raw).replace("\r", "")


def test_equal_texts_have_no_marks_and_calls_given_as_data_are_shown_as_json(tmp_path: Path, evaluation: dict) -> None:
    assert "<mark" not in html_kit.word_diff("the same call", "the same call")[0]
    calls = [{"name": "f", "arguments": {"city": "Zürich \udc00"}}]
    evaluation["failures"] = [evaluation["failures"][0] | {"expected": calls, "predicted": None}]
    assert '"city": "Zürich ⟨U+DC00⟩"' in _read(tmp_path, evaluation).text("pre")


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-9 * abs(low):
        return
    found = svg_charts.round_ticks(low, high)
    assert 2 <= len(found) <= 6
    slack = 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= tick <= high + slack for tick in found)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=3000))
def test_thinned_curves_keep_their_extremes(values: list[float]) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    found = svg_charts.thin_out(points)
    assert len(found) <= 240 and found == sorted(found) and set(found) <= set(points)
    assert {max(values), min(values)} <= {y for _, y in found}


def _chart(lines: list[svg_charts.Line], *, is_log: bool) -> str:
    return svg_charts.line_chart(
        "chart", lines, x_ticks=[], y_text="{:.3g}".format, width=640, height=300, is_log=is_log
    )


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_labels_of_lines_stay_apart_and_inside_the_chart(ends: list[float]) -> None:
    lines = [svg_charts.Line(i, f"line {i}", [(0.0, 1.0), (1.0, end)], []) for i, end in enumerate(ends)]
    heights = sorted(float(y) for y in re.findall(r'series" x="\d+" y="([\d.]+)"', _chart(lines, is_log=False)))
    assert len(heights) == len(lines) and heights[0] > 0 and heights[-1] <= 300 - 24 + 4
    assert all(after - before >= 12.9 for before, after in pairwise(heights))


def test_equal_factors_are_equally_high_on_a_logarithmic_scale() -> None:
    line = svg_charts.Line(0, "", [(0.0, 0.01), (1.0, 0.1), (2.0, 1.0)], [(0.0, 0.005, 0.02)])
    drawn = _chart([line], is_log=True)
    [path] = re.findall(r'class="line" d="M([^"]+)"', drawn)
    low, middle, high = (float(point.split()[1]) for point in path.split("L"))
    assert low - middle == pytest.approx(middle - high, abs=0.11)
    shown = re.findall(r'y="4">([^<]+)<', drawn)
    assert shown == ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    with_zero = line._replace(points=[*line.points, (3.0, 0.0)])
    assert _chart([with_zero], is_log=True) == _chart([with_zero], is_log=False)


def test_a_flat_curve_and_a_long_one_are_drawn(tmp_path: Path, evaluation: dict) -> None:
    evaluation["curves"] = {
        "flat": [{"step": i, "loss": 0.0} for i in range(3)],
        "long": [{"step": i, "loss": math.sin(i / 50)} for i in range(20_000)],
        "single": [{"step": 4, "loss": 1.0}, {"step": 4, "loss": 2.0}],
    }
    report = _read(tmp_path, evaluation)
    assert "flat" in report.text("h3") and "long" in report.text("h3") and "single" not in report.text("h3")
    assert (tmp_path / "out" / "report.html").stat().st_size < 100_000


def test_the_markdown_table(evaluation: dict) -> None:
    assert markdown_table(evaluation).splitlines()[:3] == [
        "| | teacher | distilled | refined |",
        "|---|---:|---:|---:|",
        "| Exact match | 79.2% [75.5 to 82.9%] | 68.1% [64.4 to 71.8%] | 74.4% [70.7 to 78.1%] |",
    ]
    assert "| Parameters | 8.19B | 596M | 596M |" in markdown_table(evaluation)
    assert "| Time | 21 min 30 s | 2 min 41 s | 2 min 39 s |" in markdown_table(evaluation)
