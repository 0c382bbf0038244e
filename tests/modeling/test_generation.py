"""Sampling and the forward pass over samples."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from star.data.rows import read_rows
from star.modeling.entropy import EntropyMeter
from star.modeling.generation import Sequence, batches_by_length, completion_hidden_states, generate, policy_entropy
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import render_rows, within_length


@pytest.fixture(scope="module")
def teacher(finished: dict[str, Path]):
    folder = finished["refine-teacher"]
    rows = list(read_rows(finished["synthesize"] / "heldout.jsonl"))
    tokenizer = load_tokenizer(folder)
    return load_model(folder).eval(), tokenizer, render_rows(rows, tokenizer)


def test_the_same_seed_gives_the_same_samples(teacher) -> None:
    model, tokenizer, prompts = teacher
    texts = [prompt.text for prompt in prompts[:3]]
    settings = {"samples": 2, "temperature": 1.0, "max_new_tokens": 12}
    first, again, other = (generate(model, tokenizer, texts, **settings, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert [len(group) for group in first] == [2, 2, 2]


def test_every_token_is_read_once_whatever_the_model_was_saved_with(teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, prompts = teacher
    monkeypatch.setattr(model.generation_config, "use_cache", False)
    read = []
    counter = model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(given[0].shape[1]))
    generate(model, tokenizer, [prompts[0].text], samples=1, temperature=0.0, max_new_tokens=4, seed=0)
    counter.remove()
    assert read == [len(tokenizer(prompts[0].text, add_special_tokens=False)["input_ids"]), 1, 1, 1]


def test_greedy_does_not_depend_on_the_batch(teacher) -> None:
    model, tokenizer, prompts = teacher
    texts = [prompt.text for prompt in prompts[:4]]
    settings = {"samples": 1, "temperature": 0.0, "max_new_tokens": 12, "seed": 0}
    together = generate(model, tokenizer, texts, **settings)
    alone = [generate(model, tokenizer, [text], **settings)[0] for text in texts]
    assert [group[0].text for group in together] == [group[0].text for group in alone]


def test_a_sample_ends_at_its_end_token(teacher) -> None:
    model, tokenizer, prompts = teacher
    groups = generate(
        model, tokenizer, [p.text for p in prompts], samples=2, temperature=0.5, max_new_tokens=64, seed=3
    )
    samples = [sample for group in groups for sample in group]
    assert any(sample.finished for sample in samples)
    for sample in samples:
        assert sample.finished == (sample.token_ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token not in sample.text
        assert len(sample.token_ids) <= 64


def test_a_sample_begins_with_what_its_prompt_opens(teacher) -> None:
    model, tokenizer, prompts = teacher
    texts = [prompts[0].text, prompts[0].text + "<think>\n", prompts[1].text + "<think>\n\n</think>\n\n"]
    groups = generate(model, tokenizer, texts, samples=2, temperature=1.0, max_new_tokens=6, seed=3)
    for opening, group in zip(("", "<think>\n", "<think>\n\n</think>\n\n"), groups, strict=True):
        for sample in group:
            assert sample.text == opening + tokenizer.decode(sample.token_ids).removesuffix(tokenizer.eos_token)


def test_hidden_states_do_not_depend_on_padding(teacher) -> None:
    model, tokenizer, _ = teacher
    sequences = [Sequence([5, 6, 7], [8, 9]), Sequence([5] * 9, [4, 3, 2, 6])]
    padded = completion_hidden_states(model, sequences, pad_id=tokenizer.pad_token_id)
    for sequence, hidden in zip(sequences, padded, strict=True):
        [alone] = completion_hidden_states(model, [sequence], pad_id=tokenizer.pad_token_id)
        assert hidden.shape[0] == len(sequence.completion_ids)
        assert torch.allclose(hidden, alone, atol=1e-5)


def test_entropy_is_that_of_the_next_token(teacher) -> None:
    model, tokenizer, _ = teacher
    sequence = Sequence([5, 6, 7], [8, 9])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:4], -1)
    expected = float(-(logprobs.exp() * logprobs).sum(-1).mean())
    assert policy_entropy(model, [sequence], pad_id=tokenizer.pad_token_id, batch_tokens=64) == [
        pytest.approx(expected, rel=1e-4)
    ]


def test_entropy_measured_while_sampling_is_that_of_a_second_pass(teacher) -> None:
    model, tokenizer, prompts = teacher
    texts, meter = [prompt.text for prompt in prompts[:6]], EntropyMeter()
    settings = {"samples": 3, "temperature": 1.5, "max_new_tokens": 48, "seed": 5}
    groups = generate(model, tokenizer, texts, **settings, meter=meter)
    assert groups == generate(model, tokenizer, texts, **settings)
    samples = [sample.token_ids for group in groups for sample in group]
    assert len(set(map(len, samples))) > 3  # some ended early, and left the batch
    sequences = [
        Sequence(tokenizer(text, add_special_tokens=False)["input_ids"], ids)
        for text, ids in zip([text for text in texts for _ in range(3)], samples, strict=True)
    ]
    expected = policy_entropy(model, sequences, pad_id=tokenizer.pad_token_id, batch_tokens=4096)
    assert meter.means(list(map(len, samples))) == pytest.approx(expected, rel=1e-4)


@given(lengths=st.lists(st.integers(1, 40), max_size=30), budget=st.integers(1, 120))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(batches_by_length(lengths, batch_tokens=budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_long_prompts_are_left_out(teacher) -> None:
    _, tokenizer, prompts = teacher
    lengths = [len(tokenizer(prompt.text)["input_ids"]) for prompt in prompts]
    bound = sorted(lengths)[len(lengths) // 2]
    kept = within_length(prompts, tokenizer, max_prompt_tokens=bound)
    assert kept == [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= bound]
