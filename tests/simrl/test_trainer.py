"""Sim-RL on TRL's trainer: what is trained on, filtered, watched; a stopped training goes on to the same weights."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from star.chat import FormatError, parse_completion
from star.config.experiment import Config
from star.config.training import SimRL
from star.data.rows import read_rows
from star.errors import InputError, PipelineError
from star.folders.workspace import Workspace
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import Prompt, render_rows
from star.modeling.training import train
from star.rewards.similarity import similarity_reward
from star.simrl.grpo_config import grpo_config
from star.simrl.refine import refine_model
from star.simrl.trainer import SimRLTrainer, build_trainer

CALL = '<think>\n\n</think>\n\n<tool_call>\n{"name": "NAME", "arguments": {}}\n</tool_call>'
# The micro teacher's answers are of valid format about half of the time.
SETTINGS = SimRL(
    steps=4,
    prompts_per_step=4,
    num_generations=4,
    learning_rate=1e-3,
    max_new_tokens=48,
    save_steps=1,
    max_refills=3,
    table_steps=2,
    check_steps=None,
    max_reward_drop=None,
)


def tool(name: str) -> list[dict]:
    return [{"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}]


def prompts_of(finished: dict[str, Path]) -> list[Prompt]:
    rows = list(read_rows(finished["synthesize"] / "train.jsonl"))
    return render_rows(rows, load_tokenizer(finished["refine-teacher"]))


def teacher_trainer(finished: dict[str, Path], folder: Path, settings: SimRL = SETTINGS) -> SimRLTrainer:
    teacher = finished["refine-teacher"]
    return build_trainer(
        load_model(teacher), load_tokenizer(teacher), prompts_of(finished), settings=settings, folder=folder, seed=7
    )


def run(trainer: SimRLTrainer, state: Path) -> list[dict]:
    """Trains to the end and returns the logged metrics by step."""
    state.mkdir(exist_ok=True)
    train(trainer, phase="simrl", label="test", state=state, log_metrics=lambda values, step: None)
    return json.loads((state / "simrl_curve.json").read_text(encoding="utf-8"))


def is_parsed(completion: str) -> bool:
    try:
        parse_completion(completion)
    except FormatError:
        return False
    return True


def weights(trainer: SimRLTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_the_reward_knows_each_rows_tools(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    folder = finished["distill"]
    prompts = [Prompt(name, f"prompt {name}", CALL.replace("NAME", name), tool(name)) for name in ("ping", "pong")]
    trainer = build_trainer(
        load_model(folder), load_tokenizer(folder), prompts, settings=micro.refine, folder=tmp_path, seed=1
    )
    rows = trainer.train_dataset
    [reward] = trainer.reward_funcs
    ping, pong = (prompt.target for prompt in prompts)
    assert reward(prompts=rows["prompt"], completions=[ping, pong], row=rows["row"]) == [1.0, 1.0]
    assert reward(prompts=rows["prompt"], completions=[pong, "nonsense"], row=rows["row"]) == [-1.0, -1.0]


def test_the_trainer_has_the_papers_settings(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
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


def test_groups_without_a_learning_signal_are_replaced(finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = teacher_trainer(finished, tmp_path / "simrl", SETTINGS.model_copy(update={"log_rewards": ("binary",)}))
    taken: list[list[int]] = []
    valid: list[float] = []

    class RecordGroups(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            drawn = [group.row["row"] for group in trainer.sampled_groups]
            assert len(drawn) == len(set(drawn))  # a refill is a new prompt
            assert {len(group.rollouts) for group in trainer.sampled_groups} == {SETTINGS.num_generations}
            taken.append(drawn)
            sampled = [rollout.completion for group in trainer.sampled_groups for rollout in group.rollouts]
            valid.append(sum(map(is_parsed, sampled)) / len(sampled))

    trainer.add_callback(RecordGroups())
    curve = run(trainer, tmp_path / "state")
    assert any(len(drawn) > SETTINGS.prompts_per_step for drawn in taken)
    for entry, drawn in zip(curve, taken, strict=True):
        kept = round(entry["kept_fraction"] * len(drawn))
        assert kept + entry["unfilled_groups"] >= SETTINGS.prompts_per_step
        assert entry["refill_rounds"] <= SETTINGS.max_refills
        assert {"name_accuracy", "entropy", "kl", "completions/mean_length", "rewards/binary/mean"} <= entry.keys()
    # As `star call` parses them, and not as the reward does.
    assert [entry["format_rate"] for entry in curve] == pytest.approx(valid)
    full = [entry for entry in curve if entry["unfilled_groups"] == 0]
    assert full, "no step was filled: the test shows nothing"
    # A full batch of kept groups has no group of equal rewards.
    assert all(entry["frac_reward_zero_std"] == 0 for entry in full)


def test_only_kept_groups_reach_the_reference_model(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = teacher_trainer(finished, tmp_path / "simrl", SETTINGS.model_copy(update={"steps": 1}))
    scored: list[int] = []
    original = trainer.ref_model.forward

    def counting(*arguments, **keywords):
        scored.append(len(keywords["input_ids"]))
        return original(*arguments, **keywords)

    monkeypatch.setattr(trainer.ref_model, "forward", counting)
    run(trainer, tmp_path / "state")
    assert len(trainer.sampled_groups) > SETTINGS.prompts_per_step
    assert sum(scored) == SETTINGS.prompts_per_step * SETTINGS.num_generations


def test_a_stopped_training_ends_with_the_same_weights(finished: dict[str, Path], tmp_path: Path) -> None:
    whole = teacher_trainer(finished, tmp_path / "whole")
    curve = run(whole, tmp_path / "state")
    assert max(entry["refill_rounds"] for entry in curve[2:]) > 0  # after the stop, too, prompts are replaced

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 3:  # one step after the checkpoint of step 2
                raise KeyboardInterrupt

    stopped = teacher_trainer(finished, tmp_path / "stopped")
    stopped.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path / "stopped_state")
    resumed = teacher_trainer(finished, tmp_path / "stopped")
    assert run(resumed, tmp_path / "stopped_state") == curve
    for name, value in weights(whole).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_without_bounds_nothing_is_replaced(finished: dict[str, Path], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 1, "keep_between": None})
    [entry] = run(teacher_trainer(finished, tmp_path / "simrl", settings), tmp_path / "state")
    assert (entry["kept_fraction"], entry["refill_rounds"], entry["unfilled_groups"]) == (1, 0, 0)


def test_a_batch_that_cannot_be_filled_is_reported(
    finished: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS.model_copy(update={"steps": 1, "max_new_tokens": 2, "max_refills": 2})
    with caplog.at_level(logging.WARNING):
        [entry] = run(teacher_trainer(finished, tmp_path / "simrl", settings), tmp_path / "state")
    assert (entry["unfilled_groups"], entry["refill_rounds"], entry["format_rate"]) == (4, 2, 0)
    assert "4 of 4 groups in the batch have no learning signal, after 2 refills" in caplog.text
    assert "step 1: all 48 completions break the format (official reading): " in caplog.text


def test_what_the_prompt_opens_counts_as_the_completions(thinking_teacher: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(thinking_teacher)
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    prompts = [Prompt(name, text, CALL, tool("NAME")) for name in "abcd"]
    settings = SETTINGS.model_copy(update={"steps": 1, "num_generations": 2, "max_refills": 0, "log_rewards": ()})
    model, folder = load_model(thinking_teacher), tmp_path / "simrl"
    trainer = build_trainer(model, tokenizer, prompts, settings=settings, folder=folder, seed=7)
    run(trainer, tmp_path / "state")
    for rollout in (rollout for group in trainer.sampled_groups for rollout in group.rollouts):
        sampled = tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
        assert rollout.completion == "<think>\n" + sampled
        assert rollout.score.trained == similarity_reward("<think>\n" + sampled, CALL, tool("NAME"))


def refine_teacher_again(
    finished: dict[str, Path], tmp_path: Path, settings: SimRL, *, pages: list[str] | None = None
) -> Workspace:
    workspace = Workspace(out=tmp_path / "out", state=tmp_path / "state")
    workspace.out.mkdir()
    workspace.state.mkdir()
    teacher = finished["refine-teacher"]
    pages = [] if pages is None else pages
    refine_model(
        teacher,
        load_tokenizer(teacher),
        prompts_of(finished),
        settings=settings,
        seed=7,
        workspace=workspace,
        label="test",
        log_metrics=lambda values, step: None,
        log_artifact=lambda page: pages.append(page.read_text(encoding="utf-8")),
    )
    return workspace


def test_sampled_completions_are_shown_as_the_training_goes(finished: dict[str, Path], tmp_path: Path) -> None:
    pages: list[str] = []
    workspace = refine_teacher_again(finished, tmp_path, SETTINGS.model_copy(update={"save_steps": 2}), pages=pages)
    assert [page.count("<details") for page in pages] == [1, 2, 3]  # steps 1, 2 and 4
    page = (workspace.out / "completions.html").read_text(encoding="utf-8")
    assert page == pages[-1]
    assert page.index("Step 4:") < page.index("Step 2:") < page.index("Step 1:")
    assert "&lt;think&gt;" in page and "<think>" not in page and "<script" not in page


def test_a_collapse_stops_and_names_the_last_good_model(finished: dict[str, Path], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 40, "learning_rate": 0.3, "max_kl": 0.5, "max_refills": 0})
    with pytest.raises(PipelineError, match=r"stopped at step \d+: the KL to the start is .* nats per token") as error:
        refine_teacher_again(finished, tmp_path, settings)
    assert not error.value.input_fault
    assert "learning_rate" in str(error.value)


def test_exact_match_is_checked_on_held_out_prompts(finished: dict[str, Path], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 2, "check_steps": 1, "check_prompts": 8})
    workspace = refine_teacher_again(finished, tmp_path, settings)
    checks = json.loads((workspace.state / "checks.json").read_text(encoding="utf-8"))
    assert list(checks) == ["1", "2"]
    curve = json.loads((workspace.state / "simrl_curve.json").read_text(encoding="utf-8"))
    for entry, check in zip(curve, checks.values(), strict=True):
        assert len(check["exact"]) == 8
        assert entry["heldout_exact_match"] == sum(check["exact"]) / 8


def test_vllm_settings_reach_trl_and_a_missing_vllm_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SimRL(steps=1, vllm={"mode": "server", "server_url": "http://localhost:8000"})
    with pytest.raises(ValueError, match="server_url"):
        SimRL(steps=1, vllm={"mode": "server"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed"):
        grpo_config(server, folder=tmp_path, seed=1, bf16=False, prompts=100, longest_prompt=900)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    arguments = grpo_config(server, folder=tmp_path, seed=1, bf16=False, prompts=100, longest_prompt=900)
    assert (arguments.use_vllm, arguments.vllm_mode, arguments.vllm_server_base_url) == (
        True,
        "server",
        "http://localhost:8000",
    )
    assert arguments.vllm_max_model_length == 900 + server.max_new_tokens
    colocated = SimRL(steps=1, vllm={"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2})
    arguments = grpo_config(colocated, folder=tmp_path, seed=1, bf16=False, prompts=100, longest_prompt=900)
    assert (arguments.vllm_mode, arguments.vllm_gpu_memory_utilization, arguments.vllm_tensor_parallel_size) == (
        "colocate",
        0.5,
        2,
    )


def test_groups_are_not_split_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="prompts_per_step = 4 cannot be shared by 3 processes"):
        grpo_config(SETTINGS, folder=tmp_path, seed=1, bf16=False, prompts=100, longest_prompt=900)


@pytest.mark.slow
def test_two_processes_keep_the_groups_that_one_keeps(finished: dict[str, Path], tmp_path: Path) -> None:
    """Over gloo: the same rows, the same completions and the same groups kept, in the same order, step by step."""
    script = Path(__file__).with_name("groups_of_processes.py")
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        folders = [finished["refine-teacher"], finished["synthesize"], tmp_path / str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, script, *folders], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (
        json.loads((tmp_path / name).read_text(encoding="utf-8"))
        for name in ("1/groups-0.json", "2/groups-0.json", "2/groups-1.json")
    )
    assert [step["sampled"] for step in first] == [step["sampled"] for step in second]
    for alone, shared in zip(one, first, strict=True):
        # The last round of two processes may draw one more prompt than it needs, so that both have as many.
        common = min(len(alone["sampled"]), len(shared["sampled"]))
        assert alone["sampled"][:common] == shared["sampled"][:common]
    assert any(len(step["sampled"]) > 4 for step in one)  # prompts were replaced
    for alone, left, right in zip(one, first, second, strict=True):
        # Whole groups, those of each update dealt by length.
        assert (left["batch"], right["batch"]) == (alone["batch"][::2], alone["batch"][1::2])
        assert len(left["batch"]) == len(right["batch"]) == 2
    alone, left, right = (
        torch.load(tmp_path / name) for name in ("1/weights-0.pt", "2/weights-0.pt", "2/weights-1.pt")
    )
    assert torch.equal(left, right)
    start = torch.cat([value.flatten() for value in load_model(finished["refine-teacher"]).double().parameters()])
    assert (left - alone).abs().mean() <= 1e-3 * (alone - start).abs().mean()
