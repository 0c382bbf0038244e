"""The loop that reads each prompt once and lets rows leave draws what transformers' own loop draws."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GptOssConfig,
    LogitsProcessorList,
    MambaConfig,
    Qwen3Config,
)

from star.modeling import prompt_groups
from star.modeling.decoding import PromptReading, decode
from star.modeling.sampling import SeededSampling
from tests.small_models import random_model, small_sizes

VOCABULARY = 300
ENDS = [7, 8, 9, 11]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **small_sizes(heads=4, key_value_heads=2, head_dim=8),
    "initializer_range": 0.3,  # wide enough that the logits differ
}
CONFIGS: dict[str, Any] = {
    "full attention": Qwen3Config(**SIZES),
    "sliding windows": Gemma3TextConfig(
        **SIZES, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "experts and sinks": GptOssConfig(**SIZES, sliding_window=16, num_local_experts=4, num_experts_per_tok=2),
    "no cache to copy": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1),
}


def three_prompts() -> dict[str, torch.Tensor]:
    """Padded on the left, two of them longer than a sliding window of 16."""
    mask_BL = torch.ones(3, 40, dtype=torch.int64)
    mask_BL[1, :7] = mask_BL[2, :30] = 0
    ids_BL = torch.randint(12, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids_BL * mask_BL, "attention_mask": mask_BL}


@torch.inference_mode()
def draw(model: Any, *, samples: int, new_tokens: int = 48, **settings: object) -> torch.Tensor:
    torch.manual_seed(3)
    ends = {"eos_token_id": ENDS, "pad_token_id": 0}
    sampling = {"do_sample": True, "temperature": 1.2, "top_k": 0} if samples > 1 else {"do_sample": False}
    return model.generate(
        **three_prompts(),
        **sampling,
        **ends,
        **settings,
        max_new_tokens=new_tokens,
        num_return_sequences=samples,
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_draws_the_tokens_of_the_plain_loop(kind: str) -> None:
    model = random_model(CONFIGS[kind])
    # The second has a state per row that the loop knows, the third one that it does not know.
    for settings in ({}, {"repetition_penalty": 1.1}, {"min_new_tokens": 9}):
        for samples in (1, 6):
            plain = draw(model, samples=samples, new_tokens=24, **settings)
            assert torch.equal(draw(model, samples=samples, new_tokens=24, **settings, custom_generate=decode), plain)


def test_a_prompt_is_read_once_and_ended_rows_leave_the_batch() -> None:
    model = random_model(CONFIGS["full attention"])
    read: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(tuple(given[0].shape)))
    ids_BL = draw(model, samples=6, custom_generate=decode)
    assert read[0] == (3, 40)
    assert read[1] == (18, 1)
    ended = torch.isin(ids_BL[:, 40:-1], torch.tensor(ENDS)).any(1).sum().item()
    assert ended > 4
    assert 18 - ended <= read[-1][0] < 18


@pytest.mark.parametrize("kind", CONFIGS)
def test_prompts_of_unlike_length_are_read_apart(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_groups, "MIN_WIDTH", 1)
    model = random_model(CONFIGS[kind])
    read: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(tuple(given[0].shape)))
    reading = PromptReading()
    for samples in (6, 1):
        plain = draw(model, samples=samples, new_tokens=24)
        read.clear()
        assert torch.equal(
            draw(model, samples=samples, new_tokens=24, custom_generate=partial(decode, reading=reading)), plain
        )
        if samples == 6 and kind == "full attention":  # of 40, 33 and 10 tokens
            assert read[:4] == [(1, 40), (1, 33), (1, 10), (18, 1)]
    if kind == "full attention":
        assert read[0] == (3, 1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_reading_serves_several_draws_of_the_same_prompts(kind: str) -> None:
    model = random_model(CONFIGS[kind])
    read: list[int] = []
    reading = PromptReading()
    shared = partial(decode, reading=reading)
    for samples in (1, 6, 1):
        alone = draw(model, samples=samples, new_tokens=24, custom_generate=decode)
        counter = model.get_input_embeddings().register_forward_hook(
            lambda _, given, __: read.append(given[0].shape[1])
        )
        assert torch.equal(draw(model, samples=samples, new_tokens=24, custom_generate=shared), alone)
        counter.remove()
    assert read.count(40) == (1 if kind != "no cache to copy" else 3)
    # Other prompts are read, whatever was kept.
    other = {"input_ids": three_prompts()["input_ids"].flip(0), "attention_mask": three_prompts()["attention_mask"]}
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": ENDS, "pad_token_id": 0, "max_new_tokens": 8}
    with torch.inference_mode():
        expected = model.generate(**other, **settings, custom_generate=decode)
        assert torch.equal(model.generate(**other, **settings, custom_generate=shared), expected)


def test_rollouts_of_simrl_keep_their_own_random_numbers() -> None:
    model = random_model(CONFIGS["full attention"])
    prompts = {key: value.repeat_interleave(4, 0) for key, value in three_prompts().items()}
    drawn = []
    for settings in ({}, {"custom_generate": decode}):
        sampling = SeededSampling([(7, row) for row in range(12)], temperature=1.2, max_new_tokens=48)
        with torch.no_grad():
            ids_BL = model.generate(
                **prompts,
                **settings,
                logits_processor=LogitsProcessorList([sampling]),
                do_sample=True,
                max_new_tokens=48,
                eos_token_id=ENDS,
                pad_token_id=0,
            )
        drawn.append(ids_BL)
    assert torch.equal(*drawn)


def test_long_answers_outgrow_the_reserved_room() -> None:
    model = random_model(CONFIGS["full attention"])
    settings: dict[str, Any] = {"samples": 2, "new_tokens": 80, "suppress_tokens": ENDS}
    assert torch.equal(draw(model, **settings, custom_generate=decode), draw(model, **settings))
