"""Rehearses a run in seconds: what would otherwise be found only after the teacher's work is found before it.

The steps, each with the functions that the stages themselves use:

    rows        makes a few rows as the profile does, from its tools and its seed data
    teacher     loads config, tokenizer and model (actors.py says when with its weights)
    student     the same
    tokenizers  compares both id by id, and the heads with the number of tokens
    template    renders the rows; the prompts must show the tools; a right answer must be read as right
    rehearsal   samples a few tokens, extracts the top-k of the answers, and makes one distillation step

A step that fails is one line with what to do, and the steps that need its result are left out.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from star.config.experiment import Config
from star.config.models import Architecture
from star.config.safety import use_safety
from star.doctor.actors import Actor, load_actor
from star.doctor.check import Check, run_check
from star.doctor.sample_rows import sample_rows
from star.errors import InputError

if TYPE_CHECKING:
    from star.modeling.prompts import Prompt

REHEARSED_ROWS = 4  # rendered and trained on
SAMPLED_TOKENS = 16
THINK_TAGS = re.compile(r"</?think>\s*")


def rehearse(config: Config) -> Iterator[Check]:
    """Yields the result of each step, up to the first one that fails."""
    use_safety(config.safety)
    rehearsal = _Rehearsal(config)
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("rows", rehearsal.make_rows),
        ("teacher", rehearsal.load_teacher),
        ("student", rehearsal.load_student),
        ("tokenizers", rehearsal.compare_tokenizers),
        ("template", rehearsal.render),
        ("rehearsal", rehearsal.distil),
    )
    for name, step in steps:
        # The stages' bars and warnings would stand between the lines of the checks.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            check = run_check(name, partial(_explain_failure, step))
        yield check
        if not check.passed:
            return


def _explain_failure(step: Callable[[], str]) -> str:
    """Calls a step. An error that it does not foresee would end the stage in the same way, so it fails the check."""
    try:
        return step()
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(
            f"a stage would fail with {type(error).__name__}: {reason}; `star rollout` or `star distill` on a few rows "
            "show where"
        ) from error


class _Rehearsal:
    """The steps in their order. Each leaves what the later ones need."""

    rows: list[dict[str, Any]]
    teacher: Actor
    student: Actor
    prompts: list["Prompt"]

    def __init__(self, config: Config) -> None:
        self.config = config

    def make_rows(self) -> str:
        self.rows, looked_at = sample_rows(self.config)
        return f"{len(self.rows)} clean rows of the first {looked_at}"

    def load_teacher(self) -> str:
        self.teacher = load_actor(self.config.teacher, self.config, rows=self.rows)
        return f"{self.teacher.source}: {self.teacher.loaded}"

    def load_student(self) -> str:
        self.student = load_actor(self.config.student, self.config, rows=self.rows, teacher=self.teacher)
        return f"{self.student.source}: {self.student.loaded}"

    def compare_tokenizers(self) -> str:
        """Compares the tokenizers id by id. The heads need a row for every token; more rows are padding."""
        from star.modeling.tokenizer import tokenizer_differences, vocabulary_size

        teacher, student = self.teacher, self.student
        if differences := tokenizer_differences(teacher.tokenizer, student.tokenizer):
            raise InputError(
                f"{teacher.source} and {student.source} have different tokenizers ({differences}), so the teacher's ids "
                "mean nothing to the student: choose a student of the teacher's family"
            )
        tokens = min(vocabulary_size(teacher.tokenizer), teacher.rows)
        if student.rows < tokens:
            raise InputError(
                f"the head of {student.source} has {student.rows:,} rows and the tokenizer {tokens:,} tokens: choose a "
                "student whose head has a row for every token, or resize its embeddings"
            )
        heads = f"{tokens:,} tokens"
        if (teacher.rows, student.rows) != (tokens, tokens):
            heads += (
                f"; the heads have {teacher.rows:,} and {student.rows:,} rows, those that are no token are left out"
            )
        if isinstance(self.config.student.base, Architecture):
            return heads
        return f"{teacher.source} and {student.source} share one tokenizer, {heads}"

    def render(self) -> str:
        """Renders rows with the template that all stages use: the teacher's, which the student gets with the tokenizer."""
        from star.modeling.prompts import within_length

        teacher = self.teacher
        # Of every kind one, and those with tools first: they are what the template may lack. The shortest, because longer ones than
        # max_prompt_tokens are left out.
        by_length = sorted(self._answered_rows(), key=lambda row: len(str(row)), reverse=True)
        chosen = {row.get("kind", ""): row for row in by_length if row["tools"]} or {"": by_length[-1]}
        rendered = self._render_rows(list(chosen.values())[:REHEARSED_ROWS], teacher)
        self.prompts = within_length(rendered, teacher.tokenizer, max_prompt_tokens=self.config.max_prompt_tokens)
        for prompt in self.prompts:
            # A name with quotes or other signs may be escaped in the prompt.
            properties = [name for tool in prompt.tools for name in tool["parameters"].get("properties", {})]
            names = [tool["name"] for tool in prompt.tools] + [name for name in properties if name.isidentifier()]
            if hidden := [name for name in names if name not in prompt.text]:
                raise InputError(
                    f"the chat template of {teacher.source} leaves the tools out of the prompt ({hidden[0]} is not in "
                    "it): set `teacher.chat_template: qwen3`, or give its folder a chat_template.jinja that takes tools"
                )
        # Supervised training teaches the answers behind any header.
        if self.config.teacher.sft is None:
            self._compare_headers()
        self.answers = [self._tokenized_answer(prompt) for prompt in self.prompts]
        found = f"{len(self.prompts)} rows rendered with their tools, right answers are read as right"
        if opening := self.prompts[0].opening:
            found += f"; the template begins the answer with {opening!r}, which counts as the model's"
        return f"{found}{self._about_the_students_template()}"

    def _answered_rows(self) -> list[dict[str, Any]]:
        from star.data.rows import is_answered

        if not (answered := list(filter(is_answered, self.rows))):
            raise InputError(f"none of the first {len(self.rows)} rows has an answer to train on: give rows that have")
        return answered

    def _render_rows(self, rows: list[dict[str, Any]], actor: Actor) -> list["Prompt"]:
        from star.modeling.prompts import render_rows

        try:
            return render_rows(rows, actor.tokenizer)
        except Exception as error:  # a template raises what jinja or its author chose
            raise InputError(
                f"the chat template of {actor.source} cannot render a row with tools ({type(error).__name__}: {error}): "
                "set `teacher.chat_template: qwen3`, or give its folder a chat_template.jinja that takes tools"
            ) from error

    def _compare_headers(self) -> None:
        """Compares what the template writes before an answer with what it writes at the end of a prompt.

        Behind a header that it was not trained with, a model first writes the rest of its own, or something else, and its
        answers break the format. The think tags may differ.

        Raises:
            InputError: they differ.
        """
        from star.chat import prompt_opening, render_prompt

        tokenizer, asked, answer = self.teacher.tokenizer, "rehearsed request", "rehearsed answer"
        user = {"role": "user", "content": asked}
        tools: list[Any] = [{"type": "function", "function": tool} for tool in self.prompts[0].tools]
        prompt = render_prompt([user], tools, tokenizer)
        told = tokenizer.apply_chat_template(
            [user, {"role": "assistant", "content": answer}], tools=tools or None, tokenize=False
        )
        assert isinstance(told, str)  # noqa: S101 - ids only with `tokenize`
        headers = [
            prompt.removesuffix(prompt_opening(prompt)).partition(asked)[2].strip(),
            THINK_TAGS.sub("", told.partition(asked)[2].partition(answer)[0]).strip(),
        ]
        if headers[0] != headers[1]:
            raise InputError(
                f"the chat template of {self.teacher.source} ends a prompt with {headers[0]!r} and begins an answer after "
                f"{headers[1]!r}, so its answers would break the format: correct the part under `add_generation_prompt` in its "
                "chat_template.jinja, train it on the rows with teacher.sft, or choose a teacher that answers so"
            )

    def _tokenized_answer(self, prompt: "Prompt") -> dict[str, Any]:
        """The row of a rollout whose sample is the right answer, in the tokens that a training teaches.

        Raises:
            InputError: the rollout would drop it, or the reward would not pay it in full.
        """
        from star.modeling.generation import Sample
        from star.modeling.training import IGNORE_INDEX
        from star.teacher.rollout import assign_verdicts
        from star.teacher.sft import SupervisedRows

        tokenizer = self.teacher.tokenizer
        ids = [label for label in SupervisedRows([prompt], tokenizer)[0]["labels"] if label != IGNORE_INDEX]
        text = tokenizer.decode(ids[:-1], skip_special_tokens=False)
        assert isinstance(text, str)  # noqa: S101 - a list only for a batch
        [row] = assign_verdicts(prompt, [Sample(prompt.opening + text, ids, True)], tokenizer)
        if row["verdict"] != "kept" or row["reward"] < 1:
            raise InputError(
                f"the right answer to row {prompt.row_id} becomes {row['completion'][:200]!r} in the tokens of "
                f"{self.teacher.source}, which reads as {row['verdict']} with reward {row['reward']:.2f}: choose a model "
                "whose tokenizer gives text back as it was"
            )
        return row

    def _about_the_students_template(self) -> str:
        """Says where the student's own template differs, because it is not used."""
        if self.student.own_template in (None, self.teacher.tokenizer.chat_template):
            return ""
        return "; the student's own template differs and is not used: it learns the teacher's, which is saved with it"

    def distil(self) -> str:
        """Samples a few tokens, stores the teacher's top-k of the answers, and computes one loss with its gradient."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from star.topk.sequences import SCHEMA, SEQUENCES

        sampled = self._sample()
        with TemporaryDirectory() as place:
            folder = Path(place)
            pq.write_table(pa.Table.from_pylist(self.answers, schema=SCHEMA), folder / SEQUENCES)
            tokens = self._extract(folder)
            loss = self._loss(folder)
        kind = self.config.distill.kind.upper()
        return f"{sampled}; top-k of {tokens} tokens; {kind} loss {loss:.3g} with its gradient"

    def _sample(self) -> str:
        from star.modeling.generation import generate
        from star.teacher.rollout import sample_batch

        limits = {"samples": 1, "retries": 0, "max_new_tokens": min(SAMPLED_TOKENS, self.config.rollout.max_new_tokens)}
        settings = self.config.rollout.model_copy(update=limits)
        sampler = partial(generate, self.teacher.model)
        [row] = sample_batch(
            sampler, self.teacher.tokenizer, self.prompts[:1], settings=settings, seed=self.config.seed
        )
        return f"sampled {len(row['completion_ids'])} tokens"

    def _extract(self, folder: Path) -> int:
        """Writes the top-k store of the answers; returns their number of tokens."""
        from star.modeling.head import require_head_output
        from star.teacher.extract import choose_ids, model_top_k
        from star.topk.sequences import read_sequences
        from star.topk.store import TopKWriter

        model, tokenizer = self.teacher.model.eval(), self.teacher.tokenizer
        if not (self.config.topk.server or self.config.topk.vllm):
            require_head_output(model)
        stored = choose_ids(tokenizer, rows=self.teacher.rows, top_k=self.config.topk.top_k)
        top_k = model_top_k(model, pad_id=tokenizer.pad_token_id, k=stored.k, excluded_ids=stored.excluded_ids)
        ids, sequences = read_sequences(folder)
        with TopKWriter(folder, stored.k, vocab_size=stored.vocab_size) as writer:
            for sequence_id, (ids_TK, logprobs_TK) in zip(ids, top_k(list(sequences)), strict=True):
                writer.add(sequence_id, ids_TK, logprobs_TK)
        return sum(len(sequence.completion_ids) for sequence in sequences)

    def _loss(self, folder: Path) -> float:
        from star.ckd.trainer import CKDTrainer

        count = len(self.answers)
        one_step = {"steps": 1, "epochs": None, "batch_size": count, "micro_batch_size": count, "lora": None}
        trainer = CKDTrainer(
            self.student.model,
            folder,
            settings=self.config.distill.model_copy(update=one_step),
            state=folder / "state",
            pad_id=self.teacher.tokenizer.pad_token_id,
            seed=self.config.seed,
            precision=self.config.precision,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        try:
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        except ValueError as error:
            raise InputError(
                f"the distillation of {self.student.source} fails ({error}): its weights are damaged, download it again"
            ) from error
        loss.backward()
        return loss.item()
