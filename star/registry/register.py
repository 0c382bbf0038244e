"""The last stage: the refined student goes into the registry with its scores and its lineage, and becomes champion if the gate lets it."""

import json
from pathlib import Path

from star.config import Registry
from star.evaluation.suite import EVALUATION
from star.registry.promotion import champion, decide, promote
from star.registry.publish import register_model
from star.storage import read_manifest, write_json

REGISTRATION = "registration.json"


def register_and_promote(refined: Path, evaluation: Path, *, settings: Registry, out: Path) -> dict[str, float]:
    """Registers the model once for its content, decides, promotes, and writes registration.json with the reasons.

    Returns:
        version, and promoted: 1 if this version is the champion now.
    """
    manifest = read_manifest(refined)
    report = json.loads((evaluation / EVALUATION).read_text(encoding="utf-8"))
    entry = next(model for model in report["models"] if model["name"] == "refined")
    scores = {name: value["mean"] for name, value in entry["scores"].items()}
    lineage = {**report["lineage"], "code": manifest.code_version, "evaluation": read_manifest(evaluation).digest}
    version = register_model(
        refined, name=settings.model_name, scores=scores, lineage=lineage, model_digest=manifest.digest
    )
    current = champion(settings.model_name)
    rival = current if current and current.version != version.version else None
    decision = decide(version.scores, rival.scores if rival else None, settings.gate)
    if decision.passed:
        promote(settings.model_name, version.version)
    now = champion(settings.model_name)
    write_json(
        out / REGISTRATION,
        {
            "model": settings.model_name,
            "version": version.version,
            "model_digest": version.model_digest,
            "promoted": decision.passed,
            "reasons": decision.reasons,
            "champion": now.version if now else None,
        },
    )
    return {"version": version.version, "promoted": float(bool(now and now.version == version.version))}
