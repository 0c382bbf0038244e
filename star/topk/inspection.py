"""What a top-k store holds: `star topk inspect`."""

from pathlib import Path

import numpy as np

from star.number_format import format_bytes
from star.progress import Bar
from star.topk.store import TopKStore

BINS = 100_000  # of the histogram of masses: memory does not grow with the store


def inspect_store(folder: Path) -> dict[str, float]:
    """Reads the whole store once, every shard and sequence checked.

    Returns:
        sequences, tokens, shards, top_k, vocab_size, bytes, bytes_a_token; mass_mean and mass_p1, the probability that the k ids of a token
        cover, in the mean and of the token at the first percentile; entropy, the mean of -sum p log p over the k ids, in nats: a lower
        bound of the teacher's.
    """
    store = TopKStore(folder)
    histogram, mass, entropy = np.zeros(BINS + 1, np.int64), 0.0, 0.0
    with Bar("read the top-k", store.tokens) as bar:
        for sequence_id in store:
            _, logprobs_TK = store[sequence_id]
            probs_TK = np.exp(logprobs_TK, dtype=np.float64)
            mass_T = np.minimum(probs_TK.sum(1), 1.0)
            histogram += np.bincount((mass_T * BINS).astype(np.int64), minlength=BINS + 1)
            mass += mass_T.sum()
            entropy -= (probs_TK * np.maximum(logprobs_TK, -1e4)).sum()
            bar.advance(len(mass_T))
    tokens = max(store.tokens, 1)
    return {
        "sequences": len(store),
        "tokens": store.tokens,
        "shards": store.shards,
        "top_k": store.top_k,
        "vocab_size": store.vocab_size,
        "bytes": store.size,
        "bytes_a_token": store.size / tokens,
        "mass_mean": mass / tokens,
        "mass_p1": float(np.searchsorted(np.cumsum(histogram), 0.01 * tokens)) / BINS,
        "entropy": entropy / tokens,
    }


def print_inspection(folder: Path) -> None:
    """Prints what `inspect_store` found and where the signal came from, one line each."""
    found = inspect_store(folder)
    lines = {
        "sequences": f"{found['sequences']:,}",
        "tokens": f"{found['tokens']:,}",
        "shards": f"{found['shards']:,}, {format_bytes(found['bytes'])}, every file and sequence checked",
        "bytes a token": f"{found['bytes_a_token']:.1f}",
        "top-k": f"{found['top_k']} of {found['vocab_size']:,}",
        "mass of the k": f"{found['mass_mean']:.4f} mean, {found['mass_p1']:.4f} at the first percentile",
        "entropy": f"{found['entropy']:.4f} nats, of the k",
        **TopKStore(folder, verify=False).provenance,
    }
    for name, value in lines.items():
        print(f"{name:<15}{value}")  # a digest of 64 fits beside it in a terminal of 80
