"""What the tests ask of vLLM's own Python, in one process: `inside.py parse MODEL` or `inside.py trl`. JSON in, JSON out."""

import ast
import dataclasses
import inspect
import json
import sys
from pathlib import Path


def parse(model: str, texts: list[str]) -> list[list[dict] | None]:
    """The calls that vLLM's parser `hermes` reads from each text; None where it takes the text for a reply."""
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    parser = Hermes2ProToolParser(AutoTokenizer.from_pretrained(model))
    request = ChatCompletionRequest(messages=[], model="tiny")
    found = [parser.extract_tool_calls(text, request) for text in texts]
    return [
        [{"name": call.function.name, "arguments": json.loads(call.function.arguments)} for call in made.tool_calls]
        if made.tools_called
        else None
        for made in found
    ]


def check_trl() -> dict:
    """Builds the arguments of Sim-RL with vLLM, and compares what TRL passes to vLLM with vLLM's own classes."""
    import trl.generation.vllm_generation as generation
    import vllm
    from trl.import_utils import is_vllm_available
    from vllm.engine.arg_utils import EngineArgs

    from star.config.load import load_config
    from star.simrl.grpo_config import grpo_config

    profile = load_config("qwen3-0.6b")
    arguments = grpo_config(profile.refine, folder=Path("none"), seed=7, bf16=False, prompts=100, longest_prompt=5000)
    tree = ast.parse(inspect.getsource(generation))
    passed = {
        name: {keyword.arg for call in calls(tree, name) for keyword in call.keywords if keyword.arg}
        for name in ("LLM", "SamplingParams")
    }
    # These few are of LLM itself.
    known = {field.name for field in dataclasses.fields(EngineArgs)} | set(inspect.signature(vllm.LLM).parameters)
    return {
        "version": vllm.__version__,
        "available": is_vllm_available(),
        "arguments": {name: value for name, value in vars(arguments).items() if name.startswith(("vllm_", "use_vllm"))},
        "passed": sorted(passed["LLM"]),
        "unknown to LLM": sorted(passed["LLM"] - known),
        "unknown to SamplingParams": sorted(passed["SamplingParams"] - {*vllm.SamplingParams.__struct_fields__}),
    }


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


if __name__ == "__main__":
    answer = parse(sys.argv[2], json.load(sys.stdin)) if sys.argv[1] == "parse" else check_trl()
    # vLLM and TRL print more lines.
    print("\n" + json.dumps(answer, default=str))
