"""Lays sequences out so that a prompt is computed once for all its completions.

The completions of a prompt are written one after the other behind it, in one row. A token attends to the prompt and to
the earlier tokens of its own completion, and its position is the one that it has there. Prompt P, completions a, b, c:

    plain    P P P P a a        packed     P P P P a b b b c        the last token of a completion predicts nothing,
             P P P P b b b b    position   0 1 2 3 4 4 5 6 4        so it is left out
             P P P P c c        branch     0 0 0 0 1 2 2 2 3

Hidden states are those of the plain layout up to rounding. Sim-RL and, on demand, the distillation train on this layout, and the extraction
reads it.

Shapes: P padded prompt, N completion tokens of all completions, G rows, L tokens of the longest row, H hidden.
"""

import logging
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from star.modeling.precision import MIN_WIDTH

logger = logging.getLogger(__name__)
PADDING_BRANCH = -1
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers names them
# How far the check's hidden states may differ, in parts of the largest one. With a wrong mask they differ by far more.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class PackedGroups:
    """Completions whose prompts are shared.

    Attributes:
        branch_GL: 0 in a prompt, 1, 2, ... in its completions, `PADDING_BRANCH` behind the last one.
        rows_N, columns_N: places of the tokens that predict the completion tokens: completion by completion, in order.
        targets_N: the completion tokens.
    """

    input_ids_GL: Tensor
    position_ids_GL: Tensor
    branch_GL: Tensor
    rows_N: Tensor
    columns_N: Tensor
    targets_N: Tensor

    def to(self, device: torch.device) -> "PackedGroups":
        """Copies its tensors to a device."""
        return PackedGroups(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def pack_groups(prompts: list[list[int]], completions: list[list[int]], *, device: torch.device) -> PackedGroups:
    """Lays completions out in rows. Neighbours with equal prompts share a row.

    Args:
        prompts: the prompt's ids of each completion.
        completions: their ids.
    """
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    branches: list[list[int]] = []
    rows: list[int] = []
    columns: list[int] = []
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if index == 0 or prompt != prompts[index - 1]:
            ids.append(list(prompt))
            positions.append(list(range(len(prompt))))
            branches.append([0] * len(prompt))
        if not completion:
            continue
        start, fed = len(ids[-1]), completion[:-1]
        ids[-1] += fed
        positions[-1] += range(len(prompt), len(prompt) + len(fed))
        branches[-1] += [branches[-1][-1] + 1] * len(fed)
        rows += [len(ids) - 1] * len(completion)
        columns += [len(prompt) - 1, *range(start, start + len(fed))]

    def padded(lists: list[list[int]], filler: int) -> Tensor:
        longest = max(map(len, ids))
        return torch.tensor([values + [filler] * (longest - len(values)) for values in lists], device=device)

    return PackedGroups(
        # Any id will do as padding: nothing attends to it.
        input_ids_GL=padded(ids, 0),
        position_ids_GL=padded(positions, 0),
        branch_GL=padded(branches, PADDING_BRANCH),
        rows_N=torch.tensor(rows, device=device),
        columns_N=torch.tensor(columns, device=device),
        targets_N=torch.tensor([token for completion in completions for token in completion], device=device),
    )


def packed_inputs(packed: PackedGroups, model: PreTrainedModel) -> dict[str, Any]:
    """The arguments of the model's forward pass: ids, positions, and the attention mask of each kind of layers."""
    masks: dict[str, Tensor] = {}
    for kind, window in attention_windows(model.config).items():
        allowed_G1LL = _allowed(packed, window=window)
        if model.config._attn_implementation == "eager":
            # Added to the scores there.
            lowest = torch.finfo(model.dtype).min
            masks[kind] = torch.zeros_like(allowed_G1LL, dtype=model.dtype).masked_fill(~allowed_G1LL, lowest)
        else:
            masks[kind] = allowed_G1LL
    # A model with one kind of layers may not know the names of the kinds.
    mask = masks if len(masks) > 1 else next(iter(masks.values()))
    return {"input_ids": packed.input_ids_GL, "position_ids": packed.position_ids_GL, "attention_mask": mask}


def attention_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Tokens that a layer of each kind sees, its own included; None is all.

    Raises:
        NotImplementedError: there are layers of other kinds, such as linear attention.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or [SLIDING if window else FULL])
    if others := sorted(kinds - {FULL, SLIDING}):
        raise NotImplementedError(f"layers of kind {others[0]}")
    return {kind: window if kind == SLIDING else None for kind in sorted(kinds)}


def _allowed(packed: PackedGroups, *, window: int | None) -> Tensor:
    """Which token [G, 1, L, 1] may attend to which [G, 1, 1, L]."""
    branch_GL, position_GL = packed.branch_GL, packed.position_ids_GL.int()  # half the memory of their differences
    distance_GLL = position_GL[:, :, None] - position_GL[:, None, :]
    allowed_GLL = (branch_GL[:, None, :] == 0) | (branch_GL[:, None, :] == branch_GL[:, :, None])
    allowed_GLL &= distance_GLL >= 0
    if window is not None:
        allowed_GLL &= distance_GLL < window
    return allowed_GLL[:, None]


def is_wide(model: PreTrainedModel) -> bool:
    """Whether a model is as wide as pretrained ones."""
    return model.config.get_text_config().hidden_size >= MIN_WIDTH


def shares_prompts(model: PreTrainedModel, *, work: str) -> bool:
    """Whether `work` with this model shares prompts; says so where it cannot.

    Narrow models do not, so that the numbers of those from scratch stay as they were.
    """
    if not is_wide(model):
        return False
    if reason := why_not_shared(model):
        logger.warning(
            "%s computes a prompt once for each completion, and not once for all of them, as this model cannot: %s",
            work,
            reason,
        )
    return reason is None


@torch.no_grad()
def why_not_shared(model: PreTrainedModel) -> str | None:
    """Tries both layouts on a few tokens; returns None if they agree, else the reason why prompts cannot be shared.

    So a family with attention or positions of another kind is found out, and need not be listed.
    """
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"attention of kind {model.config._attn_implementation} takes no mask"
    vocab_size = model.config.get_text_config().vocab_size
    ids = [index * 7 % vocab_size for index in range(1, 25)]
    prompt, completions = ids[:12], [ids[12:17], ids[17:24]]
    packed = pack_groups([prompt, prompt], completions, device=model.device)
    decoder, was_training = model.get_decoder(), model.training
    model.eval()
    try:
        hidden_GLH = decoder(**packed_inputs(packed, model), use_cache=False).last_hidden_state
        alone = [torch.tensor([prompt + completion[:-1]], device=model.device) for completion in completions]
        expected = [decoder(input_ids=ids_1L, use_cache=False).last_hidden_state[0, 11:] for ids_1L in alone]
    except (NotImplementedError, TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        return str(error).split("\n")[0][:200]
    finally:
        model.train(was_training)
    expected_NH = torch.cat(expected)
    difference_NH = (hidden_GLH[packed.rows_N, packed.columns_N] - expected_NH).abs()
    difference = float(difference_NH.max() / expected_NH.abs().max())
    return None if difference <= TOLERANCE[model.dtype] else f"hidden states differ by {difference:.1g} of the largest"
