"""The last stage: the refined student is published with its card and its lineage, and becomes champion if the gate lets it."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from star.config.experiment import Registry
from star.errors import InputError
from star.evaluation.suite import EVALUATION, MEASURES, OUTCOMES, TIMING
from star.folders.manifest import MANIFEST, METRICS, read_manifest
from star.home import home
from star.html_kit import markdown
from star.json_file import write_json
from star.registry.download import fetch_file, fetch_version
from star.registry.lineage import LINEAGE_FILE, build_lineage
from star.registry.model_card import model_card
from star.registry.promotion.gate import Check, Measured, Verdict, judge
from star.registry.promotion.ledger import CHAMPION
from star.registry.promotion.promote import Overtaken, promote, refuse, standing
from star.registry.publish import annotate, register_model
from star.registry.smoke_test import smoke_call
from star.registry.versions import Version, find_version
from star.tracking.runs import current_run

REGISTRATION, GATE, GATE_PAGE = "registration.json", "gate.json", "gate.md"
DECIDED = "decided"  # the evaluation by which a version was let through the gate or not
CARD = "README.md"
# Of the refined stage, not of the model.
LEFT_OUT = ("*_curve.json", "completions.html", MANIFEST, METRICS)
REFINED = "refined"  # of the evaluated models, the one that is registered


def register_and_promote(refined: Path, evaluation: Path, *, settings: Registry, out: Path) -> dict[str, float]:
    """Publishes the model once for its content, decides, promotes, and writes registration.json and the reasons: gate.json, gate.md.

    Returns:
        version, and promoted: 1 if this version is the champion now.
    """
    name = settings.model_name
    version, mine = _publish(refined, evaluation, settings=settings)
    before = standing(name)
    verdict = judge(mine, _champions(name, before.aliases.get(CHAMPION), version), settings.gate)
    verdict = Verdict([*verdict.checks, _smoke(version)], verdict.notes)
    # A decision is made once: the next run must not undo somebody's rollback.
    decided = version.lineage.get(DECIDED) == version.lineage["evaluation"]
    if not decided:
        verdict = _act(verdict, version, over=before.seq)
        annotate(version, scores={}, lineage={DECIDED: version.lineage["evaluation"], "gate": _passed(verdict)})
    now = standing(name)
    if decided and now.aliases.get(CHAMPION) != version.version:
        cure = f"`star promote {version.version} --name {name}` makes it the champion all the same"
        verdict = Verdict(verdict.checks, [*verdict.notes, f"decided on before, and not again: {cure}"])
    decision = _gate_content(verdict, version, before.aliases.get(CHAMPION))
    write_json(out / GATE, decision)
    (out / GATE_PAGE).write_text(_gate_page(decision), encoding="utf-8")
    if run := current_run():
        run.set_tags({"star.gate": _passed(verdict), "star.version": str(version.version)})
        for file in (GATE, GATE_PAGE):
            run.log_artifact(out / file)
    registration = {
        "model": name,
        "version": version.version,
        "model_digest": version.model_digest,
        "passed": verdict.passed,
        "reasons": verdict.reasons,
        "champion": now.aliases.get(CHAMPION),
    }
    write_json(out / REGISTRATION, registration)
    return {"version": version.version, "promoted": float(now.aliases.get(CHAMPION) == version.version)}


def _publish(refined: Path, evaluation: Path, *, settings: Registry) -> tuple[Version, Measured]:
    manifest, measured = read_manifest(refined), read_manifest(evaluation)
    report = json.loads((evaluation / EVALUATION).read_text(encoding="utf-8"))
    timing = json.loads((evaluation / TIMING).read_text(encoding="utf-8"))[REFINED]
    entry = next(model for model in report["models"] if model["name"] == REFINED)
    scores = {score: value["mean"] for score, value in entry["scores"].items()}
    lineage = build_lineage(refined, evaluation, report=report, model=manifest.digest)
    tags = {
        **report["lineage"],
        "code": manifest.code_version,
        "evaluation": measured.digest,
        "decoding": measured.config_digest,
        "tokenizer": lineage["tokenizer"],
        **{key: lineage["published"][key] for key in ("commit", "dirty", "image") if key in lineage["published"]},
    }
    card = model_card(settings.model_name, license=settings.license, entry=entry, evaluation=report, lineage=lineage)
    with tempfile.TemporaryDirectory(prefix="star-publish-") as scratch:
        folder = Path(scratch) / "model"
        assemble(refined, folder, card=card, lineage=lineage, outcomes=evaluation / OUTCOMES)
        version = register_model(
            folder, name=settings.model_name, scores=scores, lineage=tags, model_digest=manifest.digest
        )
    if version.lineage.get("evaluation") != measured.digest:
        version = annotate(version, scores=scores, lineage=tags)
    return version, Measured(
        scores,
        benchmark=report["lineage"]["data"],
        decoding=measured.config_digest,
        parameters=entry.get("parameters"),
        tokens_per_second=timing.get("tokens_per_second"),
        outcomes=_outcomes(evaluation / OUTCOMES),
    )


def assemble(refined: Path, folder: Path, *, card: str, lineage: dict, outcomes: Path) -> None:
    """The folder that is published: the model as `from_pretrained` reads it, its card, its lineage, its outcome on every row."""
    shutil.copytree(refined, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), copy_function=_link_or_copy)
    (folder / CARD).write_text(card, encoding="utf-8")
    write_json(folder / LINEAGE_FILE, lineage)
    lines = outcomes.read_text(encoding="utf-8").splitlines(keepends=True)
    own = [line for line in lines if json.loads(line)["model"] == REFINED]
    (folder / OUTCOMES).write_text("".join(own), encoding="utf-8")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _champions(name: str, number: int | None, version: Version) -> Measured | None:
    """What the champion's evaluation said; None when there is none, or it is this very version."""
    if number is None or number == version.version:
        return None
    rival = find_version(name, version=number)
    outcomes: Mapping[str, tuple[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="star-champion-") as scratch, suppress(InputError):
        outcomes = _outcomes(fetch_file(rival, OUTCOMES, Path(scratch) / "files"))
    return Measured(
        rival.scores,
        benchmark=rival.lineage.get("data", ""),
        decoding=rival.lineage.get("decoding", ""),
        outcomes=outcomes,
    )


def _outcomes(file: Path) -> dict[str, tuple[str, float]]:
    """Category and right or wrong, by suite and row."""
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    answer = {suite: next(iter(measures.values())) for suite, measures in MEASURES.items()}
    return {
        f"{row['suite']}/{row['id']}": (row["kind"], float(row[answer[row["suite"]]]))
        for row in rows
        if row["model"] == REFINED
    }


def _smoke(version: Version) -> Check:
    """The published files, downloaded, answer a request with tools."""
    try:
        return Check("smoke", True, smoke_call(fetch_version(version, home() / "models")))
    except Exception as error:
        return Check("smoke", False, f"the published model does not answer a call with tools: {error}")


def _act(verdict: Verdict, version: Version, *, over: int) -> Verdict:
    """Promotes, or writes into the ledger why not. Somebody else's promotion meanwhile is another champion: not weighed, not replaced."""
    if not verdict.passed:
        failed = "; ".join(check.reason for check in verdict.checks if not check.passed)
        refuse(version.name, version.version, over=over, why=failed)
        return verdict
    try:
        promote(version.name, version.version, reason="passed the gate", over=over)
    except Overtaken as error:
        return Verdict([*verdict.checks, Check("overtaken", False, f"{error}")], verdict.notes)
    return verdict


def _passed(verdict: Verdict) -> str:
    return "passed" if verdict.passed else "refused"


def _gate_content(verdict: Verdict, version: Version, rival: int | None) -> dict:
    return {
        "model": version.name,
        "version": version.version,
        "against": rival,
        "passed": verdict.passed,
        "checks": [asdict(check) for check in verdict.checks],
        "notes": verdict.notes,
    }


def _gate_page(decision: dict) -> str:
    """gate.json as a page of Markdown, as the pages of KFP and MLflow show it."""
    rival = decision["against"]
    before = {None: "There was no champion before.", decision["version"]: "It was the champion before."}
    against = before.get(rival, f"The champion before was version {rival}.")
    rows = "".join(
        f"| {'passed' if check['passed'] else '**failed**'} | {markdown(check['name'])} | {markdown(check['reason'])} |\n"
        for check in decision["checks"]
    )
    notes = "".join(f"\n{markdown(note)}\n" for note in decision["notes"])
    verdict = "passed the gate" if decision["passed"] else "was refused by the gate"
    title = f"# {markdown(decision['model'])} version {decision['version']} {verdict}"
    return f"{title}\n\n{against}\n\n| | bar | how it went |\n|---|---|---|\n{rows}{notes}"
