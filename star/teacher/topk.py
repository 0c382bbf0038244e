"""Extraction: one forward pass of the teacher over prompt and completion, its top-k log-probs at the completion's positions to disk.

T completion tokens, H hidden, V vocabulary, K teacher ids a token.
"""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import torch

from star.config import TopK
from star.generation import Sequence, batches_by_length, completion_hidden
from star.models import load_model, load_tokenizer
from star.progress import Bar
from star.teacher.rollout import SEQUENCES
from star.teacher.store import TopKWriter

TOKENIZER = "tokenizer"


def extract_folder(teacher: Path, rollouts: Path, *, settings: TopK, out: Path) -> dict[str, float]:
    """Writes everything a student learns from to `out`: the sequences, the tokenizer and the top-k store."""
    tokenizer = load_tokenizer(teacher)
    tokenizer.save_pretrained(out / TOKENIZER)
    shutil.copyfile(rollouts / SEQUENCES, out / SEQUENCES)
    return extract_topk(load_model(teacher), tokenizer, rollouts, settings=settings, out=out)


def read_sequences(folder: Path) -> tuple[list[str], list[Sequence]]:
    """The ids and the tokens of a rollout's sequences, in the order of the file."""
    table = pq.read_table(folder / SEQUENCES, columns=["id", "prompt_ids", "completion_ids"]).to_pydict()
    sequences = [
        Sequence(prompt, completion)
        for prompt, completion in zip(table["prompt_ids"], table["completion_ids"], strict=True)
    ]
    return table["id"], sequences


@torch.inference_mode()
def extract_topk(model, tokenizer, rollouts: Path, *, settings: TopK, out: Path) -> dict[str, float]:
    """Writes the store of a rollout's sequences to `out`, going on where a killed extraction stopped.

    Log-softmax in fp32 over the whole vocabulary, then the top k; padded positions are never computed into logits.

    Returns:
        sequences and completion tokens stored.
    """
    model.eval()
    ids, sequences = read_sequences(rollouts)
    head = model.get_output_embeddings()
    vocab_size = head.weight.shape[0]
    top_k = min(settings.top_k, vocab_size)
    writer = TopKWriter(out, top_k=top_k, vocab_size=vocab_size)
    with Bar("extract the top-k", len(ids)) as bar:
        for batch in batches_by_length(sequences, batch_tokens=settings.batch_tokens):
            missing = [index for index in batch if ids[index] not in writer]
            if missing:
                hidden = completion_hidden(model, [sequences[index] for index in batch], pad_id=tokenizer.pad_token_id)
                for index, hidden_TH in zip(batch, hidden, strict=True):
                    if index not in missing:
                        continue
                    logprobs_TK, ids_TK = torch.log_softmax(head(hidden_TH).float(), dim=-1).topk(top_k, dim=-1)
                    writer.add(ids[index], ids_TK.cpu(), logprobs_TK.cpu())
            bar.advance(len(batch))
    writer.close()
    return {"sequences": len(ids), "tokens": sum(len(s.completion_ids) for s in sequences)}
