"""Extracts the teacher's signal: one forward pass over prompt and completion, top-k log-probs per completion token.

    sequences ─► batches of similar length ─► teacher ─► (ids_TK, logprobs_TK) per sequence ─► TopKWriter

The teacher runs in one of three back ends, each of the same function type `TopKFunction`: transformers (`model_top_k`),
an OpenAI-compatible server (`TeacherServer.top_k`) or vLLM in this process (`TeacherEngine.top_k`).

A head often has more rows than the tokenizer has tokens. Ids that are no token are left out: they are in no stored row,
and the stored log-probabilities are those of the distribution over tokens. So the vocabulary of the store is that of
the tokenizer, and models of one family can have heads of different sizes.

Shapes: T completion tokens, N tokens of a batch, C tokens of a chunk, H hidden, V vocabulary, K teacher ids per token,
P blocks, B ids per block.
"""

import math
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as AbstractSequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from star.config.teacher_signal import TopK
from star.config.training import Precision
from star.folders.manifest import read_manifest
from star.folders.shard import Shard
from star.modeling.generation import Sequence, batches_by_length, completion_hidden_states
from star.modeling.head import require_head_output
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompt_groups import pack_groups, packed_inputs, shares_prompts
from star.modeling.tokenizer import ids_without_token, tokenizer_digest, vocabulary_size
from star.progress import Bar, print_line
from star.teacher.openai_server import TeacherServer
from star.teacher.vllm_engine import TeacherEngine
from star.topk.disk_space import max_bytes_per_token, require_disk_space
from star.topk.sequences import (
    TOKENIZER,
    Lengths,
    StoredSequences,
    copy_sequences,
    read_lengths,
    read_sequences,
)
from star.topk.store import TopKWriter
from star.units import format_bytes, format_seconds

# Memory of the [C, V] logits. A chunk has enough rows to make reading the head's weights once per chunk cheap.
CHUNK_BYTES = 128 * 2**20
CACHE_BYTES = 4 * 2**20  # the part of the logits that stays in a CPU's cache
LOG2_E = math.log2(math.e)
BLOCK = 64  # ids per block in the search for the k largest logits

# Takes a batch of sequences; returns per sequence the ids [T, K] and their log-probabilities [T, K], falling.
TopKFunction = Callable[[list[Sequence]], list[tuple[Tensor, Tensor]]]


class StoredIds(NamedTuple):
    """Which ids a store can hold.

    Attributes:
        vocab_size: the largest of them, plus one.
        k: how many are stored per token.
        excluded_ids: the others, which are no token.
    """

    vocab_size: int
    k: int
    excluded_ids: list[int]


def extract_top_k(
    teacher: Path, rollouts: Path, *, settings: TopK, precision: Precision = "auto", shard: Shard, out: Path
) -> dict[str, float]:
    """Writes all that a student learns from to `out`: the sequences, the tokenizer and the top-k store.

    Args:
        teacher: folder of the teacher's model.
        rollouts: folder with the sequences that the teacher sampled.
        shard: which batches to do. The shards of one extraction have together the same content as an extraction of all.

    Returns:
        the number of sequences and of their completion tokens.

    Raises:
        InputError: the disk is too small for the store, the back end does not answer, or transformers is the back end and the
            teacher's logits are not its head's output.
    """
    tokenizer = load_tokenizer(teacher)
    # Kept beside the ids, because the distillation compares it with the student's.
    tokenizer.save_pretrained(out / TOKENIZER)
    rows = AutoConfig.from_pretrained(teacher, trust_remote_code=False).get_text_config().vocab_size
    stored = choose_ids(tokenizer, rows=rows, top_k=settings.top_k)
    top_k, share = _connect_back_end(teacher, tokenizer, settings, precision=precision, stored=stored)
    batches = copy_shard(rollouts, out, shard=shard, batch_tokens=settings.batch_tokens, share_prompts=share)
    ids, sequences = read_sequences(out)
    # In the header of every file, so that a store never mixes the signals of two teachers.
    provenance = {"teacher": read_manifest(teacher).digest, "tokenizer": tokenizer_digest(tokenizer)}
    with TopKWriter(out, stored.k, vocab_size=stored.vocab_size, provenance=provenance) as writer:
        return store_top_k(top_k, ids, sequences, batches, writer=writer)


def copy_shard(
    rollouts: Path, out: Path, *, shard: Shard, batch_tokens: int, share_prompts: bool = False
) -> list[np.ndarray]:
    """Copies the sequences of a shard to `out`, in the order of the rollout, which does not depend on `batch_tokens`.

    Args:
        share_prompts: whether the sequences of a prompt stay in one batch, where its tokens count once.

    Returns:
        the shard's batches, as indices of the copied sequences.
    """
    lengths = read_lengths(rollouts)
    if share_prompts:
        every_batch = batches_by_prompt(lengths, batch_tokens=batch_tokens)
    else:
        every_batch = batches_by_length(lengths.prompts_S + lengths.completions_S, batch_tokens=batch_tokens)
    # The batches of all sequences are made before the shard takes its own: a batch is the same in any number of shards.
    batches = shard.select(list(every_batch))
    taken = np.zeros(len(lengths.prompts_S), bool)
    for batch in batches:
        taken[batch] = True
    copy_sequences(rollouts, out, taken=taken)
    place_in_copy = np.cumsum(taken) - 1
    return [place_in_copy[batch] for batch in batches]


def batches_by_prompt(lengths: Lengths, *, batch_tokens: int) -> Iterator[np.ndarray]:
    """Yields batches of indices of sequences in which the sequences of a prompt stand side by side.

    A batch of prompts, each with its completions behind it and padded to the longest, has at most `batch_tokens` tokens,
    unless a single one is longer.
    """
    starts, packed_lengths = lengths.by_prompt()
    sequences_of = np.split(np.arange(len(lengths.prompts_S)), starts[1:])
    for prompts in batches_by_length(packed_lengths, batch_tokens=batch_tokens):
        yield np.concatenate([sequences_of[prompt] for prompt in prompts])


def choose_ids(tokenizer: PreTrainedTokenizerBase, *, rows: int, top_k: int) -> StoredIds:
    """Chooses which ids of a head with so many rows are stored: those that are a token."""
    excluded = ids_without_token(tokenizer, rows=rows)
    # A head with fewer rows than there are tokens is possible: tokens that were added to the tokenizer alone.
    return StoredIds(min(rows, vocabulary_size(tokenizer)), min(top_k, rows - len(excluded)), excluded)


def _connect_back_end(
    teacher: Path, tokenizer: PreTrainedTokenizerBase, settings: TopK, *, precision: Precision, stored: StoredIds
) -> tuple[TopKFunction, bool]:
    """Starts the back end of the settings; returns its top-k function, and whether that shares prompts in a batch."""
    k, excluded = stored.k, stored.excluded_ids
    if settings.server:
        return partial(TeacherServer(settings.server).top_k, k=k, excluded_ids=excluded), False
    if settings.vllm:
        engine = TeacherEngine(teacher, settings.vllm, max_logprobs=k)
        return partial(engine.top_k, k=k, excluded_ids=excluded), False
    model = load_model(teacher, precision=precision).eval()
    require_head_output(model)  # the other back ends compute the model's own probabilities
    share = shares_prompts(model, work="The extraction")
    return model_top_k(model, pad_id=tokenizer.pad_token_id, k=k, excluded_ids=excluded, share_prompts=share), share


def store_top_k(
    top_k: TopKFunction,
    ids: AbstractSequence[str],
    sequences: StoredSequences,
    batches: list[np.ndarray],
    *,
    writer: TopKWriter,
) -> dict[str, float]:
    """Computes the top-k of the batches that are not stored yet. Each is written while the next one is computed.

    Args:
        ids: the id of every sequence.
        batches: indices of sequences.

    Returns:
        the number of sequences and of completion tokens in all batches, stored before or now.

    Raises:
        InputError: the disk is too small.
    """
    lengths = sequences.completion_lengths()
    tokens = sum(int(lengths[batch].sum()) for batch in batches)
    missing = [batch for batch in batches if any(ids[index] not in writer for index in batch)]
    missing_tokens = sum(int(lengths[batch].sum()) for batch in missing)
    # Only what is still to be written counts: what a killed run stored is on the disk already.
    needed = int(missing_tokens * max_bytes_per_token(writer.top_k, writer.vocab_size))
    require_disk_space(writer.folder, needed, what=f"the top-k of {missing_tokens:,} tokens")
    sequence_count = sum(map(len, batches))
    print_line(f"top-k: {sequence_count:,} sequences, {tokens:,} tokens; {format_bytes(needed)} to write")
    began = time.monotonic()
    with Bar("extract the top-k", tokens, start=tokens - missing_tokens) as bar, ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for number, batch in enumerate(missing):
            results = top_k([sequences[index] for index in batch])
            # At most one batch waits to be written. An error of its writing is raised here.
            if writing:
                writing.result()
            writing = pool.submit(_add_batch, writer, [ids[index] for index in batch], results)
            batch_tokens = sum(len(ids_TK) for ids_TK, _ in results)
            if number == 0:
                rate = batch_tokens / (time.monotonic() - began)
                time_left = format_seconds(round(missing_tokens / rate))
                print_line(f"top-k: about {time_left} at {rate:,.0f} completion tokens per second")
            bar.advance(batch_tokens)
        if writing:
            writing.result()
    return {"sequences": sequence_count, "tokens": tokens}


def _add_batch(writer: TopKWriter, ids: list[str], results: list[tuple[Tensor, Tensor]]) -> None:
    for sequence_id, (ids_TK, logprobs_TK) in zip(ids, results, strict=True):
        # A killed run may have stored a part of this batch.
        if sequence_id not in writer:
            writer.add(sequence_id, ids_TK, logprobs_TK)


def model_top_k(
    model: PreTrainedModel,
    *,
    pad_id: int,
    k: int,
    excluded_ids: AbstractSequence[int] = (),
    share_prompts: bool = False,
) -> TopKFunction:
    """Returns the function that computes the top-k of a batch with this model, in one forward pass per batch.

    The model's logits are its head's output (`require_head_output`).

    The log-softmax is over all ids but the excluded ones, in fp32. Logits are computed at completion positions only,
    `CHUNK_BYTES` of them at a time, in one buffer that all batches use. On a CPU a few rows at a time are reduced to
    their top-k, so that they stay in its cache between the steps.

    Args:
        k: at most as many as there are ids that are not excluded.
        excluded_ids: rows of the head that are no token.
        share_prompts: whether a prompt is computed once for the neighbours in a batch that have it.
    """
    head = model.get_output_embeddings()
    weight_VH, bias_V = head.weight, getattr(head, "bias", None)
    if weight_VH.device.type == "cpu":
        # Logits in bf16 have three digits, and the store has more. Only GPUs sum bf16 factors in fp32.
        weight_VH = weight_VH.float()
    row_bytes = weight_VH.shape[0] * 4
    buffer_CV = weight_VH.new_empty(max(1, CHUNK_BYTES // row_bytes), weight_VH.shape[0], dtype=torch.float32)
    excluded = torch.tensor(excluded_ids, dtype=torch.int64, device=weight_VH.device)
    rows_in_cache = max(1, CACHE_BYTES // row_bytes) if weight_VH.device.type == "cpu" else len(buffer_CV)

    def hidden_states(sequences: list[Sequence]) -> Tensor:
        prompts, completions = [s.prompt_ids for s in sequences], [s.completion_ids for s in sequences]
        # Where each prompt has one completion there is nothing to share, and a causal mask is cheaper than one of our own.
        if not share_prompts or not any(prompt == following for prompt, following in pairwise(prompts)):
            return torch.cat(completion_hidden_states(model, sequences, pad_id=pad_id))
        packed = pack_groups(prompts, completions, device=model.device)
        hidden_GLH = model.get_decoder()(**packed_inputs(packed, model), use_cache=False).last_hidden_state
        return hidden_GLH[packed.rows_N, packed.columns_N]

    @torch.inference_mode()
    def top_k(sequences: list[Sequence]) -> list[tuple[Tensor, Tensor]]:
        results = []
        for hidden_CH in hidden_states(sequences).split(len(buffer_CV)):
            logits_CV = buffer_CV[: len(hidden_CH)]
            if weight_VH.dtype == torch.float32:
                torch.mm(hidden_CH.float(), weight_VH.T, out=logits_CV)
            else:
                logits_CV.copy_(torch.mm(hidden_CH, weight_VH.T, out_dtype=torch.float32))
            if bias_V is not None:
                logits_CV += bias_V
            if len(excluded):
                logits_CV.index_fill_(1, excluded, -torch.inf)
            results += [top_k_logprobs(rows_CV, k) for rows_CV in logits_CV.split(rows_in_cache)]
        ids_NK, logprobs_NK = (torch.cat(parts).cpu() for parts in zip(*results, strict=True))
        # The chunks ignore where sequences end, so the rows are split into sequences only now.
        lengths = [len(sequence.completion_ids) for sequence in sequences]
        return list(zip(ids_NK.split(lengths), logprobs_NK.split(lengths), strict=True))

    return top_k


def top_k_logprobs(logits_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ids and the log-probabilities of the k largest logits, falling. Overwrites the logits.

    The vocabulary is cut into blocks of B ids. The k largest logits lie in the k blocks with the largest maxima, so
    only k * B candidates (and the rest of V / B) are sorted, not V.
    """
    blocks = logits_CV.shape[1] // BLOCK
    # With so few blocks every one would be chosen.
    if blocks <= k:
        top_CK, ids_CK = logits_CV.topk(k, dim=1)
    else:
        blocked_CPB = logits_CV[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
        chosen_CK = blocked_CPB.amax(2).topk(k, dim=1, sorted=False).indices
        ids_CKB = chosen_CK[:, :, None] * BLOCK + torch.arange(BLOCK, device=logits_CV.device)
        # The ids after the last whole block are candidates without a search.
        rest = torch.arange(blocks * BLOCK, logits_CV.shape[1], device=logits_CV.device).expand(len(logits_CV), -1)
        candidates = torch.cat([ids_CKB.flatten(1), rest], dim=1)
        top_CK, positions_CK = logits_CV.gather(1, candidates).topk(k, dim=1)
        ids_CK = candidates.gather(1, positions_CK)
    # Subtracted before the exponential, which overflows float32 at logits above 88.
    largest_C1 = top_CK[:, :1]
    # 2^(x log2 e) takes a third of the time of e^x, and the largest logit is subtracted in the same pass.
    powers_CV = torch.add(largest_C1 * -LOG2_E, logits_CV, alpha=LOG2_E, out=logits_CV).exp2_()
    return ids_CK, top_CK - largest_C1 - powers_CV.sum(1, keepdim=True).log()
