"""Fine-tuning learns what the model has to write; refining with adapters publishes a plain model."""

from pathlib import Path

import pytest
import torch

from star import stages
from star.chat import render_target
from star.config.experiment import Config
from star.config.training import Lora
from star.data.rows import read_rows
from star.modeling.models import load_model, load_tokenizer, save_model
from star.modeling.prompts import Prompt, render_rows, template_opening
from star.modeling.training import IGNORE_INDEX
from star.teacher.refine import scratch_tokenizer
from star.teacher.sft import SupervisedRows


@pytest.fixture
def lora() -> Lora:
    return Lora(rank=4, alpha=8)


def test_only_adapters_are_trained_and_they_start_at_zero(finished: dict[str, Path], lora: Lora) -> None:
    plain = load_model(finished["refine-teacher"])
    adapted = load_model(finished["refine-teacher"], training=True, lora=lora)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(adapted(ids).logits, plain(ids).logits, atol=1e-6)


@pytest.mark.parametrize("opening", ["", "<think>\n", "<think>\n\n</think>\n\n"])
def test_the_loss_is_over_what_comes_after_the_prompts_opening(finished: dict[str, Path], opening: str) -> None:
    tokenizer = load_tokenizer(finished["refine-teacher"])
    prompt = Prompt("r", f"<|im_start|>assistant\n{opening}", render_target({"content": "Yes."}), [])
    [row] = SupervisedRows([prompt], tokenizer)
    learned = [token for token in row["labels"] if token != IGNORE_INDEX]
    assert tokenizer.decode(row["input_ids"]) == prompt.text + prompt.target.removeprefix(opening) + "<|im_end|>"
    assert tokenizer.decode(learned) == prompt.target.removeprefix(opening) + "<|im_end|>"


def test_a_base_from_scratch_can_open_the_think_block(micro: Config, finished: dict[str, Path]) -> None:
    rows = list(read_rows(finished["synthesize"] / "train.jsonl"))
    opened = micro.model_copy(update={"teacher": micro.teacher.model_copy(update={"open_think": True})})
    tokenizer = scratch_tokenizer(rows, opened)
    assert template_opening(tokenizer) == "<think>"
    # The tag is one token, and the vocabulary that of the closed prompts.
    assert tokenizer.get_vocab() == scratch_tokenizer(rows, micro).get_vocab()
    [prompt] = render_rows(rows[:1], tokenizer)
    assert prompt.text.endswith("<|im_start|>assistant\n<think>")
    assert prompt.opening + prompt.target_after_opening == prompt.target


def test_saved_adapters_are_merged(finished: dict[str, Path], lora: Lora, tmp_path: Path) -> None:
    adapted = load_model(finished["refine-teacher"], training=True, lora=lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = adapted(ids).logits.detach()
    save_model(adapted, load_tokenizer(finished["refine-teacher"]), tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    assert torch.allclose(load_model(tmp_path)(ids).logits, expected, atol=1e-4)


def test_a_refinement_with_adapters_gives_a_plain_model(
    micro: Config, finished: dict[str, Path], lora: Lora, tmp_path: Path
) -> None:
    refine = micro.refine.model_copy(update={"lora": lora, "learning_rate": 1e-2, "temperature": 1.0})
    config = micro.model_copy(update={"refine": refine})
    student = finished["distill"]
    stages.refine(config, student=student, data=finished["synthesize"], out=tmp_path / "refined")
    before, after = (dict(load_model(folder).named_parameters()) for folder in (student, tmp_path / "refined"))
    assert before.keys() == after.keys()
