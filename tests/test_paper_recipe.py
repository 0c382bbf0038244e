"""The paper's profile goes through every stage on a CPU, with Qwen3's own tokenizer and vocabulary and two updates per training.

Only sizes differ from `configs/qwen3-0.6b.yaml`. docs/paper.md lists them, and this test takes them from there.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from star.chat import THINK_CLOSE, THINK_OPEN
from star.config.experiment import Config
from star.config.load import load_config
from star.modeling.models import load_tokenizer
from star.stages import STAGES
from star.topk.sequences import read_sequences
from star.topk.store import TopKStore
from tests.paper_page import ROWS
from tests.tokenizer_families import fetch_tokenizer

VOCABULARY = 151_936  # rows of Qwen3's head; its tokenizer has 151,669 tokens
# What the models write, each as likely as the other: the rows' answer, and one that is longer than `rollout.cut_at`.
ANSWERS = ("None", "Not at all")
QUESTIONS = (
    "What is the capital of Peru?",
    "Who wrote Faust?",
    "How many legs does a spider have?",
    "Translate bread to Latin",
    "Is it raining in Oslo?",
    "Compose a limerick about tea",
    "Recommend me a film",
    "Convert ten miles to kilometres",
    "Why is the sky blue?",
    "Count backwards from seven",
)


def write_rows(file: Path) -> None:
    """Writes requests that the only tool does not serve."""
    tool = {"name": "get_time", "description": "The time", "parameters": {"type": "object", "properties": {}}}
    with file.open("w", encoding="utf-8") as lines:
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWERS[0]}]
            lines.write(json.dumps({"messages": messages, "tools": [tool]}) + "\n")


def write_model(folder: Path, tokenizer: PreTrainedTokenizerBase, *, width: int) -> None:
    """Writes a Qwen3 model of two layers and random weights that goes on from `<think>` with one of the answers.

    Each token of the answers has a direction of its own in the embedding, and the head gives the tokens behind it a logit
    of 24 there. The other 151,930 rows are random: together they weigh as much as one row with a logit of 12.
    """
    torch.manual_seed(width)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, **sizes, **heads
        )
    )
    embedding_VH, head_VH = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    followers: dict[int, set[int]] = {}
    for answer in ANSWERS:
        text = f"{THINK_OPEN}{THINK_CLOSE}{answer}{tokenizer.eos_token}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for token, follower in pairwise(ids):
            followers.setdefault(token, set()).add(follower)
    written = sorted(set().union(*followers.values()))
    head_VH[written] = 0
    for direction, (token, behind) in enumerate(followers.items()):
        embedding_VH[token] = 0
        embedding_VH[token, direction] = 8
        head_VH[sorted(behind), direction] = 24 / width**0.5  # the norm of the hidden state is the root of the width
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def dry_config(places: dict[str, str]) -> Config:
    """The profile with the settings that the page lists.

    Args:
        places: the settings that the page describes in words, such as the folder of the teacher.
    """
    content: dict[str, Any] = load_config("qwen3-0.6b").model_dump(mode="json")
    for row in ROWS:
        for key in row.keys if row.of == "setting of the dry run" else ():
            *sections, name = key.split(".")
            section = content
            for part in sections:
                section = section[part]
            assert name in section, f"{key} is no setting"
            section[name] = row.value("there") if row.cells["there"].startswith("`") else places.pop(key)
    assert not places
    return Config.model_validate(content)


def curve(folder: Path, phase: str) -> Sequence[dict[str, float]]:
    entries: list[dict[str, float]] = json.loads((folder / f"{phase}_curve.json").read_text())
    return entries


@pytest.mark.slow
def test_the_papers_profile_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # They stand for wide models, which compute a prompt once for all completions.
    monkeypatch.setattr("star.modeling.prompt_groups.MIN_WIDTH", 32)
    fetch_tokenizer("qwen3", tmp_path / "qwen3", whole=True)
    tokenizer = load_tokenizer(tmp_path / "qwen3")
    write_rows(tmp_path / "rows.jsonl")
    for name, width in (("teacher", 64), ("student", 32)):
        write_model(tmp_path / name, tokenizer, width=width)
    config = dry_config(
        {
            "teacher.base": str(tmp_path / "teacher"),
            "student.base": str(tmp_path / "student"),
            "data.seed_data": str(tmp_path / "rows.jsonl"),
        }
    )

    out = {stage.name: tmp_path / "out" / stage.name for stage in STAGES}
    for stage in STAGES:
        stage.function(config, **{key: out[name] for key, name in stage.inputs.items()}, out=out[stage.name])

    # Two updates each.
    assert [entry["step"] for entry in curve(out["distill"], "ckd")] == [1, 2]
    for name in ("refine-teacher", "refine"):
        [*steps] = [entry["step"] for entry in curve(out[name], "simrl")]
        assert steps[-1] == 2
    # The whole vocabulary, k = 100 of it; prompts that open the thinking; samples that were cut and end all the same.
    store = TopKStore(out["extract-topk"])
    ids, sequences = read_sequences(out["rollout"])
    think, end = (tokenizer.convert_tokens_to_ids(token) for token in (THINK_OPEN, tokenizer.eos_token))
    answers = set()
    for sequence_id, sequence in zip(ids, sequences, strict=True):
        ids_TK, logprobs_TK = store[sequence_id]
        assert ids_TK.shape == logprobs_TK.shape == (len(sequence.completion_ids), 100) and ids_TK.max() > 100_000
        assert sequence.prompt_ids[-1] == think and sequence.completion_ids[-1] == end
        answers.add(tokenizer.decode(sequence.completion_ids))
    assert answers == {f"{THINK_CLOSE}{answer}{tokenizer.eos_token}" for answer in ("None", "Not at")}
    evaluation = json.loads((out["evaluate"] / "evaluation.json").read_text())
    assert {"teacher", "distilled", "refined"} <= {model["name"] for model in evaluation["models"]}
    assert json.loads((out["register"] / "registration.json").read_text())["version"] == 1
