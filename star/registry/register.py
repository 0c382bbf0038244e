"""Publishes the refined student, checks it against the gate, promotes it if it passes, and reports the decision.

The last stage of the pipeline, in four steps that run once each, in this order:

    publish   refined and evaluation folder -> Candidate   the registered version, and what the evaluation measured
    check     Candidate -> GateResult                      the gate's verdict, and the decision it was compared against
    decide    Candidate, GateResult -> Outcome             promotes, or writes the refusal into the ledger
    report    Outcome -> gate.json, gate.md, registration.json, tags and artifacts of the run

Example: version 3 passes the gate while version 1 is the champion. Its gate.json has `"against": 1, "passed": true`,
its registration.json `"version": 3, "champion": 3`. The same stage run again finds that the registry still says the
same (`registration_holds`), and keeps this result. If another version became champion since, it registers nothing new
(the model's digest is known) and decides nothing (the version was decided on with this evaluation); it only reports.
"""

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from star.config.evaluation import Gate, Registry
from star.digest_cache import links_change
from star.errors import InputError, UnavailableError
from star.evaluation.evaluate import EVALUATION, OUTCOMES, READING, TIMING
from star.evaluation.suites import SUITES
from star.folders.manifest import Manifest, read_manifest
from star.folders.owners import create_in_home
from star.html_kit import escape_markdown
from star.json_file import write_json
from star.redaction import redacted
from star.registry.download import download_file, download_version
from star.registry.lineage import build_lineage
from star.registry.model_card import description, model_card
from star.registry.promotion.find import as_known
from star.registry.promotion.gate import Check, Measurements, Verdict, check_gate
from star.registry.promotion.open_ledger import require_ledger
from star.registry.promotion.promote_and_rollback import Overtaken, current_decision, promote, record_refusal
from star.registry.promotion.records import CHAMPION, Decision
from star.registry.promotion.register_model import register_or_find, update_registration
from star.registry.publish import add_documents, describe_version
from star.registry.published_weights import PublishedPrecision, place_model_files
from star.registry.smoke_test import run_smoke_test
from star.registry.versions import PRECISION_KEY, READING_KEY, Version, find_version
from star.tracking.runs import current_run
from star.tracking.server import connect

REGISTRATION, GATE, GATE_PAGE = "registration.json", "gate.json", "gate.md"
DECIDED = "decided"  # key of a version's lineage: digest of the evaluation that the gate has decided on
REFINED = "refined"  # name of the registered model among the evaluated ones


@dataclass(frozen=True)
class Evaluation:
    """The files of an evaluation folder that the registration reads."""

    folder: Path
    manifest: Manifest
    report: dict  # evaluation.json
    timing: dict  # timing.json, of the refined model

    @cached_property
    def model(self) -> dict:
        """The refined model's entry of the report."""
        return next(model for model in self.report["models"] if model["name"] == REFINED)

    @cached_property
    def scores(self) -> dict[str, float]:
        """The refined model's mean per score."""
        return {score: value["mean"] for score, value in self.model["scores"].items()}

    @property
    def decoding(self) -> str:
        """Digest of the settings by which the models were asked; an older STAR's evaluation read no other settings."""
        return self.report.get("decoding") or self.manifest.config_digest

    def measurements(self) -> Measurements:
        """Everything that the gate compares."""
        return Measurements(
            self.scores,
            benchmark=self.report["lineage"]["data"],
            decoding=self.decoding,
            parameters=self.model.get("parameters"),
            tokens_per_second=self.timing.get("tokens_per_second"),
            outcomes=_read_outcomes(self.folder / OUTCOMES),
            older_reading=self.report.get("reading") != READING,
        )


@dataclass(frozen=True)
class Candidate:
    """A published version, and what its evaluation measured."""

    version: Version
    measurements: Measurements
    passed_over: list[str]  # versions that say that they are this model, and are not
    description: str  # Markdown: scores, and how the model was made
    trained: Path | None = None  # the folder with the trained weights, where those that are published were converted

    @property
    def decided_before(self) -> bool:
        """Whether an earlier run decided on this version with this evaluation."""
        return self.version.lineage.get(DECIDED) == self.version.lineage["evaluation"]


@dataclass(frozen=True)
class GateResult:
    """The gate's verdict, and the ledger's newest decision then: its champion is what the candidate was compared with."""

    verdict: Verdict
    over: Decision


@dataclass(frozen=True)
class Outcome:
    """What was decided on a version, and who is champion before and after."""

    version: Version
    verdict: Verdict
    champion_before: int | None
    champion: int | None
    description: str  # of the version, without what was decided


def register_and_promote(refined: Path, evaluation: Path, *, settings: Registry, out: Path) -> dict[str, float]:
    """Publishes the model once per content, decides whether it becomes champion, and writes the decision to `out`.

    Args:
        refined: folder of the stage `refine`.
        evaluation: folder of the stage `evaluate` that measured it.
        out: where gate.json, gate.md and registration.json are written.

    Returns:
        `version`, and `promoted`: 1 if this version is the champion now.

    Raises:
        InputError: MLflow does not answer, promotions cannot be decided from here, or the model cannot be registered.
    """
    # Before anything is published: a version that nobody can promote is of no use.
    require_ledger(settings.model_name, connect())
    # Large files may get further names here, which without this would count as a change of the file.
    with links_change({refined / entry.path: None for entry in read_manifest(refined).files}):
        candidate = _publish(refined, evaluation, settings=settings)
        result = _check_candidate(candidate, settings.gate)
    outcome = _decide(candidate, result)
    _report(outcome, out)
    number = outcome.version.version
    return {"version": number, "promoted": float(outcome.champion == number)}


def registration_holds(folder: Path) -> bool:
    """Whether the registry still says what a finished registration says: version, content, decision and champion."""
    said = json.loads((folder / REGISTRATION).read_text(encoding="utf-8"))
    evaluation = read_manifest(folder).inputs["evaluation"]
    try:
        version = as_known(find_version(said["model"], version=said["version"]))
        champion = current_decision(said["model"]).aliases.get(CHAMPION)
    # The version was deleted, or MLflow does not answer: the stage itself says what to do.
    except InputError:
        return False
    decided_on = version.lineage.get(DECIDED)
    return (version.model_digest, decided_on, champion) == (said["model_digest"], evaluation, said["champion"])


# Step 1: publish


def _publish(refined: Path, folder: Path, *, settings: Registry) -> Candidate:
    """Registers the refined model, or finds the version with that content, and writes this evaluation's scores to its tags."""
    manifest, evaluation = read_manifest(refined), _read_evaluation(folder)
    with tempfile.TemporaryDirectory(dir=create_in_home("models"), prefix=".publish-") as scratch:
        model = Path(scratch) / "model"
        # Card and lineage go into a copy, because the stage's folder must keep the content that its digest names.
        converted = place_model_files(refined, model, precision=_precision(settings, manifest))
        lineage = build_lineage(refined, folder, report=evaluation.report, model=manifest.digest, published=model)
        lineage |= {PRECISION_KEY: "bf16"} if converted else {}
        card = model_card(settings, entry=evaluation.model, evaluation=evaluation.report, lineage=lineage)
        add_documents(model, card=card, lineage=lineage, outcomes=folder / OUTCOMES, name=REFINED)
        tags = _lineage_tags(manifest, evaluation, lineage)
        version, passed_over = register_or_find(
            model, name=settings.model_name, scores=evaluation.scores, lineage=tags, model_digest=manifest.digest
        )
    # The content may have been registered before, with the scores of another evaluation.
    if version.lineage.get("evaluation") != evaluation.manifest.digest:
        version = update_registration(version, scores=evaluation.scores, lineage=tags)
    described = description(evaluation.model, evaluation=evaluation.report, lineage=lineage)
    trained = refined if converted else None
    return Candidate(version, evaluation.measurements(), passed_over, described, trained)


def _precision(settings: Registry, manifest: Manifest) -> PublishedPrecision:
    """The precision of the published weights, as set or by the student's base, which the manifest's ancestors name."""
    if settings.precision != "auto":
        return settings.precision
    distilled = [summary for summary in manifest.ancestors.values() if summary["stage"] == "distill"]
    kinds = {summary.get("origin", {}).get("base", {}).get("kind", "scratch") for summary in distilled}
    return "bf16" if kinds - {"scratch"} else "fp32"


def _read_evaluation(folder: Path) -> Evaluation:
    report = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    timing = json.loads((folder / TIMING).read_text(encoding="utf-8"))[REFINED]
    return Evaluation(folder, read_manifest(folder), report, timing)


def _lineage_tags(manifest: Manifest, evaluation: Evaluation, lineage: dict) -> dict[str, str]:
    """The part of the lineage that is written to the version's tags, where it can be searched and compared."""
    published = lineage["published"]
    return {
        **evaluation.report["lineage"],
        "code": manifest.code_version,
        "evaluation": evaluation.manifest.digest,
        "decoding": evaluation.decoding,
        **({READING_KEY: evaluation.report["reading"]} if "reading" in evaluation.report else {}),
        "tokenizer": lineage["tokenizer"],
        **{key: lineage[key] for key in (PRECISION_KEY,) if key in lineage},
        **{key: published[key] for key in ("commit", "dirty", "image") if key in published},
    }


# Step 2: check the gate


def _check_candidate(candidate: Candidate, gate: Gate) -> GateResult:
    """Compares the candidate with the bars and with the champion, and calls the published files once."""
    version = candidate.version
    # Read before the comparison: a promotion that comes after this line makes the candidate's attempt lose (Overtaken).
    over = current_decision(version.name)
    verdict = check_gate(candidate.measurements, _read_champion(version, over.aliases.get(CHAMPION)), gate)
    # The smoke test uses the files as the registry returns them, so that a damaged upload does not become champion.
    notes = [*verdict.notes, *candidate.passed_over]
    return GateResult(Verdict([*verdict.checks, _smoke_check(version, trained=candidate.trained)], notes), over)


def _read_champion(candidate: Version, number: int | None) -> Measurements | None:
    """What the champion's evaluation measured; None when there is no champion, or the candidate is the champion."""
    if number is None or number == candidate.version:
        return None
    champion = as_known(find_version(candidate.name, version=number))
    outcomes: Mapping[str, tuple[str, float]] = {}
    # Without outcomes (an older version has none, they cannot be downloaded, or somebody promoted files with others) the
    # scores alone are compared.
    unreadable = (InputError, ValueError, KeyError, TypeError, RecursionError)
    with tempfile.TemporaryDirectory(prefix="star-champion-") as scratch, suppress(*unreadable):
        outcomes = _read_outcomes(download_file(champion, OUTCOMES, Path(scratch) / "files"))
    return Measurements(
        champion.scores,
        benchmark=champion.lineage.get("data", ""),
        decoding=champion.lineage.get("decoding", ""),
        outcomes=outcomes,
        older_reading=champion.older_reading,
    )


def _read_outcomes(file: Path) -> dict[str, tuple[str, float]]:
    """Category and score (1 for an exact match) of every row of the refined model, by `suite/row id`."""
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    first_measure = {name: next(iter(suite.measures.values())) for name, suite in SUITES.items()}
    return {
        f"{row['suite']}/{row['id']}": (row["kind"], float(row[first_measure[row["suite"]]]))
        for row in rows
        if row["model"] == REFINED
    }


def _smoke_check(version: Version, *, trained: Path | None) -> Check:
    """Downloads the published files and has them answer one request with tools, as the trained weights do.

    Raises:
        UnavailableError: their store does not answer.
    """
    try:
        return Check(
            "smoke", True, run_smoke_test(download_version(version, create_in_home("models")), trained=trained)
        )
    except UnavailableError:  # says nothing about the model, and a refusal would be final
        raise
    except Exception as error:  # whatever stops it from answering is a reason not to promote it
        return Check("smoke", False, redacted(f"the published model does not answer a call with tools: {error}"))


# Step 3: decide


def _decide(candidate: Candidate, result: GateResult) -> Outcome:
    """Promotes the version or writes the refusal into the ledger, once per version and evaluation."""
    version, verdict = candidate.version, result.verdict
    # A decision is made once: the next run of the pipeline must not undo somebody's rollback.
    if not candidate.decided_before:
        # The tag follows the decision. After a kill between the two, the next run decides again; with the tag first,
        # nobody would.
        verdict = _promote_or_refuse(version, result)
        said = _passed_or_refused(verdict)
        tags = {DECIDED: version.lineage["evaluation"], "gate": said}
        update_registration(version, scores={}, lineage=tags, gate=said)
    # Read again, because a later promotion or rollback may have made another version the champion.
    champion = current_decision(version.name).aliases.get(CHAMPION)
    if candidate.decided_before and champion != version.version:
        cure = f"`star promote {version.version} --name {version.name}` makes it the champion all the same"
        verdict = Verdict(verdict.checks, [*verdict.notes, f"decided on before, and not again: {cure}"])
    return Outcome(version, verdict, result.over.aliases.get(CHAMPION), champion, candidate.description)


def _promote_or_refuse(version: Version, result: GateResult) -> Verdict:
    """Writes the attempt to the ledger. Adds a failed check to the verdict when another promotion came first."""
    verdict, over = result.verdict, result.over.seq
    if not verdict.passed:
        failed = "; ".join(check.reason for check in verdict.checks if not check.passed)
        record_refusal(version.name, version.version, over=over, why=failed)
        return verdict
    try:
        promote(version.name, version.version, reason="passed the gate", over=over)
    except Overtaken as error:
        # The new champion is not the one that the candidate was compared with, so it is not replaced.
        return Verdict([*verdict.checks, Check("overtaken", False, f"{error}")], verdict.notes)
    return verdict


def _passed_or_refused(verdict: Verdict) -> str:
    return "passed" if verdict.passed else "refused"


# Step 4: report


def _report(outcome: Outcome, out: Path) -> None:
    """Writes the decision to the stage's folder and to its MLflow run."""
    version, verdict = outcome.version, outcome.verdict
    gate = {
        "model": version.name,
        "version": version.version,
        "against": outcome.champion_before,
        "passed": verdict.passed,
        "checks": [asdict(check) for check in verdict.checks],
        "notes": verdict.notes,
    }
    write_json(out / GATE, gate)
    (out / GATE_PAGE).write_text(_gate_page(outcome), encoding="utf-8")
    # Not who is champion, which can change tomorrow.
    describe_version(version, f"{escape_markdown(version)} {_verdict_in_words(verdict)}.\n\n{outcome.description}")
    if run := current_run():
        said = {"star.gate": _passed_or_refused(verdict), "star.version": str(version.version)}
        # The exit handler of a pipeline says it (star/cluster/pipeline_end.py).
        run.set_tags({**said, "star.outcome": _in_words(outcome)})
        for file in (GATE, GATE_PAGE):
            run.log_artifact(out / file)
    registration = {
        "model": version.name,
        "version": version.version,
        "model_digest": version.model_digest,
        "passed": verdict.passed,
        "reasons": verdict.reasons,
        "champion": outcome.champion,
    }
    write_json(out / REGISTRATION, registration)


def _in_words(outcome: Outcome) -> str:
    """What became of a version: `star version 4 is the new champion, after version 3`."""
    version, before, champion = outcome.version, outcome.champion_before, outcome.champion
    if champion == version.version:
        if before == champion:
            return f"{version} stays the champion"
        return f"{version} is the new champion" + (f", after version {before}" if before else "")
    now = f"version {champion} is the champion" if champion else "there is no champion"
    if outcome.verdict.passed:
        return f"{version} did not become the champion: {now}"
    return f"{version} was refused by the gate: {now}"


def _verdict_in_words(verdict: Verdict) -> str:
    return "passed the gate" if verdict.passed else "was refused by the gate"


def _gate_page(outcome: Outcome) -> str:
    """gate.json as a page of Markdown, as the pages of KFP and MLflow show it."""
    version, verdict, before = outcome.version, outcome.verdict, outcome.champion_before
    if before is None:
        against = "There was no champion before."
    elif before == version.version:
        against = "It was the champion before."
    else:
        against = f"The champion before was version {before}."
    # A reason may quote an error or a category's name, whose characters must not become markup.
    rows = "".join(
        f"| {'passed' if check.passed else '**failed**'} | {escape_markdown(check.name)} | {escape_markdown(check.reason)} |\n"
        for check in verdict.checks
    )
    notes = "".join(f"\n{escape_markdown(note)}\n" for note in verdict.notes)
    title = f"# {escape_markdown(version)} {_verdict_in_words(verdict)}"
    return f"{title}\n\n{against}\n\n| | bar | how it went |\n|---|---|---|\n{rows}{notes}"
