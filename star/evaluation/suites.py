"""Lists the suites of an evaluation: how each asks a model, scores the answers, and is named.

To add a suite:

1. Write its module with two functions. `ask_suite(candidate, data)` asks a model the candidate's shard of the suite's
   batches or categories and returns the answers as JSON. `score_suite(shards, settings)` scores the answers of all
   shards as one.
2. Add its entry to SUITES. Gathering, scoring, comparisons, the report and the registration read this table.
3. Add its name to `Suite` in star/config/evaluation.py, so that a configuration may name it. A test compares
   the two.
4. Give its scores labels and units in METRICS of star/evaluation/labels.py. A score without an entry is shown by its
   plain name.

The report shows the categories of every suite whose `details` hold its own name with `categories` below it, as `bfcl`
does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.evaluation import acebench, heldout
from star.evaluation.bfcl import run as bfcl
from star.evaluation.candidate import Candidate
from star.evaluation.suite_scores import ScoringSettings, SuiteScores


@dataclass(frozen=True)
class Suite:
    """One suite of questions.

    Attributes:
        name: its name in the configuration and in every file of an evaluation.
        label: its name in reports.
        measures: what two models are compared by: the name of a metric -> the key of an outcome that holds its value.
            The first one is whether the row was answered right, which the registration's gate compares by category.
        ask: asks a model the candidate's shard of the suite. Its arguments are the candidate and the folder of
            `star synthesize`. Its result is JSON, or None where the shard holds no category.
        score: scores the answers of all shards that asked something.
        parsed_by_star: whether star/chat.py decides which answers are valid, and not the benchmark's own code.
    """

    name: str
    label: str
    measures: Mapping[str, str]
    ask: Callable[[Candidate, Path | None], Any]
    score: Callable[[list[Any], ScoringSettings], SuiteScores]
    parsed_by_star: bool = True


# In the order in which comparisons and the report's section on benchmarks show them.
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "heldout",
            "held-out",
            {"exact_match": "exact_match", "mean_reward": "reward"},
            heldout.ask_suite,
            heldout.score_suite,
        ),
        Suite("bfcl", "BFCL", {"bfcl": "valid"}, bfcl.ask_suite, bfcl.score_suite, parsed_by_star=False),
        Suite("acebench", "ACEBench", {"acebench": "valid"}, acebench.ask_suite, acebench.score_suite),
    )
}
