"""Evaluates one model of a study on the held-out rows, as a stage: teacher, base, distilled or refined student."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from star.config.experiment import Config
from star.folders.workspace import Workspace
from star.merge_shards import Metrics
from star.run_stage import Stage, run_stage

if TYPE_CHECKING:
    from star.tracking.runs import Run

MODEL = "model"  # its name in evaluation.json


def evaluate_model(
    config: Config, *, data: Path, model: Path, out: Path, made_by: str = "refine", resume: bool = True
) -> Metrics:
    """Evaluates a model: exact match, reward, pass@k and policy entropy. Writes evaluation.json and the reports.

    Args:
        made_by: the stage that wrote the model.
    """
    stage = replace(EVALUATE, inputs={**EVALUATE.inputs, "model": made_by})

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.evaluation.evaluate import evaluate_models

        return evaluate_models({MODEL: model}, data, config=config, workspace=workspace, title=f"A model of {made_by}")

    return run_stage(stage, work, config, inputs={"data": data, "model": model}, out=out, resume=resume)


EVALUATE = Stage(
    "evaluate-model",
    evaluate_model,
    {"data": "synthesize", "model": "refine"},
    ("seed", "precision", "evaluate"),
)
