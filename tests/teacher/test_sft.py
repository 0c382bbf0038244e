"""Tests the fine-tuning: its loss without the logits of prompts, its optimisers, and adapters."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Trainer,
    TrainerCallback,
)

from star import stages
from star.config.experiment import Config
from star.config.models import Teacher
from star.config.training import FineTuning, Lora, Training
from star.errors import InputError
from star.modeling.head import is_plain_head, require_head_output
from star.modeling.models import load_model
from star.modeling.training import IGNORE_INDEX, collate_completions, seed_everything, supervised_arguments, train
from star.teacher.sft import SMALL_VOCABULARY, SupervisedTrainer
from tests.small_models import small_sizes

VOCABULARY = SMALL_VOCABULARY + 8
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **small_sizes(layers=1),
    "tie_word_embeddings": True,
}


class DrawnRows(Dataset):
    """Rows of random ids and lengths."""

    starts = None

    def __init__(self, count: int, *, vocabulary: int = VOCABULARY) -> None:
        draw = np.random.default_rng(0)
        self.rows = [draw.integers(3, vocabulary, draw.integers(4, 40)).tolist() for _ in range(count)]
        self.lengths = [len(row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = self.rows[index]
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * 2 + ids[2:]}


def trainer_of(kind: type[Trainer], folder: Path, **settings: Any) -> Trainer:
    seed_everything(1)
    sizes = Training(**{"batch_size": 8, "micro_batch_size": 2, "steps": 4, "learning_rate": 1e-2, **settings})
    return kind(
        model=LlamaForCausalLM(LlamaConfig(**SIZES)),
        args=supervised_arguments(sizes, folder=folder / "sft", seed=7, bf16=False, sequences=20, logging_steps=1),
        train_dataset=DrawnRows(20),
        data_collator=partial(collate_completions, pad_id=0),
    )


def weights_of(trainer: Trainer, folder: Path) -> torch.Tensor:
    train(trainer, phase="sft", label="train", state=folder, log_metrics=lambda metrics, step: None)
    model: Any = trainer.model
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_sorted_rows_without_the_logits_of_prompts_train_alike(tmp_path: Path) -> None:
    # 4 steps of 8 rows over 20 rows: an epoch ends within.
    plain, fused = (
        trainer_of(kind, tmp_path / kind.__name__, learning_rate=1e-3) for kind in (Trainer, SupervisedTrainer)
    )
    assert isinstance(fused, SupervisedTrainer) and fused.fuses_head
    expected, weights = (weights_of(trainer, tmp_path / type(trainer).__name__) for trainer in (plain, fused))
    assert (weights - expected).abs().max() < 2e-5
    losses, expected_losses = (
        [entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (fused, plain)
    )
    assert losses == pytest.approx(expected_losses, rel=1e-5)


class WithoutTokenCount(LlamaForCausalLM):
    """A model whose own loss is the mean of a micro batch: it takes no number of tokens to divide by."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


FEW_IDS = SIZES | {"vocab_size": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
ROUTERS = {"output_router_logits": True, "router_aux_loss_coef": 0.5}


@pytest.mark.parametrize(
    ("kind", "config", "fuses"),
    [
        (LlamaForCausalLM, LlamaConfig(**SIZES), True),
        (LlamaForCausalLM, LlamaConfig(**FEW_IDS), False),
        (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25), False),
        (WithoutTokenCount, LlamaConfig(**FEW_IDS), False),
        (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, **EXPERTS), True),
        (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, **EXPERTS, **ROUTERS), False),
    ],
    ids=["fused", "few ids", "scaled logits", "loss of its own", "experts", "experts with the routers' loss"],
)
def test_every_target_token_of_a_step_weighs_the_same(
    kind: type[PreTrainedModel], config: Any, fuses: bool, tmp_path: Path
) -> None:
    """The gradient of a step of four unequal micro batches is that of the mean over all of their tokens."""
    batches: list[dict[str, torch.Tensor]] = []
    found: list[torch.Tensor] = []

    class Noting(SupervisedTrainer):
        def compute_loss(self, model, inputs, *arguments, **keywords):
            batches.append(inputs)
            return super().compute_loss(model, inputs, *arguments, **keywords)

    class KeepGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **keywords) -> None:
            found.extend(weight.grad.clone() for weight in model.parameters())

    def made() -> PreTrainedModel:
        seed_everything(1)
        return kind(config)

    settings = Training(batch_size=8, micro_batch_size=2, steps=1, learning_rate=1e-2)
    arguments = supervised_arguments(settings, folder=tmp_path / "sft", seed=7, bf16=False, sequences=8)
    arguments.max_grad_norm = 0.0  # clipped gradients would hide their size
    trainer = Noting(
        model=made(),
        args=arguments,
        train_dataset=DrawnRows(8, vocabulary=config.vocab_size),
        data_collator=partial(collate_completions, pad_id=0),
        callbacks=[KeepGradients()],
    )
    assert trainer.fuses_head is fuses
    train(trainer, phase="sft", label="train", state=tmp_path, log_metrics=lambda metrics, step: None)

    model: Any = made()
    counts = [int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batches]
    assert len(counts) == 4 and len(set(counts)) == 4
    for batch, count in zip(batches, counts, strict=True):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits, labels = output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        loss = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") / sum(counts)
        if getattr(config, "output_router_logits", False):
            loss = loss + config.router_aux_loss_coef * output.aux_loss * count / sum(counts)
        loss.backward()
    for (name, weight), gradient in zip(model.named_parameters(), found, strict=True):
        assert torch.allclose(gradient, weight.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_killed_training_resumes_to_the_bit(optimizer: str, tmp_path: Path) -> None:
    whole = weights_of(trainer_of(SupervisedTrainer, tmp_path, optimizer=optimizer, save_steps=1), tmp_path)
    # As if it was killed after step 3, which is the first of the second epoch.
    shutil.rmtree(tmp_path / "sft" / "checkpoint-4")
    resumed = weights_of(trainer_of(SupervisedTrainer, tmp_path, optimizer=optimizer, save_steps=1), tmp_path)
    assert torch.equal(whole, resumed)


def test_a_model_that_scales_its_logits_computes_its_loss_itself() -> None:
    def made(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
        seed_everything(1)
        return kind(config)

    scaled = made(CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25))
    assert is_plain_head(made(LlamaForCausalLM, LlamaConfig(**SIZES))) and not is_plain_head(scaled)
    with pytest.raises(InputError, match=r"the teacher is of the architecture CohereForCausalLM.*`topk\.server`"):
        require_head_output(scaled)


def test_a_teacher_that_is_fine_tuned_with_adapters_is_a_plain_model(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    sft = FineTuning(steps=1, batch_size=2, learning_rate=1e-2, lora=Lora(rank=2, alpha=4))
    teacher = Teacher(base=str(finished["refine-teacher"]), sft=sft)
    config = micro.model_copy(update={"teacher": teacher})
    stages.refine_teacher(config, data=finished["synthesize"], out=tmp_path / "out")
    before, after = (dict(load_model(f).named_parameters()) for f in (finished["refine-teacher"], tmp_path / "out"))
    assert before.keys() == after.keys() and not list((tmp_path / "out").glob("adapter*"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("_proj.weight") for name in changed)
