"""Seven tokenizer families, with tiny random models of their architectures, go through every stage with the same tokens.

`pytest -s` prints the table: by family and place, the first and last ids of one row's training sequence.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from star.chat import IM_END, parse_completion
from star.ckd.rows import DistillationRows
from star.config.experiment import Config
from star.data.rows import read_rows
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import render_rows
from star.modeling.tokenizer import bootstrap_tokenizer, tokenizer_digest
from star.simrl.filter_and_refill import Rollout
from star.simrl.trainer import SimRLTrainer
from star.stages import STAGES, synthesize
from star.teacher.sft import SupervisedRows
from star.topk.sequences import TOKENIZER, read_sequences
from tests.small_models import random_model, small_sizes
from tests.tokenizer_families import fetch_tokenizer

SIZES = small_sizes(48, 96, head_dim=16)
ALTERNATING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def llama(rows: int, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    # As published: the end of the turn is one of the ends, and there is no padding.
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaConfig(vocab_size=rows, tie_word_embeddings=False, **ids, **SIZES)


def smollm2(rows: int, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(vocab_size=rows, tie_word_embeddings=True, **ids, **SIZES)


def qwen3(rows: int, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    # A head with rows to spare, as Qwen's.
    return Qwen3Config(vocab_size=rows + 24, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, **SIZES)


def gemma3(rows: int, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    ids = {"eos_token_id": [1, tokenizer.eos_token_id], "bos_token_id": 2, "pad_token_id": 0}
    return Gemma3TextConfig(vocab_size=rows, **ids, **SIZES, **ALTERNATING)


def gptoss(rows: int, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return GptOssConfig(vocab_size=rows + 64, **ids, **experts, **SIZES, **ALTERNATING)


# Family -> its architecture, whether STAR's tags become tokens, and the beginning of its prompts.
FAMILIES: dict[str, tuple[Callable[[int, PreTrainedTokenizerBase], PretrainedConfig], bool, str]] = {
    "own": (qwen3, False, "<|im_start|>"),
    "qwen3": (qwen3, True, "<|im_start|>"),
    "smollm2": (smollm2, True, "<|im_start|>"),
    "llama3_1": (llama, True, "<|begin_of_text|><|im_start|>"),
    "llama2": (llama, False, "<s>"),
    "gemma3": (gemma3, True, "<bos><|im_start|>"),
    "gptoss": (gptoss, True, "<|im_start|>"),
}


@pytest.fixture(scope="module")
def data(micro: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one answer, which a model learns in a few steps."""
    folder = tmp_path_factory.mktemp("families")
    tool = {"name": "get_time", "description": "The time", "parameters": {"type": "object", "properties": {}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"name": "get_time", "arguments": {}}]}
    questions = ["What is the time?", "How late is it?", "Tell me the time", "Is it noon?", "What does the clock say?"]
    with (folder / "rows.jsonl").open("w") as file:
        for question in questions:
            row = {"messages": [{"role": "user", "content": question}, answer], "tools": [tool]}
            file.write(json.dumps(row) + "\n")
    settings = {"generated_rows": 0, "heldout_rows": 1, "seed_data": str(folder / "rows.jsonl")}
    config = Config.model_validate({**micro.model_dump(), "data": {**micro.data.model_dump(), **settings}})
    synthesize(config, out=folder / "data")
    return folder / "data"


def config_of(micro: Config, folder: Path, *, add_format_tokens: bool) -> Config:
    settings = micro.model_dump()
    base = {"base": str(folder), "add_format_tokens": add_format_tokens}
    settings["teacher"] |= base
    settings["teacher"]["sft"] |= {"steps": 60, "batch_size": 4, "learning_rate": 1e-2, "save_steps": 60}
    settings["student"] = {"base": str(folder)}
    settings["rollout"] |= {"prompts": 4, "max_new_tokens": 60, "temperature": 0.1}
    for name in ("teacher", "student"):
        refine = settings["teacher"]["refine"] if name == "teacher" else settings["refine"]
        tokens = 60 if name == "teacher" else 2
        refine |= {"steps": 1, "check_steps": None, "max_new_tokens": tokens, "max_refills": 0, "prompts_per_step": 4}
    settings["max_prompt_tokens"] = 1024
    settings["distill"] |= {"steps": 2}
    settings["evaluate"] |= {"samples": 1, "max_new_tokens": 4, "bases": folder.name == "own"}
    return Config.model_validate(settings)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_same_tokens_in_every_stage(
    family: str, micro: Config, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, add_format_tokens, beginning = FAMILIES[family]
    base = tmp_path / family
    if family == "own":
        bootstrap_tokenizer().save_pretrained(base)
    else:
        fetch_tokenizer(family, base)
    raw = load_tokenizer(base)
    random_model(architecture(len(raw), raw)).save_pretrained(base)
    config = config_of(micro, base, add_format_tokens=add_format_tokens)

    sampled: dict[int, list[Rollout]] = {}
    sample_groups = SimRLTrainer._sample_groups

    def noted(self, inputs):
        groups = sample_groups(self, inputs)
        for group in groups:
            sampled.setdefault(group.row["row"], []).extend(group.rollouts)
        return groups

    monkeypatch.setattr(SimRLTrainer, "_sample_groups", noted)
    out = {"synthesize": data} | {stage.name: tmp_path / stage.name for stage in STAGES[1:-1]}
    for stage in STAGES[1:-1]:
        stage.function(config, **{key: out[name] for key, name in stage.inputs.items()}, out=out[stage.name])

    tokenizers = [
        load_tokenizer(folder) for folder in (out["refine-teacher"], out["extract-topk"] / TOKENIZER, out["refine"])
    ]
    assert len({tokenizer_digest(tokenizer) for tokenizer in tokenizers}) == 1
    tokenizer = tokenizers[0]
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    rows = list(read_rows(data / "train.jsonl"))
    prompts = render_rows(rows, tokenizer)
    supervised = SupervisedRows(prompts, tokenizer)
    ids, sequences = read_sequences(out["extract-topk"])
    distilled = DistillationRows(out["extract-topk"])
    row_ids = pq.read_table(out["rollout"] / "sequences.parquet").column("row_id").to_pylist()
    assert len(ids), "the teacher gave no valid answer"
    for index, row_id in enumerate(row_ids):
        row = next(number for number, prompt in enumerate(prompts) if prompt.row_id == row_id)
        trained = list(supervised[row]["input_ids"])
        prompt = [id_ for id_, label in zip(trained, supervised[row]["labels"], strict=True) if label < 0]
        stored = list(sequences)[index]
        # The same answer where Sim-RL sampled it too; another may have other tokens before its end.
        rollouts = sorted(sampled[row], key=lambda rollout: rollout.completion_ids != stored.completion_ids)
        found = {
            "SFT": trained,
            "store": stored.prompt_ids + stored.completion_ids,
            "CKD": distilled[index]["input_ids"].tolist(),
            "Sim-RL": rollouts[0].prompt_ids + rollouts[0].completion_ids,
        }
        if index == 0:
            for place, tokens in found.items():
                print(f"{family:<9} {place:<7} {tokens[:4]!s:<26} ... {tokens[-4:]}  {tokenizer.decode(tokens[:2])!r}")
        # What differs is the answer, which is sampled; the prompt and the end are the same tokens.
        assert all(tokens[: len(prompt)] == prompt for tokens in found.values())
        assert all(rollout.prompt_ids == prompt for rollout in rollouts)
        assert found["store"] == found["CKD"]
        assert {tokens[-1] for tokens in found.values()} == {tokenizer.convert_tokens_to_ids(IM_END)}
        assert tokenizer.bos_token_id not in prompt[1:] or family == "smollm2"  # whose BOS opens every turn
        text = tokenizer.decode(prompt)
        assert text.startswith(beginning) and tokenizer(text)["input_ids"] == prompt
        answer = tokenizer.decode(stored.completion_ids[:-1])
        assert parse_completion(answer).tool_calls == [{"name": "get_time", "arguments": {}}]
    student = load_model(out["refine"])
    assert student.get_output_embeddings().weight.shape[0] >= len(tokenizer)
    assert tokenizer.eos_token_id in torch.tensor(student.generation_config.eos_token_id)
