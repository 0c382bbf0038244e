"""Bytes a token of the top-k store against other layouts, its error, and how fast it is written and read. k = 100, V = 151,936.

Distributions: of a real forward pass (a small Qwen3 with Qwen's own tokenizer, trained here for a few minutes on the Python documentation
and evaluated on text it has not seen; also sharpened, as a stronger model's are), of random logits, and adversarial ones: uniformly random
ids, log-probabilities spread evenly over a range, rows out of order, rows padded.

Layouts: `arrow` is an IPC file with int32 ids and float32 log-probs, `arrow fp16` the same with float16, `zstd` the latter compressed
(level 9), `exact` 18-bit ids and float16 (computed: 100 * (18 + 16) / 8 = 425).

    pip download --no-deps dashscope && unzip dashscope-*.whl dashscope/resources/qwen.tiktoken   # Apache-2.0; the ranks are not kept here
    pip install tiktoken
    python benchmarks/topk_store.py --ranks dashscope/resources/qwen.tiktoken
"""

import argparse
import base64
import json
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

from star.generation import Sequence
from star.teacher.store import TopKStore, TopKWriter
from star.teacher.topk import score_batch, top_k_logprobs

V, K = 151_936, 100
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_text_ids(ranks: Path) -> torch.Tensor:
    """The Python documentation's topics as Qwen's tokens."""
    from pydoc_data.topics import topics

    from tiktoken import Encoding

    lines = ranks.read_text().splitlines()
    merges = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    encoding = Encoding("qwen", pat_str=PATTERN, mergeable_ranks=merges, special_tokens={})
    return torch.tensor(encoding.encode_ordinary("\n\n".join(topics[name] for name in sorted(topics))))


def train(ids: torch.Tensor, *, steps: int) -> tuple[Qwen3ForCausalLM, list[float]]:
    """A Qwen3 of Qwen's vocabulary, some minutes old; the loss is taken at 192 positions of a batch, all ids in the softmax."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=V, **sizes, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True)
    )
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
    """Top-k of held-out text; a temperature below 1 sharpens, as more training would."""
    for start in range(0, sequences * 320, 320):
        row = ids[start : start + 320].tolist()
        with torch.inference_mode():
            hidden_NH = model.get_decoder()(input_ids=torch.tensor([row])).last_hidden_state[0, 63:-1]
            yield top_k_logprobs(model.get_output_embeddings()(hidden_NH) / temperature, K)


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


def measure(name: str, distributions: Iterator[tuple]) -> dict[str, float | str]:
    pairs = [(ids.numpy(), logprobs.numpy()) for ids, logprobs in distributions]
    tokens = sum(len(ids) for ids, _ in pairs)
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        with TopKWriter(folder, K, vocab_size=V) as writer:
            for number, (ids, logprobs) in enumerate(pairs):
                writer.add(f"00000000-{number:06d}#0", ids, logprobs)
        written = time.process_time()
        store = TopKStore(folder)
        opened = time.process_time()
        worst = 0.0
        read = 0.0
        for number, (ids, logprobs) in enumerate(pairs):
            began = time.process_time()
            got_ids, got_logprobs = store[f"00000000-{number:06d}#0"]
            read += time.process_time() - began
            assert np.array_equal(got_ids, ids), "ids are not exact"
            finite = np.isfinite(logprobs)
            assert np.array_equal(finite, np.isfinite(got_logprobs))
            worst = max(worst, float(np.abs(got_logprobs[finite].astype(np.float64) - logprobs[finite]).max()))
        size = store.size
    ids, logprobs = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    spread = np.where(np.isfinite(logprobs), logprobs, np.nan)
    return {
        "distribution": name,
        "tokens": tokens,
        "mass": float(np.exp(logprobs).sum(1).mean()) if name.startswith(("real", "logits")) else math.nan,
        "range": float(np.nanmedian(np.nanmax(spread, 1) - np.nanmin(spread, 1))),
        "star": size / tokens,
        "arrow": arrow_bytes(ids, logprobs.astype(np.float32)) / tokens,
        "arrow fp16": arrow_bytes(ids, logprobs.astype(np.float16)) / tokens,
        "zstd": arrow_bytes(ids, logprobs.astype(np.float16), compression=pa.Codec("zstd", 9)) / tokens,
        "exact": K * (18 + 16) / 8,
        "error": worst,
        "written/s": tokens / (written - before),
        "opened/s": tokens / max(opened - written, 1e-9),
        "read/s": tokens / read,
    }


def arrow_bytes(ids: np.ndarray, logprobs: np.ndarray, *, compression: pa.Codec | None = None) -> int:
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(a.ravel()), K) for a in (ids.astype(np.int32), logprobs)]
    table = pa.table(columns, names=["ids", "logprobs"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().size


def least_bytes(nats: float, step: float = 0.02) -> float:
    """What no lossless code of ids in order, and levels of `step` spread anyhow over a range, can go below: log2 of how many there are."""
    levels = nats / step
    arrangements = math.lgamma(levels + K + 1) - math.lgamma(levels + 1) - math.lgamma(K + 1)
    return (K * math.log2(V) + arrangements / math.log(2)) / 8


def measure_memory() -> list[dict[str, float]]:
    """The anonymous memory of a process that reads every sequence of stores of growing size, in MiB."""
    import subprocess
    import sys

    reader = (
        "import sys; from star.teacher.store import TopKStore; store = TopKStore(sys.argv[1])\n"
        "for name in store: store[name]\n"
        "lines = dict(line.split(':') for line in open('/proc/self/status'))\n"
        "print(lines['RssAnon'].split()[0], lines['RssFile'].split()[0])"
    )
    rows = []
    for shards in (2, 8, 32):
        with tempfile.TemporaryDirectory() as folder:
            with TopKWriter(folder, K, vocab_size=V, tokens_per_shard=2048) as writer:
                for number, (ids, logprobs) in enumerate(evenly_spread(20, sequences=shards * 8)):
                    writer.add(f"row-{number}", ids, logprobs)
            size = TopKStore(folder).size
            done = subprocess.run([sys.executable, "-c", reader, folder], capture_output=True, text=True, check=True)
        anonymous, file = (int(number) / 1024 for number in done.stdout.split())
        rows.append({"store MiB": size / 2**20, "anonymous MiB": anonymous, "mapped MiB": file})
    return rows


def measure_extraction(model, ids: torch.Tensor) -> dict[str, float]:
    """Tokens a second of extraction against the bare forward pass over the same batches, logits at the completions; median of rounds.

    The bare pass makes the same logits and keeps none of them; extraction adds softmax, top-k, encoding and writing.
    """
    sequences = [Sequence(ids[s : s + 192].tolist(), ids[s + 192 : s + 256].tolist()) for s in range(0, 16 * 256, 256)]
    head = model.get_output_embeddings()

    def bare() -> None:
        rows = torch.tensor([sequence.prompt_ids + sequence.completion_ids for sequence in sequences])
        with torch.inference_mode():
            hidden = model.get_decoder()(input_ids=rows, use_cache=False).last_hidden_state[:, 191:-1].flatten(0, 1)
            for hidden_CH in hidden.split(110):
                head(hidden_CH)

    def extract() -> None:
        with tempfile.TemporaryDirectory() as folder, TopKWriter(folder, K, vocab_size=V) as writer:
            for number, pair in enumerate(score_batch(model, sequences, pad_id=0, k=K)):
                writer.add(str(number), *pair)

    def naive() -> None:
        rows = torch.tensor([sequence.prompt_ids + sequence.completion_ids for sequence in sequences])
        with torch.inference_mode():
            hidden = model.get_decoder()(input_ids=rows, use_cache=False).last_hidden_state[:, 191:-1].flatten(0, 1)
            for hidden_CH in hidden.split(110):
                torch.log_softmax(head(hidden_CH).float(), -1).topk(K)

    seconds: dict[str, list[float]] = {"bare": [], "extract": [], "log_softmax + topk": []}
    for _ in range(3):
        for name, work in zip(seconds, (bare, extract, naive), strict=True):
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    tokens = 16 * 64
    return {f"{name} tokens/s": tokens / float(np.median(values)) for name, values in seconds.items()}


def measure_training(hidden: int) -> dict[str, float]:
    """Tokens a second that CKD consumes at most: the loss and its gradients alone, without the student's layers."""
    from star.ckd.loss import fused_linear_ckd

    ids_TK, logprobs_TK = next(random_logits(3, sequences=1))
    hidden_TH = torch.randn(len(ids_TK), hidden, requires_grad=True)
    weight_VH = (0.02 * torch.randn(V, hidden)).requires_grad_()
    began = time.process_time()
    fused_linear_ckd(hidden_TH, weight_VH, ids_TK, logprobs_TK).loss.backward()
    return {"CKD loss alone, tokens/s": len(ids_TK) / (time.process_time() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=Path, required=True, help="qwen.tiktoken")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--hidden", type=int, default=1024, help="of the random-weight model extraction is timed with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ids = read_text_ids(arguments.ranks)
    cut = len(ids) * 9 // 10
    model, losses = train(ids[:cut], steps=arguments.steps)
    print(f"{cut:,} tokens of text, loss {np.mean(losses[:5]):.2f} -> {np.mean(losses[-10:]):.2f}", flush=True)
    held_out = ids[cut:]
    cases = {
        "real, T = 1": real_distributions(model, held_out, temperature=1.0, sequences=8),
        "real, sharpened T = 0.5": real_distributions(model, held_out, temperature=0.5, sequences=8),
        "real, sharpened T = 0.25": real_distributions(model, held_out, temperature=0.25, sequences=8),
        **{f"logits ~ N(0, {scale}^2)": random_logits(scale, sequences=6) for scale in (1, 3, 8)},
        **{f"even over {nats} nats": evenly_spread(nats, sequences=4) for nats in (0, 1, 10, 20, 22, 24, 30, 60)},
        "out of order, 20 nats": evenly_spread(20, sequences=4, ordered=False),
        "half padded, 20 nats": evenly_spread(20, sequences=4, padded=50),
    }
    for name, case in cases.items():
        row = measure(name, case)
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}), flush=True)
    for nats in (10, 20, 22, 24, 30, 60):
        print(
            f"no code takes fewer than {least_bytes(nats):.1f} B/token for any 100 levels over {nats} nats", flush=True
        )
    for row in measure_memory():
        print(json.dumps({key: round(value, 1) for key, value in row.items()}), flush=True)
    print(measure_training(arguments.hidden), flush=True)
    print("extraction, trained model, hidden 64:", measure_extraction(model, held_out), flush=True)
    wide = {"hidden_size": arguments.hidden, "intermediate_size": 3 * arguments.hidden, "num_hidden_layers": 2}
    config = Qwen3Config(vocab_size=V, **wide, num_attention_heads=8, num_key_value_heads=8, head_dim=128)
    print(f"extraction, hidden {arguments.hidden}:", measure_extraction(Qwen3ForCausalLM(config).eval(), held_out))
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
