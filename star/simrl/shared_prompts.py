"""Computes the log-probs of rollouts with the prompt of a group computed once, and not once for every rollout.

The layout is that of star/modeling/prompt_groups.py. Loss and gradients are those of TRL's layout up to rounding. Logits
are computed at completion tokens only; on a CPU, TRL computes them at the prompt's tokens, too.

Shapes: B rollouts, P padded prompt, T padded completion, N completion tokens of all rollouts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from star.modeling.prompt_groups import pack_groups, packed_inputs


def shared_log_probs(
    model: nn.Module, unwrapped: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, *, completion_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Makes one forward pass over rollouts.

    Args:
        model: what accelerate wrapped the model in, or the model itself.
        unwrapped: the model, with TRL's head (its `add_fused_lm_head`).
        input_ids: prompts, padded on the left, then completions, padded on the right [B, P + T].
        attention_mask: 1 for tokens, 0 for padding [B, P + T].
        completion_tokens: T.

    Returns:
        Log-probs [B, T] of the completions and, where the head computes them, entropies [B, T]; 0 at padding.
    """
    present_BS = attention_mask.bool()
    rows = [ids_S[present_S] for ids_S, present_S in zip(input_ids.cpu(), present_BS.cpu(), strict=True)]
    present_BT = present_BS[:, -completion_tokens:]
    lengths = present_BT.sum(1).tolist()
    prompts = [row[: len(row) - length].tolist() for row, length in zip(rows, lengths, strict=True)]
    completions = [row[len(row) - length :].tolist() for row, length in zip(rows, lengths, strict=True)]
    packed = pack_groups(prompts, completions, device=input_ids.device)
    with _hidden_states_at(unwrapped.get_decoder(), packed.rows_N, packed.columns_N):
        output = model(**packed_inputs(packed, unwrapped), shift_labels=packed.targets_N[None], fused_lm_head=True)
    entropies_BT = None if output.entropy is None else _unpacked(output.entropy, present_BT)
    return _unpacked(output.log_probs, present_BT), entropies_BT


def _unpacked(values_1N: Tensor, present_BT: Tensor) -> Tensor:
    """The values of all completions, one after the other, where the mask is true, row by row [B, T]; 0 elsewhere."""
    return values_1N.new_zeros(present_BT.shape).masked_scatter(present_BT, values_1N)


@contextmanager
def _hidden_states_at(decoder: nn.Module, rows_N: Tensor, columns_N: Tensor) -> Iterator[None]:
    """Context manager in which the decoder returns the hidden states of these places only, as [1, N, H]."""

    def select(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[rows_N, columns_N][None]
        return output

    hook = decoder.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()
