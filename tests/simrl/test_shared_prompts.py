"""Sim-RL with the prompt computed once for its rollouts: the same log-probs, gradients and steps as without."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, TrainerCallback
from trl.trainer.utils import add_fused_lm_head

from star.config.training import Lora, SimRL
from star.data.rows import read_rows
from star.modeling import prompt_groups
from star.modeling.models import add_lora_adapters, load_model, load_tokenizer
from star.modeling.prompt_groups import pack_groups, shares_prompts, why_not_shared
from star.modeling.prompts import Prompt, render_rows
from star.modeling.tokenizer import bootstrap_tokenizer
from star.modeling.training import train
from star.simrl.shared_prompts import shared_log_probs
from star.simrl.trainer import SimRLTrainer, build_trainer
from tests.small_models import random_model, small_sizes

VOCAB_SIZE = 300
TEMPERATURE = 0.9
ALTERNATING = ["sliding_attention", "full_attention"]
# Windows of 6 are shorter than the prompts.
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "layer_types": ALTERNATING},
    "gpt_oss": {"sliding_window": 6, "layer_types": ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2},
    # Positions are learnt, and TRL's layout shifts those of padded prompts.
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
}
SETTINGS = SimRL(
    steps=3,
    prompts_per_step=2,
    num_generations=3,
    micro_batch_size=2,
    learning_rate=1e-3,
    beta=0.1,
    max_new_tokens=8,
    save_steps=1,
    keep_between=None,
    check_steps=None,
    max_reward_drop=None,
    max_kl=None,
)


def small_model(family: str, *, vocab_size: int = VOCAB_SIZE, **arguments: object) -> PreTrainedModel:
    sizes = small_sizes(64, 96, heads=4, key_value_heads=2, head_dim=16)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = random_model(AutoConfig.for_model(family, vocab_size=vocab_size, **sizes, **special, **arguments)).train()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # so large that each token depends much on those before it
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def rollouts() -> tuple[list[list[int]], list[list[int]]]:
    """Two prompts of three rollouts each, as ids of prompts and completions."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (14, 9)]
    lengths = (4, 7, 1, 5, 2, 9)
    completions = [torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    return [prompts[index // 3] for index in range(6)], completions


def padded(prompts: list[list[int]], completions: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ids and mask as TRL pads them, and the length of the longest completion."""
    before, after = max(map(len, prompts)), max(map(len, completions))
    ids = torch.zeros(len(prompts), before + after, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        place = slice(before - len(prompt), before + len(completion))
        ids[row, place] = torch.tensor(prompt + completion)
        mask[row, place] = 1
    return ids, mask, after


def gradients(model: PreTrainedModel, log_probs: list[torch.Tensor]) -> torch.Tensor:
    """The gradient of a sum of the log-probs in which each token has a weight of its own."""
    model.zero_grad()
    values = torch.cat(log_probs)
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("family", [*FAMILIES, "llama with adapters"])
def test_log_probs_and_gradients_are_those_of_each_rollout_alone(family: str) -> None:
    name, _, adapters = family.partition(" ")
    model = small_model(name, **FAMILIES[name])
    base = model
    if adapters:
        model = add_lora_adapters(model, Lora(rank=2))
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    assert why_not_shared(model) is None
    prompts, completions = rollouts()
    alone, entropies_alone = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        distribution = (logits / TEMPERATURE).log_softmax(-1)
        alone.append(distribution.gather(1, torch.tensor(completion)[:, None])[:, 0])
        entropies_alone.append(-(distribution.exp() * distribution).sum(-1))
    expected = gradients(model, alone)
    add_fused_lm_head(base, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    ids, mask, longest = padded(prompts, completions)
    log_probs, entropies = shared_log_probs(model, model, ids, mask, completion_tokens=longest)
    shared = [row[: len(completion)] for row, completion in zip(log_probs, completions, strict=True)]
    assert torch.cat(shared).tolist() == pytest.approx(torch.cat(alone).tolist(), abs=1e-4)
    present = mask[:, -longest:].bool()
    assert entropies[present].tolist() == pytest.approx(torch.cat(entropies_alone).tolist(), abs=1e-4)
    assert not log_probs[~present].any() and not entropies[~present].any()
    found = gradients(model, shared)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_a_prompt_is_fed_once_for_neighbours() -> None:
    prompts, completions = [[5, 6, 7], [5, 6, 7], [8, 9]], [[1, 2], [3, 4, 5], [6]]
    packed = pack_groups(prompts, completions, device=torch.device("cpu"))
    assert packed.input_ids_GL.tolist() == [[5, 6, 7, 1, 3, 4], [8, 9, 0, 0, 0, 0]]
    assert packed.position_ids_GL[0].tolist() == [0, 1, 2, 3, 3, 4]
    assert packed.branch_GL.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, -1, -1, -1, -1]]
    assert packed.columns_N.tolist() == [2, 3, 2, 4, 5, 1]
    assert packed.targets_N.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("family", "arguments", "reason"),
    [
        ("llama4_text", {"num_local_experts": 2}, "layers of kind chunked_attention"),
        ("qwen3_next", {"num_experts": 2}, "layers of kind linear_attention"),
        ("bloom", {"n_layer": 2, "n_head": 4}, ""),
    ],
)
def test_a_model_that_cannot_share_is_found_out(
    family: str, arguments: dict, reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_groups, "MIN_WIDTH", 1)
    assert not shares_prompts(small_model(family, **arguments), work="Sim-RL")
    assert f"once for each completion, and not once for all of them, as this model cannot: {reason}" in caplog.text


def test_models_with_other_positions_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama")
    rotary = model.model.rotary_emb.forward

    def by_place(hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary(hidden, torch.arange(position_ids.shape[1])[None])

    monkeypatch.setattr(model.model.rotary_emb, "forward", by_place)
    reason = why_not_shared(model)
    assert reason is not None and reason.startswith("hidden states differ by")


def trainer_of(finished: dict[str, Path], folder: Path, **arguments: str) -> SimRLTrainer:
    teacher = finished["refine-teacher"]
    prompts = render_rows(list(read_rows(finished["synthesize"] / "train.jsonl")), load_tokenizer(teacher))
    return build_trainer(
        load_model(teacher), load_tokenizer(teacher), prompts, settings=SETTINGS, folder=folder, seed=7, **arguments
    )


def trained(trainer: SimRLTrainer, state: Path) -> tuple[list[dict], torch.Tensor]:
    """Trains; returns the learning curve and all weights."""
    state.mkdir(exist_ok=True)
    train(trainer, phase="simrl", label="test", state=state, log_metrics=lambda values, step: None)
    weights = torch.cat([value.flatten() for value in trainer.model.state_dict().values()])
    return json.loads((state / "simrl_curve.json").read_text(encoding="utf-8")), weights


def test_the_routers_of_a_mixture_of_experts_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TRL adds their loss, for which it needs the logits of the routers."""
    monkeypatch.setattr(prompt_groups, "MIN_WIDTH", 1)
    tokenizer = bootstrap_tokenizer()
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "vocab_size": len(tokenizer)}
    model = small_model("qwen3_moe", **experts)
    assert why_not_shared(model) is None
    prompts = [Prompt(str(number), "<|im_start|>user\nhi", "hello", []) for number in range(2)]
    settings = SETTINGS.model_copy(update={"steps": 1, "max_new_tokens": 4, "beta": 0.0})
    trainer = build_trainer(model, tokenizer, prompts, settings=settings, folder=tmp_path / "simrl", seed=7)
    assert "a prompt once for each rollout: the loss of the routers" in caplog.text
    curve, _ = trained(trainer, tmp_path / "state")
    assert curve[0]["aux_loss"] > 0


def test_a_training_takes_the_same_steps_and_resumes_to_the_byte(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    narrow = trainer_of(finished, tmp_path / "narrow")
    assert not narrow.shares_prompts  # so its numbers are those that TRL's layout gives
    start = torch.cat([value.flatten().clone() for value in narrow.model.state_dict().values()])
    _, expected = trained(narrow, tmp_path / "narrow_state")
    monkeypatch.setattr(prompt_groups, "MIN_WIDTH", 1)
    sharing = trainer_of(finished, tmp_path / "sharing")
    assert sharing.shares_prompts
    curve, weights = trained(sharing, tmp_path / "sharing_state")
    # Adam makes whole steps of the smallest gradients, whose sign may be one of rounding: hence a bound on the mean.
    assert (weights - expected).abs().mean() <= 1e-3 * (expected - start).abs().mean()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 2:  # one step after the checkpoint of step 1
                raise KeyboardInterrupt

    stopped = trainer_of(finished, tmp_path / "stopped")
    stopped.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trained(stopped, tmp_path / "stopped_state")
    resumed_curve, resumed = trained(trainer_of(finished, tmp_path / "stopped"), tmp_path / "stopped_state")
    assert resumed_curve == curve
    assert torch.equal(resumed, weights)


def test_log_probs_in_bf16_are_close_to_those_in_fp32(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_groups, "MIN_WIDTH", 1)
    ids, mask, longest = padded(*rollouts())
    found = []
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(finished, tmp_path, precision=precision)
        # In two passes, the second of which begins within a group.
        log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, longest, 4)
        assert log_probs.dtype == entropies.dtype == torch.float32
        found.append(log_probs)
    difference = (found[0] - found[1]).abs().max()
    assert 0 < difference < 0.2
