"""Sampling: what transformers' own generation gives, with completions that leave the batch when they end."""

from pathlib import Path

import pytest
import torch

from star.generation import generate
from star.models import load_model, load_tokenizer

PROMPTS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "x",
    "a longer prompt, of more tokens than the others",
]


@pytest.fixture(scope="module")
def teacher(finished: dict[str, Path]):
    return load_model(finished["refine-teacher"]).eval(), load_tokenizer(finished["refine-teacher"])


def test_greedy_completions_are_those_of_transformers(teacher) -> None:
    model, tokenizer = teacher
    made = generate(model, tokenizer, PROMPTS, samples=2, temperature=0.0, max_new_tokens=24, seed=0)
    for prompt, group in zip(PROMPTS, made, strict=True):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        expected = model.generate(ids, do_sample=False, max_new_tokens=24, pad_token_id=tokenizer.pad_token_id)
        assert [sample.token_ids for sample in group] == [expected[0, ids.shape[1] :].tolist()] * 2


def test_samples_have_the_model_s_frequencies(teacher) -> None:
    model, tokenizer = teacher
    [group] = generate(model, tokenizer, PROMPTS[:1], samples=4000, temperature=0.7, max_new_tokens=1, seed=1)
    ids = tokenizer(PROMPTS[0], return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        expected = torch.softmax(model(ids).logits[0, -1].float() / 0.7, dim=0)
    drawn = torch.bincount(torch.tensor([sample.token_ids[0] for sample in group]), minlength=len(expected)) / 4000
    top = expected.topk(8).indices
    assert torch.allclose(drawn[top], expected[top], atol=0.04)


def test_completions_end_each_at_its_own_token(teacher) -> None:
    model, tokenizer = teacher
    sampling = {"samples": 16, "temperature": 1.5, "max_new_tokens": 12, "seed": 3}
    groups = generate(model, tokenizer, PROMPTS, **sampling)
    assert groups == generate(model, tokenizer, PROMPTS, **sampling)
    made = [sample for group in groups for sample in group]
    assert len({len(sample.token_ids) for sample in made}) > 1
    for sample in made:
        assert sample.finished == (sample.token_ids[-1] == tokenizer.eos_token_id)
        assert sample.finished or len(sample.token_ids) == 12
