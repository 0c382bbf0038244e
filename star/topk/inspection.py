"""Reads a top-k store from end to end and prints what it holds: `star topk inspect`."""

from pathlib import Path

import numpy as np

from star.errors import InputError
from star.folders.manifest import MANIFEST, read_manifest
from star.progress import Bar
from star.terminal import continued
from star.topk.store import TopKStore
from star.units import format_bytes

BINS = 100_000  # of the histogram of covered probability, which keeps the memory constant for any size of store


def inspect_store(folder: Path) -> dict[str, float]:
    """Reads the whole store once and verifies every file and every sequence.

    Returns:
        sequences, tokens, files, top_k, vocab_size, bytes, bytes_per_token: what their names say.
        mass_mean, mass_p1: the probability that the k ids of a token cover, mean and first percentile over tokens.
        entropy: the mean over tokens of -sum p log p over the k ids, in nats, a lower bound of the teacher's entropy.
    """
    store = TopKStore(folder)
    histogram, mass, entropy = np.zeros(BINS + 1, np.int64), 0.0, 0.0
    with Bar("read the top-k", store.tokens) as bar:
        for sequence_id in store:
            _, logprobs_TK = store[sequence_id]
            probs_TK = np.exp(logprobs_TK, dtype=np.float64)
            # Rounding to levels can lift the sum above 1.
            mass_T = np.minimum(probs_TK.sum(1), 1.0)
            histogram += np.bincount((mass_T * BINS).astype(np.int64), minlength=BINS + 1)
            mass += mass_T.sum()
            # A padded place has probability 0 and log-probability -inf, whose product would be NaN.
            entropy -= (probs_TK * np.maximum(logprobs_TK, -1e4)).sum()
            bar.advance(len(mass_T))
    tokens = max(store.tokens, 1)
    return {
        "sequences": len(store),
        "tokens": store.tokens,
        "files": store.file_count,
        "top_k": store.top_k,
        "vocab_size": store.vocab_size,
        "bytes": store.size,
        "bytes_per_token": store.size / tokens,
        "mass_mean": mass / tokens,
        "mass_p1": float(np.searchsorted(np.cumsum(histogram), 0.01 * tokens)) / BINS,
        "entropy": entropy / tokens,
    }


def print_inspection(folder: Path) -> None:
    """Prints the result of `inspect_store` and the store's provenance, one line each.

    Raises:
        InputError: the folder holds no store, such as that of another stage, or the store is damaged.
    """
    # A store that a program wrote with TopKWriter has no manifest.
    if (folder / MANIFEST).is_file() and (stage := read_manifest(folder).stage) != "extract-topk":
        raise InputError(
            f"{folder} is the output of {stage}, which holds no top-k: give the folder of `star extract-topk`"
        )
    found = inspect_store(folder)
    lines = {
        "sequences": f"{found['sequences']:,}",
        "tokens": f"{found['tokens']:,}",
        "files": f"{found['files']:,}, {format_bytes(found['bytes'])}, every file and sequence verified",
        "bytes/token": f"{found['bytes_per_token']:.1f}",
        "top-k": f"{found['top_k']} of {found['vocab_size']:,}",
        "mass of top-k": f"{found['mass_mean']:.4f} mean, {found['mass_p1']:.4f} at the first percentile",
        "entropy": f"{found['entropy']:.4f} nats, over the top-k",
        **TopKStore(folder, verify=False).provenance,
    }
    for name, value in lines.items():
        print(f"{name:<15}{continued(value)}")  # a digest of 64 characters fits beside it in a terminal of 80
