"""Compares a student that lost layers, with and without healing, with the whole one after the same distillation.

    make real SEED_DATA=rows.jsonl                                              # or any run; its store and rows are used
    python benchmarks/students.py --config configs/smollm2.yaml --run runs/latest --layers 15
    python benchmarks/students.py --config configs/smollm2.yaml --run runs/latest --layers 15 --students whole short healed

The students are distilled from the run's top-k store, and asked the run's held-out rows:

- `whole`: the student's base as it is.
- `short`: as many of its layers, and nothing else before CKD.
- `longer`: the same, with the steps of the healing added to CKD.
- `healed-ce`: first trained on the teacher's samples by cross-entropy.
- `healed`: what `student.heal` does, by the forward KL to the stored distributions.

The healing is the profile's `student.heal`, or as the distillation in half of its steps. `first` and `last` are the forward
KL to the teacher (nats per completion token) at the first step, of the healing where there is one, and at the last of CKD.
A model that knows nothing begins at about the logarithm of the vocabulary's size, less the teacher's entropy. `minutes`
are those since a student's last start.

The same command goes on after a kill: finished students and their answers are kept in --out, and a killed training
resumes from its last checkpoint. A student that the home has already, such as the run's own, is taken from there.
With --steps it is a trial of a few minutes; its figures mean little.
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

from command_line import positive, run_main

from star import stages
from star.config.experiment import Config
from star.config.load import load_config
from star.config.models import Architecture, Student
from star.config.safety import use_safety
from star.config.training import Distill, Training
from star.errors import InputError
from star.evaluation.compare import print_comparison
from star.evaluation.evaluate import EVALUATION
from star.evaluation.one_model import choose_suites, evaluate_one
from star.folders.manifest import read_manifest
from star.modeling.layers import shorten_config
from star.modeling.models import base_source, count_parameters, describe_model, load_model, load_tokenizer
from star.topk.sequences import TOKENIZER

STUDENTS = ("whole", "short", "longer", "healed-ce", "healed")


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
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS, help="which (all)")
    parser.add_argument("--heal-steps", type=positive, help="steps of the healing, instead of the profile's")
    parser.add_argument(
        "--steps", type=positive, help="steps of the distillation; the profile's healing shrinks in proportion"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/students"),
        help="folder for the students and their answers (runs/students)",
    )
    options = parser.parse_args()
    config = load_config(options.config)
    use_safety(config.safety)
    store, data = options.run / "extract-topk", options.run / "synthesize"
    # Before the first ten minutes.
    for folder in (store, data):
        read_manifest(folder)
    refuse_layers(config.student, options.layers)
    if (steps := options.steps or config.distill.steps) is None:
        parser.error(f"{options.config} counts the distillation in epochs: give --steps")
    heal = healing(config, steps=steps, heal_steps=options.heal_steps)
    config = with_steps(config, steps)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    rows, places = {}, {}
    for name in STUDENTS:
        if name in options.students:
            rows[name] = make_student(name, config, store, layers=options.layers, heal=heal, out=out)
            places[name] = out / f"{name}-heldout"
            asked = choose_suites(config, suites=("heldout",))
            evaluate_one(rows[name].folder, title=name, config=asked, data=data, out=places[name], resume=True)
    if len(places) > 1:
        print_comparison(*places.values())
    print_table(rows, places, vocabulary=len(load_tokenizer(store / TOKENIZER)))


def refuse_layers(student: Student, layers: int) -> None:
    """Raises InputError if the student's base cannot have so few layers, or so many."""
    if isinstance(student.base, Architecture):
        raise InputError("the profile builds its student from scratch: take one with a pretrained `student.base`")
    if layers < 2:
        raise InputError(f"--layers {layers} is too few: the first layer and the last one are always kept")
    source = base_source(student.base)
    shorten_config(describe_model(source, revision=student.revision), layers, source=source)


def healing(config: Config, *, steps: int, heal_steps: int | None) -> Training:
    """The training that heals: the profile's, in as many steps as --steps and --heal-steps leave it."""
    loss = with_steps(config, steps).distill
    half = Training(**{name: getattr(loss, name) for name in Training.model_fields} | {"steps": max(1, steps // 2)})
    heal = config.student.heal or half
    if heal_steps is None and config.student.heal and heal.steps and config.distill.steps:
        heal_steps = max(1, round(heal.steps * steps / config.distill.steps))
    if heal_steps is None and heal.steps is None:
        raise InputError("the profile counts the healing in epochs: give --heal-steps")
    return heal.model_copy(update={"steps": heal_steps or heal.steps, "epochs": None})


def with_steps(config: Config, steps: int) -> Config:
    changes = {"steps": steps, "epochs": None}
    return config.model_copy(update={"distill": config.distill.model_copy(update=changes)})


def make_student(name: str, config: Config, store: Path, *, layers: int, heal: Training, out: Path) -> Row:
    """Distils one of STUDENTS."""
    whole = config.student.model_copy(update={"layers": None, "heal": None})
    short = whole.model_copy(update={"layers": layers})
    if name == "whole":
        return distil(config, whole, store, out / name)
    if name == "short":
        return distil(config, short, store, out / name)
    if name == "longer":
        longer = sum(training.steps or 0 for training in (config.distill, heal))  # both are in steps by now
        return distil(with_steps(config, longer), short, store, out / name)
    if name == "healed":
        return distil(config, short.model_copy(update={"heal": heal}), store, out / name)
    by_ids = config.model_copy(update={"distill": Distill(kind="ce", **heal.model_dump())})
    first = distil(by_ids, short, store, out / "healed-ce")
    then = distil(config, Student(base=str(first.folder)), store, out / "ce")
    return then._replace(first=first.first, minutes=first.minutes + then.minutes)


def distil(config: Config, student: Student, store: Path, out: Path) -> Row:
    """Runs the stage with another student."""
    metrics = stages.distill(config.model_copy(update={"student": student}), topk=store, out=out)
    curves = [
        json.loads((out / f"{phase}_curve.json").read_text())
        for phase in ("heal", "ckd")
        if (out / f"{phase}_curve.json").is_file()
    ]
    minutes = metrics["seconds"] / 60
    return Row(out, count_parameters(load_model(out)), curves[0][0]["fkl"], curves[-1][-1]["fkl"], minutes)


def print_table(rows: dict[str, Row], places: dict[str, Path], *, vocabulary: int) -> None:
    """Prints a line per student, in Markdown."""
    print(f"\nlogarithm of the vocabulary's size: {math.log(vocabulary):.2f} nats\n")
    print("| student | parameters | first FKL | last FKL | exact match (95%) | format errors | minutes |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        [model] = json.loads((places[name] / EVALUATION).read_text("utf-8"))["models"]
        exact, errors = model["scores"]["exact_match"], model["scores"]["format_errors"]
        interval = f"{exact['mean']:.3f} ({exact['low']:.3f} to {exact['high']:.3f})"
        size = f"{row.parameters / 1e6:.1f}M"
        print(
            f"| {name} | {size} | {row.first:.2f} | {row.last:.2f} | {interval} | {errors['mean']:.3f} | {row.minutes:.1f} |"
        )


if __name__ == "__main__":
    run_main(main, interrupted="interrupted: run the same command again to go on")
