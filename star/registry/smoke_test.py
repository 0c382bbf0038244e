"""Runs the smoke test of a published model: loads the downloaded folder and has it answer one request with tools.

Weights that were converted for publication are compared with the trained ones: how far apart the two models' predictions are at each
token of that answer. A converted model that predicts something else is not the one that was evaluated.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from star.config.files import packaged_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

QUERY = "Book a flight from Oslo to Rome"
NEW_TOKENS = 72
# Mean KL divergence in nats per token. Rounding to bf16 costs less than a thousandth; an answer changes with tenths.
LARGEST_DIVERGENCE = 0.05


def run_smoke_test(folder: Path, *, trained: Path | None = None) -> str:
    """Loads a model folder, asks it for a flight with the packaged tools, and returns a sentence with its answer.

    An answer in a broken format passes: how often that may happen is the gate's `max_format_errors`.

    Args:
        trained: the folder of the same model before its weights were converted; they are compared.

    Raises:
        InputError: the folder cannot be loaded.
        RuntimeError: the model generates nothing, or does not predict what the trained weights predict.
    """
    from star.chat import FormatError, parse_completion, render_prompt
    from star.data.tool_files import load_tools
    from star.data.tools import public_tool
    from star.modeling.generation import generate
    from star.modeling.models import load_model, load_tokenizer
    from star.modeling.trial import try_model

    tools = [public_tool(tool) for tool in load_tools(packaged_file("travel.json"))]
    messages = [{"role": "user", "content": QUERY}]
    try_model(folder, conversations=[{"messages": messages, "tools": tools}])
    tokenizer = load_tokenizer(folder)
    prompt = render_prompt(messages, tools, tokenizer)
    model = load_model(folder)
    # Temperature 0, so that the same files always give the same answer.
    [[sample]] = generate(model, tokenizer, [prompt], samples=1, temperature=0.0, max_new_tokens=NEW_TOKENS, seed=0)
    if not sample.token_ids:
        raise RuntimeError("it generates nothing")
    del model  # two models need not be in memory at once
    compared = ""
    if trained is not None:
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        compared = _compare_with_trained(folder, trained, prompt_ids=prompt_ids, answer_ids=sample.token_ids)
    try:
        tool_calls = parse_completion(sample.text).tool_calls
    except FormatError:
        return f"the published model loads and answers a request with tools, though not in the format{compared}"
    names = ", ".join(json.dumps(call["name"], ensure_ascii=False) for call in tool_calls)
    answer = f"calls {names}" if tool_calls else "in words"
    return f"the published model loads and answers a request with tools ({answer}){compared}"


def _compare_with_trained(folder: Path, trained: Path, *, prompt_ids: list[int], answer_ids: list[int]) -> str:
    """Returns a part of a sentence with the KL divergence of the published model from the trained one, averaged over an answer.

    Raises:
        RuntimeError: it is too large, or no number.
    """
    from star.modeling.models import load_model

    def logprobs_of(place: Path) -> "torch.Tensor":
        # Both in fp32: what is compared are the weights, not how a processor computes with them.
        return _answer_logprobs(load_model(place, precision="fp32"), prompt_ids=prompt_ids, answer_ids=answer_ids)

    published_TV, trained_TV = logprobs_of(folder), logprobs_of(trained)
    divergence = float((trained_TV.exp() * (trained_TV - published_TV)).sum(-1).mean())
    if not divergence <= LARGEST_DIVERGENCE:
        raise RuntimeError(
            f"its converted weights do not predict what the trained ones do: {divergence:.4f} nats per token apart, at most "
            f"{LARGEST_DIVERGENCE} are allowed; publish with `registry.precision: fp32`"
        )
    return f", {max(divergence, 0.0):.5f} nats per token from the trained weights"


def _answer_logprobs(model: "PreTrainedModel", *, prompt_ids: list[int], answer_ids: list[int]) -> "torch.Tensor":
    """The log-probabilities [T, V] at each of the T tokens of an answer. V vocabulary."""
    import torch

    model.eval()
    input_ids = torch.tensor([prompt_ids + answer_ids[:-1]], device=model.device)
    with torch.inference_mode():
        logits_1TV = model(input_ids=input_ids, use_cache=False, logits_to_keep=len(answer_ids)).logits
    return torch.log_softmax(logits_1TV[0].float(), dim=-1)
