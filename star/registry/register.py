"""The last stage: the refined student goes into the registry with its scores and its lineage, and becomes champion if the gate lets it."""

import json
from pathlib import Path

from star.config import Registry
from star.evaluation.suite import EVALUATION
from star.registry.promotion import Decision, champion, decide, promote
from star.registry.publish import Version, annotate, register_model
from star.storage import read_manifest, write_json

REGISTRATION = "registration.json"
DECIDED = "decided"  # the evaluation by which a version was let through the gate or not


def register_and_promote(refined: Path, evaluation: Path, *, settings: Registry, out: Path) -> dict[str, float]:
    """Registers the model once for its content, decides, promotes, and writes registration.json with the reasons.

    Returns:
        version, and promoted: 1 if this version is the champion now.
    """
    manifest = read_manifest(refined)
    report = json.loads((evaluation / EVALUATION).read_text(encoding="utf-8"))
    entry = next(model for model in report["models"] if model["name"] == "refined")
    scores = {name: value["mean"] for name, value in entry["scores"].items()}
    measured = read_manifest(evaluation).digest
    lineage = {**report["lineage"], "code": manifest.code_version, "evaluation": measured}
    name = settings.model_name
    version = register_model(refined, name=name, scores=scores, lineage=lineage, model_digest=manifest.digest)
    if version.lineage.get("evaluation") != measured:
        version = annotate(version, scores=scores, lineage=lineage)
    decision = _decide(version, settings)
    # A decision is made once: the next run must not undo somebody's rollback.
    if decision.passed and version.lineage.get(DECIDED) != measured:
        promote(name, version.version)
    annotate(version, scores={}, lineage={DECIDED: measured})
    now = champion(settings.model_name)
    write_json(
        out / REGISTRATION,
        {
            "model": settings.model_name,
            "version": version.version,
            "model_digest": version.model_digest,
            "passed": decision.passed,
            "reasons": decision.reasons,
            "champion": now.version if now else None,
        },
    )
    return {"version": version.version, "promoted": float(bool(now and now.version == version.version))}


def _decide(version: Version, settings: Registry) -> Decision:
    rival = champion(settings.model_name)
    if rival is None or rival.version == version.version:
        return decide(version.scores, None, settings.gate)
    if rival.lineage.get("data") == version.lineage.get("data"):
        return decide(version.scores, rival.scores, settings.gate)
    decision = decide(version.scores, None, settings.gate)
    note = f"champion version {rival.version} was measured on other rows, and is not compared"
    return Decision(decision.passed, [*decision.reasons, note])
