"""Writes the model card, README.md of the published folder: scores, intended use, how to load it, its origin."""

from star.html_kit import escape_markdown

INTENDED_USE = (
    "Choosing and filling in calls of the tools that are in the prompt, in the Qwen tool-call format, in one or a few turns. The "
    "caller validates every call against the tool's schema before it runs it: the model can name wrong arguments, and a text from "
    "outside can talk it into a call. It is not meant for open conversation, for facts, or for calls that cannot be undone."
)
USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
```

or `vllm serve FOLDER --enable-auto-tool-choice --tool-call-parser hermes`."""


def model_card(name: str, *, license: str, entry: dict, evaluation: dict, lineage: dict) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads.

    Args:
        entry: the model's entry of the report.
        evaluation: the report, content of evaluation.json.
        lineage: content of lineage.json.
    """
    rows = "".join(_score_row(score, value) for score, value in entry["scores"].items())
    kinds = "".join(_kind_row(kind, found) for kind, found in (entry.get("by_kind") or {}).items())
    suites = ", ".join(f"{suite}: {found.get('rows', '?')} rows" for suite, found in evaluation["suite"].items())
    by_kind = f"\n| category | rows | exact match |\n|---|---:|---:|\n{kinds}" if kinds else ""
    return (
        f"---\nlicense: {license}\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"tags: [function-calling, tool-use, distillation]\n---\n\n# {escape_markdown(name)}\n\n"
        f"A function-calling model of {entry.get('parameters', 0):,} parameters, distilled with STAR (arXiv 2602.03022): "
        "constrained knowledge distillation from a larger teacher, then refinement with a similarity reward.\n\n"
        f"## Scores\n\nMeasured on {escape_markdown(suites)}; 95% intervals.\n\n| score | mean | interval |\n|---|---:|---:|\n"
        f"{rows}{by_kind}\n## Intended use\n\n{INTENDED_USE}\n\n## How to load it\n\n{USAGE}\n\n"
        f"## Where it comes from\n\n`lineage.json` beside this file; `star lineage` checks it. "
        f"Data `{lineage['data'][:12]}`, teacher `{lineage['teacher'][:12]}`, tokenizer `{lineage['tokenizer'][:12]}`.\n\n"
        f"## Licence\n\n{escape_markdown(license)}\n"
    )


def _score_row(score: str, value: dict) -> str:
    name = f"{score} (official reading)" if score == "mean_reward" else score
    return f"| {escape_markdown(name)} | {value['mean']:.4f} | {value['low']:.4f} to {value['high']:.4f} |\n"


def _kind_row(kind: str, found: dict) -> str:
    return f"| {escape_markdown(kind)} | {found.get('rows', '')} | {found.get('exact_match', float('nan')):.4f} |\n"
