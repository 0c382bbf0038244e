"""Evaluates a model on whole BFCL categories, end to end, beside its own architecture with random weights.

    python benchmarks/bfcl_models.py runs/latest/refine
    python benchmarks/bfcl_models.py runs/latest/refine --categories simple_python multiple --out runs/bfcl

Answers are greedy, with at most `evaluate.max_new_tokens` tokens of the configuration. A killed evaluation, started
again, asks only the missing prompts.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from star.config.load import load_config
from star.evaluation.evaluate import EVALUATION, evaluate_models
from star.evaluation.number_format import format_range, format_score
from star.folders.workspace import Workspace
from star.modeling.models import load_tokenizer, save_model

CATEGORIES = ("simple_javascript", "live_parallel", "irrelevance", "live_relevance")


def random_twin(model: Path, folder: Path) -> Path:
    """Writes a model of the same architecture and tokenizer with untrained weights."""
    torch.manual_seed(7)
    save_model(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)), load_tokenizer(model), folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, help="BFCL categories")
    parser.add_argument("--config", default="tiny", help="configuration whose `evaluate` section is used")
    parser.add_argument("--out", type=Path, default=Path("runs/bfcl"), help="folder for the answers and the report")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    chosen = {"suites": ("bfcl",), "bfcl_categories": tuple(arguments.categories)}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=chosen)})
    workspace = Workspace(arguments.out, arguments.out / "state")
    workspace.state.mkdir(parents=True, exist_ok=True)
    models = {"random weights": random_twin(arguments.model, arguments.out / "random"), "trained": arguments.model}
    evaluate_models(models, None, config=config, workspace=workspace, title="BFCL categories")
    print_table(json.loads((arguments.out / EVALUATION).read_text(encoding="utf-8")))


def print_table(evaluation: dict) -> None:
    models = evaluation["models"]
    part = models[-1]["bfcl"]
    print(f"{part['package']}, data {part['data']} {part['data_sha256'][:12]}, network closed: {part['isolated']}\n")
    print("| category | entries | " + " | ".join(model["name"] for model in models) + " | never calls |")
    print("|---|" + "---:|" * (len(models) + 2))
    for name, whole in part["categories"].items():
        cells = []
        for model in models:
            found = model["bfcl"]["categories"][name]
            interval = format_range("bfcl", found["low"], found["high"])
            cells.append(f"{format_score('bfcl', found['mean'])} [{interval}]")
        floor = format_score("bfcl", part["floor"][name])
        print(f"| {name} | {whole['rows']} | {' | '.join(cells)} | {floor} |")
    for model in models:
        if unanswered := model["bfcl"]["unanswered"]:
            print(f"\n{model['name']}: {unanswered} prompts are longer than its context and count as wrong")


if __name__ == "__main__":
    main()
