"""Extraction computes the prompt of a wide model once for all its samples, with the same top-k."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from star import stages
from star.config.experiment import Config
from star.modeling import prompt_groups
from star.modeling.generation import Sequence, completion_hidden_states
from star.modeling.prompt_groups import pack_groups
from star.teacher import extract
from star.teacher.extract import batches_by_prompt, model_top_k
from star.topk.sequences import Lengths
from star.topk.store import TopKStore
from tests.small_models import random_model, small_sizes


@given(
    prompts=st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 12), min_size=1, max_size=5)), max_size=12),
    budget=st.integers(1, 120),
)
def test_batches_hold_the_samples_of_a_prompt_side_by_side(prompts: list[tuple[int, list[int]]], budget: int) -> None:
    owner = np.repeat(np.arange(len(prompts)), [len(completions) for _, completions in prompts])
    lengths = Lengths(
        np.array([prompts[number][0] for number in owner], np.int64),
        np.array([length for _, completions in prompts for length in completions], np.int64),
        np.diff(owner, prepend=-1) > 0,
    )
    batches = list(batches_by_prompt(lengths, batch_tokens=budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(owner)))
    for batch in batches:
        in_batch = owner[batch]
        numbers = in_batch[np.flatnonzero(np.diff(in_batch, prepend=-1))]
        assert len(set(numbers)) == len(numbers)
        packed = [prompts[number][0] + sum(length - 1 for length in prompts[number][1]) for number in numbers]
        assert len(numbers) == 1 or len(numbers) * max(packed) <= budget
        assert sum(len(prompts[number][1]) for number in numbers) == len(batch)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_prompts_give_the_same_top_k(dtype: torch.dtype) -> None:
    sizes = small_sizes(64, 96, heads=4, key_value_heads=2)
    model = random_model(LlamaConfig(vocab_size=600, initializer_range=0.1, **sizes)).to(dtype)
    first, second = list(range(10, 40)), list(range(50, 61))
    sequences = [Sequence(first, [5, 6, 7]), Sequence(first, [9]), Sequence(second, [3, 4, 3, 4, 3])]
    sequences.append(Sequence(second, list(range(200, 230))))
    hidden = completion_hidden_states(model, sequences, pad_id=0)
    plain = model_top_k(model, pad_id=0, k=8)(sequences)
    shared = model_top_k(model, pad_id=0, k=8, share_prompts=True)(sequences)
    for sequence, hidden_TH, (ids_TK, logprobs_TK), (shared_ids_TK, shared_logprobs_TK) in zip(
        sequences, hidden, plain, shared, strict=True
    ):
        assert ids_TK.shape == shared_ids_TK.shape == (len(sequence.completion_ids), 8)
        # In fp32 also for a model in bf16, whose own logits are rounded to three digits.
        logits_TV = hidden_TH.float() @ model.get_output_embeddings().weight.float().T
        assert torch.allclose(logits_TV.log_softmax(-1).gather(1, ids_TK), logprobs_TK, atol=1e-5)
        assert torch.allclose(logprobs_TK, shared_logprobs_TK, atol=1e-5 if dtype == torch.float32 else 0.05)
        if dtype == torch.float32:
            assert torch.equal(ids_TK, shared_ids_TK)


def test_prompts_with_one_sample_each_take_the_plain_layout() -> None:
    model = random_model(LlamaConfig(vocab_size=90, **small_sizes(16, 16, layers=1, key_value_heads=2)))
    single = [Sequence([1, 2, 3], [5, 6, 7]), Sequence([1, 2], [9]), Sequence([1, 2, 3, 4], [8, 8])]
    plain, shared = (model_top_k(model, pad_id=0, k=8, share_prompts=share)(single) for share in (False, True))
    for (ids_TK, logprobs_TK), (shared_ids_TK, shared_logprobs_TK) in zip(plain, shared, strict=True):
        assert torch.equal(ids_TK, shared_ids_TK) and torch.equal(logprobs_TK, shared_logprobs_TK)


def test_the_store_of_a_wide_teacher_is_that_of_the_plain_pass(
    micro: Config, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_groups, "MIN_WIDTH", 1)
    packed = []
    monkeypatch.setattr(
        extract, "pack_groups", lambda *given, **named: packed.append(pack_groups(*given, **named)) or packed[-1]
    )
    stages.extract_topk(micro, rollouts=finished["rollout"], teacher=finished["refine-teacher"], out=tmp_path / "out")
    assert packed
    plain, shared = TopKStore(finished["extract-topk"]), TopKStore(tmp_path / "out")
    assert sorted(plain) == sorted(shared)
    for sequence_id in plain:
        # Two roundings of the store apart.
        np.testing.assert_allclose(shared[sequence_id][1], plain[sequence_id][1], rtol=0, atol=0.0202)
