"""The cases of benchmarks/scale.py: for each, how its input is made and what is measured.

A `measure` function is a generator. Up to its first `yield` it imports and opens what a process pays once; from there on
it is measured; what it yields at the end is shown in the table. It calls only what earlier versions have too.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_import import WORDS, made_records

K, V, TOKENS = 100, 151_936, 100  # of a stored sequence
Steps = Iterator[str | None]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        sizes: what is measured; each is ten times the one before it where the case allows.
        unit: what the sizes count.
        prepare: writes the input of a size into a folder.
        measure: does the work of a size.
        formula: the seconds that docs/scale.md's formula gives for a size, where it has one.
    """

    sizes: tuple[int, ...]
    unit: str
    prepare: Callable[[int, Path], None]
    measure: Callable[[int, Path], Steps]
    formula: Callable[[int], float] | None = None


def times(constant: str, *, factor: float = 1) -> Callable[[int], float]:
    """A formula of docs/scale.md: a constant of star/doctor/costs.py for each of `factor * size`."""

    def seconds(size: int) -> float:
        from star.doctor import costs  # here, because earlier versions have none

        return factor * size * getattr(costs, constant)

    return seconds


def nothing(size: int, folder: Path) -> None:
    """For cases that need no input."""


def write_records(size: int, folder: Path) -> None:
    """Rows in xLAM's form."""
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in made_records(size))


def import_rows(size: int, folder: Path) -> Steps:
    """Reads, cleans and de-duplicates."""
    from star.data.importers import import_rows
    from star.data.write_set import from_start, write_set

    for name in ("set", "state"):
        _empty(folder / name)
    yield None
    found = write_set(
        from_start(import_rows(folder / "rows.jsonl", source="s")), out=folder / "set", state=folder / "state"
    )
    yield f"{found.rows:,} kept"


def write_benchmark(size: int, folder: Path) -> None:
    """4,500 turns in BFCL's form, and rows to compare with them."""
    rng = random.Random(2)  # noqa: S311 - a benchmark
    (folder / "bfcl").mkdir()
    with (folder / "bfcl" / "BFCL_v4_simple.json").open("w") as file:
        for number in range(4500):
            text = " ".join(rng.choices(WORDS, k=18)) + f" {number}"
            tool = {
                "name": f"tool_{number % 400}",
                "parameters": {"properties": {rng.choice(WORDS): {"type": "string"}}},
            }
            turn = {"id": f"simple_{number}", "question": [[{"role": "user", "content": text}]], "function": [tool]}
            file.write(json.dumps(turn) + "\n")
    write_records(size, folder)


def check_rows(size: int, folder: Path) -> Steps:
    """Looks for copies of a benchmark's turns."""
    from star.data.contamination import Benchmark
    from star.data.importers import import_rows

    benchmark = Benchmark(folder / "bfcl")
    yield None
    rows = (row for row in import_rows(folder / "rows.jsonl", source="s") if isinstance(row, dict))
    yield f"{sum(benchmark.check(row) is not None for row in rows):,} found"


def generate(size: int, folder: Path) -> Steps:
    """Makes rows of 500 tools."""
    from star.data.generate_offline import generate_rows

    parameters = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in WORDS[:4]},
        "required": WORDS[:2],
    }
    tools = [
        {"name": f"{WORDS[n % 15]}_{n}", "description": f"{WORDS[n % 7]} {WORDS[n % 11]} {n}", "parameters": parameters}
        for n in range(500)
    ]
    yield None
    yield f"{sum(1 for _ in generate_rows(tools, size, seed=1)):,} made"


def synthesize(size: int, folder: Path) -> Steps:
    """Does what the stage does: makes rows of the tiny profile's tools, cleans and splits them."""
    from star.config.load import load_config
    from star.data.synthesize import make_data_set

    config = load_config("tiny")
    data = config.data.model_copy(update={"generated_rows": size})
    out, state = _empty(folder / "out"), _empty(folder / "state")
    yield None
    make_data_set(data, seed=7, out=out, state=state)
    yield f"{sum(file.stat().st_size for file in out.glob('*.jsonl')) / size:.0f} bytes per row"


def _sequence(draw: object) -> tuple:
    """Ids and log-probabilities of one sequence, as a softmax gives them."""
    import numpy as np

    assert isinstance(draw, np.random.Generator)
    logprobs_TK = -np.sort(draw.gamma(2.0, 3.0, (TOKENS, K)), axis=1)
    ids_TK = np.argsort(draw.random((TOKENS, 4 * K)), axis=1)[:, :K] * (V // (4 * K))
    return ids_TK.astype(np.int32), (logprobs_TK - 1e-3).astype(np.float32)


def write_store(size: int, folder: Path) -> Steps:
    """Writes a top-k store."""
    import numpy as np

    from star.topk.store import TopKWriter

    draw = np.random.default_rng(0)
    sequences = [_sequence(draw) for _ in range(20)]
    _empty(folder / "store")
    yield None
    with TopKWriter(folder / "store", K, vocab_size=V) as writer:
        for number in range(size // TOKENS):
            writer.add(f"00000000-{number:06d}#0", *sequences[number % len(sequences)])
    total = sum(file.stat().st_size for file in (folder / "store").iterdir())
    yield f"{total / size:.0f} bytes per token"


def make_store(size: int, folder: Path) -> None:
    """A finished top-k store."""
    for _ in write_store(size, folder):
        pass


def open_store(size: int, folder: Path) -> Steps:
    """Opens a store, with verification."""
    from star.topk.store import TopKStore

    yield None
    yield f"{len(TopKStore(folder / 'store')):,} sequences"


def merge_parts(size: int, folder: Path) -> Steps:
    """Merges parts of a store of 640,000 tokens in all."""
    from star.topk.store import merge_stores

    _empty(folder / "merged").rmdir()
    yield None
    merge_stores([folder / str(part) / "store" for part in range(size)], folder / "merged")


def make_parts(size: int, folder: Path) -> None:
    """Parts of one store."""
    import numpy as np

    from star.topk.store import TopKWriter

    draw = np.random.default_rng(0)
    sequences = [_sequence(draw) for _ in range(20)]
    for part in range(size):
        with TopKWriter(folder / str(part) / "store", K, vocab_size=V) as writer:
            for number in range(6400 // size):
                writer.add(f"{part:08d}-{number:06d}#0", *sequences[number % len(sequences)])


def score(size: int, folder: Path) -> Steps:
    """Scores ten answers per row."""
    from star.data.generate_offline import generate_rows
    from star.evaluation.mistakes import classify_mistake
    from star.modeling.prompts import render_rows
    from star.modeling.tokenizer import bootstrap_tokenizer
    from star.rewards.similarity import exact_match, similarity_reward

    tool = {"type": "object", "properties": {name: {"type": "string"} for name in WORDS[:3]}, "required": WORDS[:2]}
    tools = [{"name": word, "description": f"{word} things", "parameters": tool} for word in WORDS]
    prompts = render_rows(list(generate_rows(tools, 200, seed=3)), bootstrap_tokenizer())
    yield None
    right = 0
    for number in range(size):
        prompt, other = prompts[number % 200], prompts[(number + 1) % 200]
        for answer in (prompt.target, other.target) * 5:
            right += exact_match(answer, prompt.target, prompt.tools)
        similarity_reward(other.target, prompt.target, prompt.tools)
        classify_mistake(other.target, prompt.target, prompt.tools)
    yield f"{right:,} right"


def statistics(size: int, folder: Path) -> Steps:
    """Scores, intervals, differences and reports of three models."""
    import numpy as np

    from star.config.load import load_config
    from star.evaluation.evaluate import score_and_write
    from star.evaluation.gathered import Gathered, GatheredModel, Timing
    from star.evaluation.mistakes import MISTAKE_KINDS

    config = load_config("tiny")
    settings = {"seed": 7, "evaluate": {**config.evaluate.model_dump(mode="json"), "suites": ["heldout"]}}
    draw = np.random.default_rng(4)
    call = '<tool_call>\n{"name": "amber", "arguments": {"birch": "cedar"}}\n</tool_call>'
    models = []
    for name in ("teacher", "distilled", "refined"):
        exact, reward = draw.random(size) < 0.8, draw.random(size)
        rows = [
            {
                **{
                    "row": n,
                    "id": f"r{n}",
                    "kind": ("simple", "parallel")[n % 2],
                    "source": "s",
                    "query": "where is it",
                },
                **{"expected": call, "predicted": call, "exact_match": float(exact[n]), "reward": float(reward[n])},
                **{
                    "format_error": 0.0,
                    "mistake": None if exact[n] else MISTAKE_KINDS[-1],
                    "passes": int(8 * exact[n]),
                },
                **{
                    "entropy": float(reward[n]),
                    "unseen_tool": False,
                    "expected_call": "call",
                    "predicted_call": "call",
                },
            }
            for n in range(size)
        ]
        models.append(GatheredModel(name, 1, 4, Timing(1, 1.0, 0.1), {"heldout": rows}))
    gathered = Gathered("title", settings, models, {}, {}, [])
    out = _empty(folder / "out")
    yield None
    score_and_write([gathered], out=out)
    yield f"evaluation.json {(out / 'evaluation.json').stat().st_size / 2**20:.2f} MiB"


def make_result(size: int, folder: Path) -> None:
    """A finished result of `size` megabytes, published as a stage publishes it."""
    from star.folders.manifest import Manifest
    from star.folders.run_once import Result, draft_manifest, run_once
    from star.folders.workspace import Workspace

    def work(workspace: Workspace, manifest: Manifest) -> Result:
        block = os.urandom(2**20)
        with (workspace.out / "model.safetensors").open("wb") as file:
            for _ in range(size):
                file.write(block)
        return Result({}, {})

    run_once(lambda: _draft(draft_manifest), work, out=folder / "result")


def finished(size: int, folder: Path) -> Steps:
    """Finds that a stage has nothing to do."""
    from star.folders.run_once import draft_manifest, run_once

    yield None
    outcome = run_once(lambda: _draft(draft_manifest), _refuse, out=folder / "result")
    yield "cached" if outcome.cached else "done again"


def _draft(draft_manifest: Callable) -> object:
    return draft_manifest("synthesize", settings="{}", code="0" * 64, inputs={})


def _refuse(*_: object) -> None:
    raise SystemExit("the finished result was not found")


def make_base(size: int, folder: Path) -> None:
    """A configuration with a local base whose weights are a sparse file of `size` megabytes."""
    import yaml

    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}))
    header = json.dumps({"w": {"dtype": "I8", "shape": [size << 20], "data_offsets": [0, size << 20]}}).encode()
    with (base / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (size << 20))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_text("{}")
    profile = {"extends": "tiny", "teacher": {"base": str(base), "sft": None}}
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile))


def load_configuration(size: int, folder: Path) -> Steps:
    """Loads a configuration with a local base that another process loaded before, as each stage does."""
    os.environ["STAR_HOME"] = str(folder / "home")
    (folder / "home").mkdir(exist_ok=True)
    load = f"from star.config.load import load_config; load_config({str(folder / 'profile.yaml')!r})"
    subprocess.run([sys.executable, "-c", load], check=True)
    from star.config.load import load_config

    load_config("tiny")
    yield None
    load_config(str(folder / "profile.yaml"))


def compile_to_yaml(size: int, folder: Path) -> Steps:
    """Compiles the pipeline with so many shards."""
    from star.cli.main import main  # noqa: F401 - the imports of the command
    from star.config.load import load_config
    from star.pipelines.star_pipeline import compile_pipeline

    (folder / "profile.yaml").write_text(
        f"extends: tiny\ncluster: {{shards: {{rollout: {size}, extract-topk: {size}}}}}\n"
    )
    config = load_config(str(folder / "profile.yaml"))
    yield None
    compile_pipeline(config, folder / "star.yaml")
    yield f"{(folder / 'star.yaml').stat().st_size >> 10} KiB"


def _empty(folder: Path) -> Path:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


CASES: dict[str, Case] = {
    "synthesize": Case((2_000, 20_000), "rows", nothing, synthesize, times("SECONDS_TO_MAKE_A_ROW")),
    "import": Case((2_000, 20_000), "rows", write_records, import_rows, times("SECONDS_TO_MAKE_A_ROW")),
    "check": Case((2_000, 20_000), "rows", write_benchmark, check_rows),
    "generate": Case((1_000, 10_000, 60_000), "rows", nothing, generate),
    "write store": Case((100_000, 1_000_000), "tokens", nothing, write_store, times("SECONDS_TO_STORE_A_TOKEN")),
    "open store": Case(
        (100_000, 1_000_000),
        "tokens",
        make_store,
        open_store,
        times("SECONDS_TO_HASH_A_BYTE", factor=267),
    ),
    "merge": Case((1, 16, 256), "parts", make_parts, merge_parts),
    "score": Case((3_000, 30_000), "rows", nothing, score, times("SECONDS_TO_SCORE_AN_ANSWER", factor=10)),
    "statistics": Case((1_000, 10_000), "rows", nothing, statistics, times("SECONDS_TO_COMPARE_A_ROW")),
    "finished": Case((100, 1_000), "MB", make_result, finished),
    "configuration": Case((100, 1_000, 8_000), "MB", make_base, load_configuration),
    "compile": Case((1, 16, 256), "shards", nothing, compile_to_yaml),
}
