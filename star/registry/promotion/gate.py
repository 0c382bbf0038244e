"""The gate: what a candidate must show to become champion, each bar with one sentence that says how it went.

Floors hold for every candidate. Where the champion was measured on the same rows with the same decoding, the candidate must not
fall behind it: overall by more than the allowed regression, and in no category by more than that with 95% confidence (paired
on the rows that both answered).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from star.config.evaluation import Gate

ROUNDING = 1e-9  # 0.4 - 0.1 is a little more than 0.3
FEWEST_ROWS = 5  # of a category, for its interval to say anything


@dataclass(frozen=True)
class Check:
    """One bar."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """All bars, and what the candidate was compared with."""

    checks: list[Check]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        return [check.reason for check in self.checks] + self.notes


@dataclass(frozen=True)
class Measured:
    """What an evaluation says of a model."""

    scores: Mapping[str, float]
    benchmark: str = ""  # digest of the rows
    decoding: str = ""  # digest of how they were answered
    parameters: float | None = None
    tokens_per_second: float | None = None
    outcomes: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # row -> category, 1 for an exact match


def judge(candidate: Measured, rival: Measured | None, gate: Gate, *, seed: int = 0) -> Verdict:
    """All bars of the gate; `rival` is the champion, if there is one."""
    comparable = rival is not None and _same(candidate, rival)
    verdict = decide(candidate.scores, rival.scores if rival and comparable else None, gate)
    checks = [*verdict.checks, *_limits(candidate, gate)]
    notes = []
    if rival is not None and comparable:
        checks += _categories(candidate.outcomes, rival.outcomes, gate, seed=seed)
    elif rival is not None:
        notes.append("the champion was measured on other rows or with other decoding, and is not compared")
    return Verdict(checks, notes)


def decide(candidate_scores: Mapping[str, float], champion_scores: Mapping[str, float] | None, gate: Gate) -> Verdict:
    """Compares a candidate's `exact_match`, `format_errors` and `mean_reward` with the gate and the champion's, if any.

    A score that the candidate lacks, or that is NaN, does not pass. One that the champion lacks is not compared.
    """
    bars = [("exact_match", gate.min_exact_match, "the gate's minimum")]
    for score in ("exact_match", "mean_reward"):
        if champion_scores and score in champion_scores:
            label = f"the champion's {champion_scores[score]:.4f} less {gate.max_regression:.4f}"
            bars.append((score, champion_scores[score] - gate.max_regression, label))
    checks = [_at_least(candidate_scores, score, bar=bar, label=label) for score, bar, label in bars]
    return Verdict([*checks, _format_errors(candidate_scores, gate)])


def _same(candidate: Measured, rival: Measured) -> bool:
    return (candidate.benchmark, candidate.decoding) == (rival.benchmark, rival.decoding)


def _at_least(scores: Mapping[str, float], score: str, *, bar: float, label: str) -> Check:
    name = score.replace("_", " ")
    if score not in scores:
        return Check(score, False, f"{name} was not measured, and {bar:.4f} is needed ({label})")
    passed = scores[score] >= bar - ROUNDING
    said = f"{name} {scores[score]:.4f} {'reaches' if passed else 'is below'} {bar:.4f} ({label})"
    return Check(score, passed, said)


def _format_errors(scores: Mapping[str, float], gate: Gate) -> Check:
    limit = f"{gate.max_format_errors:.4f} (the gate's maximum)"
    if "format_errors" not in scores:
        return Check("format_errors", False, f"format errors were not measured, and may be at most {limit}")
    passed = scores["format_errors"] <= gate.max_format_errors + ROUNDING
    said = f"format errors {scores['format_errors']:.4f} {'stay within' if passed else 'exceed'} {limit}"
    return Check("format_errors", passed, said)


def _limits(candidate: Measured, gate: Gate) -> Iterator[Check]:
    if gate.max_parameters is not None:
        size = candidate.parameters
        passed = size is not None and size <= gate.max_parameters
        said = "was not measured" if size is None else f"is {size:,.0f}"
        yield Check("size", passed, f"the number of parameters {said}, and may be at most {gate.max_parameters:,}")
    if gate.min_tokens_per_second is not None:
        speed = candidate.tokens_per_second
        passed = speed is not None and speed >= gate.min_tokens_per_second
        said = "was not measured" if speed is None else f"is {speed:,.1f} tokens a second"
        yield Check("speed", passed, f"the speed {said}, and must be {gate.min_tokens_per_second:,.1f} at least")


def _categories(
    mine: Mapping[str, tuple[str, float]], theirs: Mapping[str, tuple[str, float]], gate: Gate, *, seed: int
) -> Iterator[Check]:
    """A check for every category of rows that both answered."""
    from star.evaluation.intervals import paired_difference

    shared = sorted(mine.keys() & theirs.keys())
    for category in sorted({mine[row][0] for row in shared}):
        rows = [row for row in shared if mine[row][0] == category]
        if len(rows) < FEWEST_ROWS:
            continue
        found = paired_difference([mine[row][1] for row in rows], [theirs[row][1] for row in rows], seed=seed)
        passed = found.high >= -gate.max_regression - ROUNDING
        said = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}] against the champion on {len(rows)} rows"
        verdict = "no worse" if passed else f"worse by more than {gate.max_regression:.4f}"
        yield Check(f"category {category}", passed, f"{category}: {said}: {verdict}")
