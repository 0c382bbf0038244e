"""A model that loses layers computes what its kept layers compute, in every family; where that cannot be, it is refused."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from star.errors import InputError
from star.modeling.layers import choose_layers, keep_layers
from tests.small_models import random_model, small_sizes

SIZES = {
    "vocab_size": 50,
    **small_sizes(16, 16, layers=6, head_dim=8),
    "pad_token_id": 0,
    "eos_token_id": [1, 2, 3, 4, 5, 6],  # as many as layers
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}


@given(st.integers(2, 60), st.data())
def test_the_kept_layers_are_spread_evenly_from_the_first_to_the_last(of: int, data: st.DataObject) -> None:
    kept = choose_layers(data.draw(st.integers(2, of)), of=of)
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert (kept[0], kept[-1]) == (0, of - 1)
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, tie_word_embeddings=True),
        Gemma3TextConfig(**SIZES, sliding_window=4),
        GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, sliding_window=4),
        Qwen3MoeConfig(**SIZES, **EXPERTS, mlp_only_layers=[0, 1, 5]),
    ],
    ids=["untied", "tied", "sliding windows", "sinks", "some layers without experts"],
)
def test_a_shortened_model_is_its_kept_layers(config: PretrainedConfig) -> None:
    whole = random_model(config)
    smaller = keep_layers(whole, 3, source="base")
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        computed, cached = smaller(ids, use_cache=False).logits, smaller(ids[:, :-1], use_cache=True)
        assert torch.allclose(
            smaller(ids[:, -1:], past_key_values=cached.past_key_values).logits, computed[:, -1:], atol=1e-5
        )
        types = getattr(whole.config, "layer_types", None)
        by_hand = copy.deepcopy(whole)
        decoder = by_hand.get_decoder()
        decoder.layers = nn.ModuleList(decoder.layers[layer] for layer in (0, 2, 5))
        by_hand.config.num_hidden_layers = 3
        if types:
            by_hand.config.layer_types = [types[layer] for layer in (0, 2, 5)]
        assert torch.equal(by_hand(ids, use_cache=False).logits, computed)
    assert smaller.config.num_hidden_layers == 3
    assert smaller.config.eos_token_id == whole.config.eos_token_id
    assert whole.config.num_hidden_layers == 6


def test_layers_that_cannot_be_dropped_are_refused() -> None:
    with pytest.raises(InputError, match=r"`student.layers` is 7 and base has 6 layers"):
        keep_layers(random_model(LlamaConfig(**SIZES)), 7, source="base")
    with pytest.raises(InputError, match="base cannot lose layers, because they are not alike"):
        keep_layers(random_model(Qwen3MoeConfig(**SIZES, **EXPERTS, decoder_sparse_step=2)), 3, source="base")
    shared = random_model(LlamaConfig(**SIZES))
    shared.model.layers[3].mlp = shared.model.layers[0].mlp
    with pytest.raises(InputError, match="the layers of base share weights"):
        keep_layers(shared, 3, source="base")
