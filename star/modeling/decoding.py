"""Decodes a batch in which many rows have the same prompt. It is handed to transformers' `generate` as `custom_generate`.

`generate` settles lengths, logits processors and stopping criteria as it always does. Its own loop, however, reads a
prompt once per sample and carries rows that have ended until the last one ends. The loop in here draws the same tokens
with less work:

    8 samples of 4 prompts    the 4 prompts are read once, and their cache is copied to the 32 rows
    prompts of 90 to 900      those of similar length are read together, with little padding (models at least 256 wide)
    each new token            is written into room that the cache has ahead; transformers copies the whole cache instead
    20 rows have ended        the 12 others go on in a batch of 12

What a row draws does not depend on which other rows are left: the random numbers are drawn for the whole batch. The
logits are those of transformers' loop up to rounding, because matrix products of another shape may round differently.

Shapes: B rows of the batch, R rows that are still decoded, P different prompts, L tokens so far, V vocabulary, H heads
of the cache, N tokens that its memory holds, D numbers per head.
"""

import inspect
from abc import abstractmethod
from copy import copy, deepcopy
from typing import Any, ClassVar, cast

import torch
from torch import LongTensor, Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.modeling_outputs import CausalLMOutputWithPast

from star import distributed
from star.modeling.prompt_groups import is_wide

ROOM = 64  # tokens that the cache's memory grows by
SIMILAR = 7 / 8  # of the longest prompt's tokens have all prompts that are read together
ENDED = 1 / 8  # share of the rows that must have ended before the others are gathered, which copies their cache


class FollowsRows(LogitsProcessor):
    """A logits processor that has something for each row of the batch.

    Attributes:
        draws: whether it draws the tokens itself, and masks all other tokens.
    """

    draws: ClassVar[bool] = False

    @abstractmethod
    def keep_rows(self, rows_R: Tensor) -> None:
        """Goes on with these rows only, because the others have left the batch."""


# Processors of which `_keep_rows` knows what they keep per row. With any other, no row leaves the batch.
FOLLOWS_ROWS = (
    FollowsRows,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class RoomyLayer(DynamicLayer):
    """The keys and values of one layer of the model, with room for more tokens.

    Args:
        keys, values: [B, H, L, D].
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._key_room, self._value_room = _with_room(keys, ROOM), _with_room(values, ROOM)
        self._show(keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes the states of new tokens behind the others; returns all of them, as views of the memory."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._key_room.shape[2]:
            self._key_room = _with_room(self._key_room[:, :, :start], end - start + ROOM)
            self._value_room = _with_room(self._value_room[:, :, :start], end - start + ROOM)
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows, given in ascending order. They move within the memory, which takes no more of it."""
        rows, tokens = len(indices), self.get_seq_length()
        self._key_room[:rows, :, :tokens] = self._key_room[indices, :, :tokens]
        self._value_room[:rows, :, :tokens] = self._value_room[indices, :, :tokens]
        self._key_room, self._value_room = self._key_room[:rows], self._value_room[:rows]
        self._show(tokens)

    def _show(self, tokens: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self._key_room[:, :, :tokens], self._value_room[:, :, :tokens]
        return self.keys, self.values


class PromptReading:
    """What a model computed of a batch of prompts: `decode` reads them with it once, however often it is called for them."""

    def __init__(self) -> None:
        self._seen_PL: Tensor | None = None
        self._logits_PV: Tensor | None = None
        self._cache: Cache | None = None

    def keep(self, seen_PL: Tensor, logits_PV: Tensor, cache: Cache) -> None:
        """Keeps the logits after the prompts and their cache, which may change afterwards."""
        self._seen_PL, self._logits_PV, self._cache = seen_PL, logits_PV, _copy_of(cache)

    def recall(self, seen_PL: Tensor) -> tuple[Tensor, Cache] | None:
        """Logits and a cache that may be changed; None for other prompts than the kept ones."""
        if self._seen_PL is None or self._logits_PV is None or self._cache is None:
            return None
        return (self._logits_PV, _copy_of(self._cache)) if torch.equal(seen_PL, self._seen_PL) else None


def _copy_of(cache: Cache) -> Cache:
    """A cache with the same tensors. Layers replace their tensors and never write into them, so the original stays as it is."""
    copied = copy(cache)
    copied.layers = [copy(layer) for layer in cache.layers]
    return copied


def _with_room(states_BHLD: Tensor, room: int) -> Tensor:
    rows, heads, tokens, numbers = states_BHLD.shape
    memory_BHND = states_BHLD.new_empty(rows, heads, tokens + room, numbers)
    memory_BHND[:, :, :tokens] = states_BHLD
    return memory_BHND


def decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    reading: PromptReading | None = None,
    **model_kwargs: Any,
) -> Tensor:
    """Decodes a batch of left-padded prompts; called by `generate`, with what it has prepared.

    Where the model's cache cannot be copied per row (states of a recurrent layer, a cache in CPU memory), or ranks hold
    parts of the model, it is transformers' own loop that decodes.

    Args:
        reading: of the same prompts, if they are decoded more than once.

    Returns:
        The prompts and the drawn tokens [B, L], rows that ended earlier filled up with the padding token.
    """
    causal_model: Any = model  # the type PreTrainedModel lacks what every causal language model has
    synced = distributed.world_size() > 1 and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))
    if synced or not _can_share(input_ids, generation_config, model_kwargs):
        return causal_model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=synced, **model_kwargs
        )
    logits_RV = _read_prompts(causal_model, input_ids, model_kwargs, reading)
    rows, vocabulary = logits_RV.shape
    # Settled by `generate`, or given by every caller.
    max_length, padding = cast(int, generation_config.max_length), cast(int, generation_config.pad_token_id)
    drawn_BL = input_ids.new_full((rows, max_length), padding)
    drawn_BL[:, : input_ids.shape[1]] = input_ids
    row_R = torch.arange(rows, device=input_ids.device)  # where the rows that are still decoded lie in the batch
    ended_R = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
    rows_leave = all(isinstance(processor, FOLLOWS_ROWS) for processor in logits_processor)
    with causal_model._optimize_model_for_decode():
        while True:
            scores_RV = logits_processor(cast(LongTensor, input_ids), logits_RV)
            tokens_R = _draw(scores_RV, row_R, (rows, vocabulary), logits_processor, generation_config)
            tokens_R = tokens_R.masked_fill(ended_R, padding)
            drawn_BL[row_R, input_ids.shape[1]] = tokens_R
            input_ids = torch.cat([input_ids, tokens_R[:, None]], dim=1)
            ended_R |= stopping_criteria(input_ids, None)  # no scores: none of the criteria reads them
            left = len(ended_R) - int(ended_R.sum())
            if not left:
                return drawn_BL[:, : input_ids.shape[1]]
            if rows_leave and len(ended_R) - left >= ENDED * len(ended_R):
                kept_R = (~ended_R).nonzero()[:, 0]
                _keep_rows(kept_R, logits_processor, model_kwargs)
                input_ids, row_R, ended_R = input_ids[kept_R], row_R[kept_R], ended_R[kept_R]
            given = causal_model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
            outputs = causal_model(**given, return_dict=True)
            model_kwargs = causal_model._update_model_kwargs_for_generation(outputs, model_kwargs)
            logits_RV = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)


def _can_share(input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]) -> bool:
    """Whether the cache and all other inputs have one entry per row, and nothing else has a state per row."""
    cache = model_kwargs.get("past_key_values")
    tensors = [value for value in model_kwargs.values() if isinstance(value, Tensor)]
    return (
        isinstance(cache, Cache)
        and not cache.offloading
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and cache.get_seq_length() == 0
        and all(len(tensor) == len(input_ids) for tensor in tensors)
        and generation_config.prefill_chunk_size is None
        and generation_config.guidance_scale in (None, 1)  # its processor has a cache of its own
    )


def _read_prompts(
    causal_model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], reading: PromptReading | None
) -> Tensor:
    """Reads each prompt once, and gives its cache to all rows that begin with it. Changes `model_kwargs`.

    Returns:
        The logits after the prompts, one row per row of the batch [B, V].
    """
    mask_BL = model_kwargs.get("attention_mask")
    # Neighbours only: the samples of a prompt stand in a row, and so no sorting is needed.
    seen = input_ids if mask_BL is None else input_ids.masked_fill(mask_BL == 0, -1)
    _, prompt_of_row_B = torch.unique_consecutive(seen, dim=0, return_inverse=True)
    is_first_B = torch.diff(prompt_of_row_B, prepend=prompt_of_row_B.new_full((1,), -1)) > 0
    cache: Any  # not every kind of layer that it may hold has what those have that `_can_share` lets through
    if reading and (recalled := reading.recall(seen[is_first_B])):
        logits_PV, cache = recalled
    else:
        of_prompts = {
            key: value[is_first_B] if isinstance(value, Tensor) else value for key, value in model_kwargs.items()
        }
        logits_PV, cache = _read_by_length(causal_model, input_ids[is_first_B], of_prompts)
        if reading:
            reading.keep(seen[is_first_B], logits_PV, cache)
    outputs: Any = CausalLMOutputWithPast(past_key_values=cache)
    # Layer by layer, so that no second copy of the whole cache exists.
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            keys, values = cast(Tensor, layer.keys), cast(Tensor, layer.values)
            cache.layers[number] = RoomyLayer(keys[prompt_of_row_B], values[prompt_of_row_B])
        else:
            layer.batch_select_indices(prompt_of_row_B)
    model_kwargs |= causal_model._update_model_kwargs_for_generation(outputs, model_kwargs)
    return logits_PV[prompt_of_row_B]


def _read_by_length(causal_model: Any, input_ids_PL: Tensor, of_prompts: dict[str, Any]) -> tuple[Tensor, Any]:
    """Reads prompts of similar length together, so that little padding is computed.

    Returns:
        The logits after the prompts [P, V], and their cache, padded on the left as the prompts are.
    """
    groups = _similar_lengths(causal_model, input_ids_PL, of_prompts)
    if len(groups) < 2:
        return _read(causal_model, input_ids_PL, of_prompts)
    read: list[tuple[Tensor, Any]] = []
    for group_G, padding in groups:
        part = {
            key: value[group_G, padding:] if isinstance(value, Tensor) else value for key, value in of_prompts.items()
        }
        part["past_key_values"] = deepcopy(of_prompts["past_key_values"])
        read.append(_read(causal_model, input_ids_PL[group_G, padding:], part))
    place_P = torch.cat([group_G for group_G, _ in groups]).argsort()
    logits_PV, caches = torch.cat([logits_GV for logits_GV, _ in read])[place_P], [cache for _, cache in read]

    def join(states: list[Tensor]) -> Tensor:
        joined_PHLD = states[0].new_zeros(len(place_P), states[0].shape[1], input_ids_PL.shape[1], states[0].shape[3])
        for (group_G, padding), states_GHLD in zip(groups, states, strict=True):
            joined_PHLD[group_G, :, padding:] = states_GHLD
        return joined_PHLD

    # Layer by layer, so that no second copy of the whole cache exists.
    for number, layer in enumerate(caches[0].layers):
        layers = [cache.layers[number] for cache in caches]
        layer.keys, layer.values = join([part.keys for part in layers]), join([part.values for part in layers])
        for cache in caches[1:]:
            cache.layers[number] = None
    return logits_PV, caches[0]


def _read(causal_model: Any, input_ids_PL: Tensor, of_prompts: dict[str, Any]) -> tuple[Tensor, Any]:
    """Makes one forward pass over prompts. Returns the logits after them [P, V], and their cache."""
    given = causal_model.prepare_inputs_for_generation(input_ids_PL, is_first_iteration=True, **of_prompts)
    outputs = causal_model(**given, return_dict=True)
    return outputs.logits[:, -1].float(), outputs.past_key_values


def _similar_lengths(causal_model: Any, input_ids_PL: Tensor, of_prompts: dict[str, Any]) -> list[tuple[Tensor, int]]:
    """Groups of prompts with the padding on the left that all of a group have. No groups where all must be read at once.

    So it is with narrow models, whose numbers stay as they were, and where positions or cache depend on the padding.
    """
    mask_PL, cache = of_prompts.get("attention_mask"), of_prompts["past_key_values"]
    tensors = [value for value in of_prompts.values() if isinstance(value, Tensor)]
    if (
        not is_wide(causal_model)
        or mask_PL is None
        or "position_ids" not in inspect.signature(causal_model.forward).parameters
        or any(type(layer) is not DynamicLayer for layer in cache.layers)
        or any(tensor.shape != input_ids_PL.shape for tensor in tensors)
    ):
        return []
    # From the longest on; the first token of the attention mask is where a prompt begins.
    padding_P = mask_PL.argmax(-1).tolist()
    order = sorted(range(len(padding_P)), key=lambda index: padding_P[index])
    groups: list[list[int]] = []
    longest = input_ids_PL.shape[1]
    for index in order:
        if not groups or longest - padding_P[index] < SIMILAR * (longest - padding_P[groups[-1][0]]):
            groups.append([])
        groups[-1].append(index)
    return [(torch.tensor(group, device=input_ids_PL.device), padding_P[group[0]]) for group in groups]


def _draw(
    scores_RV: Tensor,
    row_R: Tensor,
    shape: tuple[int, int],
    logits_processor: LogitsProcessorList,
    generation_config: GenerationConfig,
) -> Tensor:
    """Draws a token per row, as transformers would in the whole batch of `shape` [B, V]."""
    if not generation_config.do_sample or any(
        isinstance(processor, FollowsRows) and processor.draws for processor in logits_processor
    ):
        return scores_RV.argmax(-1)
    # What torch.multinomial does for one sample per row. It is written out, because the numbers of the rows that have
    # left the batch must be drawn as well: otherwise a row's token would depend on how many others have ended.
    noise_BV = torch.empty(shape, dtype=scores_RV.dtype, device=scores_RV.device).exponential_()
    return scores_RV.softmax(-1).div_(noise_BV[row_R]).argmax(-1)


def _keep_rows(kept_R: Tensor, logits_processor: LogitsProcessorList, model_kwargs: dict[str, Any]) -> None:
    """Removes all but the kept rows from what has an entry per row. Changes `model_kwargs`."""
    model_kwargs["past_key_values"].batch_select_indices(kept_R)
    for key, value in model_kwargs.items():
        if isinstance(value, Tensor):
            model_kwargs[key] = value[kept_R]
    for processor in logits_processor:
        if isinstance(processor, FollowsRows):
            processor.keep_rows(kept_R)
        elif isinstance(processor, RepetitionPenaltyLogitsProcessor) and isinstance(
            processor.prompt_ignore_length, Tensor
        ):
            processor.prompt_ignore_length = processor.prompt_ignore_length[kept_R]
