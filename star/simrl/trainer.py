"""Sim-RL: GRPO on the similarity reward, with TRL's GRPOTrainer. The teacher and the student are refined by the same function."""

from pathlib import Path

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from star.config import Config, SimRL
from star.errors import InputError
from star.models import load_model, load_tokenizer, save_model
from star.prompts import Prompt, render_rows, within_length
from star.simrl.reward import similarity_reward
from star.storage import Workspace
from star.training import Log, common_arguments, publish_curves, seed_everything, train


def refine_on_rows(student: Path, rows: list[dict], *, config: Config, work: Workspace, log: Log) -> dict[str, float]:
    """Refines the student of a folder on the rows' prompts, those over the length left out and counted."""
    tokenizer = load_tokenizer(student)
    rendered = render_rows(rows, tokenizer)
    prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    counts = {"prompts": len(prompts), "too_long": len(rendered) - len(prompts)}
    label = "refine the student (Sim-RL)"
    refine_model(student, tokenizer, prompts, settings=config.refine, seed=config.seed, work=work, label=label, log=log)
    return counts | publish_curves(work.state, out=work.out, figures=("loss", "reward", "kl", "entropy"))


def refine_model(
    model: Path, tokenizer, prompts: list[Prompt], *, settings: SimRL, seed: int, work: Workspace, label: str, log: Log
) -> None:
    """Refines the model of a folder and writes the result to `work.out`.

    Args:
        model: a Hugging Face folder; it is also the reference of the KL term.
    """
    seed_everything(seed)
    trainer = build_trainer(
        load_model(model, training=True, lora=settings.lora),
        tokenizer,
        prompts,
        settings=settings,
        folder=work.state / "simrl",
        seed=seed,
    )
    train(trainer, phase="simrl", label=label, state=work.state, log=log)
    save_model(trainer.model, tokenizer, work.out)


def build_trainer(model, tokenizer, prompts: list[Prompt], *, settings: SimRL, folder: Path, seed: int) -> GRPOTrainer:
    """A GRPOTrainer whose reward is `similarity_reward`; checkpoints go to `folder`.

    Raises:
        InputError: fewer prompts than a step takes.
    """
    if len(prompts) < settings.prompts_per_step:
        raise InputError(
            f"{len(prompts)} prompts cannot fill a step of prompts_per_step = {settings.prompts_per_step}: lower it"
        )
    arguments = common_arguments(
        settings, folder=folder, seed=seed, batch_size=settings.prompts_per_step * settings.num_generations
    )
    config = GRPOConfig(
        **arguments,
        num_generations=settings.num_generations,
        beta=settings.beta,
        temperature=settings.temperature,
        max_completion_length=settings.max_new_tokens,
        loss_type="grpo",
        scale_rewards="group",
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    tools_of = [prompt.tools for prompt in prompts]
    rows = Dataset.from_dict(
        {
            "prompt": [prompt.text for prompt in prompts],
            "target": [prompt.target for prompt in prompts],
            # An arrow column would give every tool the union of all keys; an index keeps the tools as they are.
            "row": list(range(len(prompts))),
        }
    )

    def similarity(
        prompts: list[str], completions: list[str], target: list[str], row: list[int], **_: object
    ) -> list[float]:
        return [
            similarity_reward(completion, expected, tools_of[index]).total
            for completion, expected, index in zip(completions, target, row, strict=True)
        ]

    return GRPOTrainer(
        model=model, reward_funcs=similarity, args=config, train_dataset=rows, processing_class=tokenizer
    )
