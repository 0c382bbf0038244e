"""Extraction: one forward pass of the teacher over prompt and completion, its top-k log-probs at the completion's positions to disk.

T completion tokens, N tokens of a batch, C tokens of a chunk, H hidden, V vocabulary, K teacher ids a token, B ids of a block.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import AutoConfig

from star.config.teacher_signal import TopK
from star.folders.manifest import Part, read_manifest
from star.modeling.generation import Sequence, batches_by_length, completion_hidden
from star.modeling.models import load_model, load_tokenizer
from star.modeling.tokenizer import tokenizer_digest
from star.number_format import format_bytes, format_seconds
from star.progress import Bar, say
from star.teacher.openai_server import TeacherServer
from star.teacher.vllm_engine import TeacherEngine
from star.topk.disk_space import max_bytes_per_token, require_disk_space
from star.topk.sequences import SEQUENCES, TOKENIZER, StoredSequences, read_sequences
from star.topk.store import TopKWriter

CHUNK_BYTES = 128 * 2**20  # what the [C, V] logits may take: enough rows for each reading of the head's weights
CACHE_BYTES = 4 * 2**20  # of them, what a CPU's cache holds beside other things
LOG2_E = math.log2(math.e)
BLOCK = 64  # ids of which only the largest is looked at first

Score = Callable[[list[Sequence]], list[tuple[Tensor, Tensor]]]


def extract_folder(teacher: Path, rollouts: Path, *, settings: TopK, part: Part, out: Path) -> dict[str, float]:
    """Writes everything a student learns from to `out`: the sequences, the tokenizer and the top-k store.

    Args:
        part: which part of the batches; the parts of one extraction together hold what a whole one does.

    Raises:
        InputError: the disk is too small for the store.
    """
    tokenizer = load_tokenizer(teacher)
    tokenizer.save_pretrained(out / TOKENIZER)
    table = pq.read_table(rollouts / SEQUENCES)
    ids, sequences = read_sequences(rollouts)
    batches = part.of(list(batches_by_length(sequences, batch_tokens=settings.batch_tokens)))
    taken = sorted(index for batch in batches for index in batch)
    pq.write_table(table.take(pa.array(taken, pa.int64())), out / SEQUENCES)
    score, vocab_size = _back_end(teacher, tokenizer, settings)
    provenance = {"teacher": read_manifest(teacher).digest, "tokenizer": tokenizer_digest(tokenizer)}
    with TopKWriter(out, settings.top_k, vocab_size=vocab_size, provenance=provenance) as writer:
        return store_scores(score, ids, sequences, batches, writer=writer)


def _back_end(teacher: Path, tokenizer, settings: TopK) -> tuple[Score, int]:
    """How batches are scored by the back end of the settings, and the width of the teacher's logits."""
    vocab_size = AutoConfig.from_pretrained(teacher, trust_remote_code=False).get_text_config().vocab_size
    k = min(settings.top_k, vocab_size)
    if settings.server:
        return partial(TeacherServer(settings.server).top_k, k=k), vocab_size
    if settings.vllm:
        return partial(TeacherEngine(teacher, settings.vllm, max_logprobs=k).top_k, k=k), vocab_size
    return scorer(load_model(teacher).eval(), pad_id=tokenizer.pad_token_id, k=k), vocab_size


def store_scores(
    score: Score,
    ids: list[str],
    sequences: StoredSequences | list[Sequence],
    batches: list[list[int]],
    *,
    writer: TopKWriter,
) -> dict[str, float]:
    """Scores the batches that are not stored yet, and stores each while the next is scored.

    Returns:
        sequences and completion tokens of all batches.
    """
    tokens = sum(len(sequences[index].completion_ids) for batch in batches for index in batch)
    left = [batch for batch in batches if any(ids[index] not in writer for index in batch)]
    tokens_left = sum(len(sequences[index].completion_ids) for batch in left for index in batch)
    needed = int(tokens_left * max_bytes_per_token(writer.top_k, writer.vocab_size))
    require_disk_space(writer.folder, needed, what=f"the top-k of {tokens_left:,} tokens")
    count = sum(map(len, batches))
    say(f"top-k: {count:,} sequences, {tokens:,} tokens; {format_bytes(needed)} to write")
    began = time.monotonic()
    with Bar("extract the top-k", tokens, start=tokens - tokens_left) as bar, ThreadPoolExecutor(1) as pool:
        storing: Future | None = None
        for number, batch in enumerate(left):
            scores = score([sequences[index] for index in batch])
            if storing:
                storing.result()
            storing = pool.submit(_store, writer, [ids[index] for index in batch], scores)
            scored = sum(len(ids_TK) for ids_TK, _ in scores)
            if number == 0:
                rate = scored / (time.monotonic() - began)
                say(
                    f"top-k: about {format_seconds(round(tokens_left / rate))} at {rate:,.0f} completion tokens a second"
                )
            bar.advance(scored)
        if storing:
            storing.result()
    return {"sequences": count, "tokens": tokens}


def _store(writer: TopKWriter, ids: list[str], scores: list[tuple[Tensor, Tensor]]) -> None:
    for sequence_id, (ids_TK, logprobs_TK) in zip(ids, scores, strict=True):
        if sequence_id not in writer:
            writer.add(sequence_id, ids_TK, logprobs_TK)


def scorer(model, *, pad_id: int, k: int) -> Score:
    """Scores batches by the model: the k most probable ids of each completion position, [T, K], and their log-probabilities.

    One forward pass a batch; log-softmax in fp32 over all ids. Logits are made at completion positions only, `CHUNK_BYTES` of them at
    a time in one buffer for all batches. On a CPU they are reduced a few rows at a time, which stay in its cache from one step to the next.
    """
    head = model.get_output_embeddings()
    weight_VH, bias_V = head.weight, getattr(head, "bias", None)
    row_bytes = weight_VH.shape[0] * 4
    buffer_CV = weight_VH.new_empty(max(1, CHUNK_BYTES // row_bytes), weight_VH.shape[0])
    few = max(1, CACHE_BYTES // row_bytes) if weight_VH.device.type == "cpu" else len(buffer_CV)

    @torch.inference_mode()
    def score(sequences: list[Sequence]) -> list[tuple[Tensor, Tensor]]:
        hidden = completion_hidden(model, sequences, pad_id=pad_id)
        found = []
        for hidden_CH in torch.cat(hidden).split(len(buffer_CV)):
            logits_CV = torch.mm(hidden_CH, weight_VH.T, out=buffer_CV[: len(hidden_CH)])
            if bias_V is not None:
                logits_CV += bias_V
            found += [
                top_k_logprobs(logits_CV[start : start + few].float(), k) for start in range(0, len(logits_CV), few)
            ]
        ids_NK, logprobs_NK = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        lengths = [len(hidden_TH) for hidden_TH in hidden]
        return list(zip(ids_NK.split(lengths), logprobs_NK.split(lengths), strict=True))

    return score


def top_k_logprobs(logits_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ids and log-probabilities of the k largest logits, falling. Overwrites the logits.

    The k largest lie in the k blocks with the largest maxima, so only k * B candidates are sorted.
    """
    blocks = logits_CV.shape[1] // BLOCK
    if blocks <= k:
        top_CK, ids_CK = logits_CV.topk(k, dim=1)
    else:
        blocked_CPB = logits_CV[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
        chosen_CK = blocked_CPB.amax(2).topk(k, dim=1, sorted=False).indices
        ids_CKB = chosen_CK[:, :, None] * BLOCK + torch.arange(BLOCK, device=logits_CV.device)
        rest = torch.arange(blocks * BLOCK, logits_CV.shape[1], device=logits_CV.device).expand(len(logits_CV), -1)
        candidates = torch.cat([ids_CKB.flatten(1), rest], dim=1)
        top_CK, places_CK = logits_CV.gather(1, candidates).topk(k, dim=1)
        ids_CK = candidates.gather(1, places_CK)
    largest_C1 = top_CK[:, :1]
    # 2^(x log2 e) takes a third of the time of e^x, and the difference is made in the same pass.
    powers_CV = torch.add(largest_C1 * -LOG2_E, logits_CV, alpha=LOG2_E, out=logits_CV).exp2_()
    return ids_CK, top_CK - largest_C1 - powers_CV.sum(1, keepdim=True).log()
