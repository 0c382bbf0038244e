"""Sim-RL on TRL's trainer: each completion is scored against its own row."""

from pathlib import Path

import pytest

from star.config import Config
from star.errors import InputError
from star.models import load_model, load_tokenizer
from star.prompts import Prompt
from star.simrl.trainer import build_trainer

CALL = '<think>\n\n</think>\n\n<tool_call>\n{"name": "NAME", "arguments": {}}\n</tool_call>'


def tool(name: str) -> list[dict]:
    return [{"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}]


def test_the_reward_knows_each_rows_tools(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    folder = finished["distill"]
    prompts = [Prompt(name, f"prompt {name}", CALL.replace("NAME", name), tool(name)) for name in ("ping", "pong")]
    trainer = build_trainer(
        load_model(folder), load_tokenizer(folder), prompts, settings=micro.refine, folder=tmp_path, seed=1
    )
    rows = trainer.train_dataset
    [reward] = trainer.reward_funcs
    ping, pong = (prompt.target for prompt in prompts)
    columns = {"target": rows["target"], "row": rows["row"]}
    assert reward(prompts=rows["prompt"], completions=[ping, pong], **columns) == [1.0, 1.0]
    assert reward(prompts=rows["prompt"], completions=[pong, "nonsense"], **columns) == [-1.0, -1.0]


def test_the_trainer_has_the_methods_settings(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    folder = finished["distill"]
    prompts = [Prompt(name, "prompt", CALL, tool("NAME")) for name in ("a", "b")]
    settings = micro.refine.model_copy(update={"beta": 1e-3, "micro_batch_size": 2})
    trainer = build_trainer(
        load_model(folder), load_tokenizer(folder), prompts, settings=settings, folder=tmp_path, seed=1
    )
    arguments = trainer.args
    assert (arguments.beta, arguments.scale_rewards, arguments.num_generations) == (1e-3, "group", 2)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 2)
    assert trainer.ref_model is not None


def test_too_few_prompts_for_a_step_are_refused(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    folder = finished["distill"]
    prompts = [Prompt("a", "prompt", CALL, tool("NAME"))]
    with pytest.raises(InputError, match="prompts_per_step = 2"):
        build_trainer(
            load_model(folder), load_tokenizer(folder), prompts, settings=micro.refine, folder=tmp_path, seed=1
        )
