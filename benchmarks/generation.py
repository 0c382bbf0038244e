"""Sampling by `star.generation.generate` beside transformers' own `model.generate`: sampled tokens a second of processor time.

    python benchmarks/generation.py runs/latest        # a finished tiny run: its teacher answers its training prompts; one thread

Ours reads a prompt once for all its samples and lets a completion that has ended leave the batch; `model.generate` reads it once for each
sample and carries every row to the end of the longest. `same` counts the prompts whose greedy completions are equal.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from star.data.rows import read_rows
from star.generation import generate
from star.models import load_model, load_tokenizer
from star.prompts import render_rows

LIMIT = 72  # tokens of a completion


def by_transformers(model, tokenizer, prompts: list[str], *, samples: int, temperature: float) -> list[list[int]]:
    torch.manual_seed(0)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    output = model.generate(
        **batch,
        **sampling,
        num_return_sequences=samples,
        max_new_tokens=LIMIT,
        pad_token_id=tokenizer.pad_token_id,
    )
    completions = output[:, batch["input_ids"].shape[1] :].tolist()
    ends = [ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else LIMIT for ids in completions]
    return [ids[:end] for ids, end in zip(completions, ends, strict=True)]


def by_star(model, tokenizer, prompts: list[str], *, samples: int, temperature: float) -> list[list[int]]:
    limits = {"samples": samples, "temperature": temperature, "max_new_tokens": LIMIT, "seed": 0}
    return [sample.token_ids for group in generate(model, tokenizer, prompts, **limits) for sample in group]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = arguments.run / "refine-teacher"
    model, tokenizer = load_model(teacher).eval(), load_tokenizer(teacher)
    rows = list(read_rows(arguments.run / "synthesize" / "train.jsonl"))[:256]
    prompts = sorted((prompt.text for prompt in render_rows(rows, tokenizer)), key=len)
    greedy = [work(model, tokenizer, prompts[::8], samples=1, temperature=0.0) for work in (by_star, by_transformers)]
    print(f"same: {sum(a == b for a, b in zip(*greedy, strict=True))} of {len(greedy[0])}\n")
    print("| prompts | samples | ours | model.generate | ratio |\n|---:|---:|---:|---:|---:|")
    for count, samples in ((128, 2), (64, 2), (32, 8), (64, 1)):
        rates: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(arguments.turns):
            for name, work in (("ours", by_star), ("theirs", by_transformers)):
                began = time.process_time()
                made = work(model, tokenizer, prompts[:count], samples=samples, temperature=1.0)
                rates[name].append(sum(map(len, made)) / (time.process_time() - began))
        ours, theirs = (statistics.median(values) for values in rates.values())
        ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
        print(f"| {count} | {samples} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
