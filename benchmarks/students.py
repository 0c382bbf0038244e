"""Compares a student that lost layers, with and without healing, with the whole one after the same distillation.

    make real SEED_DATA=rows.jsonl                                              # or any run; its store and rows are used
    python benchmarks/students.py --config configs/smollm2.yaml --run runs/latest --layers 15

The students are distilled from the run's top-k store, and asked the run's held-out rows:

- `whole`: the student's base as it is.
- `N layers`: as many of its layers, and nothing else before CKD.
- `N layers, longer CKD`: the same, with the steps of the healing added to CKD.
- `N layers, healed (CE)`: first trained on the teacher's samples by cross-entropy.
- `N layers, healed`: what `student.heal` does, by the forward KL to the stored distributions.

`first` and `last` are the forward KL to the teacher (nats per completion token) at the first and the last step of CKD, or of the
healing where there is one. A model that knows nothing begins at about the logarithm of the vocabulary's size, less the teacher's entropy.
With --steps it is a trial of a few minutes; its figures mean little.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from star import stages
from star.config.experiment import Config
from star.config.load import load_config
from star.config.models import Student
from star.config.training import Distill, Training
from star.evaluation.evaluate import evaluate_models
from star.folders.manifest import read_manifest
from star.folders.workspace import Workspace
from star.hashing import digest_of
from star.modeling.models import count_parameters, load_model, load_tokenizer
from star.topk.sequences import TOKENIZER


class Row(NamedTuple):
    folder: Path
    parameters: int
    first: float
    last: float
    minutes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="profile of the run")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder with the results of synthesize and extract-topk"
    )
    parser.add_argument("--layers", type=int, required=True, help="layers that the smaller student keeps")
    parser.add_argument("--heal-steps", type=int, help="steps of the healing; half of the distillation's by default")
    parser.add_argument("--steps", type=int, help="steps of the distillation, instead of the profile's")
    parser.add_argument("--out", type=Path, help="folder for the students and the report; a temporary one by default")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    steps = arguments.steps or config.distill.steps
    if steps is None:
        parser.error(f"{arguments.config} counts the distillation in epochs: give --steps")
    config = config.model_copy(update={"distill": _with_steps(config.distill, steps)})
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        heal_steps = arguments.heal_steps or max(1, steps // 2)
        topk = arguments.run / "extract-topk"
        rows = distil_all(config, topk, arguments.layers, steps=steps, heal_steps=heal_steps, out=out)
        # Answers of other students are never taken for these.
        work = digest_of([read_manifest(row.folder).digest for row in rows.values()] + [config.slice(("evaluate",))])
        workspace = Workspace(out=out / "evaluation", state=out / f"evaluation-state-{work[:12]}")
        for folder in (workspace.out, workspace.state):
            folder.mkdir(exist_ok=True)
        evaluate_models(
            {name: row.folder for name, row in rows.items()},
            arguments.run / "synthesize",
            config=config,
            workspace=workspace,
            title="Students of one base",
        )
        print_table(rows, workspace.out, vocabulary=len(load_tokenizer(topk / TOKENIZER)))


def distil_all(config: Config, topk: Path, layers: int, *, steps: int, heal_steps: int, out: Path) -> dict[str, Row]:
    """Distils each student, and returns its row by its name."""
    base, loss = config.student, config.distill
    heal = Training(**{name: getattr(loss, name) for name in Training.model_fields} | {"steps": heal_steps})
    shorter = base.model_copy(update={"layers": layers, "heal": None})
    rows = {
        "whole": distil(config, base.model_copy(update={"layers": None, "heal": None}), topk, out / "whole"),
        f"{layers} layers": distil(config, shorter, topk, out / "short"),
        f"{layers} layers, longer CKD": distil(
            config.model_copy(update={"distill": _with_steps(loss, steps + heal_steps)}),
            shorter,
            topk,
            out / "longer",
        ),
    }
    by_ids = config.model_copy(update={"distill": Distill(kind="ce", **heal.model_dump())})
    first = distil(by_ids, shorter, topk, out / "healed-ce")
    then = distil(config, Student(base=str(first.folder)), topk, out / "ce")
    rows[f"{layers} layers, healed (CE)"] = then._replace(first=first.first, minutes=first.minutes + then.minutes)
    rows[f"{layers} layers, healed"] = distil(config, shorter.model_copy(update={"heal": heal}), topk, out / "healed")
    return rows


def distil(config: Config, student: Student, topk: Path, out: Path) -> Row:
    """Runs the stage with another student."""
    began = time.monotonic()
    stages.distill(config.model_copy(update={"student": student}), topk=topk, out=out)
    minutes = (time.monotonic() - began) / 60
    curves = [
        json.loads((out / f"{phase}_curve.json").read_text())
        for phase in ("heal", "ckd")
        if (out / f"{phase}_curve.json").is_file()
    ]
    return Row(out, count_parameters(load_model(out)), curves[0][0]["fkl"], curves[-1][-1]["fkl"], minutes)


def print_table(rows: dict[str, Row], evaluation: Path, *, vocabulary: int) -> None:
    """Prints a line per student, in Markdown."""
    scored = {
        model["name"]: model["scores"] for model in json.loads((evaluation / "evaluation.json").read_text())["models"]
    }
    print(f"\nlogarithm of the vocabulary's size: {math.log(vocabulary):.2f} nats\n")
    print("| student | parameters | first FKL | last FKL | exact match (95%) | format errors | minutes |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        exact, errors = scored[name]["exact_match"], scored[name]["format_errors"]
        interval = f"{exact['mean']:.3f} ({exact['low']:.3f} to {exact['high']:.3f})"
        size = f"{row.parameters / 1e6:.1f}M"
        print(
            f"| {name} | {size} | {row.first:.2f} | {row.last:.2f} | {interval} | {errors['mean']:.3f} | {row.minutes:.1f} |"
        )


def _with_steps(settings: Distill, steps: int) -> Distill:
    return settings.model_copy(update={"steps": steps, "epochs": None})


if __name__ == "__main__":
    main()
