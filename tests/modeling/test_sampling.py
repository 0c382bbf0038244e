"""Sampling draws each rollout from its own random numbers."""

from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessorList

from star.modeling.models import load_model, load_tokenizer
from star.modeling.sampling import SeededSampling, use_sampling


def test_tokens_are_drawn_by_their_probability() -> None:
    """With scores that never change, the draws of many positions have the distribution of the softmax at the temperature."""
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).repeat(4, 1)
    sampling = SeededSampling([(1, row) for row in range(4)], temperature=2.0, max_new_tokens=5000)
    draws = torch.stack([sampling(torch.empty(0), scores).argmax(-1) for _ in range(5000)])
    share = torch.bincount(draws.flatten(), minlength=4) / draws.numel()
    assert share.tolist() == pytest.approx((scores[0] / 2).softmax(-1).tolist(), abs=0.015)
    assert len(set(map(tuple, draws.T.tolist()))) == 4  # every row has its own


def test_what_is_sampled_does_not_depend_on_the_batch(finished: dict[str, Path]) -> None:
    folder = finished["refine-teacher"]
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = ["weather in Oslo", "a much longer request about the time in Rome", "x"]

    def sample(keys: list[int]) -> list[str]:
        batch = tokenizer([prompts[key] for key in keys], return_tensors="pt", padding=True, add_special_tokens=False)
        sampling = SeededSampling([(7, key) for key in keys], temperature=1.0, max_new_tokens=12)
        with use_sampling(model, sampling), torch.no_grad():
            ids = model.generate(**batch, do_sample=True, max_new_tokens=12, min_new_tokens=12, temperature=1.0)
        return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :])

    together = sample([0, 1, 2])
    assert len(set(together)) == 3
    assert [sample([key])[0] for key in range(3)] == together
    assert sample([2, 0]) == [together[2], together[0]]
    assert "generate" not in vars(model)


def test_the_generator_moves_on_as_in_transformers_own_loop(finished: dict[str, Path]) -> None:
    """TRL shuffles the rollouts with it, and the order of a sum decides about its last bit."""
    folder = finished["refine-teacher"]
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    batch = tokenizer(["weather in Oslo", "x", "x", "x"], return_tensors="pt", padding=True, add_special_tokens=False)
    settings = {"do_sample": True, "max_new_tokens": 24, "temperature": 1.0, "top_k": 0}
    drawn, states = [], []
    for own_loop in (True, False):
        sampling = SeededSampling(
            [(7, row) for row in range(4)], temperature=1.0, max_new_tokens=24, moves_generator=not own_loop
        )
        torch.manual_seed(3)
        with torch.no_grad():
            if own_loop:
                ids = model.generate(**batch, **settings, logits_processor=LogitsProcessorList([sampling]))
            else:
                with use_sampling(model, sampling):
                    ids = model.generate(**batch, **settings)
        drawn.append(ids)
        states.append(torch.get_rng_state())
    assert torch.equal(*drawn)
    assert torch.equal(*states)
