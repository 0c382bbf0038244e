"""Held-out evaluation: greedy exact match, reward and format errors, and sampled pass@k and policy entropy, with intervals."""

import time
from collections import Counter, defaultdict
from statistics import fmean

from star.chat import FormatError, parse_completion, validate_calls
from star.config import Evaluate
from star.evaluation.statistics import bootstrap_interval, pass_at_k
from star.generation import Sequence, generate, policy_entropy
from star.models import count_parameters
from star.progress import Bar
from star.prompts import Prompt
from star.simrl.reward import exact_match, similarity_reward

PASS_K = (1, 4, 8)


def evaluate_heldout(
    model, tokenizer, rows: list[dict], prompts: list[Prompt], *, settings: Evaluate, seed: int, label: str
) -> dict:
    """Answers every held-out row once greedily and `settings.samples` times at temperature.

    Args:
        rows: the held-out rows that `prompts` were rendered from, in the same order.

    Returns:
        the model's entry of an evaluation (see star/evaluation/report.py), and `outcomes`: one dict a row.
    """
    # Prompts of like length together: a long one must not stretch a whole batch of short ones.
    order = sorted(range(len(rows)), key=lambda index: (len(prompts[index].text), index))
    batches = [order[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]
    outcomes: list[dict] = [{}] * len(rows)
    tokens, began = 0, time.monotonic()
    with Bar(label, len(batches)) as bar:
        for number, batch in enumerate(batches):
            texts = [prompts[index].text for index in batch]
            limits = {"max_new_tokens": settings.max_new_tokens, "seed": seed * 1_000_003 + number}
            greedy = generate(model, tokenizer, texts, samples=1, temperature=0.0, **limits)
            sampled = generate(
                model, tokenizer, texts, samples=settings.samples, temperature=settings.temperature, **limits
            )
            tokens += sum(len(sample.token_ids) for group in (*greedy, *sampled) for sample in group)
            first = [
                Sequence(tokenizer(text, add_special_tokens=False)["input_ids"], group[0].token_ids)
                for text, group in zip(texts, sampled, strict=True)
            ]
            entropies = policy_entropy(model, first, pad_id=tokenizer.pad_token_id, batch_tokens=8192)
            for index, best, group, entropy in zip(batch, greedy, sampled, entropies, strict=True):
                texts_of_group = [sample.text for sample in group]
                outcomes[index] = _outcome(rows[index], prompts[index], best[0].text, texts_of_group, entropy)
            bar.advance()
    seconds = time.monotonic() - began
    return {
        "parameters": count_parameters(model),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "scores": _scores(outcomes, samples=settings.samples, seed=seed),
        "by_kind": _by_kind(outcomes),
        "call_confusion": dict(Counter(f"{o['expected_call']}_{o['predicted_call']}" for o in outcomes)),
        "outcomes": outcomes,
    }


def _outcome(row: dict, prompt: Prompt, greedy: str, samples: list[str], entropy: float) -> dict:
    reward = similarity_reward(greedy, prompt.target, prompt.tools)
    return {
        "id": row["id"],
        "kind": row["kind"],
        "source": row["source"],
        "query": next(message["content"] for message in reversed(row["messages"]) if message["role"] == "user"),
        "expected": prompt.target,
        "predicted": greedy,
        "exact_match": float(exact_match(greedy, prompt.target, prompt.tools)),
        "reward": reward.total,
        "format_error": float(reward.format < 0),
        "passes": sum(exact_match(text, prompt.target, prompt.tools) for text in samples),
        "entropy": entropy,
        "expected_call": "call" if row["messages"][-1].get("tool_calls") else "none",
        "predicted_call": "call" if _calls(greedy, prompt.tools) else "none",
    }


def _calls(text: str, tools: list[dict]) -> bool:
    try:
        completion = parse_completion(text)
        validate_calls(completion, tools)
    except FormatError:
        return False
    return bool(completion.tool_calls)


def _scores(outcomes: list[dict], *, samples: int, seed: int) -> dict[str, dict[str, float]]:
    values = {
        "exact_match": [o["exact_match"] for o in outcomes],
        "mean_reward": [o["reward"] for o in outcomes],
        "format_errors": [o["format_error"] for o in outcomes],
        "entropy": [o["entropy"] for o in outcomes],
    }
    for k in PASS_K:
        if k <= samples:
            values[f"pass_at_{k}"] = [pass_at_k(samples, o["passes"], k) for o in outcomes]
    scores = {}
    for name, column in values.items():
        low, high = bootstrap_interval(column, seed=seed)
        scores[name] = {"mean": fmean(column), "low": low, "high": high}
    return scores


def _by_kind(outcomes: list[dict]) -> dict[str, dict[str, float]]:
    groups = defaultdict(list)
    for outcome in outcomes:
        groups[
            outcome["kind"] if outcome["source"] == "generated" else f"{outcome['source']}: {outcome['kind']}"
        ].append(outcome)
    return {
        kind: {
            "rows": len(group),
            "exact_match": fmean(o["exact_match"] for o in group),
            "mean_reward": fmean(o["reward"] for o in group),
        }
        for kind, group in sorted(groups.items())
    }
