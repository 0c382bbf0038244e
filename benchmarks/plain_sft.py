"""Compares a finished run with the baseline that it must beat: its student's base after plain supervised training.

    make real SEED_DATA=rows.jsonl
    python benchmarks/plain_sft.py --config configs/smollm2-sft.yaml                 # on the run's held-out rows
    python benchmarks/plain_sft.py --config configs/smollm2-sft.yaml --bfcl 100      # also 100 entries of each BFCL category

The profile's teacher is the baseline: the student's base, `sft` with the steps of the student, no Sim-RL. It is trained on the
rows of the run, and stands in one table beside the run's models and their base. On BFCL it stands beside the refined
student and the base. What was killed resumes, and what is finished is not done again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from command_line import positive, run_main

from star.config.experiment import Config
from star.config.load import load_config
from star.errors import InputError
from star.evaluation.bases import bases_beside
from star.evaluation.bfcl.environment import harness_python
from star.evaluation.compare import print_comparison
from star.evaluation.evaluate import EVALUATION, evaluate_models
from star.evaluation.gather import ModelSource
from star.evaluation.one_model import choose_suites, evaluate_one
from star.folders.manifest import read_manifest
from star.folders.workspace import Workspace
from star.hashing import digest_of
from star.stages import refine_teacher

CATEGORIES = ("simple_python", "multiple", "irrelevance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="profile of the baseline")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/latest"), help="folder of the finished run (runs/latest)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/plain-sft"), help="folder for model and evaluations (runs/plain-sft)"
    )
    parser.add_argument("--bfcl", type=positive, metavar="N", help="entries of each BFCL category; none by default")
    parser.add_argument(
        "--categories", nargs="+", default=CATEGORIES, help=f"BFCL categories, for --bfcl ({', '.join(CATEGORIES)})"
    )
    arguments = parser.parse_args()
    config, run, out = load_config(arguments.config), arguments.run, arguments.out
    # What could end the work after the training is looked at before it.
    if config.teacher.sft is None or config.teacher.refine is not None:
        raise InputError(
            f"{arguments.config} is no profile of plain training: it needs `teacher.sft` and `teacher.refine: none`, as "
            "configs/smollm2-sft.yaml has them"
        )
    for stage in ("synthesize", "evaluate", "refine"):
        read_manifest(run / stage)
    on_bfcl = config
    if arguments.bfcl:
        harness_python()
        on_bfcl = choose_suites(
            config, suites=("bfcl",), limit=arguments.bfcl, bfcl_categories=tuple(arguments.categories)
        )
    data, sft = run / "synthesize", out / "sft"
    refine_teacher(config, data=data, out=sft)
    evaluate_one(
        sft,
        title="sft",
        config=choose_suites(config, suites=("heldout",)),
        data=data,
        out=out / "heldout",
        resume=True,
    )
    names = [model["name"] for model in json.loads((run / "evaluate" / EVALUATION).read_text("utf-8"))["models"]]
    print_comparison(*(Path(f"{run / 'evaluate'}:{name}") for name in reversed(names)), out / "heldout")
    if arguments.bfcl:
        evaluate_on_bfcl(sft, run / "refine", config=on_bfcl, out=out)


def evaluate_on_bfcl(sft: Path, refined: Path, *, config: Config, out: Path) -> None:
    """Asks the base, the baseline and the refined student, and prints scores and paired differences."""
    # The profile has one base, that of the student, under whichever name.
    [base, *_] = bases_beside(config, teacher=sft).values()
    models: dict[str, ModelSource] = {"base": replace(base, trained=("sft", "refined")), "sft": sft, "refined": refined}
    # A folder of its own, so that answers of other models or to other entries are never taken for these.
    asked = config.slice(("seed", "precision", "evaluate"))
    work = digest_of([base.identity, read_manifest(sft).digest, read_manifest(refined).digest, asked])
    out /= f"bfcl-{work[:12]}"
    workspace = Workspace(out, out / "state")
    workspace.state.mkdir(parents=True, exist_ok=True)
    evaluate_models(models, None, config=config, workspace=workspace, title="BFCL: plain training against STAR")
    print((out / "report.md").read_text("utf-8"))
    print_comparison(*(Path(f"{out}:{name}") for name in reversed(models)))
    print(out / "report.html")


if __name__ == "__main__":
    run_main(main, interrupted="interrupted: run the same command again to go on")
