"""Measures sampling and extraction with a real model, beside those of another checkout of this repository.

    python benchmarks/real_rollout.py MODEL rows.jsonl                           # this checkout: some minutes for 135M
    python benchmarks/real_rollout.py MODEL rows.jsonl --against ../before       # both, in turns, and the ratio
    python benchmarks/real_rollout.py MODEL rows.jsonl --against ../before --same    # in fp32; compares what was drawn

MODEL is a model folder, rows.jsonl are rows such as the train.jsonl of `star synthesize`. Their prompts are rendered with
the product's template; those longer than --most tokens are left out. Each measurement is a process of its own.

rollout     samples per prompt at temperature 1, as rollout and pass@k draw them
simrl       the same number of rollouts per prompt, as Sim-RL draws them
greedy      one greedy answer per prompt, as the evaluation asks
extraction  the teacher's top-k at completions of drawn length, as many per prompt

A token is a sampled one, or a completion token of the extraction. The CPU time of both checkouts is comparable also while
other processes run. The column endings is the share of completions that end before the limit: a base that has never
seen the prompts seldom ends, and then no row leaves its batch early.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("rollout", "simrl", "greedy", "extraction")
K = 100


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs a phase in this process. Returns seconds and CPU seconds, tokens, a digest of what was drawn, the peak memory."""
    import torch

    from star.modeling.models import load_model, load_tokenizer

    try:
        import star.modeling.precision  # noqa: F401  # is there the setting?

        model = load_model(options.model, precision=options.precision).eval()
    except ImportError:  # before the setting
        model = load_model(options.model).eval()
    tokenizer = load_tokenizer(options.model)
    prompts = read_prompts(options, tokenizer)
    phases: dict[str, Callable[..., list]] = {
        "rollout": roll_out,
        "simrl": draw_for_simrl,
        "greedy": answer_greedily,
        "extraction": extract,
    }
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]))  # what is set up once
    began = time.monotonic(), time.process_time()
    drawn = phases[options.phase](model, tokenizer, prompts, options)
    ended = time.monotonic(), time.process_time()
    lengths = [len(row) for row in drawn]
    return {
        "tokens": sum(lengths),
        "ends": sum(length < options.tokens for length in lengths) / len(lengths),
        "seconds": ended[0] - began[0],
        "cpu": ended[1] - began[1],
        "digest": hashlib.sha256(json.dumps(drawn).encode()).hexdigest(),
        "drawn": drawn if options.phase != "extraction" else [],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def read_prompts(options: argparse.Namespace, tokenizer: Any) -> list[str]:
    """The first prompts of the rows that fit, sorted by length as a rollout sorts them."""
    from star.chat import CHAT_TEMPLATE
    from star.modeling.prompts import render_rows

    tokenizer.chat_template = CHAT_TEMPLATE
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()[: 8 * options.prompts]]
    texts = [prompt.text for prompt in render_rows(rows, tokenizer)]
    fitting = [text for text in texts if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= options.most]
    return sorted(fitting[: options.prompts], key=len)


def batches_of(prompts: list[str], size: int) -> list[list[str]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def roll_out(model: Any, tokenizer: Any, prompts: list[str], options: argparse.Namespace) -> list[list[int]]:
    from star.modeling.generation import generate

    settings = {"samples": options.samples, "temperature": 1.0, "max_new_tokens": options.tokens}
    groups = [
        group
        for seed, batch in enumerate(batches_of(prompts, options.batch))
        for group in generate(model, tokenizer, batch, **settings, seed=seed)
    ]
    return [sample.token_ids for group in groups for sample in group]


def draw_for_simrl(model: Any, tokenizer: Any, prompts: list[str], options: argparse.Namespace) -> list[list[int]]:
    import torch

    from star.modeling.generation import end_tokens
    from star.modeling.sampling import SeededSampling, use_sampling

    drawn: list[list[int]] = []
    ends = end_tokens(model, tokenizer)
    for step, batch in enumerate(batches_of(prompts, options.batch)):
        texts = [text for text in batch for _ in range(options.samples)]
        keys = [(7, step, number // options.samples, number % options.samples) for number in range(len(texts))]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        sampling = SeededSampling(keys, temperature=1.0, max_new_tokens=options.tokens)
        with use_sampling(model, sampling), torch.no_grad():
            ids_BL = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=options.tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        for row in ids_BL[:, inputs["input_ids"].shape[1] :].tolist():
            stop = next((index for index, token in enumerate(row) if token in ends), len(row))
            drawn.append(row[: stop + 1])
    return drawn


def answer_greedily(model: Any, tokenizer: Any, prompts: list[str], options: argparse.Namespace) -> list[list[int]]:
    from star.modeling.generation import generate

    settings = {"samples": 1, "temperature": 0.0, "max_new_tokens": options.tokens, "seed": 0}
    groups = [generate(model, tokenizer, batch, **settings) for batch in batches_of(prompts, options.batch)]
    return [sample.token_ids for group in groups for [sample] in group]


def extract(model: Any, tokenizer: Any, prompts: list[str], options: argparse.Namespace) -> list[list[list[float]]]:
    import numpy as np

    from star.modeling.generation import Sequence, batches_by_length
    from star.teacher.extract import model_top_k

    draw = np.random.default_rng(0)
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    sequences = [
        Sequence(prompt, draw.integers(10, 1000, draw.integers(options.tokens // 2, options.tokens + 1)).tolist())
        for prompt in ids
        for _ in range(options.samples)
    ]
    given: dict[str, Any] = {}
    try:
        from star.modeling.prompt_groups import shares_prompts
        from star.teacher.extract import batches_by_prompt
        from star.topk.sequences import Lengths
    except ImportError:  # before prompts were shared
        batches = list(batches_by_length(list(map(len, sequences)), batch_tokens=options.batch_tokens))
    else:
        lengths = Lengths(
            np.array([len(sequence.prompt_ids) for sequence in sequences]),
            np.array([len(sequence.completion_ids) for sequence in sequences]),
            np.arange(len(sequences)) % options.samples == 0,
        )
        batches = list(batches_by_prompt(lengths, batch_tokens=options.batch_tokens))
        given = {"share_prompts": shares_prompts(model, work="The extraction")}
    top_k = model_top_k(model, pad_id=tokenizer.pad_token_id, k=K, **given)
    found: dict[int, list[list[float]]] = {}
    for batch in batches:
        results = top_k([sequences[index] for index in batch])
        found |= {int(index): logprobs_TK.tolist() for index, (_, logprobs_TK) in zip(batch, results, strict=True)}
    return [found[index] for index in sorted(found)]


def run_in(checkout: Path, phase: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process that imports the code of a checkout."""
    child = [sys.executable, __file__, str(options.model), str(options.rows), "--phase", phase]
    for name in ("precision", "prompts", "samples", "batch", "tokens", "most", "batch-tokens"):
        child += [f"--{name}", str(getattr(options, name.replace("-", "_")))]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(child, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(options: argparse.Namespace) -> None:
    """Measures the checkouts in turns and prints a table."""
    here = Path(__file__).resolve().parents[1]
    checkouts = {**({"before": options.against.resolve()} if options.against else {}), "after": here}
    print("| phase | code | tokens | endings | tokens per second | per CPU second | peak memory |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for phase in options.phases:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
        for _ in range(options.turns):
            for name, checkout in checkouts.items():
                found[name].append(run_in(checkout, phase, options))
        speeds = {}
        for name, runs in found.items():
            clock, cpu = (statistics.median(run["tokens"] / run[key] for run in runs) for key in ("seconds", "cpu"))
            speeds[name] = (clock, cpu)
            print(
                f"| {phase} | {name} | {runs[0]['tokens']:,} | {runs[0]['ends']:.0%} | {clock:,.0f} | {cpu:,.0f} | "
                f"{max(run['peak_gib'] for run in runs):.1f} GiB |",
                flush=True,
            )
        if options.against:
            ratios = [after / before for before, after in zip(speeds["before"], speeds["after"], strict=True)]
            print(f"| {phase} | after / before | | | {ratios[0]:.2f} | {ratios[1]:.2f} | |", flush=True)
            if options.same and phase != "extraction":
                pairs = list(zip(found["before"][0]["drawn"], found["after"][0]["drawn"], strict=True))
                print(f"\n{phase}: {sum(one == other for one, other in pairs)} of {len(pairs)} completions are equal\n")


def main() -> None:
    """Compares checkouts, or with --phase measures once and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("rows", type=Path, help="JSON lines of rows")
    parser.add_argument("--against", type=Path, help="checkout of this repository to compare with")
    parser.add_argument("--same", action="store_true", help="compute in fp32 and compare what was drawn")
    parser.add_argument("--precision", default="auto", help="the setting, for this checkout")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="completions per prompt")
    parser.add_argument("--batch", type=int, default=4, help="prompts per batch of generation")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a completion")
    parser.add_argument("--most", type=int, default=512, help="most tokens of a prompt")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens per forward pass of the extraction")
    parser.add_argument("--turns", type=int, default=1, help="measurements per checkout; the median counts")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.same:
        options.precision = "fp32"
    if options.phase:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
