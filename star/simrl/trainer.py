"""Trains with Sim-RL: GRPO with dynamic filtering, on TRL's GRPOTrainer.

The training loop, the loss and the advantages are TRL's. Ours is the choice of the batch: rollouts are scored, groups
without a learning signal are replaced by groups of new prompts (star/simrl/filter_and_refill.py), and only then TRL
goes on. So the reference log-probs, the advantages and the loss are computed for the chosen groups alone.

One step, with prompts_per_step = 4, num_generations = 2 and max_refills = 2; the numbers are content scores:

    sampled   A [0.2, 0.9]  B [1, 1]  C [0, 0]  D [0.5, 0.7]    B and C are dropped (all alike): 2 groups are missing
    refill 1  2 missing / kept fraction 2/4 = 4 new prompts: E [1, 1]  F [0, 0.4]  G [0, 0]  H [1, 1]
                                                                only F is kept: 1 group is missing
    refill 2  1 missing / kept fraction 3/8 = 3 new prompts: I [0.3, 1]  J [0.1, 0.8]  K [1, 1]
                                                                I and J are kept: 5 groups, 1 more than needed
    batch     A, D, F, I                                        the first 4 kept groups, in the order of sampling

After `max_refills` refills the places that are left go to the dropped groups of the widest reward spread. Several
processes share each round's prompts, exchange the groups, and take equal slices of the same batch.

With updates_per_rollout = 8 a batch has the groups of 8 steps. Checkpoints and logged steps lie between batches, so a
resumed training samples its next batch, and none is kept with a checkpoint.

What is overridden of TRL, in the order in which a training and its steps call it:

    _get_train_sampler()                     TRL: orders the prompts of all epochs, one after the other.
                                             Ours: seeds each epoch's order (star/simrl/prompt_order.py).
    _generate_and_score_completions(inputs)  TRL: samples the inputs, then computes advantages and reference log-probs.
                                             Ours: first chooses the batch as above, sampling with TRL's `_generate`;
                                             then calls TRL's method with the rows of the chosen groups.
    _generate(prompts)                       TRL: samples, logs the completions' lengths. Called by the method above.
                                             Ours: replays the chosen rollouts, which are sampled already.
    _generate_single_turn(prompt_ids, ...)   TRL: calls the model or vLLM. Called by TRL's `_generate`.
                                             Ours: has the model draw each rollout from its own random numbers
                                             (star/modeling/sampling.py), for one update at a time; vLLM is left as it is.
    _prepare_inputs(batch)                   TRL: shuffles the chosen rollouts and cuts them into micro batches.
                                             Ours: leaves groups together, groups of similar length beside each other.
    _get_per_token_logps_and_entropies(...)  TRL: makes a forward pass over prompts and completions.
                                             Ours: has a prompt in it once for all of its rollouts.

The last two, and sampling for one update at a time, are for a model that `shares_prompts` (star/modeling/prompt_groups.py).

TRL scores the replayed completions again through `reward_funcs`, which read the cache of `SimRLTrainer.score`. As TRL's
`_generate` runs for each sampling round, its metrics of completion lengths and tokens include the dropped groups. These
are internals of TRL: pyproject.toml pins its version.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from star.chat import prompt_opening
from star.config.training import Precision, SimRL
from star.errors import InputError
from star.modeling.precision import computes_in_bf16
from star.modeling.prompt_groups import shares_prompts
from star.modeling.prompts import Prompt, longest_prompt
from star.modeling.sampling import RolloutKey, SeededSampling, use_sampling
from star.modeling.tokenizer import ids_without_token
from star.rewards.baselines import REWARDS
from star.rewards.breakdown import Score, score_parts
from star.simrl.filter_and_refill import (
    Group,
    Rollout,
    choose_batch,
    draw_refill_rows,
    is_informative,
    refill_size,
    share_of_rank,
)
from star.simrl.grpo_config import grpo_config, reward_names
from star.simrl.prompt_order import SeedOfEpoch
from star.simrl.sampling_metrics import describe_broken_formats, sampling_metrics
from star.simrl.shared_prompts import shared_log_probs

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import RewardFunc

logger = logging.getLogger(__name__)

SCORE_CACHE_SIZE = 1 << 14  # scored completions: the filter, the metrics and TRL ask for the same ones


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    settings: SimRL,
    folder: Path,
    seed: int,
    precision: Precision = "auto",
) -> "SimRLTrainer":
    """Builds the trainer of these prompts; checkpoints go to `folder`.

    Raises:
        InputError: fewer prompts than a step takes, prompts_per_step that the processes cannot share, or vLLM is set
            but not installed.
    """
    if len(prompts) < settings.prompts_per_rollout:
        updates = f" for {settings.updates_per_rollout} updates" if settings.updates_per_rollout > 1 else ""
        raise InputError(
            f"{len(prompts)} prompts cannot fill a step of prompts_per_step = {settings.prompts_per_step}{updates}: lower it"
        )
    rows = Dataset.from_dict(
        {
            "prompt": [prompt.text for prompt in prompts],
            # An arrow column would give every tool the union of all keys; an index leaves the tools as they are.
            "row": list(range(len(prompts))),
        }
    )
    bf16 = computes_in_bf16(precision, model.config)
    longest = longest_prompt(prompts, tokenizer) if settings.vllm else 0  # only vLLM asks
    return SimRLTrainer(
        prompts,
        settings,
        model=model,
        args=grpo_config(settings, folder=folder, seed=seed, bf16=bf16, prompts=len(prompts), longest_prompt=longest),
        train_dataset=rows,
        processing_class=tokenizer,
    )


class SimRLTrainer(GRPOTrainer):
    """GRPOTrainer whose batches hold groups with a learning signal.

    Attributes:
        prompts: the training prompts; `row` in a row of the data set is an index into them.
        sampled_groups: all groups of the last step in the order of sampling, those of the other processes included.
        batch_groups: the groups of the last step that this process trained on.
        shares_prompts: whether a prompt is computed once for all rollouts of its group.
    """

    # Narrower than in Trainer, where both may be None or of other kinds.
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase
    _buffered_inputs: Any  # TRL's: the micro batches of a rollout's steps

    def __init__(
        self,
        prompts: list[Prompt],
        settings: SimRL,
        *,
        model: PreTrainedModel,
        args: GRPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
    ) -> None:
        self.prompts, self.settings, self.rows = prompts, settings, train_dataset
        self.sampled_groups: list[Group] = []
        self.batch_groups: list[Group] = []
        self._rollouts_to_replay: list[Rollout] | None = None
        self._sampling_keys: list[RolloutKey] = []
        head = model.get_output_embeddings()
        # Looked at before TRL changes the model's forward pass.
        self.shares_prompts = shares_prompts(model, work="Sim-RL")
        self._padding_ids = ids_without_token(processing_class, rows=head.weight.shape[0])
        # Cached per trainer, not on the method, so that a trainer's cache ends with it.
        self.score = lru_cache(maxsize=SCORE_CACHE_SIZE)(self._score)
        reward_funcs: list[RewardFunc] = [self._reward_function(name) for name in reward_names(settings)]
        super().__init__(
            reward_funcs=reward_funcs,
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
        )
        # TRL trains the routers of every mixture of experts whose configuration has a weight for their loss.
        if self.shares_prompts and self.aux_loss_enabled:
            self.shares_prompts = False
            logger.warning(
                "Sim-RL computes a prompt once for each rollout: the loss of the routers counts the tokens of all"
            )

    def _score(self, row: int, completion: str) -> Score:
        prompt = self.prompts[row]
        names = reward_names(self.settings)
        rewards = {name: REWARDS[name](completion, prompt.target, prompt.tools) for name in names}
        parts = score_parts(completion, prompt.target, prompt.tools)
        return Score(trained=rewards[self.settings.reward], rewards=rewards, parts=parts)

    def _reward_function(self, name: str) -> Callable[..., list[float | None]]:
        """The reward `name` as TRL calls it: with the completions and, by name, the columns of their rows."""

        def totals(completions: list[str], row: list[int], **_: object) -> list[float | None]:
            scores = (self.score(*pair) for pair in zip(row, completions, strict=True))
            return [score.rewards[name].total for score in scores]

        totals.__name__ = name  # TRL logs it as rewards/<name>
        return totals

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Overrides TRL's method: replaces `inputs` by the rows of the chosen groups, which are sampled already."""
        self.batch_groups = self._sample_batch(inputs)
        # TRL's method calls `_generate` next, which replays these.
        self._rollouts_to_replay = [rollout for group in self.batch_groups for rollout in group.rollouts]
        rows = [group.row for group in self.batch_groups for _ in group.rollouts]
        return super()._generate_and_score_completions(rows)

    def _generate(self, prompts: list[str]) -> tuple:
        """Overrides TRL's method: returns the chosen rollouts, in the form of TRL's result, instead of sampling."""
        # Taken once, so that the rollouts of an earlier step are never replayed.
        rollouts, self._rollouts_to_replay = self._rollouts_to_replay, None
        if rollouts is None:
            raise RuntimeError("no rollouts were chosen: only _generate_and_score_completions may call _generate")
        prompt_ids = [rollout.prompt_ids for rollout in rollouts]
        completion_ids = [rollout.completion_ids for rollout in rollouts]
        # The remaining values are TRL's for a model without tools and images.
        tool_mask = None
        completions = [rollout.completion for rollout in rollouts]
        logprobs = [rollout.logprobs for rollout in rollouts] if self.use_vllm else None
        extra_fields: dict[str, list] = {}
        images, tool_images = None, list[Any]()
        return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images

    def _generate_single_turn(self, prompt_ids: list[list[int]], *arguments: Any, **keywords: Any) -> tuple:
        """Overrides TRL's method: each rollout is drawn from its own random numbers, except by vLLM."""
        if self.use_vllm:
            return super()._generate_single_turn(prompt_ids, *arguments, **keywords)
        settings, size, completion_ids = self.settings, len(prompt_ids), list[list[int]]()
        if self.shares_prompts:
            # This process's share of one update: the cache of a whole rollout would be `updates_per_rollout` times as large.
            size = settings.prompts_per_step * settings.num_generations // self.accelerator.num_processes
        # Around the whole sampling, so that bf16 weights are made of the trained ones once and not for every token.
        with self.accelerator.autocast():
            for start in range(0, len(prompt_ids), size):
                sampling = SeededSampling(
                    self._sampling_keys[start : start + size],
                    temperature=settings.temperature,
                    max_new_tokens=settings.max_new_tokens,
                    excluded_ids=self._padding_ids,
                    moves_generator=not self.shares_prompts,  # or TRL's shuffling would be another than in earlier versions
                )
                with use_sampling(self.accelerator.unwrap_model(self.model), sampling):
                    part = super()._generate_single_turn(prompt_ids[start : start + size], *arguments, **keywords)
                completion_ids += part[0]
        return completion_ids, None  # log-probs are vLLM's

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        """Overrides TRL's method: a resumed training finds the order of its epoch again."""
        sampler: Any = super()._get_train_sampler(dataset)
        self.add_callback(SeedOfEpoch(sampler, seed=self.args.seed))
        return sampler

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Overrides TRL's method: the rollouts of a group stay together in the micro batches."""
        if not self.shares_prompts:
            return super()._prepare_inputs(generation_batch)
        passes = self.args.gradient_accumulation_steps * self.settings.updates_per_rollout
        micro_batch = self._step % passes
        if micro_batch == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, passes)
        return self._buffered_inputs[micro_batch]

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **keywords: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Overrides TRL's method: a prompt is computed once for its rollouts.

        Args:
            input_ids: prompts, padded on the left, and completions, padded on the right.
            logits_to_keep: length of the padded completions.
            batch_size: rollouts of a forward pass; all by default.

        Returns:
            Log-probs and, if the head computes them, entropies of the completion tokens, both [B, T], 0 at padding; None.
        """
        if not self.shares_prompts:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **keywords
            )
        unwrapped = self.accelerator.unwrap_model(model)
        rollouts, size = len(input_ids), batch_size or len(input_ids)
        with self.accelerator.autocast():
            parts = [
                shared_log_probs(
                    model,
                    unwrapped,
                    input_ids[start : start + size],
                    attention_mask[start : start + size],
                    completion_tokens=logits_to_keep,
                )
                for start in range(0, rollouts, size)
            ]
        log_probs, entropies = zip(*parts, strict=True)
        return torch.cat(log_probs), None if entropies[0] is None else torch.cat(entropies), None

    def _sample_batch(self, inputs: list[dict[str, Any]]) -> list[Group]:
        """Samples until kept groups fill the batch or the refills are used up; returns this process's slice of it.

        All processes see all groups and choose alike, so the batch is the one that a single process would have chosen,
        except that matrix products of another shape round differently.

        Args:
            inputs: this process's rows of the step, each `num_generations` times in a row.
        """
        count = self.settings.prompts_per_rollout
        self.sampled_groups, kept, refills = [], [], 0
        while True:
            self.sampled_groups += self._sample_groups(inputs)
            kept = [group for group in self.sampled_groups if self.is_kept(group)]
            missing = count - len(kept)
            rows = self._choose_refill_rows(missing=missing, kept=len(kept)) if missing > 0 else []
            # There are no rows if the batch is full, or if this step has tried the whole set.
            if not rows or refills == self.settings.max_refills:
                break
            refills += 1
            # Each row `num_generations` times in a row, as TRL's sampler gives the first inputs.
            inputs = [self.rows[row] for row in self._slice_of_rank(rows) for _ in range(self.settings.num_generations)]
        self._log_sampling(kept=len(kept), refills=refills, missing=max(0, missing))
        dropped = [group for group in self.sampled_groups if not self.is_kept(group)]
        groups = choose_batch(kept, dropped, count=count)
        if not self.shares_prompts:
            return self._slice_of_rank(groups)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        return share_of_rank(groups, updates=self.settings.updates_per_rollout, rank=rank, processes=processes)

    def is_kept(self, group: Group) -> bool:
        """Whether dynamic filtering keeps a group."""
        contents = [rollout.score.trained.content for rollout in group.rollouts]
        return is_informative(contents, between=self.settings.keep_between)

    def _choose_refill_rows(self, *, missing: int, kept: int) -> list[int]:
        """Indices of the rows that all processes together sample next; fewer than wanted when the set is used up."""
        processes = self.accelerator.num_processes
        size = refill_size(
            missing=missing,
            kept=kept,
            tried=len(self.sampled_groups),
            limit=self.settings.prompts_per_rollout,
            multiple=processes,
        )
        rows = draw_refill_rows(
            seed=self.args.seed,
            step=self.state.global_step,
            count=size,
            rows=len(self.prompts),
            tried={group.row["row"] for group in self.sampled_groups},
        )
        return rows[: len(rows) // processes * processes]  # each process samples as many

    def _slice_of_rank(self, items: list) -> list:
        each, rank = len(items) // self.accelerator.num_processes, self.accelerator.process_index
        return items[rank * each : (rank + 1) * each]

    def _sample_groups(self, inputs: list[dict[str, Any]]) -> list[Group]:
        """Samples one completion per input of this process, scores it, and returns the groups of all processes."""
        size = self.settings.num_generations
        # The keys hold the row and the number of the sample, not the place in the batch, so no draw depends on the number of ranks.
        base = (self.args.seed, self.state.global_step)
        self._sampling_keys = [(*base, row["row"], number % size) for number, row in enumerate(inputs)]
        prompts = [row["prompt"] for row in inputs]
        prompt_ids, completion_ids, _, completions, logprobs, *_ = super()._generate(prompts)  # TRL's, which samples
        # TRL decodes what was sampled, and the beginning of a completion may be in its prompt.
        texts = [prompt_opening(prompt) + text for prompt, text in zip(prompts, completions, strict=True)]
        columns = zip(inputs, prompt_ids, completion_ids, texts, logprobs or [None] * len(inputs), strict=True)
        rollouts = [
            Rollout(prompt_tokens, tokens, text, token_logprobs, score=self.score(row["row"], text))
            for row, prompt_tokens, tokens, text, token_logprobs in columns
        ]
        groups = [Group(inputs[start], rollouts[start : start + size]) for start in range(0, len(inputs), size)]
        # Every rank needs all groups, because how many were kept decides for all ranks together about a refill.
        return gather_object(groups)

    def _log_sampling(self, *, kept: int, refills: int, missing: int) -> None:
        """Adds means over all sampled rollouts, those of dropped groups included, to the metrics that TRL logs."""
        metrics = sampling_metrics(self.sampled_groups, kept=kept, refills=refills, missing=missing)
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        if not self.accelerator.is_main_process:
            return
        if self.state.global_step == 0 and (warning := describe_broken_formats(self.sampled_groups, self.prompts)):
            logger.warning("step 1: %s", warning)
        if missing:
            logger.warning(
                "step %d: %d of %d groups in the batch have no learning signal, after %d refills",
                self.state.global_step + 1,
                missing,
                self.settings.prompts_per_rollout,
                refills,
            )
