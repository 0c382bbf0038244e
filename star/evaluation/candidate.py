"""A model as the suites see it: prompts in, texts out, every batch kept in a journal and its time counted."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from star.config.evaluation import Evaluate
from star.evaluation.journal import Journal
from star.folders.shard import WHOLE, Shard
from star.modeling.tokenizer import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from star.modeling.generation import Sample

BATCH_TOKENS = 65536  # prompt tokens per generation batch, padding counted: bounds the memory of long conversations
LATENCY_PROMPTS = 8  # kept from the first batch, to measure the latency with
# The measurement of the latency ends with whichever comes first: on a CPU, a large model that never ends its answers
# would take longer for it than for the rows of a small evaluation.
LATENCY_ANSWERS = 5
LATENCY_SECONDS = 10.0
LATENCY_TOKENS = 128  # an answer is cut there
WARM_UP_TOKENS = 4


@dataclass
class Candidate:
    """A model under evaluation, the settings it is asked with, and what its answers took.

    Attributes:
        seed: random seed of the evaluation.
        shard: which of the suites' batches and categories the model is asked.
        sampler: what generates in place of the model in this process, with the arguments of star.modeling.generation.generate.
        tokens: tokens that this process generated. What the journal recalled is not counted.
        seconds: time that this process generated for.
        first_prompts: a few of the prompts that this process generated from.
    """

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    settings: Evaluate
    seed: int
    journal: Journal
    shard: Shard = WHOLE
    sampler: Callable[..., list[list["Sample"]]] | None = None
    tokens: int = 0
    seconds: float = 0.0
    first_prompts: list[str] = field(default_factory=list)

    def generate(
        self, prompts: list[str], *, samples: int, temperature: float, seed: int, max_new_tokens: int, **shared: Any
    ) -> list[list["Sample"]]:
        """Generates as star.modeling.generation.generate, and counts tokens and seconds.

        Args:
            shared: `reading` and `meter` of that function, for a model in this process.
        """
        began = time.monotonic()
        groups = self._generate(
            prompts, samples=samples, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens, **shared
        )
        self.seconds += time.monotonic() - began
        self.first_prompts = self.first_prompts or prompts[:LATENCY_PROMPTS]
        self.tokens += sum(len(sample.token_ids) for group in groups for sample in group)
        return groups

    def _generate(self, prompts: list[str], **settings: Any) -> list[list["Sample"]]:
        if self.sampler:
            return self.sampler(self.tokenizer, prompts, **settings)
        from star.modeling.generation import generate

        return generate(self.model, self.tokenizer, prompts, **settings)

    def reply(self, suite: str, prompts: list[str]) -> list[dict[str, str]]:
        """Answers each prompt greedily.

        Args:
            suite: name of the suite that asks; part of the journal's key.

        Returns:
            For each prompt {"text": ...}, or {"error": ...} where the prompt fills the model's context.
        """
        question = {"suite": suite, "prompts": prompts, "max_new_tokens": self.settings.max_new_tokens}
        return self.journal.once(question, lambda: self._reply(prompts))

    def _reply(self, prompts: list[str]) -> list[dict[str, str]]:
        lengths = [len(ids) for batch in tokenize(prompts, self.tokenizer) for ids in batch]
        # Some configurations name no context; then no prompt is too long.
        context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        replies = [{"error": f"the prompt has {length} tokens, the model's context {context}"} for length in lengths]
        # Batches of similar length, the longest first: the largest batch shows at once whether there is enough memory.
        fitting = sorted((i for i, length in enumerate(lengths) if length < context), key=lambda i: (lengths[i], i))
        while fitting:
            longest = lengths[fitting[-1]]
            size = max(1, min(self.settings.batch_size, BATCH_TOKENS // longest))
            batch, fitting = fitting[-size:], fitting[:-size]
            groups = self.generate(
                [prompts[i] for i in batch],
                samples=1,
                temperature=0.0,
                seed=self.seed,
                # The answer must fit into what the longest prompt of the batch leaves.
                max_new_tokens=min(self.settings.max_new_tokens, context - longest),
            )
            for index, [sample] in zip(batch, groups, strict=True):
                replies[index] = {"text": sample.text}
        return replies

    def measure_latency(self) -> float:
        """Median seconds from a prompt to its whole greedy answer, asked alone, over some of `first_prompts`.

        At most LATENCY_ANSWERS answers of at most LATENCY_TOKENS tokens; after LATENCY_SECONDS no other is begun.
        """
        prompts = (self.first_prompts * LATENCY_ANSWERS)[:LATENCY_ANSWERS]
        self._answer_alone(prompts[0], max_new_tokens=WARM_UP_TOKENS)  # fills caches, and is not counted
        seconds: list[float] = []
        while len(seconds) < len(prompts) and sum(seconds) < LATENCY_SECONDS:
            began = time.monotonic()
            self._answer_alone(prompts[len(seconds)], max_new_tokens=LATENCY_TOKENS)
            seconds.append(time.monotonic() - began)
        return median(seconds)

    def _answer_alone(self, prompt: str, *, max_new_tokens: int) -> None:
        most = min(max_new_tokens, self.settings.max_new_tokens)
        self._generate([prompt], samples=1, temperature=0.0, max_new_tokens=most, seed=self.seed)
