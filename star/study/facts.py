"""Writes what a study compares on: its task, and how teacher and students are trained, beside the paper's values."""

from pathlib import PurePosixPath

from star.config.experiment import Config
from star.config.load import load_config
from star.config.models import Architecture, Base
from star.config.training import SimRL, Training
from star.data.tool_files import load_tools
from star.study.paper import NEIGHBOURS
from star.study.results import Row
from star.study.scores import paragraph, percent, table
from star.units import format_count

PAPERS_PROFILE = "qwen3-0.6b"  # docs/paper.md compares its values with the paper's and the official scripts'
KINDS = {
    "irrelevance": "Requests of the kind irrelevance ask for something that no tool of the prompt does.",
    "missing-parameter": "Those of the kind missing-parameter leave a value open, so that the right answer is to ask for it.",
}


def task_section(config: Config, rows: list[Row]) -> str:
    """The rows and the models.

    Args:
        rows: recorded lines of the grid, from which sizes and scores come that no setting says.
    """
    assert config.study is not None  # noqa: S101 - the caller has listed its cells
    data = config.data
    held = "whole tools, which no model has seen" if data.split == "tool" else "rows of all tools"
    heldout_rows = rows[0]["heldout_rows"] if rows else data.heldout_rows
    facts = [*_generated(config), *_given(config), ["held out", f"{heldout_rows} rows: {held}"]]
    if rows:
        facts.append(["parameters of the student", format_count(float(rows[0]["parameters"]))])
        facts.append(["teacher's exact match", f"{percent(float(rows[0]['teacher_exact_match']))}%"])
    facts.append(
        ["least exact match of a teacher", f"{config.study.min_teacher_exact_match:.0%}, or no student is trained"]
    )
    weights = data.kinds if data.generated_rows else {}
    explained = " ".join(text for kind, text in KINDS.items() if weights.get(kind))
    return "\n## The task\n\n" + (paragraph(explained) if explained else "") + table(["", ""], facts, text_columns=2)


def trainings_section(config: Config) -> str:
    """The settings of the trainings that all cells share."""
    papers = _trainings(load_config(PAPERS_PROFILE))
    study = config.study
    assert study is not None  # noqa: S101 - the caller has listed its cells
    arms = NEIGHBOURS.keys() & {*study.kd, *(kd for varied in study.sweeps.values() for kd in varied.kd)}
    of_arms = (
        "A cold start and an on-policy distillation make the same number of updates as the distillation that they are compared with, "
        "not of prompts or seconds."
    )
    return (
        "\n## The trainings\n\n"
        + paragraph(
            f"""One learning rate and one number of updates for all losses, and one for all rewards: none was chosen for each, and another
            may suit one of them better. Sweeps change what they name. On the right are the values of `{PAPERS_PROFILE}`, which are the
            paper's and its scripts'. {of_arms if arms else ""}"""
        )
        + table(
            ["", "here", "paper"],
            [[name, value, papers.get(name, "no")] for name, value in _trainings(config).items()],
            text_columns=3,
        )
    )


def _generated(config: Config) -> list[list[str]]:
    data = config.data
    if not data.generated_rows:
        return []
    total = sum(data.kinds.values())
    kinds = ", ".join(f"{kind} {share / total:.0%}" for kind, share in data.kinds.items() if share)
    return [
        ["tools", f"{len(load_tools(data.tools.read_verified())):,}"],
        ["rows that are generated", f"{data.generated_rows:,}: {kinds}"],
        ["tools in a prompt", f"up to {data.tools_per_prompt}"],
    ]


def _given(config: Config) -> list[list[str]]:
    """The rows that somebody else made. Only their files' names: where they lie says nothing on another machine."""
    data = config.data
    own = [data.seed_data.path] if data.seed_data else []
    names = [PurePosixPath(path).name for path in [*own, *(source.path.path for source in data.sources)]]
    return [["rows of", ", ".join(f"`{name}`" for name in names)]] if names else []


def _trainings(config: Config) -> dict[str, str]:
    """What is trained, and how: the name of each setting -> its value."""
    teacher, student, distill, refine = config.teacher, config.student, config.distill, config.refine
    pretrain = config.study.pretrain if config.study else None
    base = _base(student.base) + (f", {student.layers} of its layers" if student.layers else "")
    return {
        "teacher": _base(teacher.base),
        "teacher, trained on the rows": _length(teacher.sft) if teacher.sft else "no",
        "teacher, refined by Sim-RL": _sim_rl(teacher.refine) if teacher.refine else "no",
        "student": base,
        "student's base, trained on the rows": _length(pretrain) if pretrain else "no",
        **({"student's base, healed": _length(student.heal)} if student.heal else {}),
        "distillation": _length(distill),
        "distillation, learning rate": f"{distill.learning_rate:g}",
        "teacher's most probable ids (k)": str(config.topk.top_k),
        "student's most probable ids (m)": str(distill.top_m),
        "weight of CKD's tail term (lambda)": f"{distill.tail_weight:g}",
        "Sim-RL": _sim_rl(refine),
        "Sim-RL, learning rate": f"{refine.learning_rate:g}",
        "Sim-RL, the loss is a mean over": f"{refine.loss}s",
    }


def _base(base: Base) -> str:
    if isinstance(base, Architecture):
        return f"{base.num_hidden_layers} layers, {base.hidden_size} wide, from scratch"
    return f"`{base}`" if isinstance(base, str) else f"`{PurePosixPath(base.path).name}`"


def _length(training: Training) -> str:
    return f"{_updates(training.steps, training.epochs)} of {training.batch_size} sequences"


def _sim_rl(training: SimRL) -> str:
    completions = training.prompts_per_step * training.num_generations
    rollout = f", {training.updates_per_rollout} per rollout" if training.updates_per_rollout > 1 else ""
    return f"{_updates(training.steps, training.epochs)} of {completions:,} completions{rollout}"


def _updates(steps: int | None, epochs: float | None) -> str:
    if steps is not None:
        return f"{steps:,} updates"
    return f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'}, in updates"
