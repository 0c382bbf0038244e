"""Measures size and error of the top-k store beside other layouts, at k = 100 and V = 151,936.

    pip download --no-deps dashscope                                           # Apache-2.0; its ranks are not kept here
    unzip dashscope-*.whl dashscope/resources/qwen.tiktoken
    pip install tiktoken
    python benchmarks/topk_store.py --ranks dashscope/resources/qwen.tiktoken

Distributions: of a real forward pass, of random logits, and adversarial ones (uniformly random ids, log-probabilities
spread evenly over a range, unsorted rows, padded rows). The real one is from a small Qwen3 with Qwen's own tokenizer
that is trained here for a few minutes on the Python documentation and evaluated on text it has not seen. It is also
sharpened, as the distribution of a stronger model would be.

Layouts: `arrow` is an IPC file with int32 ids and float32 log-probs, `arrow fp16` the same with float16, `zstd` the
latter compressed (level 9), `exact` is computed for 18-bit ids and float16: 100 * (18 + 16) / 8 = 425. Sizes are bytes
per token. benchmarks/topk_extraction.py measures the speed.
"""

import argparse
import base64
import math
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from star.teacher.extract import top_k_logprobs
from star.topk import codec
from star.topk.store import TopKStore, TopKWriter

V, K = 151_936, 100
Pair = tuple[np.ndarray, np.ndarray]  # ids [T, K] and log-probabilities [T, K] of one sequence
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_text_ids(ranks: Path) -> torch.Tensor:
    """Returns the topics of the Python documentation as Qwen's tokens."""
    from pydoc_data.topics import topics

    from tiktoken import Encoding

    lines = ranks.read_text().splitlines()
    merges = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    encoding = Encoding("qwen", pat_str=PATTERN, mergeable_ranks=merges, special_tokens={})
    return torch.tensor(encoding.encode_ordinary("\n\n".join(topics[name] for name in sorted(topics))))


def train(ids: torch.Tensor, *, steps: int) -> tuple[Qwen3ForCausalLM, list[float]]:
    """Trains a small Qwen3 with Qwen's vocabulary. The loss is computed at 192 positions per batch, over all ids."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 129, (8,))
        rows = torch.stack([ids[start : start + 129] for start in starts])
        hidden = model.get_decoder()(input_ids=rows[:, :-1]).last_hidden_state.flatten(0, 1)
        chosen = torch.randperm(len(hidden))[:192]
        logits = hidden[chosen] @ model.get_output_embeddings().weight.T
        loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten()[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model.eval(), losses


def real_distributions(model, ids: torch.Tensor, *, temperature: float, sequences: int) -> Iterator[tuple]:
    """Yields the top-k over held-out text. A temperature below 1 sharpens it, as more training would."""
    for start in range(0, sequences * 320, 320):
        row = ids[start : start + 320].tolist()
        with torch.inference_mode():
            hidden_NH = model.get_decoder()(input_ids=torch.tensor([row])).last_hidden_state[0, 63:-1]
            yield top_k_logprobs(model.get_output_embeddings()(hidden_NH) / temperature, K)


def cases_of_text(ranks: Path, *, steps: int) -> dict[str, Iterator[tuple]]:
    ids = read_text_ids(ranks)
    cut = len(ids) * 9 // 10
    model, losses = train(ids[:cut], steps=steps)
    print(f"{cut:,} tokens of text, loss {np.mean(losses[:5]):.2f} -> {np.mean(losses[-10:]):.2f}", flush=True)
    held_out = ids[cut:]
    return {f"real, T = {t}": real_distributions(model, held_out, temperature=t, sequences=8) for t in (1, 0.5, 0.25)}


def random_logits(scale: float, *, sequences: int) -> Iterator[tuple]:
    draw = torch.Generator().manual_seed(1)
    for _ in range(sequences):
        yield top_k_logprobs(scale * torch.randn(64, V, generator=draw), K)


def evenly_spread(nats: float, *, sequences: int, ordered: bool = True, padded: int = 0) -> Iterator[tuple]:
    draw = np.random.default_rng(2)
    for _ in range(sequences):
        logprobs = -draw.uniform(0, nats, (256, K))
        logprobs = -np.sort(-logprobs, axis=1) if ordered else logprobs
        if padded:
            logprobs[:, K - padded :] = -np.inf
        yield torch.from_numpy(draw.integers(0, V, (256, K))), torch.from_numpy(logprobs.astype(np.float32))


def count_tokens(pairs: list[Pair]) -> int:
    return sum(len(ids) for ids, _ in pairs)


def measure(name: str, pairs: list[Pair]) -> dict[str, float]:
    tokens = count_tokens(pairs)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        with TopKWriter(folder, K, vocab_size=V) as writer:
            for number, (ids, logprobs) in enumerate(pairs):
                writer.add(f"00000000-{number:06d}#0", ids, logprobs)
        written = time.process_time() - began
        store, max_error, read = TopKStore(folder), 0.0, 0.0
        for number, (ids, logprobs) in enumerate(pairs):
            began = time.process_time()
            got_ids, got_logprobs = store[f"00000000-{number:06d}#0"]
            read += time.process_time() - began
            assert np.array_equal(got_ids, ids), "ids are not exact"
            finite = np.isfinite(logprobs)
            assert np.array_equal(finite, np.isfinite(got_logprobs))
            max_error = max(max_error, float(np.abs(got_logprobs[finite].astype(np.float64) - logprobs[finite]).max()))
        size = store.size
    ids, logprobs = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    spread = np.where(np.isfinite(logprobs), logprobs, np.nan)
    return {
        "tokens": tokens,
        "spread, nats": float(np.nanmedian(np.nanmax(spread, 1) - np.nanmin(spread, 1))),
        "mass of top-k": float(np.exp(logprobs).sum(1).mean()) if name.startswith(("real", "logits")) else math.nan,
        "store": size / tokens,
        "exact": K * (18 + 16) / 8,
        "zstd": arrow_bytes(ids, logprobs.astype(np.float16), compression=pa.Codec("zstd", 9)) / tokens,
        "arrow fp16": arrow_bytes(ids, logprobs.astype(np.float16)) / tokens,
        "arrow": arrow_bytes(ids, logprobs.astype(np.float32)) / tokens,
        "max error, nats": max_error,
        "fp16 max error": float(np.nanmax(np.abs(spread.astype(np.float16) - spread))),
        "written/s": tokens / written,
        "read/s": tokens / read,
    }


LAYOUTS = ("store", "exact", "zstd", "arrow fp16", "arrow")
ERRORS = ("max error, nats", "fp16 max error")
COLUMNS = ("tokens", "spread, nats", "mass of top-k", *LAYOUTS, *ERRORS, "written/s", "read/s")
FORMATS = {"spread, nats": ".1f", "mass of top-k": ".3f", **dict.fromkeys(ERRORS, ".4f")}
FORMATS |= dict.fromkeys(LAYOUTS, ".1f")


def print_row(distribution: str, row: dict[str, float]) -> None:
    cells = ["" if math.isnan(value) else format(value, FORMATS.get(name, ",.0f")) for name, value in row.items()]
    print(f"| {distribution} | " + " | ".join(cells) + " |", flush=True)


def arrow_bytes(ids: np.ndarray, logprobs: np.ndarray, *, compression: pa.Codec | None = None) -> int:
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(a.ravel()), K) for a in (ids.astype(np.int32), logprobs)]
    table = pa.table(columns, names=["ids", "logprobs"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().size


def least_bytes(nats: float, step: float) -> float:
    """Returns the bytes per token that no lossless code can go below.

    It is log2 of the number of possible rows: ordered ids, and levels of `step` spread in any way over `nats`.
    """
    levels = nats / step
    arrangements = math.lgamma(levels + K + 1) - math.lgamma(levels + 1) - math.lgamma(K + 1)
    return (K * math.log2(V) + arrangements / math.log(2)) / 8


def print_curve(cases: dict[str, list[Pair]]) -> None:
    """Prints the bytes per token with coarser and finer levels, beside the lower bounds of `least_bytes`."""
    print("| max error, nats | " + " | ".join(cases) + " | lower bound, 20 nats | 30 | 60 |")
    print("|---:|" + "---:|" * (len(cases) + 3))
    stored = codec.STEP
    for step in (0.002, 0.01, stored, 0.04, 0.1, 0.2):
        codec.STEP = step
        sizes = [
            sum(len(codec.encode(ids, logprobs, vocab_size=V)) for ids, logprobs in pairs) / count_tokens(pairs)
            for pairs in cases.values()
        ]
        cells = [f"{size:.1f}" for size in [*sizes, *(least_bytes(nats, step) for nats in (20, 30, 60))]]
        print(f"| {step / 2:.4g}{' (the store)' if step == stored else ''} | " + " | ".join(cells) + " |", flush=True)
    codec.STEP = stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=Path, help="qwen.tiktoken; without it the real distributions are left out")
    parser.add_argument("--steps", type=int, default=150, help="training steps of the small Qwen3")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        **(cases_of_text(arguments.ranks, steps=arguments.steps) if arguments.ranks else {}),
        **{f"logits N(0, {scale}^2)": random_logits(scale, sequences=6) for scale in (1, 3, 8)},
        **{f"even over {nats} nats": evenly_spread(nats, sequences=4) for nats in (0, 1, 10, 20, 22, 24, 30, 60)},
        "unsorted, 20 nats": evenly_spread(20, sequences=4, ordered=False),
        "half padded, 20 nats": evenly_spread(20, sequences=4, padded=50),
    }
    pairs = {name: [(ids.numpy(), logprobs.numpy()) for ids, logprobs in case] for name, case in cases.items()}
    print("| distribution | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    for name, case in pairs.items():
        print_row(name, measure(name, case))
    shown = ("real, T = 1", "real, T = 0.25", "even over 20 nats", "even over 30 nats", "even over 60 nats")
    print_curve({name: pairs[name] for name in shown if name in pairs})
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
