"""Which version is the champion: the gate a candidate must pass, the promotion, and the way back.

The champion is the version that bears the alias `champion`; the one before it bears `previous`. MLflow has no
compare-and-set for aliases, so a promotion reads back what it wrote and says so when another one got in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from star.config import Gate
from star.registry.publish import Version, find_version, list_versions
from star.registry.tracking import connect

CHAMPION, PREVIOUS = "champion", "previous"
ROUNDING = 1e-9  # 0.4 - 0.1 is a little more than 0.3


@dataclass(frozen=True)
class Decision:
    """The gate's verdict, with one sentence for every bar."""

    passed: bool
    reasons: list[str]


def decide(candidate_scores: Mapping[str, float], champion_scores: Mapping[str, float] | None, gate: Gate) -> Decision:
    """Compares a candidate's `exact_match`, `format_errors` and `mean_reward` with the gate and the champion's, if any.

    A score that the candidate lacks, or that is NaN, does not pass. One that the champion lacks is not compared.
    """
    bars = [("exact_match", gate.min_exact_match, "the gate's minimum")]
    for score in ("exact_match", "mean_reward"):
        if champion_scores and score in champion_scores:
            label = f"the champion's {champion_scores[score]:.4f} less {gate.max_regression:.4f}"
            bars.append((score, champion_scores[score] - gate.max_regression, label))
    checks = [_at_least(candidate_scores, score, bar=bar, label=label) for score, bar, label in bars]
    checks.append(_format_errors(candidate_scores, gate))
    return Decision(all(passed for passed, _ in checks), [reason for _, reason in checks])


def _at_least(scores: Mapping[str, float], score: str, *, bar: float, label: str) -> tuple[bool, str]:
    name = score.replace("_", " ")
    if score not in scores:
        return False, f"{name} was not measured, and {bar:.4f} is needed ({label})"
    passed = scores[score] >= bar - ROUNDING
    return passed, f"{name} {scores[score]:.4f} {'reaches' if passed else 'is below'} {bar:.4f} ({label})"


def _format_errors(scores: Mapping[str, float], gate: Gate) -> tuple[bool, str]:
    limit = f"{gate.max_format_errors:.4f} (the gate's maximum)"
    if "format_errors" not in scores:
        return False, f"format errors were not measured, and may be at most {limit}"
    passed = scores["format_errors"] <= gate.max_format_errors + ROUNDING
    return passed, f"format errors {scores['format_errors']:.4f} {'stay within' if passed else 'exceed'} {limit}"


def champion(name: str) -> Version | None:
    """The version of `name` that is champion now, if any."""
    return next((version for version in list_versions(name) if CHAMPION in version.aliases), None)


def promote(name: str, version: int) -> Version:
    """Makes a version the champion and calls the old one `previous`; the champion itself stays what it is.

    Raises:
        InputError: there is no such version.
        RuntimeError: somebody else promoted at the same moment.
    """
    candidate, old = find_version(name, version=version), champion(name)
    if old and old.version == candidate.version:
        return candidate
    client = connect()
    if old:  # first, so that a promotion cut short has changed no champion
        client.set_registered_model_alias(name, PREVIOUS, str(old.version))
    client.set_registered_model_alias(name, CHAMPION, str(candidate.version))
    now = champion(name)
    if now is None or now.version != candidate.version:
        raise RuntimeError(f"{candidate} was promoted, but the champion is {now}: promoted at the same time")
    return now


def rollback(name: str) -> Version:
    """Makes `previous` the champion again; the one that steps down is `previous` then, so a second rollback undoes it.

    Raises:
        InputError: there is no previous champion.
    """
    return promote(name, find_version(name, alias=PREVIOUS).version)
