"""Sampling draws each rollout from its own random numbers."""

from pathlib import Path

import pytest
import torch

from star.modeling.models import load_model, load_tokenizer
from star.simrl.sampling import SeededSampling, use_sampling


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
