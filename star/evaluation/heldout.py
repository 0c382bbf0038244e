"""Evaluates a model on the held-out rows: greedy exact match, reward, mistakes, sampled pass@k, policy entropy."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from star.chat import FormatError, parse_completion, parse_target, validate_calls
from star.data.rows import read_rows
from star.errors import InputError
from star.evaluation.candidate import Candidate
from star.evaluation.intervals import mean_score, pass_at_k
from star.evaluation.mistakes import BAD_FORMAT, MISTAKE_KINDS, classify_mistake
from star.evaluation.suite_scores import Score, ScoringSettings, SuiteScores
from star.modeling.prompts import Prompt, render_rows
from star.progress import Bar
from star.rewards.similarity import exact_match, similarity_reward

if TYPE_CHECKING:
    from star.modeling.generation import Sample

PASS_K = (1, 4, 8)
ENTROPY_BATCH_TOKENS = 8192


class Answers(TypedDict):
    """A model's answers to one prompt, as the journal keeps them. The entropy is over the first sample."""

    greedy: str
    samples: list[str]
    entropy: float


class HeldoutOutcome(TypedDict):
    """The result of one held-out row. `row` is its index among all rows, `passes` counts the exactly right samples.

    `format_error` is 1 where the strict parser refuses the greedy answer: exactly where `mistake` is "bad format". `reward`
    is the reward that Sim-RL trains on, which reads the answer as the official code does. `unscored` says why the row's
    own target is not valid, and is missing in all other rows.
    """

    row: NotRequired[int]
    id: str
    kind: str
    source: str
    query: str
    expected: str
    predicted: str
    exact_match: float
    reward: float
    format_error: float
    mistake: str | None
    passes: int
    entropy: float
    unseen_tool: bool
    expected_call: str
    predicted_call: str
    unscored: NotRequired[str]


def ask_suite(candidate: Candidate, data: Path | None) -> list[HeldoutOutcome]:
    """Asks the candidate its shard of the held-out rows. `data` is the folder of `star synthesize`."""
    if data is None:
        raise InputError("the suite heldout needs rows: give the folder of `star synthesize`")
    rows = list(read_rows(data / "heldout.jsonl"))
    seen_tools = called_tools(list(read_rows(data / "train.jsonl")))
    faults = {index: fault for index, row in enumerate(rows) if (fault := _fault_of_question(row))}
    left_out = [
        # The row's texts are left out as well, because nothing could write them.
        cast(HeldoutOutcome, {"row": len(rows) + index, "id": rows[index]["id"], "unscored": fault})
        for index, fault in candidate.shard.select(list(faults.items()))
    ]
    rows = [row for index, row in enumerate(rows) if index not in faults]
    asked = ask_heldout(candidate, rows, render_rows(rows, candidate.tokenizer), seen_tools=seen_tools)
    return [*asked, *left_out]


def score_suite(shards: list[list[HeldoutOutcome]], settings: ScoringSettings) -> SuiteScores:
    """Scores the outcomes of all shards, in the order of the rows."""
    outcomes = sorted((outcome for shard in shards for outcome in shard), key=lambda outcome: outcome["row"])
    return score_heldout(outcomes, samples=settings.samples, seed=settings.seed)


def ask_heldout(
    candidate: Candidate, rows: list[dict], prompts: list[Prompt], *, seen_tools: set[str]
) -> list[HeldoutOutcome]:
    """Answers the rows of the candidate's shard, each once greedily and `settings.samples` times at temperature.

    Args:
        rows: the held-out rows that `prompts` were rendered from, in the same order.
        seen_tools: names of the tools that training rows call. Rows that call another tool are also scored apart.

    Returns:
        The outcome on each row of the shard, in the order of the rows.
    """
    settings = candidate.settings
    # Prompts of similar length share a batch, because one long prompt pads all others to its length.
    order = sorted(range(len(rows)), key=lambda index: (len(prompts[index].text), index))
    batches = [order[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]
    # Numbered before the shard takes its own, so that a batch has the same rows and seed in any number of shards.
    numbered = candidate.shard.select(list(enumerate(batches)))
    outcomes: list[HeldoutOutcome] = []
    with Bar(f"evaluate the {candidate.name} model", len(numbered)) as bar:
        for number, batch in numbered:
            answers = _answer_batch(candidate, [prompts[index].text for index in batch], number=number)
            for index, answer in zip(batch, answers, strict=True):
                outcomes.append({"row": index, **_outcome(rows[index], prompts[index], answer, seen_tools)})
            bar.advance()
    return sorted(outcomes, key=lambda outcome: outcome["row"])


def score_heldout(outcomes: list[HeldoutOutcome], *, samples: int, seed: int) -> SuiteScores:
    """Scores the outcomes on all rows, in their order. Rows whose own target is not valid are left out and named.

    Returns:
        Scores, failures, and as details `by_kind`, `mistakes`, `call_confusion`, and `unscored` where rows are left out.

    Raises:
        InputError: no row can be scored.
    """
    unscored = [{"id": o["id"], "reason": o["unscored"]} for o in outcomes if "unscored" in o]
    outcomes = [o for o in outcomes if "unscored" not in o]
    if unscored and not outcomes:
        raise InputError(
            f"none of the {len(unscored)} held-out rows can be scored: the target of row {unscored[0]['id']} is not "
            f"valid ({unscored[0]['reason']}): make the data again with `star synthesize`"
        )
    details: dict[str, Any] = {
        "by_kind": _scores_by_kind(outcomes, seed=seed),
        "mistakes": _count_mistakes(outcomes),
        "call_confusion": dict(Counter(f"{o['expected_call']}_{o['predicted_call']}" for o in outcomes)),
    }
    if unscored:
        details["unscored"] = unscored
    # Plain dicts, which is what all suites have in common.
    rows = cast(list[dict[str, Any]], outcomes)
    return SuiteScores(_scores(outcomes, samples=samples, seed=seed), details, rows, _failures(rows))


def called_tools(rows: list[dict]) -> set[str]:
    """Names of the tools that the rows' targets call."""
    return {call["name"] for row in rows for call in row["messages"][-1].get("tool_calls") or []}


def _fault_of_question(row: dict) -> str | None:
    """Why a model cannot be asked a row; None for a valid one."""
    if len(row["messages"]) < 2:
        return "there is no message to answer"
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no tokenizer takes
        return "a text cannot be written as UTF-8"
    return None


def _answer_batch(candidate: Candidate, prompts: list[str], *, number: int) -> list[Answers]:
    """The answers to a batch of prompts, from the journal where they are in it."""
    sampling = candidate.settings.model_dump(mode="json", include={"samples", "temperature", "max_new_tokens"})
    # The batches of two evaluations with different seeds must not share a seed.
    seed = candidate.seed * 1_000_003 + number
    question = {"suite": "heldout", "prompts": prompts, "seed": seed, **sampling}
    return candidate.journal.once(question, lambda: _generate_answers(candidate, prompts, seed=seed))


def _generate_answers(candidate: Candidate, prompts: list[str], *, seed: int) -> list[Answers]:
    from star.modeling.decoding import PromptReading
    from star.modeling.entropy import EntropyMeter
    from star.modeling.prompt_groups import is_wide

    settings = candidate.settings
    local: dict[str, Any] = {"seed": seed, "max_new_tokens": settings.max_new_tokens}
    if not candidate.sampler:
        local["reading"] = PromptReading()
    # Exact match is greedy, because a model is used so. The samples are for pass@k and the entropy.
    greedy = candidate.generate(prompts, samples=1, temperature=0.0, **local)
    if is_measured := not candidate.sampler and is_wide(candidate.model):
        local["meter"] = EntropyMeter()
    sampled = candidate.generate(prompts, samples=settings.samples, temperature=settings.temperature, **local)
    if is_measured:
        lengths = [len(sample.token_ids) for group in sampled for sample in group]
        entropies = local["meter"].means(lengths)[:: settings.samples]
    else:
        entropies = _entropies(candidate, prompts, [group[0] for group in sampled])
    return [
        {"greedy": best[0].text, "samples": [sample.text for sample in group], "entropy": entropy}
        for best, group, entropy in zip(greedy, sampled, entropies, strict=True)
    ]


def _entropies(candidate: Candidate, prompts: list[str], samples: "list[Sample]") -> list[float]:
    """The mean entropy over each prompt's sample, by reading both once more."""
    from star.modeling.generation import Sequence, policy_entropy

    tokenizer = candidate.tokenizer
    sequences = [
        Sequence(tokenizer(prompt, add_special_tokens=False)["input_ids"], sample.token_ids)
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    return policy_entropy(candidate.model, sequences, pad_id=tokenizer.pad_token_id, batch_tokens=ENTROPY_BATCH_TOKENS)


def _outcome(row: dict, prompt: Prompt, answer: Answers, seen_tools: set[str]) -> HeldoutOutcome:
    greedy, target, tools = answer["greedy"], prompt.target, prompt.tools
    fault, exact = _fault_of_target(target, tools), exact_match(greedy, target, tools)
    # Exact match is stricter inside lists and objects, where `classify_mistake` finds True equal to 1.
    mistake = None if fault or exact else classify_mistake(greedy, target, tools) or MISTAKE_KINDS[-1]
    outcome: HeldoutOutcome = {
        "id": row["id"],
        "kind": row["kind"],
        "source": row["source"],
        "query": next((message["content"] for message in reversed(row["messages"]) if message["role"] == "user"), ""),
        "expected": target,
        "predicted": greedy,
        "exact_match": float(exact),
        "reward": similarity_reward(greedy, target, tools).total,
        "format_error": float(mistake == BAD_FORMAT),
        "mistake": mistake,
        "passes": sum(exact_match(text, target, tools) for text in answer["samples"]),
        "entropy": answer["entropy"],
        "unseen_tool": bool(called_tools([row]) - seen_tools),
        "expected_call": "call" if row["messages"][-1].get("tool_calls") else "none",
        "predicted_call": "call" if _makes_valid_calls(greedy, tools) else "none",
    }
    if fault:
        outcome["unscored"] = fault
    return outcome


def _fault_of_target(target: str, tools: list[dict]) -> str | None:
    """Why no answer can be right, not even the target itself; None for a valid target.

    `star synthesize` keeps no such row, but a set of other origin or of an older version may have some.
    """
    try:
        validate_calls(parse_target(target), tools)
    except FormatError as error:
        return str(error)
    return None


def _makes_valid_calls(text: str, tools: list[dict]) -> bool:
    try:
        completion = parse_completion(text)
        validate_calls(completion, tools)
    except FormatError:
        return False
    return bool(completion.tool_calls)


def _scores(outcomes: list[HeldoutOutcome], *, samples: int, seed: int) -> dict[str, Score]:
    values = {
        "exact_match": [o["exact_match"] for o in outcomes],
        "mean_reward": [o["reward"] for o in outcomes],
        "format_errors": [o["format_error"] for o in outcomes],
        "entropy": [o["entropy"] for o in outcomes],
    }
    for k in PASS_K:
        if k <= samples:
            estimates = [pass_at_k(samples, right, k) for right in range(samples + 1)]
            values[f"pass_at_{k}"] = [estimates[o["passes"]] for o in outcomes]
    # Shares lie in [0, 1]. The reward is -1 for a broken format, and the entropy has no upper bound.
    bounds: dict[str, tuple[float, float] | None] = {"mean_reward": (-1.0, 1.0), "entropy": None}
    return {name: mean_score(column, seed=seed, bounds=bounds.get(name, (0.0, 1.0))) for name, column in values.items()}


def _scores_by_kind(outcomes: list[HeldoutOutcome], *, seed: int) -> dict[str, dict[str, float]]:
    """For each kind of row the number of rows, exact match with its interval, and mean reward.

    Rows that the offline generator did not make are grouped by their source as well. The rows that call a tool unseen
    in training are one more group.
    """
    groups: dict[str, list[HeldoutOutcome]] = defaultdict(list)
    for outcome in outcomes:
        kind = outcome["kind"] if outcome["source"] == "generated" else f"{outcome['source']}: {outcome['kind']}"
        groups[kind].append(outcome)
    if unseen := [outcome for outcome in outcomes if outcome["unseen_tool"]]:
        groups["tool unseen in training"] = unseen
    kinds = {}
    for kind, group in sorted(groups.items()):
        exact = mean_score([o["exact_match"] for o in group], seed=seed)
        kinds[kind] = {
            "rows": len(group),
            "exact_match": exact["mean"],
            "low": exact["low"],
            "high": exact["high"],
            "mean_reward": fmean(o["reward"] for o in group),
        }
    return kinds


def _count_mistakes(outcomes: list[HeldoutOutcome]) -> dict[str, dict[str, int]]:
    """Counts of every mistake by the kind of row, the most frequent mistake first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        if outcome["mistake"]:
            counts[outcome["mistake"]][outcome["kind"]] += 1
    most_frequent_first = sorted(counts, key=lambda mistake: (-counts[mistake].total(), mistake))
    return {mistake: dict(sorted(counts[mistake].items())) for mistake in most_frequent_first}


def _failures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Ties by id, so that the order of equal rewards is the same in every run.
    return sorted((row for row in rows if not row["exact_match"]), key=lambda row: (row["reward"], row["id"]))
