"""Measures the distillation's loader beside that of an earlier version and beside a memory-mapped array.

    python benchmarks/ckd_loader.py FOLDER --before REVISION                      # four minutes, 1 GB of disk
    python benchmarks/ckd_loader.py FOLDER --before REVISION --tokens 10_000_000  # 9 GB

REVISION is a commit of this repository, whose code is read from git and runs in the same process, in turns with this one.

**Batches.** Batches of 128 random sequences of 100 tokens, k = 100, V = 151,936, prompts of 100 and of 2,000 tokens. A
step is a sleep, as on a GPU. "training" is the time of the training's thread apart from it (CPU, and on the clock), "all"
the CPU time of the process. `memmap` are two arrays, int32 and float16, made a batch of as the earlier version does.

**Training.** A few steps of CKD with random weights: seconds per step with both loaders, whether the weights are equal to
the bit, and whether a training killed after a checkpoint ends with the same file as one left alone.
"""

import argparse
import atexit
import io
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from star.ckd import rows, trainer
from star.config.training import Distill
from star.modeling import training
from star.topk import codec
from star.topk.sequences import SEQUENCES
from star.topk.store import TopKWriter

K, V, TOKENS, BATCH = 100, 151_936, 100, 128
DISTINCT = 500  # sequences that are made; a store repeats them
STEP = 0.1  # seconds that a step on the GPU takes
TURNS = 15
Wait = Callable[[], object]

# name -> vocabulary, k, tokens per completion, sequences, batch, steps, sizes of the student
TRAININGS = {
    "tiny": (1_024, 50, 30, 640, 32, 20, {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4}),
    "V = 151,936": (V, K, 50, 64, 16, 4, {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}),
}


def load_former(revision: str) -> SimpleNamespace:
    """The modules of an earlier version, imported beside those of this one."""
    repository = Path(__file__).parents[1]
    git = shutil.which("git") or "git"
    command = [git, "-C", str(repository), "archive", revision, "star"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    folder = tempfile.mkdtemp(prefix="former-star-")
    atexit.register(shutil.rmtree, folder)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    current = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "star"}
    sys.path.insert(0, folder)
    try:
        from star.ckd import trainer as former_trainer
        from star.modeling import training as former_training
    finally:
        sys.path.remove(folder)
        for name in [name for name in sys.modules if name.split(".")[0] == "star"]:
            del sys.modules[name]
        sys.modules.update(current)
    return SimpleNamespace(trainer=former_trainer, training=former_training)


def write_store(folder: Path, tokens: int, *, prompt: int) -> None:
    """A top-k store with its sequences, and the same rows as `ids.npy` and `logprobs.npy`."""
    draw = np.random.default_rng(0)
    ids_DTK = draw.integers(0, V, (DISTINCT, TOKENS, K)).astype(np.int32)
    spread_DT1 = draw.uniform(0.02, 0.4, (DISTINCT, TOKENS, 1))
    logprobs_DTK = (-draw.exponential(1, (DISTINCT, TOKENS, K)).cumsum(2) * spread_DT1).astype(np.float32)
    count = tokens // TOKENS
    encoded = [codec.encode(*pair, vocab_size=V) for pair in zip(ids_DTK, logprobs_DTK, strict=True)]
    turns = [encoded[number % DISTINCT] for number in range(count)]
    with (
        mock.patch("star.topk.store.encode", side_effect=turns),
        TopKWriter(folder, K, vocab_size=V) as writer,
    ):
        for number in range(count):
            writer.add(f"row-{number}#0", ids_DTK[number % DISTINCT], logprobs_DTK[number % DISTINCT])
    for name, dtype, array in (("ids", np.int32, ids_DTK), ("logprobs", np.float16, logprobs_DTK)):
        mapped = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (count, TOKENS, K))
        for begin in range(0, count, DISTINCT):
            mapped[begin : begin + DISTINCT] = array[: count - begin]
        mapped.flush()
    write_sequences(folder, count, prompt=prompt, completion=TOKENS)


def write_sequences(folder: Path, count: int, *, prompt: int, completion: int) -> None:
    """The sequences in the form that earlier versions read too."""

    def column(length: int) -> pa.Array:
        offsets = pa.array(np.arange(0, (count + 1) * length, length, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(np.arange(count * length, dtype=np.int32) % 500))

    names = [f"row-{number}#0" for number in range(count)]
    table = {"id": names, "prompt_ids": column(prompt), "completion_ids": column(completion)}
    pq.write_table(pa.table(table), folder / SEQUENCES)


def loaders(folder: Path, former: SimpleNamespace) -> dict[str, Callable[[list[int]], Wait]]:
    """Functions that begin to make a batch, and return one that waits for it."""
    former_rows, new_rows = former.trainer.DistillationRows(folder), rows.DistillationRows(folder)
    collate = rows.BatchCollator(new_rows, pad_id=0)
    ids, logprobs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "logprobs"))

    def former_batch(of: Callable[[int], dict]) -> Callable[[list[int]], Wait]:
        def begin(indices: list[int]) -> Wait:
            former.training.collate_completions([of(index) for index in indices], pad_id=0)
            return lambda: None

        return begin

    def mapped_row(index: int) -> dict:
        sequence = former_rows.sequences[index]
        return {
            "input_ids": sequence.prompt_ids + sequence.completion_ids,
            "labels": [training.IGNORE_INDEX] * len(sequence.prompt_ids) + sequence.completion_ids,
            "teacher_ids": torch.as_tensor(ids[index], dtype=torch.int64),
            "teacher_logprobs": torch.as_tensor(logprobs[index].astype(np.float32)),
        }

    return {
        "memmap": former_batch(mapped_row),
        "before": former_batch(former_rows.__getitem__),
        "after": lambda indices: collate([new_rows[index] for index in indices])[rows.TEACHER_ROWS].result,
    }


def measure_batches(folder: Path, tokens: int, former: SimpleNamespace) -> None:
    draw = np.random.default_rng(1)
    functions = loaders(folder, former)
    figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in functions}
    for _ in range(TURNS):
        for name, begin in functions.items():
            indices = draw.permutation(tokens // TOKENS)[:BATCH].tolist()
            everything, thread, clock = time.process_time(), time.thread_time(), time.monotonic()
            wait = begin(indices)
            time.sleep(STEP)
            wait()
            figures[name].append(
                (
                    time.thread_time() - thread,
                    time.monotonic() - clock - STEP,
                    time.process_time() - everything,
                )
            )
    medians = {
        name: [statistics.median(turn[i] for turn in turns) for i in range(3)] for name, turns in figures.items()
    }
    for name, median in medians.items():
        ratios = [figure / other for figure, other in zip(median, medians["memmap"], strict=True)]
        cells = [f"{1e3 * figure:.1f} ms | {ratio:.2f}" for figure, ratio in zip(median, ratios, strict=True)]
        print(f"| {tokens:,} | {name} | " + " | ".join(cells) + " |", flush=True)


def write_training(folder: Path, name: str) -> None:
    vocab, k, tokens, sequences, *_ = TRAININGS[name]
    draw = np.random.default_rng(3)
    with TopKWriter(folder, k, vocab_size=vocab) as writer:
        for number in range(sequences):
            logprobs = -draw.exponential(1, (tokens, k)).cumsum(1) * 0.1 - 0.5
            ids = np.stack([draw.choice(vocab, k, replace=False) for _ in range(tokens)])
            writer.add(f"row-{number}#0", ids, logprobs.astype(np.float32))
    write_sequences(folder, sequences, prompt=60, completion=tokens)


def make_trainer(module: ModuleType, folder: Path, name: str, *, state: Path) -> trainer.CKDTrainer:
    vocab, *_, batch, steps, sizes = TRAININGS[name]
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True}
    torch.manual_seed(0)
    student = Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab, **sizes, **heads))
    settings = Distill(steps=steps, batch_size=batch, learning_rate=1e-3, save_steps=max(2, steps // 4))
    made = module.CKDTrainer(student, folder, settings=settings, state=state, pad_id=0, seed=1)
    made.remove_callback(PrinterCallback)
    return made


class StepTimes(TrainerCallback):
    """Notes the clock and the CPU time at the end of every step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append((time.monotonic(), time.process_time()))

    def steps(self) -> Iterator[tuple[float, float]]:
        for (clock, cpu), (next_clock, next_cpu) in zip(self.ends, self.ends[1:], strict=False):
            yield next_clock - clock, next_cpu - cpu


def measure_training(folder: Path, name: str, former: SimpleNamespace) -> bytes:
    """Trains with both loaders in turns. Returns the weights of this version."""
    found: dict[str, list[tuple[float, float]]] = {"before": [], "after": []}
    weights = []
    for module, label in ((former.trainer, "before"), (trainer, "after")) * 2:
        with tempfile.TemporaryDirectory() as state:
            made, times = make_trainer(module, folder, name, state=Path(state)), StepTimes()
            made.add_callback(times)
            made.train()
        found[label].extend(times.steps())
        weights.append(torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()]))
    equal = all(torch.equal(weights[0], other) for other in weights)
    for label, steps in found.items():
        clock, cpu = (statistics.median(step[i] for step in steps) for i in range(2))
        print(f"| {name} | {label} | {clock:.3f} s | {cpu:.3f} s | weights equal to the bit: {equal} |", flush=True)
    return weights[-1].numpy().tobytes()


def train_alone(folder: Path, name: str, out: Path) -> None:
    """The training as a stage runs it, in a process of its own that can be killed and called again."""
    made = make_trainer(trainer, folder, name, state=out / "ckd")
    training.train(made, phase="ckd", label=name, state=out, log_metrics=lambda values, step: None)
    weights = torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])
    (out / "weights").write_bytes(weights.numpy().tobytes())


def kill_and_resume(folder: Path, name: str, expected: bytes) -> None:
    command = [sys.executable, "-W", "ignore", __file__, str(folder), "--train", name]
    with tempfile.TemporaryDirectory() as out:
        process = subprocess.Popen([*command, out], stderr=subprocess.DEVNULL)
        while not list(Path(out).glob("ckd/checkpoint-*/complete")):
            if process.poll() is not None:
                raise RuntimeError("the training ended before its first checkpoint")
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        checkpoints = sorted(path.parent.name for path in Path(out).glob("ckd/checkpoint-*/complete"))
        subprocess.run([*command, out], check=True, stderr=subprocess.DEVNULL)
        steps = [entry["step"] for entry in json.loads((Path(out) / "ckd_curve.json").read_text(encoding="utf-8"))]
        equal = (Path(out) / "weights").read_bytes() == expected
    print(f"{name}: killed after {checkpoints}, resumed to step {steps[-1]}, equal to the bit: {equal}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where stores are made, one after the other, and removed again")
    parser.add_argument("--before", help="the commit whose loader is measured beside this one")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes of the stores")
    parser.add_argument("--train", nargs=2, metavar=("NAME", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    if arguments.train:
        return train_alone(arguments.folder, arguments.train[0], Path(arguments.train[1]))
    if arguments.before is None:
        parser.error("name the commit to compare with: --before REVISION")
    former = load_former(arguments.before)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| tokens | loader | training, CPU | x memmap | training, clock | x | all, CPU | x |\n|---:|---|" + "---:|" * 6
    )
    for tokens in arguments.tokens:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write_store(Path(folder), tokens, prompt=100)
            measure_batches(Path(folder), tokens, former)
            if tokens == arguments.tokens[0]:
                print(f"| {tokens:,} | prompts of 2,000 tokens: | | | | | | |")
                write_sequences(Path(folder), tokens // TOKENS, prompt=2_000, completion=TOKENS)
                measure_batches(Path(folder), tokens, former)
    print("\n| student | loader | step, clock | step, CPU | |\n|---|---|---:|---:|---|")
    for name in TRAININGS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write_training(Path(folder), name)
            kill_and_resume(Path(folder), name, measure_training(Path(folder), name, former))
    return None


if __name__ == "__main__":
    main()
