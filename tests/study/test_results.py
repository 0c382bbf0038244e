"""Tests the lines of a study's CSV, and the page that is made of them."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star.cli.main import app
from star.config.data import Data
from star.config.experiment import Config
from star.config.load import load_config
from star.config.study import Study, Sweep
from star.errors import InputError
from star.study.grid import Cell, cells_of
from star.study.report import Names, write_report
from star.study.results import COLUMNS, Row, failed_row, lines_of, read_pairs, read_results, write_result
from star.study.statistics import T_QUANTILES, Estimate, difference, estimate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(micro: Config) -> Config:
    return micro.model_copy(update={"study": Study(seeds=(1, 2, 3), kd=("fkl", "ckd"), rl=("none", "similarity"))})


def line(cell: Cell, **values: object) -> Row:
    row = failed_row(cell, "")
    row |= {name: "0.5" for name in COLUMNS if not row[name] and name not in ("value", "failed", "by_kind")}
    row |= {"student": cell.student.key, "heldout_rows": "300"}
    row |= {"distill_ce": "1:2.5 20:0.5", "rl_reward": "", "rl_entropy": "", "seconds": "", "parameters": "234112"}
    return row | {name: str(value) for name, value in values.items()}


def page_of(config: Config, rows: list[Row], folder: Path) -> str:
    out = folder / "study.md"
    write_report(config, rows, out=out, names=Names("study.yaml", "study.csv", "study.md"))
    return out.read_text(encoding="utf-8")


def test_lines_stand_in_the_order_of_the_cells_whatever_finished_first(config: Config, tmp_path: Path) -> None:
    cells, file = cells_of(config), tmp_path / "results" / "study.csv"
    for cell in reversed(cells):
        assert write_result(file, line(cell), order=cells)
    assert [(row["cell"], row["seed"]) for row in read_results(file)] == [(cell.name, str(cell.seed)) for cell in cells]
    assert not write_result(file, line(cells[0]), order=cells)
    assert write_result(file, line(cells[0], exact_match=0.75), order=cells)
    assert len(read_results(file)) == len(cells) and read_results(file)[0]["exact_match"] == "0.75"
    assert [file.name for file in tmp_path.glob("results/.*")] == [".study.csv.lock"]


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
    assert claim.split("|")[5].strip() == {1: "holds", -1: "the opposite", 0: "not decided"}[sign]


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
    assert "| +20.0 ± 0.8 | 3 | holds |" in answer
    exploration = page[page.index("## Exploration before Sim-RL") :].partition("\n## ")[0]
    assert "| cold start: CE on the rows | 50.0 ± 0.8 |" in exploration
    assert "| on-policy, forward KL | 70.0 ± 0.8 |" in exploration


def test_shared_work_is_counted_once(config: Config, tmp_path: Path) -> None:
    rows = [line(cell, seconds=f"refine-teacher-a1:100 distill-{cell.kd}{cell.seed}:10") for cell in cells_of(config)]
    page = page_of(config, rows, tmp_path)
    assert "| refine-teacher | 1 min 40 s |" in page and "| distill | 1 min 0 s |" in page
    assert "| total | 2 min 40 s |" in page


def test_failed_cells_are_named(config: Config, tmp_path: Path) -> None:
    cells = cells_of(config)
    page = page_of(config, [*map(line, cells[1:]), failed_row(cells[0], "no valid answer")], tmp_path)
    assert "- `fkl+none`, seed 1: no valid answer" in page


def test_seeds_that_agree_by_chance_decide_nothing(config: Config, tmp_path: Path) -> None:
    """In each seed one of 300 rows more: the values do not spread at all."""
    rows = [line(cell, exact_match=0.5 + (1 / 300 if cell.kd == "ckd" else 0)) for cell in cells_of(config)]
    page = page_of(config, rows, tmp_path)
    [claim] = [text for text in page.splitlines() if "After Sim-RL, CKD is better than forward KL" in text]
    assert "| +0.3 ± 0.8 | 3 | not decided |" in claim
    assert "the 300 held-out rows are the same for all; other rows or tools may decide otherwise." in " ".join(
        page.split()
    )


def test_entropy_has_no_rows(config: Config, tmp_path: Path) -> None:
    rows = [line(cell, before_rl_entropy=0.4 if cell.kd == "ckd" else 0.3) for cell in cells_of(config)]
    assert "| +0.100 ± 0.000 | 3 | holds | - |" in page_of(config, rows, tmp_path)


def test_a_claim_has_the_papers_own_difference_beside(config: Config, tmp_path: Path) -> None:
    page = page_of(config, [line(cell) for cell in cells_of(config)], tmp_path)
    assert "`ckd+similarity` − `fkl+similarity` | +0.0 ± 0.8 | 3 | not decided | +0.24, +3.0 |" in page
    assert "further claims of the paper are not in this study" in page


def test_the_page_says_what_is_missing(config: Config, tmp_path: Path) -> None:
    cells = cells_of(config)
    missing = [("ckd+none", 2), *(("fkl+similarity", seed) for seed in (1, 2, 3))]
    page = page_of(config, [line(cell) for cell in cells if (cell.name, cell.seed) not in missing], tmp_path)
    assert "**8 of 12 cells recorded.** Missing: `fkl+similarity`, `ckd+none` (seed 2)." in page
    assert "`ckd+similarity` − `fkl+similarity` | - | 0 | not recorded | +0.24, +3.0 |" in page
    assert "`ckd+none` − `fkl+none` | +0.0 ± 3.0 | 2 of 3 | not decided |" in page
    assert "| CKD | 50.0 ± 3.0 (n=2) | 50.0 ± 0.8 |" in page


def test_the_order_is_by_the_seeds_that_all_have(config: Config, tmp_path: Path) -> None:
    """Over all of its seeds CKD is worse, because the others lack the bad one."""
    values = {("fkl", 1): 0.5, ("ckd", 1): 0.6, ("ckd", 2): 0.0}
    rows = [
        line(cell, exact_match=values[cell.kd, cell.seed])
        for cell in cells_of(config)
        if (cell.kd, cell.seed) in values
    ]
    page = " ".join(page_of(config, rows, tmp_path).split())
    assert "By the means after Sim-RL of seed 1, from the best: CKD, forward KL." in page


def test_a_line_of_other_settings_is_no_result_of_the_study(config: Config, tmp_path: Path) -> None:
    cells = cells_of(config)
    rows = [line(cell) for cell in cells]
    rows[0] |= {"key": "0123456789abcdef", "exact_match": "0.9"}
    rows[1] |= {"key": ""}
    rows.append(rows[2] | {"cell": "rkl+none"})
    recorded = lines_of(cells, rows)
    assert recorded.rows == rows[1:-1] and recorded.others == [rows[0], rows[-1]] and recorded.unknown == 1
    page = page_of(config, rows, tmp_path)
    assert "2 lines were made with other settings than these, and left out: `fkl+none` (seed 1), `rkl+none`" in page
    assert "90.0" not in page


def test_a_failure_does_not_replace_a_result(config: Config, tmp_path: Path) -> None:
    cells, file = cells_of(config), tmp_path / "study.csv"
    good, failed = line(cells[0]), failed_row(cells[0], "no memory")
    assert write_result(file, good, order=cells) and not write_result(file, failed, order=cells)
    assert read_results(file) == [good]
    other = good | {"key": "0123456789abcdef"}
    write_result(file, other, order=cells)
    assert write_result(file, failed, order=cells) and read_results(file) == [failed]
    assert write_result(file, good, order=cells) and read_results(file) == [good]


def test_a_file_of_an_older_version_gets_its_keys(config: Config, tmp_path: Path) -> None:
    cells, file = cells_of(config), tmp_path / "study.csv"
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS[:-1], extrasaction="ignore")
        writer.writeheader()
        writer.writerow(line(cells[0]))
    assert read_results(file)[0]["key"] == ""
    assert not write_result(file, line(cells[0]), order=cells)  # no new values
    assert read_results(file)[0]["key"] == cells[0].evaluation.key


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b\n1,2\n", r"lacks the columns before_rl_entropy, .*cell.*star study run"),
        (",".join(COLUMNS) + "\n1,2\n", r"line 2 has another number of values"),
        (",".join(COLUMNS) + "\n" + "," * (len(COLUMNS) - 1) + "\n", r"line 2: `seed` is ''"),
        (",".join(COLUMNS) + "\n" + "nan," * (len(COLUMNS) - 1) + "k\n", r"line 2: `seed` is 'nan'"),
    ],
)
def test_another_table_is_refused_by_name(text: str, error: str, tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=error):
        read_results(file)


def test_a_sweep_stands_beside_the_grids_own_cell(config: Config, tmp_path: Path) -> None:
    values = {"4": {"topk": {"top_k": 4}}, "16": {"topk": {"top_k": 16}}}
    sweeps = {"top_k": Sweep(rl=("none",), values=values)}
    config = config.model_copy(update={"study": config.study.model_copy(update={"sweeps": sweeps})})
    rows = [
        line(
            cell,
            exact_match=0.6 if cell.value == "4" else 0.5,
            mean_reward=0.7,
            seconds="refine-teacher-a:500 distill-on-policy-b:20 refine-c:10",
            teacher_exact_match=0.55 if cell.value == "4" else 0.95,
        )
        for cell in cells_of(config)
    ]
    page = page_of(config, rows, tmp_path)
    assert "| the profile's own | `ckd+none` | 50.0 ± 0.8 | - | 0.700 ± 0.000 | 30 s | 95.0 |" in page
    assert "| 4 | `ckd+none` | 60.0 ± 0.8 | +10.0 ± 0.8 | 0.700 ± 0.000 | 30 s | 55.0 |" in page
    assert "| 16 | `ckd+none` | 50.0 ± 0.8 | the same |" in page


def test_the_page_lists_the_trainings_beside_the_papers(config: Config, tmp_path: Path) -> None:
    page = page_of(config, [], tmp_path)
    assert f"| weight of CKD's tail term (lambda) | {config.distill.tail_weight:g} | 10 |" in page
    assert "| distillation, learning rate |" in page and "| 3e-06 |" in page
    assert "| teacher, refined by Sim-RL |" in page
    assert "One learning rate and one number of updates for all losses" in page


def test_the_page_of_given_rows_says_nothing_of_generated_ones(config: Config, tmp_path: Path) -> None:
    rows = tmp_path / "mine.jsonl"
    rows.touch()
    data = config.data.model_dump(mode="json") | {"generated_rows": 0, "seed_data": str(rows)}
    config = config.model_copy(update={"data": Data.model_validate(data)})
    names = Names("mine.yaml", "my results.csv", "mine.md", seed_data="mine.jsonl", notes="tried.txt")
    write_report(config, [line(cell) for cell in cells_of(config)], out=tmp_path / "mine.md", names=names, notes="All.")
    page = (tmp_path / "mine.md").read_text(encoding="utf-8")
    assert "| rows of | `mine.jsonl` |" in page and "generated" not in page and "irrelevance" not in page
    assert "star study run --config mine.yaml --seed-data mine.jsonl --results 'my results.csv'" in page
    assert (
        "star study report --config mine.yaml --seed-data mine.jsonl --results 'my results.csv' --out mine.md "
        "--notes tried.txt" in page
    )
    assert "(mine/distillation.svg)" in page and (tmp_path / "mine" / "distillation.svg").is_file()


def test_each_study_says_what_it_is_about(config: Config, tmp_path: Path) -> None:
    assert "of capacity on purpose" not in page_of(config, [], tmp_path)
    told = config.study.model_copy(update={"about": "Which is better?\n\nIt was set once."})
    page = page_of(config.model_copy(update={"study": told}), [], tmp_path)
    assert page.startswith(f"# The study {config.name}\n\nWhich is better?\n\nIt was set once.\n\nThis page")


def test_a_study_of_something_else_has_curves_of_its_own_cells(config: Config, tmp_path: Path) -> None:
    values = {"other-recipe": {"distill": {"beta2": 0.9}}}
    study = Study(seeds=(1,), kd=("ckd",), rl=("none",), sweeps={"recipe": Sweep(rl=("none",), values=values)})
    config = config.model_copy(update={"study": study})
    page_of(config, [line(cell) for cell in cells_of(config)], tmp_path)
    drawn = (tmp_path / "study" / "distillation.svg").read_text(encoding="utf-8")
    assert ">ckd<" in drawn and ">other-recip" in drawn


def test_the_command_names_what_it_leaves_out(config: Config, tmp_path: Path) -> None:
    settings = load_config("study-tiny")
    first, second, third = cells_of(settings)[:3]
    for row in (line(first), line(second) | {"key": ""}, line(third) | {"key": "0123456789abcdef"}):
        write_result(tmp_path / "tiny.csv", row, order=[])
    command = ["study", "report", "--results", str(tmp_path / "tiny.csv"), "--out", str(tmp_path / "tiny.md")]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert f"1 line was made with other settings than these, and left out: `{third.name}` (seed 11)." in said.stderr
    assert "because an older version wrote them: 1;" in said.stderr


@pytest.mark.parametrize(
    ("profile", "results", "page"),
    [("study-tiny", "tiny", "study"), ("study-recipes", "recipes", "recipes")],
    ids=["study", "recipes"],
)
def test_the_page_in_the_documentation_is_up_to_date(profile: str, results: str, page: str, tmp_path: Path) -> None:
    names = Names(f"configs/{profile}.yaml", f"docs/study/{results}.csv", f"docs/{page}.md")
    command = f"star study report --config {names.config} --results {names.results} --out {names.out}"
    written = (ROOT / names.out).read_text(encoding="utf-8")
    notes = ROOT / "docs" / page / "tried.txt"
    if notes.is_file():
        names = names._replace(notes=f"docs/{page}/tried.txt")
        command += f" --notes {names.notes}"
    write_report(
        load_config(ROOT / names.config),
        read_results(ROOT / names.results),
        out=tmp_path / f"{page}.md",
        names=names,
        notes=notes.read_text(encoding="utf-8") if notes.is_file() else "",
    )
    assert written == (tmp_path / f"{page}.md").read_text(encoding="utf-8"), f"run: {command}"
    for chart in (tmp_path / page).glob("*.svg"):
        assert chart.read_text(encoding="utf-8") == (ROOT / "docs" / page / chart.name).read_text(encoding="utf-8")
