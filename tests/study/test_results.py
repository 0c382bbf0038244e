"""Tests the lines of a study's CSV, and the page that is made of them."""

import csv
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.config.load import load_config
from star.config.study import Study, Sweep
from star.study.grid import Cell, cells_of
from star.study.report import write_report
from star.study.results import COLUMNS, Row, failed_row, read_pairs, read_results, write_result
from star.study.statistics import T_QUANTILES, Estimate, difference, estimate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(micro: Config) -> Config:
    return micro.model_copy(update={"study": Study(seeds=(1, 2, 3), kd=("fkl", "ckd"), rl=("none", "similarity"))})


def line(cell: Cell, **values: object) -> Row:
    row = failed_row(cell, "")
    row |= {name: "0.5" for name in COLUMNS if not row[name] and name not in ("value", "failed", "by_kind")}
    row |= {"distill_ce": "1:2.5 20:0.5", "rl_reward": "", "rl_entropy": "", "seconds": "", "parameters": "234112"}
    return row | {name: str(value) for name, value in values.items()}


def page_of(config: Config, rows: list[Row], folder: Path) -> str:
    out = folder / "study.md"
    write_report(config, rows, out=out, config_name="study.yaml", results_name="study.csv")
    return out.read_text(encoding="utf-8")


def test_lines_stand_in_the_order_of_the_cells_whatever_finished_first(config: Config, tmp_path: Path) -> None:
    cells, file = cells_of(config), tmp_path / "results" / "study.csv"
    for cell in reversed(cells):
        assert write_result(file, line(cell), order=cells)
    assert [(row["cell"], row["seed"]) for row in read_results(file)] == [(cell.name, str(cell.seed)) for cell in cells]
    assert not write_result(file, line(cells[0]), order=cells)
    assert write_result(file, line(cells[0], exact_match=0.75), order=cells)
    assert len(read_results(file)) == len(cells) and read_results(file)[0]["exact_match"] == "0.75"
    assert list(tmp_path.glob("results/.*")) == []


def test_lines_of_another_study_stay(config: Config, tmp_path: Path) -> None:
    file, cells = tmp_path / "study.csv", cells_of(config)
    for cell in cells[:2]:
        write_result(file, line(cell), order=cells)
    write_result(file, line(cells[3]), order=cells[2:])
    assert len(read_results(file)) == 3


def test_a_failure_of_several_lines_is_one_line_of_the_file(config: Config, tmp_path: Path) -> None:
    cells, file = cells_of(config), tmp_path / "study.csv"
    write_result(file, failed_row(cells[0], "the reward fell,\n  to 0"), order=cells)
    assert next(csv.DictReader(file.read_text().splitlines()))["failed"] == "the reward fell, to 0"


def test_pairs_are_read_back() -> None:
    assert read_pairs("10:0.71 20:0.65") == {"10": 0.71, "20": 0.65}
    assert read_pairs("") == {}


def test_an_interval_is_that_of_students_t() -> None:
    mean, half, seeds = estimate([0.60, 0.62, 0.64])
    assert (mean, seeds) == (pytest.approx(0.62), 3)
    assert half == pytest.approx(4.303 * 0.02 / 3**0.5)
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert list(T_QUANTILES) == sorted(T_QUANTILES, reverse=True)


def test_a_difference_is_paired_by_seed() -> None:
    found = difference({1: 0.60, 2: 0.70, 3: 0.80}, {1: 0.50, 2: 0.60, 3: 0.70, 4: 0.1})
    assert (
        found is not None and found.mean == pytest.approx(0.1) and found.half == pytest.approx(0) and found.seeds == 3
    )
    assert difference({1: 0.5}, {2: 0.5}) is None


@pytest.mark.parametrize(("better", "sign"), [(0.1, 1), (-0.1, -1), (0.0, 0)])
def test_a_claim_is_decided_by_its_interval(better: float, sign: int, config: Config, tmp_path: Path) -> None:
    rows = [
        line(cell, exact_match=0.5 + 0.001 * cell.seed + (better if cell.kd == "ckd" else 0) * (1 + 0.01 * cell.seed))
        for cell in cells_of(config)
    ]
    [claim] = [text for text in page_of(config, rows, tmp_path).splitlines() if "CKD is better than forward KL" in text]
    assert claim.split("|")[-2].strip() == {1: "holds", -1: "the opposite", 0: "not decided"}[sign]


def test_the_page_has_means_beside_the_papers_numbers(config: Config, tmp_path: Path) -> None:
    rows = [line(cell, exact_match=0.60 + 0.02 * (cell.seed - 2)) for cell in cells_of(config)]
    page = page_of(config, rows, tmp_path)
    assert "| CKD | 60.0 ± 5.0 | 60.0 ± 5.0 |" in page
    assert "| CKD | 49.56 | 51.7 | 39 | 53 |" in page
    assert "![Cross-entropy" in page and (tmp_path / "study" / "distillation.svg").read_text().startswith("<svg xmlns=")


def test_the_page_says_whether_the_order_is_the_papers(config: Config, tmp_path: Path) -> None:
    for better, said in (("ckd", "The two are the same."), ("fkl", "They differ.")):
        rows = [line(cell, exact_match=0.6 if cell.kd == better else 0.5) for cell in cells_of(config)]
        page = " ".join(page_of(config, rows, tmp_path).split())
        assert "In the paper (BFCLv3): CKD, forward KL." in page and said in page


def test_the_page_compares_the_arms_that_the_paper_lacks(config: Config, tmp_path: Path) -> None:
    arms = Sweep(kd=("cold-start", "on-policy-fkl"), rl=("none", "similarity"))
    config = config.model_copy(update={"study": config.study.model_copy(update={"sweeps": {"arms": arms}})})
    rows = [line(cell, exact_match=0.7 if cell.kd == "on-policy-fkl" else 0.5) for cell in cells_of(config)]
    page = page_of(config, rows, tmp_path)
    [answer] = [text for text in page.splitlines() if "`arms/on-policy-fkl+none` − `fkl+none`" in text]
    assert "| +20.0 ± 0.0 | 3 | holds |" in answer
    exploration = page[page.index("## Exploration before Sim-RL") :].partition("\n## ")[0]
    assert "| cold start: CE on the rows | 50.0 ± 0.0 |" in exploration
    assert "| on-policy, forward KL | 70.0 ± 0.0 |" in exploration


def test_shared_work_is_counted_once(config: Config, tmp_path: Path) -> None:
    rows = [line(cell, seconds=f"refine-teacher-a1:100 distill-{cell.kd}{cell.seed}:10") for cell in cells_of(config)]
    page = page_of(config, rows, tmp_path)
    assert "| refine-teacher | 1 min 40 s |" in page and "| distill | 1 min 0 s |" in page
    assert "| total | 2 min 40 s |" in page


def test_failed_cells_are_named(config: Config, tmp_path: Path) -> None:
    cells = cells_of(config)
    page = page_of(config, [*map(line, cells[1:]), failed_row(cells[0], "no valid answer")], tmp_path)
    assert "- `fkl+none`, seed 1: no valid answer" in page


def test_the_page_in_the_documentation_is_up_to_date(tmp_path: Path) -> None:
    command = "star study report --config configs/study-tiny.yaml --results docs/study/tiny.csv --out docs/study.md"
    written = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    notes = ROOT / "docs" / "study" / "tried.txt"
    if notes.is_file():
        command += " --notes docs/study/tried.txt"
    write_report(
        load_config(ROOT / "configs" / "study-tiny.yaml"),
        read_results(ROOT / "docs" / "study" / "tiny.csv"),
        out=tmp_path / "study.md",
        config_name="configs/study-tiny.yaml",
        results_name="docs/study/tiny.csv",
        notes=notes.read_text(encoding="utf-8") if notes.is_file() else "",
    )
    assert written == (tmp_path / "study.md").read_text(encoding="utf-8"), f"run: {command}"
    for chart in (tmp_path / "study").glob("*.svg"):
        assert chart.read_text(encoding="utf-8") == (ROOT / "docs" / "study" / chart.name).read_text(encoding="utf-8")
