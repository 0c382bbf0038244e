"""Sim-RL: GRPO with dynamic filtering, on TRL's GRPOTrainer. The teacher and the student are refined by the same function.

The trainer's loop, loss and advantages are TRL's. Ours is what it trains on: rollouts are scored, groups that teach nothing
are replaced by new prompts' (star/simrl/filtering.py), and only then does TRL go on with the batch, so that reference
log-probs, advantages and token counts are those of the kept groups alone.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from star.config.experiment import Config, SimRL
from star.errors import InputError
from star.folders.workspace import Workspace
from star.modeling.models import load_model, load_tokenizer, save_model
from star.modeling.prompts import Prompt, render_rows, within_length
from star.modeling.training import Log, common_arguments, publish_curves, seed_everything, train
from star.rewards.baselines import REWARDS
from star.rewards.breakdown import Score, parts_of
from star.simrl.filtering import Group, Rollout, fill, refill_rows, refill_size, teaches
from star.simrl.sampling import SeededSampling, drawn_by
from star.simrl.watch import CompletionTables, Guard, HeldoutCheck, hold_back

log = logging.getLogger(__name__)

Show = Callable[[Path], None]  # sends a file to where the stage is tracked
FIGURES = ("loss", "reward", "sampled_reward", "format_rate", "kept_fraction", "kl", "entropy", "heldout_exact_match")
SCORES_KEPT = 1 << 14  # scored completions remembered: the filter, the log and TRL ask for the same ones


def refine_on_rows(
    student: Path, rows: list[dict], *, config: Config, work: Workspace, log: Log, show: Show
) -> dict[str, float]:
    """Refines the student of a folder on the rows' prompts, those over the length left out and counted."""
    tokenizer = load_tokenizer(student)
    rendered = render_rows(rows, tokenizer)
    prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    counts = {"prompts": len(prompts), "too_long": len(rendered) - len(prompts)}
    label = "refine the student (Sim-RL)"
    refine_model(
        student,
        tokenizer,
        prompts,
        settings=config.refine,
        seed=config.seed,
        work=work,
        label=label,
        log=log,
        show=show,
    )
    return counts | publish_curves(work.state, out=work.out, figures=FIGURES)


def refine_model(
    model: Path,
    tokenizer,
    prompts: list[Prompt],
    *,
    settings: SimRL,
    seed: int,
    work: Workspace,
    label: str,
    log: Log,
    show: Show,
) -> None:
    """Refines the model of a folder and writes the result to `work.out`, with a page of sampled completions.

    Args:
        model: a Hugging Face folder; it is also the reference of the KL term.

    Raises:
        PipelineError: the reward collapsed or the KL blew up; the message names the last good model and the cure.
    """
    seed_everything(seed)
    trained_on, kept_back = hold_back(prompts, settings=settings, seed=seed)
    trainer = build_trainer(
        load_model(model, training=True, lora=settings.lora),
        tokenizer,
        trained_on,
        settings=settings,
        folder=work.state / "simrl",
        seed=seed,
    )
    tables = CompletionTables(trainer, state=work.state / "completions", page=work.out / "completions.html", show=show)
    for callback in (Guard(settings), HeldoutCheck(trainer, kept_back, file=work.state / "checks.json"), tables):
        trainer.add_callback(callback)
    train(trainer, phase="simrl", label=label, state=work.state, log=log)
    tables.write_page()
    save_model(trainer.model, tokenizer, work.out)


def build_trainer(
    model, tokenizer, prompts: list[Prompt], *, settings: SimRL, folder: Path, seed: int
) -> "SimRLTrainer":
    """The trainer of these prompts; checkpoints go to `folder`.

    Raises:
        InputError: fewer prompts than a step takes, prompts that the processes cannot share, or no vLLM where it is wanted.
    """
    if len(prompts) < settings.prompts_per_step:
        raise InputError(
            f"{len(prompts)} prompts cannot fill a step of prompts_per_step = {settings.prompts_per_step}: lower it"
        )
    rows = Dataset.from_dict(
        {
            "prompt": [prompt.text for prompt in prompts],
            # An arrow column would give every tool the union of all keys; an index keeps the tools as they are.
            "row": list(range(len(prompts))),
        }
    )
    config = grpo_config(settings, folder=folder, seed=seed)
    return SimRLTrainer(prompts, settings, model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def grpo_config(settings: SimRL, *, folder: Path, seed: int) -> GRPOConfig:
    """TRL's arguments for one process of `WORLD_SIZE`; a step's groups are dealt to the processes whole."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.prompts_per_step % processes:
        raise InputError(
            f"prompts_per_step = {settings.prompts_per_step} cannot be shared by {processes} processes: take a multiple"
        )
    batch_size = settings.prompts_per_step * settings.num_generations
    return GRPOConfig(
        **common_arguments(settings, folder=folder, seed=seed, batch_size=batch_size),
        **_vllm_arguments(settings),
        num_generations=settings.num_generations,
        beta=settings.beta,
        temperature=settings.temperature,
        max_completion_length=settings.max_new_tokens,
        # Only the first reward trains; the others are logged.
        reward_weights=[1.0] + [0.0] * (len(_reward_names(settings)) - 1),
        loss_type="grpo",
        scale_rewards="group",
        # As the official training's: OpenRLHF's defaults.
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=settings.steps * 3 // 100,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )


def _vllm_arguments(settings: SimRL) -> dict[str, object]:
    if settings.vllm is None:
        return {}
    if importlib.util.find_spec("vllm") is None:
        raise InputError("the setting vllm needs the package vllm, which is not installed: pip install 'trl[vllm]'")
    return {
        "use_vllm": True,
        "vllm_mode": settings.vllm.mode,
        "vllm_server_base_url": settings.vllm.server_url,
        "vllm_gpu_memory_utilization": settings.vllm.gpu_memory_utilization,
        "vllm_tensor_parallel_size": settings.vllm.tensor_parallel_size,
    }


def _reward_names(settings: SimRL) -> list[str]:
    return list(dict.fromkeys([settings.reward, *settings.log_rewards]))


class SimRLTrainer(GRPOTrainer):
    """GRPOTrainer that fills each step's batch with groups that teach something.

    Attributes:
        sampled: all groups of the last step in the order they were drawn, with those of the other processes.
        batch: the groups of the last step that this process trained on.
    """

    def __init__(self, prompts: list[Prompt], settings: SimRL, **arguments) -> None:
        self.prompts, self.settings = prompts, settings
        self.sampled: list[Group] = []
        self.batch: list[Group] = []
        self._ready: list[Rollout] | None = None  # rollouts that TRL shall take for those it asks for
        self._keys: list[tuple[int, ...]] = []
        self.score = lru_cache(maxsize=SCORES_KEPT)(self._score)
        functions = [self._reward_function(name) for name in _reward_names(settings)]
        super().__init__(reward_funcs=functions, **arguments)

    def _score(self, row: int, completion: str) -> Score:
        prompt = self.prompts[row]
        names = _reward_names(self.settings)
        rewards = {name: REWARDS[name](completion, prompt.target, prompt.tools) for name in names}
        parts = parts_of(completion, prompt.target, prompt.tools)
        return Score(trained=rewards[self.settings.reward], rewards=rewards, parts=parts)

    def _reward_function(self, name: str) -> Callable[..., list[float]]:
        def totals(completions: list[str], row: list[int], **_: object) -> list[float]:
            scores = (self.score(*pair) for pair in zip(row, completions, strict=True))
            return [score.rewards[name].total for score in scores]

        totals.__name__ = name  # TRL logs it as rewards/<name>
        return totals

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        self.batch = self._fill_batch(inputs)
        self._ready = [rollout for group in self.batch for rollout in group.rollouts]
        return super()._generate_and_score_completions([group.row for group in self.batch for _ in group.rollouts])

    def _fill_batch(self, inputs: list[dict]) -> list[Group]:
        """This process's share of a batch of groups that teach: the given prompts' and, for those dropped, new ones'.

        All processes see all groups and choose alike, so the batch is the one that a single process would have made, but for
        the rounding of products of another shape.
        """
        limits, count = self.settings, self.settings.prompts_per_step
        self.sampled, kept, rounds = [], [], 0
        while True:
            self.sampled += self._roll_out(inputs)
            kept = [group for group in self.sampled if self.teaches(group)]
            missing = count - len(kept)
            rows = self._refill(missing=missing, kept=len(kept)) if missing > 0 else []
            if not rows or rounds == limits.max_refills:
                break
            rounds += 1
            inputs = [self.train_dataset[row] for row in self._share(rows) for _ in range(limits.num_generations)]
        self._log_sampled(kept=len(kept), rounds=rounds, missing=max(0, missing))
        dropped = [group for group in self.sampled if not self.teaches(group)]
        return self._share(fill(kept, dropped, count=count))

    def teaches(self, group: Group) -> bool:
        contents = [rollout.score.trained.content for rollout in group.rollouts]
        return teaches(contents, between=self.settings.keep_between)

    def _refill(self, *, missing: int, kept: int) -> list[int]:
        processes = self.accelerator.num_processes
        size = refill_size(
            missing=missing,
            kept=kept,
            tried=len(self.sampled),
            limit=self.settings.prompts_per_step,
            multiple=processes,
        )
        tried = {group.row["row"] for group in self.sampled}
        rows = refill_rows(
            seed=self.args.seed,
            step=self.state.global_step,
            count=size,
            rows=len(self.prompts),
            tried=tried,
        )
        return rows[: len(rows) // processes * processes]

    def _share(self, items: list) -> list:
        each, rank = len(items) // self.accelerator.num_processes, self.accelerator.process_index
        return items[rank * each : (rank + 1) * each]

    def _roll_out(self, inputs: list[dict]) -> list[Group]:
        """Samples a completion for each of this process's inputs, and returns the groups of all processes."""
        size = self.settings.num_generations
        base = (self.args.seed, self.state.global_step)
        self._keys = [(*base, row["row"], number % size) for number, row in enumerate(inputs)]
        prompt_ids, completion_ids, _, texts, logprobs, *_ = super()._generate([row["prompt"] for row in inputs])
        logprobs = logprobs or [None] * len(inputs)
        rollouts = [
            Rollout(*parts, score=self.score(row["row"], parts[2]))
            for row, *parts in zip(inputs, prompt_ids, completion_ids, texts, logprobs, strict=True)
        ]
        groups = [Group(inputs[start], rollouts[start : start + size]) for start in range(0, len(inputs), size)]
        return gather_object(groups)

    def _generate(self, prompts: list[str]) -> tuple:
        """The rollouts that were chosen, in place of new ones, in the form TRL's own method gives them."""
        ready, self._ready = self._ready, None
        logprobs = [rollout.logprobs for rollout in ready]
        return (
            [rollout.prompt_ids for rollout in ready],
            [rollout.completion_ids for rollout in ready],
            None,
            [rollout.completion for rollout in ready],
            logprobs if self.use_vllm else None,
            {},
            None,
            [],
        )

    def _generate_single_turn(self, prompt_ids: list[list[int]], *arguments, **keywords) -> tuple:
        if self.use_vllm:
            return super()._generate_single_turn(prompt_ids, *arguments, **keywords)
        limits = {"temperature": self.settings.temperature, "max_new_tokens": self.settings.max_new_tokens}
        with drawn_by(self.accelerator.unwrap_model(self.model), SeededSampling(self._keys, **limits)):
            return super()._generate_single_turn(prompt_ids, *arguments, **keywords)

    def _log_sampled(self, *, kept: int, rounds: int, missing: int) -> None:
        scores = [rollout.score for group in self.sampled for rollout in group.rollouts]
        values = {
            "sampled_reward": [score.trained.total for score in scores],
            "content": [score.trained.content for score in scores],
            "format_rate": [score.parts.format for score in scores],
            "name_accuracy": [score.parts.name_accuracy for score in scores],
            "argument_similarity": [score.parts.argument_similarity for score in scores],
            "call_count_error": [score.parts.call_count_error for score in scores],
            "kept_fraction": [kept / len(self.sampled)],
            "refill_rounds": [rounds],
            "unfilled_groups": [missing],
        }
        for name, column in values.items():
            if known := [value for value in column if value is not None]:
                self._metrics["train"][name].append(fmean(known))
        if missing and self.accelerator.is_main_process:
            log.warning(
                "step %d: %d of %d groups teach nothing after %d refills; they stay in the batch",
                self.state.global_step + 1,
                missing,
                self.settings.prompts_per_step,
                rounds,
            )
