"""Measures how fast the teacher's signal is extracted, read and used in training, and how much memory reading takes.

    python benchmarks/topk_extraction.py                 # one thread; a quarter of an hour, 3 GB
    python benchmarks/topk_extraction.py --only tiny     # one of the models
    python benchmarks/topk_extraction.py --teacher runs/latest/refine-teacher --rollout runs/latest/rollout    # a real one

The models have the Qwen3 architecture and random weights. The rollouts are random tokens with the lengths of function
calls: prompts of 150 to 300 tokens, completions of 20 to 60. Each column is a rate in completion tokens per second, the
median over turns in which all columns run on the same batches:

- `model()`: the plain forward pass `model(input_ids, attention_mask)`, with logits at every position.
- `at completions`: the least that a forward pass can do: the body, and logits at completion positions only, not stored.
- `extraction`: the work of `star extract-topk`: `store_top_k` into a store on disk.
- `training`: forward, CKD loss and backward of a student of the same size, without an optimiser.
- `reading`: every sequence of the store, decoded and verified.

With a teacher and its rollout there is one table: bytes per token of a store of --tokens tokens, the largest difference
between a stored log-probability and the computed one, whether the ids are the same, and the rates of extraction and of
the plain forward pass, in turns, on the first --timed-tokens of them. All threads are used. The extraction computes the
prompt of a wide model once for all its samples, which the plain forward pass does not.

The table of memory is about a process that reads all of a store, for stores of growing size.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from command_line import model_folder, positive, run_main
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from star.ckd.loss import fused_linear_ckd
from star.errors import InputError
from star.modeling.generation import Sequence, batches_by_length, completion_hidden_states
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompt_groups import shares_prompts
from star.teacher.extract import TopKFunction, batches_by_prompt, choose_ids, model_top_k, store_top_k
from star.topk.sequences import SEQUENCES, Lengths, StoredSequences, read_sequences, sequences_file
from star.topk.store import TopKStore, TopKWriter


class Case(NamedTuple):
    hidden: int
    layers: int
    vocab_size: int
    top_k: int
    sequences: int
    batch_tokens: int


CASES = {
    "tiny": Case(hidden=96, layers=3, vocab_size=768, top_k=50, sequences=128, batch_tokens=16384),
    "hidden 64, V 768": Case(hidden=64, layers=4, vocab_size=768, top_k=50, sequences=128, batch_tokens=16384),
    "hidden 256, V 32k": Case(hidden=256, layers=4, vocab_size=32_000, top_k=100, sequences=32, batch_tokens=4096),
    "hidden 64, V 152k": Case(hidden=64, layers=2, vocab_size=151_936, top_k=100, sequences=32, batch_tokens=2048),
    "hidden 1024, V 152k": Case(hidden=1024, layers=4, vocab_size=151_936, top_k=100, sequences=8, batch_tokens=2048),
}


RATES = ("model()", "at completions", "extraction", "reading", "training")
RATIOS = ("extraction / model()", "extraction / at completions", "reading / training")
COLUMNS = RATES + RATIOS


def random_model(case: Case) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    heads = max(2, case.hidden // 64)
    config = Qwen3Config(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden,
        intermediate_size=3 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=max(32, case.hidden // heads),
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def random_rollout(case: Case) -> list[Sequence]:
    draw = np.random.default_rng(0)
    return [
        Sequence(*(draw.integers(0, case.vocab_size, draw.integers(*span)).tolist() for span in ((150, 300), (20, 60))))
        for _ in range(case.sequences)
    ]


def padded(batch: list[Sequence]) -> dict[str, torch.Tensor]:
    longest = max(map(len, batch))
    rows = [sequence.prompt_ids + sequence.completion_ids for sequence in batch]
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


@torch.inference_mode()
def forward(model, batches: list[list[Sequence]]) -> None:
    for batch in batches:
        model(**padded(batch), use_cache=False)


@torch.inference_mode()
def forward_at_completions(model, batches: list[list[Sequence]]) -> None:
    head = model.get_output_embeddings()
    for batch in batches:
        for hidden_CH in torch.cat(completion_hidden_states(model, batch, pad_id=0)).split(200):
            head(hidden_CH)


def extract(model, sequences: list[Sequence], batches: list[np.ndarray], *, case: Case, folder: Path) -> None:
    rows = [
        {"id": f"row-{number}#0", "prompt_ids": sequence.prompt_ids, "completion_ids": sequence.completion_ids}
        for number, sequence in enumerate(sequences)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / SEQUENCES)
    ids, stored = read_sequences(folder)
    top_k = model_top_k(model, pad_id=0, k=case.top_k)
    with TopKWriter(folder, case.top_k, vocab_size=case.vocab_size) as writer:
        store_top_k(top_k, ids, stored, batches, writer=writer)


def read(folder: Path) -> None:
    store = TopKStore(folder)
    for sequence_id in store:
        store[sequence_id]


def train(model, sequences: list[Sequence], batches: list[np.ndarray], *, folder: Path) -> None:
    store, weight = TopKStore(folder), model.get_output_embeddings().weight
    for indices in batches:
        batch = [sequences[index] for index in indices]
        pairs = [store[f"row-{index}#0"] for index in indices]
        ids_TK, logprobs_TK = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*pairs, strict=True))
        hidden_BLH = model.get_decoder()(**padded(batch), use_cache=False).last_hidden_state
        hidden_TH = torch.cat([hidden_BLH[i, len(s.prompt_ids) - 1 : len(s) - 1] for i, s in enumerate(batch)])
        fused_linear_ckd(hidden_TH, weight, ids_TK.long(), logprobs_TK, top_m=store.top_k).loss.backward()
        model.zero_grad()


def time_call(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(case: Case, *, turns: int) -> dict[str, float]:
    model, sequences = random_model(case), random_rollout(case)
    index_batches = list(batches_by_length(list(map(len, sequences)), batch_tokens=case.batch_tokens))
    batches = [[sequences[index] for index in batch] for batch in index_batches]
    tokens = sum(len(sequence.completion_ids) for sequence in sequences)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(turns):
            folder = Path(root) / str(turn)
            functions = {
                "model()": partial(forward, model, batches),
                "at completions": partial(forward_at_completions, model, batches),
                "extraction": partial(extract, model, sequences, index_batches, case=case, folder=folder),
                "reading": partial(read, folder),
                "training": partial(train, model, sequences, index_batches, folder=folder),
            }
            for name, function in functions.items():
                seconds.setdefault(name, []).append(time_call(function))
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}

    def ratio(column: str, reference: str) -> float:
        """Median over the turns of the ratio of two rates within a turn."""
        pairs = zip(seconds[column], seconds[reference], strict=True)
        return statistics.median(of_reference / of_column for of_column, of_reference in pairs)

    return rates | {name: ratio(*name.split(" / ")) for name in RATIOS}


def print_row(model: str, row: dict[str, float]) -> None:
    cells = [f"{value:.2f}" if "/" in name else f"{value:,.0f}" for name, value in row.items()]
    print(f"| {model} | " + " | ".join(cells) + " |", flush=True)


def measure_rollout(options: argparse.Namespace) -> None:
    """Extracts the signal of a real teacher over its rollout, and prints size, error and speed."""
    tokenizer, model = load_tokenizer(options.teacher), load_model(options.teacher).eval()
    share = shares_prompts(model, work="The extraction")
    width = model.get_output_embeddings().weight.shape[0]
    stored = choose_ids(tokenizer, rows=width, top_k=options.top_k)
    excluded = stored.excluded_ids
    top_k = model_top_k(model, pad_id=tokenizer.pad_token_id, k=stored.k, excluded_ids=excluded, share_prompts=share)
    ids, sequences = read_sequences(options.rollout)
    if not len(sequences):
        raise InputError(f"{options.rollout} holds no sequence: the teacher answered nothing right there")
    completions_S = sequences.completion_lengths()
    count = min(int(np.searchsorted(completions_S.cumsum(), options.tokens)) + 1, len(completions_S))
    batches = plan_batches(sequences, range(count), share=share, batch_tokens=options.batch_tokens)
    error, same_ids = 0.0, True
    with tempfile.TemporaryDirectory() as root:
        computed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def recording(batch: list[Sequence]) -> list[tuple[torch.Tensor, torch.Tensor]]:
            results = top_k(batch)
            computed.update(zip((ids[index] for index in next(order)), results, strict=True))
            return results

        order = iter(batches)
        with TopKWriter(root, stored.k, vocab_size=stored.vocab_size) as writer:
            store_top_k(recording, ids, sequences, batches, writer=writer)
        store = TopKStore(root)
        for name, (ids_TK, logprobs_TK) in computed.items():
            stored_ids_TK, stored_logprobs_TK = store[name]
            same_ids &= bool((np.sort(stored_ids_TK, 1) == np.sort(ids_TK.numpy(), 1)).all())
            error = max(error, float(np.abs(stored_logprobs_TK - logprobs_TK.numpy()).max()))
        bytes_per_token, tokens = store.size / store.tokens, store.tokens
    masses = [float(logprobs_TK.exp().sum(1).mean()) for _, logprobs_TK in computed.values()]
    timed = range(min(int(np.searchsorted(completions_S.cumsum(), options.timed_tokens)) + 1, count))
    rates = time_in_turns(model, top_k, sequences, timed, share=share, options=options)
    print(
        "| tokens | k | bytes per token | largest error, nats | same ids | mass of the top k | extraction | model() | ratio |"
    )
    print("|---:|---:|---:|---:|---|---:|---:|---:|---:|")
    print(
        f"| {tokens:,} | {stored.k} | {bytes_per_token:.0f} | {error:.4f} | {'yes' if same_ids else 'no'} | "
        f"{statistics.fmean(masses):.4f} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[0] / rates[1]:.2f} |"
    )


def plan_batches(sequences: StoredSequences, chosen: range, *, share: bool, batch_tokens: int) -> list[np.ndarray]:
    """The batches in which the extraction computes the chosen sequences."""
    prompts = [sequences.arrays(index)[0] for index in chosen]
    is_new_S = [index == 0 or not np.array_equal(prompt, prompts[index - 1]) for index, prompt in enumerate(prompts)]
    lengths = Lengths(
        np.array([len(prompt) for prompt in prompts]),
        sequences.completion_lengths()[: len(prompts)],
        np.array(is_new_S),
    )
    if share:
        return list(batches_by_prompt(lengths, batch_tokens=batch_tokens))
    return list(batches_by_length(lengths.prompts_S + lengths.completions_S, batch_tokens=batch_tokens))


def time_in_turns(
    model: PreTrainedModel,
    top_k: TopKFunction,
    sequences: StoredSequences,
    chosen: range,
    *,
    share: bool,
    options: argparse.Namespace,
) -> tuple[float, float]:
    """Completion tokens per second of the extraction, without writing, and of the plain forward pass: medians."""
    given = [sequences[index] for index in chosen]
    tokens = sum(len(sequence.completion_ids) for sequence in given)
    planned = plan_batches(sequences, chosen, share=share, batch_tokens=options.batch_tokens)
    plain = batches_by_length(list(map(len, given)), batch_tokens=options.batch_tokens)
    plain_batches = [[given[index] for index in batch] for batch in plain]
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(options.turns):
        seconds[0].append(time_call(lambda: [top_k([given[index] for index in batch]) for batch in planned]))
        seconds[1].append(time_call(lambda: forward(model, plain_batches)))
    return tokens / statistics.median(seconds[0]), tokens / statistics.median(seconds[1])


READER = """
import sys
from star.topk.store import TopKStore
store = TopKStore(sys.argv[1])
for name in store:
    store[name]
lines = dict(line.split(":") for line in open("/proc/self/status"))
print(lines["RssAnon"].split()[0], lines["RssFile"].split()[0])
"""


def print_memory() -> None:
    print("| store, MiB | anonymous memory, MiB | mapped files, MiB |\n|---:|---:|---:|")
    draw = np.random.default_rng(2)
    for files in (2, 8, 32):
        with tempfile.TemporaryDirectory() as folder:
            with TopKWriter(folder, 100, vocab_size=151_936, tokens_per_file=2048) as writer:
                for number in range(files * 8):
                    logprobs_TK = -np.sort(draw.uniform(0, 20, (256, 100)), axis=1).astype(np.float32)
                    writer.add(f"row-{number}", draw.integers(0, 151_936, (256, 100)), logprobs_TK)
            size = TopKStore(folder).size
            done = subprocess.run([sys.executable, "-c", READER, folder], capture_output=True, text=True, check=True)
        anonymous, mapped = (int(number) / 1024 for number in done.stdout.split())
        print(f"| {size / 2**20:.1f} | {anonymous:.1f} | {mapped:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, action="append", help="one of the models; can be given several times")
    parser.add_argument("--turns", type=positive, default=3, help="number of turns; the table shows medians (3)")
    parser.add_argument("--teacher", type=model_folder, help="model folder; then --rollout is needed")
    parser.add_argument("--rollout", type=Path, help="folder of `star rollout`, of sequences that the teacher sampled")
    parser.add_argument(
        "--tokens", type=positive, default=20_000, help="completion tokens of the real teacher's store (20000)"
    )
    parser.add_argument(
        "--timed-tokens", type=positive, default=2000, help="completion tokens of the real teacher's rates (2000)"
    )
    parser.add_argument("--top-k", type=positive, default=100, help="ids per token of the real teacher's store (100)")
    parser.add_argument(
        "--batch-tokens", type=positive, default=4096, help="tokens per forward pass of the real teacher (4096)"
    )
    arguments = parser.parse_args()
    if bool(arguments.teacher) != bool(arguments.rollout):
        parser.error("--teacher and --rollout go together: give both, or none for models with random weights")
    if arguments.rollout and not sequences_file(arguments.rollout).is_file():
        parser.error(f"{arguments.rollout} holds no sequences: give the folder that `star rollout` wrote")
    if arguments.teacher:
        measure_rollout(arguments)
        return
    torch.set_num_threads(1)
    print("| model | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS), flush=True)
    for name in arguments.only or CASES:
        print_row(name, measure(CASES[name], turns=arguments.turns))
    if not arguments.only:
        print_memory()


if __name__ == "__main__":
    run_main(main)
