"""Writes the model card, README.md of the published folder: how it was made and of what, scores, intended use, how to load it.

The block at its beginning is what the Hugging Face hub reads: licence, base model, data sets. All that the card says of bases and data
comes from the manifests of the stages (card_facts.py). Names and licences are texts of others, so they are escaped.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from star.config.evaluation import Registry
from star.config.hub_files import HUB_FILE
from star.html_kit import escape_markdown

INTENDED_USE = (
    "Choosing and filling in calls of the tools that are in the prompt, in the Qwen tool-call format, in one or a few turns. The "
    "caller validates every call against the tool's schema before it runs it: the model can name wrong arguments, and a text from "
    "outside can talk it into a call. It is not meant for open conversation, for facts, or for calls that cannot be undone."
)
USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
```

or `vllm serve FOLDER --enable-auto-tool-choice --tool-call-parser hermes`."""
# How a training is called in a sentence, by its phase. A phase that is missing here is the loss of a distillation.
TRAININGS = {
    "warmup": "copying random tokens",
    "sft": "supervised training on the rows",
    "heal": "healing (forward KL) on the teacher's stored probabilities",
    "ce": "supervised training on the teacher's answers",
    "ckd": "constrained knowledge distillation (CKD) on the teacher's stored probabilities",
}
LICENCE_ID = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)  # `-` alone would be no YAML
OTHER, FROM_SCRATCH = "other", "apache-2.0"


def model_card(settings: Registry, *, entry: dict, evaluation: dict, lineage: dict) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads.

    Args:
        settings: name, licence and base as the configuration states them.
        entry: the model's entry of the report.
        evaluation: the report, content of evaluation.json.
        lineage: content of lineage.json.
    """
    origins = _origins(lineage)
    base = origins.get("distill", {}).get("base", {})
    licence = settings.license or licence_of(base)
    parts = [
        f"---\n{''.join(_metadata(licence, settings, base, origins))}---\n\n# {escape_markdown(settings.model_name)}\n\n",
        f"{_how_it_was_made(entry, evaluation, lineage)}\n\n",
        _data(origins),
        f"## Scores\n\n{_scores(entry, evaluation)}",
        f"## Intended use\n\n{INTENDED_USE}\n\n## How to load it\n\n{USAGE}\n\n",
        "## Where it comes from\n\n`lineage.json` beside this file; `star lineage` checks it. ",
        f"Data `{lineage['data'][:12]}`, teacher `{lineage['teacher'][:12]}`, tokenizer `{lineage['tokenizer'][:12]}`.\n\n",
        f"## Licence\n\n{_licence_text(licence, base)}\n",
    ]
    return "".join(parts)


def description(entry: dict, *, evaluation: dict, lineage: dict) -> str:
    """What MLflow's page of the version says, as Markdown: how it was made, and the scores. The arguments are those of `model_card`."""
    return f"{_how_it_was_made(entry, evaluation, lineage)}\n\n{_scores(entry, evaluation)}"


def _origins(lineage: dict) -> dict[str, dict]:
    """Stage -> what its manifest says of where and of what it was made."""
    return {summary["stage"]: summary.get("origin", {}) for summary in lineage.get("stages", {}).values()}


def _teacher_in(evaluation: dict) -> dict:
    return next((model for model in evaluation.get("models", ()) if model["name"] == "teacher"), {})


def _how_it_was_made(entry: dict, evaluation: dict, lineage: dict) -> str:
    """Sentences about the size of the model, its base and trainings, and those of its teacher."""
    precision = " in bf16" if lineage.get("precision") == "bf16" else ""
    size = f"A function-calling model of {entry.get('parameters', 0):,} parameters{precision}, made with STAR (arXiv 2602.03022)."
    origins = _origins(lineage)
    base = origins.get("distill", {}).get("base", {})
    return f"{size} {_of_student(origins, base)} {_of_teacher(origins, base, entry, _teacher_in(evaluation))}"


def licence_of(base: dict[str, Any]) -> str:
    """The licence of a model that was made from this base, as an id of the hub; `other` where nothing says it."""
    if base.get("kind") == "scratch":
        return FROM_SCRATCH
    said = str(base.get("license", ""))
    return said if LICENCE_ID.fullmatch(said) else OTHER


def _metadata(licence: str, settings: Registry, base: dict[str, Any], origins: dict[str, dict]) -> Iterator[str]:
    """The lines of the block that the hub reads. Texts are written as JSON, which is YAML too."""
    yield f"license: {licence}\n"
    if licence == OTHER:
        yield f"license_name: {json.dumps(base.get('license_name', 'unknown'))}\n"
        if link := base.get("license_link"):
            yield f"license_link: {json.dumps(link)}\n"
    if model := settings.base_model or (base.get("name") if base.get("kind") == "hub" else None):
        yield f"base_model: {json.dumps(model)}\nbase_model_relation: finetune\n"
    inputs = origins.get("synthesize", {}).get("inputs", {}).values()
    if data_sets := sorted(
        {found["repo"] for given in inputs if (found := HUB_FILE.fullmatch(str(given.get("path"))))}
    ):
        yield f"datasets: {json.dumps(data_sets)}\n"
    yield "library_name: transformers\npipeline_tag: text-generation\ntags: [function-calling, tool-use, distillation]\n"


def _of_student(origins: dict[str, dict], base: dict[str, Any]) -> str:
    steps = [*origins.get("distill", {}).get("trained", ()), *origins.get("refine", {}).get("trained", ())]
    return f"The model began as {_base_in_words(base)}.{_trainings_in_words(steps)}"


def _of_teacher(origins: dict[str, dict], student_base: dict[str, Any], entry: dict, teacher: dict) -> str:
    own, size, other = origins.get("refine-teacher", {}), entry.get("parameters"), teacher.get("parameters")
    if not size or not other:
        compared = ""
    elif other == size:
        compared = f" has {other:,} parameters, as many as the model, and"
    else:
        larger = f"{other / size:.1f} times" if other > size else f"{other / size:.0%} of"
        compared = f" has {other:,} parameters, {larger} those of the model, and"
    base = own.get("base", {})
    same = base == student_base and base.get("kind") not in (None, "scratch")  # with all of its layers
    began = "the same base" if same else _base_in_words(base)
    return f"Its teacher{compared} began as {began}.{_trainings_in_words(own.get('trained', ()))}"


def _base_in_words(base: dict[str, Any]) -> str:
    kind = base.get("kind")
    if kind is None:
        return "a base that was not recorded"
    if kind == "scratch":
        return "random weights"
    layers = f"{base['layers']} layers of " if base.get("layers") else ""
    which = "".join(f"{key} {base[key][:12]}, " for key in ("revision", "sha256") if base.get(key))
    name, licence = (escape_markdown(base.get(key, "unknown")) for key in ("name", "license"))
    return f"{layers}{name} ({which}licence {licence})"


def _trainings_in_words(trainings: Any) -> str:
    """` It was trained by 1 epoch of CKD, then 10 steps of Sim-RL.`, or nothing for a model that was not trained."""
    said = [f"{_length_in_words(training)} of {_training_in_words(training)}" for training in trainings]
    return f" It was trained by {', then '.join(said)}." if said else ""


def _length_in_words(training: dict[str, Any]) -> str:
    if "steps" in training:
        return f"{training['steps']:,} step{'s' * (training['steps'] != 1)}"
    epochs = training.get("epochs", math.nan)  # a manifest of somebody else's may have neither
    return f"{epochs:g} epoch{'s' * (epochs != 1)}"


def _training_in_words(training: dict[str, Any]) -> str:
    phase = training["phase"]
    if phase == "simrl":
        return f"Sim-RL (reward {escape_markdown(training.get('reward', 'similarity'))})"
    return TRAININGS.get(
        phase, f"distillation ({escape_markdown(phase.upper())}) on the teacher's stored probabilities"
    )


def _data(origins: dict[str, dict]) -> str:
    """The section about the rows: where they come from, and under which licences they are."""
    found = origins.get("synthesize", {}).get("data", {})
    if not found:
        return ""
    tables = "".join(
        f"\n| {title} | rows |\n|---|---:|\n"
        + "".join(f"| {escape_markdown(name)} | {count:,} |\n" for name, count in found.get(key, {}).items())
        for title, key in (("source of the rows", "sources"), ("licence", "licences"))
    )
    unknown = found.get("licences", {}).get("unknown", 0)
    warning = (
        f"\n{unknown:,} rows have no known licence: find it out before you give the model away.\n" if unknown else ""
    )
    return f"## Data\n\nRows that it was trained and evaluated on.\n{tables}{warning}\n"


def _licence_text(licence: str, base: dict[str, Any]) -> str:
    said = escape_markdown(licence if licence != OTHER else base.get("license_name", "unknown"))
    if base.get("kind") in (None, "scratch"):
        return said
    return f"{said}. That of the base is {escape_markdown(base.get('license', 'not known'))}: what it demands holds for this model too."


def _scores(entry: dict, evaluation: dict) -> str:
    """The scores of the model with those of its teacher and base beside them, as a table, and its exact match by category."""
    suites = ", ".join(f"{name}: {found.get('rows', '?')} rows" for name, found in evaluation["suite"].items())
    beside = {"teacher": _teacher_in(evaluation)}
    if base := next((model for model in evaluation.get("models", ()) if model["name"] == entry.get("base")), None):
        beside["base, untrained"] = base
    others = [model.get("scores", {}) for model in beside.values()]
    rows = "".join(_score_row(score, value, others) for score, value in entry["scores"].items())
    kinds = "".join(_kind_row(kind, found) for kind, found in (entry.get("by_kind") or {}).items())
    by_kind = f"\n| category | rows | exact match |\n|---|---:|---:|\n{kinds}" if kinds else ""
    head = f"| score | mean | interval | {' | '.join(beside)} |\n|---|---:|---:|{'---:|' * len(beside)}\n"
    return f"Measured on {escape_markdown(suites)}; 95% intervals.\n\n{head}{rows}{by_kind}\n"


def _score_row(score: str, value: dict, others: list[dict[str, dict]]) -> str:
    name = f"{score} (official reading)" if score == "mean_reward" else score
    beside = " | ".join(f"{scores[score]['mean']:.4f}" if score in scores else "" for scores in others)
    return f"| {escape_markdown(name)} | {value['mean']:.4f} | {value['low']:.4f} to {value['high']:.4f} | {beside} |\n"


def _kind_row(kind: str, found: dict) -> str:
    return f"| {escape_markdown(kind)} | {found.get('rows', '')} | {found.get('exact_match', float('nan')):.4f} |\n"
