"""Held-out evaluation: greedy exact match, reward and mistakes by kind, and sampled pass@k and policy entropy, with intervals."""

from collections import Counter, defaultdict
from statistics import fmean

from star.chat import FormatError, parse_completion, validate_calls
from star.evaluation.candidate import Candidate
from star.evaluation.intervals import mean_interval, pass_at_k
from star.evaluation.mistakes import KINDS, mistake
from star.modeling.generation import Sequence, policy_entropy
from star.modeling.prompts import Prompt
from star.progress import Bar
from star.rewards.similarity import exact_match, similarity_reward

PASS_K = (1, 4, 8)


def ask_heldout(candidate: Candidate, rows: list[dict], prompts: list[Prompt], *, seen_tools: set[str]) -> list[dict]:
    """Answers the rows of the candidate's part, each once greedily and `settings.samples` times at temperature.

    Args:
        rows: the held-out rows that `prompts` were rendered from, in the same order.
        seen_tools: names of the tools that training rows call; rows that call another one are scored apart as well.

    Returns:
        the outcome on each of the part's rows, with its place among all rows as `row`.
    """
    settings = candidate.settings
    # Prompts of like length together: a long one must not stretch a whole batch of short ones.
    order = sorted(range(len(rows)), key=lambda index: (len(prompts[index].text), index))
    batches = [order[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]
    # Of all batches, so that each has the rows and the seed that it has when one process asks them all.
    numbered = candidate.part.of(list(enumerate(batches)))
    outcomes: list[dict] = []
    with Bar(f"evaluate the {candidate.name} model", len(numbered)) as bar:
        for number, batch in numbered:
            texts = [prompts[index].text for index in batch]
            sampling = settings.model_dump(mode="json", include={"samples", "temperature", "max_new_tokens"})
            seed = candidate.seed * 1_000_003 + number
            question = {"suite": "heldout", "prompts": texts, "seed": seed, **sampling}
            answers = candidate.journal.once(question, lambda texts=texts, seed=seed: _ask(candidate, texts, seed=seed))
            for index, answer in zip(batch, answers, strict=True):
                outcomes.append({"row": index, **_outcome(rows[index], prompts[index], answer, seen_tools)})
            bar.advance()
    return sorted(outcomes, key=lambda outcome: outcome["row"])


def score_heldout(outcomes: list[dict], *, samples: int, seed: int) -> dict[str, dict]:
    """`scores`, `by_kind`, `mistakes` and `call_confusion` of the outcomes on all rows, in their order."""
    return {
        "scores": _scores(outcomes, samples=samples, seed=seed),
        "by_kind": _by_kind(outcomes, seed=seed),
        "mistakes": _mistakes(outcomes),
        "call_confusion": dict(Counter(f"{o['expected_call']}_{o['predicted_call']}" for o in outcomes)),
    }


def called_tools(rows: list[dict]) -> set[str]:
    """Names of the tools that the rows' targets call."""
    return {call["name"] for row in rows for call in row["messages"][-1].get("tool_calls") or []}


def _ask(candidate: Candidate, texts: list[str], *, seed: int) -> list[dict]:
    """For each prompt its greedy text, its sampled texts, and the policy's entropy over the first sample."""
    settings, tokenizer = candidate.settings, candidate.tokenizer
    limits = {"max_new_tokens": settings.max_new_tokens, "seed": seed}
    greedy = candidate.generate(texts, samples=1, temperature=0.0, **limits)
    sampled = candidate.generate(texts, samples=settings.samples, temperature=settings.temperature, **limits)
    first = [
        Sequence(tokenizer(text, add_special_tokens=False)["input_ids"], group[0].token_ids)
        for text, group in zip(texts, sampled, strict=True)
    ]
    entropies = policy_entropy(candidate.model, first, pad_id=tokenizer.pad_token_id, batch_tokens=8192)
    return [
        {"greedy": best[0].text, "samples": [sample.text for sample in group], "entropy": entropy}
        for best, group, entropy in zip(greedy, sampled, entropies, strict=True)
    ]


def _outcome(row: dict, prompt: Prompt, answer: dict, seen_tools: set[str]) -> dict:
    greedy, target, tools = answer["greedy"], prompt.target, prompt.tools
    reward, exact = similarity_reward(greedy, target, tools), exact_match(greedy, target, tools)
    return {
        "id": row["id"],
        "kind": row["kind"],
        "source": row["source"],
        "query": next(message["content"] for message in reversed(row["messages"]) if message["role"] == "user"),
        "expected": target,
        "predicted": greedy,
        "exact_match": float(exact),
        "reward": reward.total,
        "format_error": float(reward.format < 0),
        "mistake": None if exact else mistake(greedy, target, tools) or KINDS[-1],
        "passes": sum(exact_match(text, target, tools) for text in answer["samples"]),
        "entropy": answer["entropy"],
        "unseen_tool": bool(called_tools([row]) - seen_tools),
        "expected_call": "call" if row["messages"][-1].get("tool_calls") else "none",
        "predicted_call": "call" if _calls(greedy, tools) else "none",
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
    bounds = {"mean_reward": (-1.0, 1.0), "entropy": None}
    return {name: scored(column, seed=seed, bounds=bounds.get(name, (0.0, 1.0))) for name, column in values.items()}


def scored(values: list[float], *, seed: int, bounds: tuple[float, float] | None = (0.0, 1.0)) -> dict[str, float]:
    """A column as its mean with the 95% interval: {"mean", "low", "high"}."""
    low, high = mean_interval(values, seed=seed, bounds=bounds)
    return {"mean": fmean(values), "low": low, "high": high}


def _by_kind(outcomes: list[dict], *, seed: int) -> dict[str, dict[str, float]]:
    """Rows, exact match with its interval and mean reward of every kind, and of the rows that call a tool unseen in training."""
    groups = defaultdict(list)
    for outcome in outcomes:
        kind = outcome["kind"] if outcome["source"] == "generated" else f"{outcome['source']}: {outcome['kind']}"
        groups[kind].append(outcome)
    if unseen := [outcome for outcome in outcomes if outcome["unseen_tool"]]:
        groups["tool unseen in training"] = unseen
    kinds = {}
    for kind, group in sorted(groups.items()):
        exact = scored([o["exact_match"] for o in group], seed=seed)
        kinds[kind] = {
            "rows": len(group),
            "exact_match": exact["mean"],
            "low": exact["low"],
            "high": exact["high"],
            "mean_reward": fmean(o["reward"] for o in group),
        }
    return kinds


def _mistakes(outcomes: list[dict]) -> dict[str, dict[str, int]]:
    """Counts of every mistake, the most frequent first, by the kind of row it was made on."""
    found: dict[str, Counter] = defaultdict(Counter)
    for outcome in outcomes:
        if outcome["mistake"]:
            found[outcome["mistake"]][outcome["kind"]] += 1
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found, key=lambda k: (-found[k].total(), k))}
