"""Measures sampling and extraction with a real model, beside those of another checkout of this repository.

    python benchmarks/real_rollout.py MODEL rows.jsonl                           # this checkout: some minutes for 135M
    git worktree add ../before COMMIT
    python benchmarks/real_rollout.py MODEL rows.jsonl --against ../before       # both, in turns, and the ratio
    python benchmarks/real_rollout.py MODEL rows.jsonl --against ../before --same    # in fp32; compares what was drawn

MODEL is a model folder, rows.jsonl are rows such as the train.jsonl of `star synthesize`. Their prompts are rendered with
the product's template; those longer than --most tokens are left out. Each measurement is a process of its own
(side_by_side.py).

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
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from command_line import positive, run_main
from side_by_side import (
    SPEEDS,
    Column,
    add_options,
    answer,
    largest_peak,
    measure_in_turns,
    parse_options,
    peak_gib,
    print_head,
    print_rows,
)

PHASES = ("rollout", "simrl", "greedy", "extraction")
COLUMNS: dict[str, Column] = {
    "tokens": lambda runs: f"{runs[0]['tokens']:,}",
    "endings": lambda runs: f"{runs[0]['ends']:.0%}",
    **SPEEDS,
    "peak memory": largest_peak,
}
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
    drawn = phases[options.measure](model, tokenizer, prompts, options)
    ended = time.monotonic(), time.process_time()
    lengths = [len(row) for row in drawn]
    return {
        "tokens": sum(lengths),
        "ends": sum(length < options.tokens for length in lengths) / len(lengths),
        "seconds": ended[0] - began[0],
        "cpu": ended[1] - began[1],
        "digest": hashlib.sha256(json.dumps(drawn).encode()).hexdigest(),
        "drawn": drawn if options.measure != "extraction" else [],
        "peak_gib": peak_gib(),
    }


def read_prompts(options: argparse.Namespace, tokenizer: Any) -> list[str]:
    """The first prompts of the rows that fit, sorted by length as a rollout sorts them."""
    from star.chat import CHAT_TEMPLATE
    from star.data.rows import read_json_lines
    from star.errors import InputError
    from star.modeling.prompts import render_rows

    tokenizer.chat_template = CHAT_TEMPLATE
    rows: list[Any] = [row for _, row in islice(read_json_lines(options.rows), 8 * options.prompts)]
    try:
        texts = [prompt.text for prompt in render_rows(rows, tokenizer)]
    except (KeyError, TypeError):
        raise InputError(
            f"{options.rows} does not hold rows: give one with id, messages and tools, such as the train.jsonl of `star "
            "synthesize`"
        ) from None
    fitting = [text for text in texts if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= options.most]
    if not fitting:
        raise InputError(f"none of the first {len(rows)} prompts of {options.rows} fits: raise --most {options.most}")
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
    ids_end = min(1000, model.get_output_embeddings().weight.shape[0])
    sequences = [
        Sequence(prompt, draw.integers(10, ids_end, draw.integers(options.tokens // 2, options.tokens + 1)).tolist())
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


def compare(phase: str, options: argparse.Namespace) -> None:
    """Measures the checkouts in turns and prints their rows."""
    results = measure_in_turns(phase, options)
    print_rows(phase, results, COLUMNS)
    if options.same and phase != "extraction":
        before, after = (runs[0]["drawn"] for runs in results.values())
        equal = sum(one == other for one, other in zip(before, after, strict=True))
        print(f"\n{phase}: {equal} of {len(after)} completions are equal\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, turns=1, same="what was drawn")
    parser.add_argument("rows", type=Path, help="JSON lines of rows")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="what to measure (everything)")
    parser.add_argument("--prompts", type=positive, default=8, help="prompts, the first that are short enough (8)")
    parser.add_argument("--samples", type=positive, default=8, help="completions per prompt (8)")
    parser.add_argument("--batch", type=positive, default=4, help="prompts per batch of generation (4)")
    parser.add_argument("--tokens", type=positive, default=64, help="most tokens of a completion (64)")
    parser.add_argument("--most", type=positive, default=512, help="most tokens of a prompt (512)")
    parser.add_argument(
        "--batch-tokens", type=positive, default=4096, help="tokens per forward pass of the extraction (4096)"
    )
    options = parse_options(parser)
    if not options.rows.is_file():
        parser.error(f"there is no file {options.rows}: give rows, such as the train.jsonl of `star synthesize`")
    if options.measure:
        answer(measure, options)
        return
    print_head(COLUMNS)
    for phase in options.phases:
        compare(phase, options)


if __name__ == "__main__":
    run_main(main)
