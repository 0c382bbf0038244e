"""Distils on-policy: the student samples the completions, and a teacher in memory says how it would have gone on.

    prompts ─► completions of the student ─► the teacher's distribution at each of their tokens ─► FKL or RKL ─► student

Compared with the stored signal (trainer.py), the student learns at the places where its own mistakes lead, and from the whole
vocabulary. In return every step samples, and the teacher takes memory and time of every step. A student that knows nothing
samples noise, at which the teacher's advice is worth little: start from a student that answers in the right format.

The method is that of GKD (Agarwal et al., arXiv 2306.13649) with samples of the student only. Loop, loss and batches are those
of TRL's DistillationTrainer. What is overridden of it:

    _generate_and_score_completions(inputs)  TRL: samples the inputs and pads the completions. Ours: first notes the random
                                             numbers of each row.
    _tokenize_prompts(prompts)               Ours: without special tokens, which rendered prompts have already.
    _generate_single_turn(prompt_ids, ...)   Ours: has the student draw each completion from its own random numbers
                                             (star/modeling/sampling.py).
    _get_last_hidden_state(model, ...)       Ours: computes under autocast. TRL calls the decoder around the wrapper of
                                             accelerate, so bf16 would have no effect on weights in fp32.

These are internals of TRL: pyproject.toml pins its version.
"""

from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer

from star.config.experiment import Config
from star.config.training import Distill, Precision
from star.errors import InputError
from star.folders.workspace import Workspace
from star.modeling.head import require_plain_head
from star.modeling.models import load_model, load_tokenizer, save_model
from star.modeling.precision import computes_in_bf16
from star.modeling.prompts import Prompt, render_rows, within_length
from star.modeling.sampling import RolloutKey, SeededSampling, use_sampling
from star.modeling.tokenizer import ids_without_token, tokenize
from star.modeling.training import (
    LogMetrics,
    copy_learning_curves,
    seed_everything,
    supervised_values,
    train,
    use_one_gpu,
)

ON_POLICY_METRICS = ("loss", "entropy", "completions/mean_length", "completions/clipped_ratio")
# distill.kind -> TRL's beta. TRL interpolates between the forward and the reverse KL; of the other kinds it has none.
BETAS = {"fkl": 0.0, "rkl": 1.0}


def distill_student_on_policy(
    student: Path,
    teacher: Path,
    rows: list[dict[str, Any]],
    *,
    config: Config,
    workspace: Workspace,
    log_metrics: LogMetrics,
) -> dict[str, float]:
    """Trains the student in the folder `student` on the prompts of `rows`, and writes it to `workspace.out`.

    Args:
        student: a model folder with the teacher's tokenizer.
        rows: prompts longer than `max_prompt_tokens` are left out and counted.
        config: its section `distill` has the training, and `rollout` the length of the completions.

    Returns:
        The last logged value of each metric, as `on_policy_<metric>`; `prompts` used, and `too_long` left out.

    Raises:
        InputError: teacher and student have other tokenizers or vocabularies, or all prompts are too long.
    """
    tokenizer = load_tokenizer(student)
    if tokenizer.get_vocab() != load_tokenizer(teacher).get_vocab():
        raise InputError(
            f"the student {student} has another tokenizer than the teacher {teacher}: distil it from this teacher's stored "
            "signal first (`star distill`), which gives it the teacher's tokenizer"
        )
    rendered = render_rows(rows, tokenizer)
    prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    seed_everything(config.seed)
    trainer = build_on_policy_trainer(
        load_model(student, precision=config.precision, training=True, lora=config.distill.lora),
        load_model(teacher, precision=config.precision),
        tokenizer,
        prompts,
        settings=config.distill,
        max_new_tokens=config.rollout.kept_tokens,
        folder=workspace.state / "on_policy",
        seed=config.seed,
        precision=config.precision,
    )
    train(
        trainer,
        phase="on_policy",
        label="distil the student (on-policy)",
        state=workspace.state,
        log_metrics=log_metrics,
    )
    save_model(trainer.model, tokenizer, workspace.out)
    counts = {"prompts": len(prompts), "too_long": len(rendered) - len(prompts)}
    return counts | copy_learning_curves(workspace.state, out=workspace.out, metrics=ON_POLICY_METRICS)


def build_on_policy_trainer(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    settings: Distill,
    max_new_tokens: int,
    folder: Path,
    seed: int,
    precision: Precision = "auto",
) -> "OnPolicyTrainer":
    """Builds the trainer of these prompts; checkpoints go to `folder`.

    Args:
        settings: kind "fkl" or "rkl". A step samples one completion for each of `batch_size` prompts.

    Raises:
        InputError: another kind, the heads of teacher and student have other numbers of rows, or are not all that makes their logits.
    """
    if settings.kind not in BETAS:
        raise InputError(f"distill.kind {settings.kind} needs a stored signal: on-policy distillation has fkl and rkl")
    rows_of_heads = [model.get_output_embeddings().weight.shape[0] for model in (teacher, student)]
    if len(set(rows_of_heads)) > 1:
        raise InputError(
            f"the teacher's head has {rows_of_heads[0]} rows and the student's {rows_of_heads[1]}: on-policy distillation compares "
            "whole distributions, so take models with equal heads; the stored signal (`star distill`) works with these"
        )
    require_plain_head(teacher, what="the teacher")
    require_plain_head(student, what="the student")
    bf16 = computes_in_bf16(precision, student.config)
    arguments = DistillationConfig(
        **supervised_values(settings, folder=folder, seed=seed, bf16=bf16, sequences=len(prompts), logging_steps=1),
        beta=BETAS[settings.kind],
        temperature=1.0,
        max_completion_length=max_new_tokens,
        shuffle_dataset=False,  # PromptsInOrder is shuffled
    )
    use_one_gpu(arguments)
    return OnPolicyTrainer(
        model=student,
        teacher_model=teacher,
        args=arguments,
        train_dataset=PromptsInOrder(
            prompts, count=settings.count_steps(len(prompts)) * settings.batch_size, seed=seed
        ),
        processing_class=tokenizer,
    )


class PromptsInOrder(Dataset):
    """The prompts of all steps in their order, shuffled anew in each epoch.

    TRL shuffles with a generator that a resumed training begins again, so in a later epoch its order would be another one.

    Args:
        count: prompts of all steps; more than there are prompts begin further epochs.
    """

    def __init__(self, prompts: list[Prompt], *, count: int, seed: int) -> None:
        self.prompts = prompts
        epochs = [
            np.random.default_rng((seed, epoch)).permutation(len(prompts))
            for epoch in range(ceil(count / len(prompts)))
        ]
        self.order = np.concatenate(epochs)[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The prompt's text, and its place in the training, from which its random numbers are made."""
        return {"prompt": self.prompts[self.order[index]].text, "place": index}


class OnPolicyTrainer(DistillationTrainer):
    """DistillationTrainer whose completions do not depend on the rest of the batch, on ranks or on a resume."""

    # Narrower than in Trainer, where both may be None or of other kinds.
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase
    _sampling_keys: list[RolloutKey]  # of the rows that are sampled next

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._sampling_keys = [(self.args.seed, row["place"]) for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # The others of TRL's result are for images.
        return list(chain.from_iterable(tokenize(prompts, self.processing_class))), None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *arguments: Any, **keywords: Any) -> list[list[int]]:
        head = self.model.get_output_embeddings()
        sampling = SeededSampling(
            self._sampling_keys,
            temperature=self.temperature,
            max_new_tokens=self.generation_kwargs["max_new_tokens"],
            excluded_ids=ids_without_token(self.processing_class, rows=head.weight.shape[0]),
        )
        # Around the whole sampling, so that bf16 weights are made of the trained ones once and not for every token.
        with use_sampling(self.accelerator.unwrap_model(self.model), sampling), self.accelerator.autocast():
            return super()._generate_single_turn(prompt_ids, *arguments, **keywords)

    def _get_last_hidden_state(self, *arguments: Any, **keywords: Any) -> Tensor:
        with self.accelerator.autocast():
            return super()._get_last_hidden_state(*arguments, **keywords)
