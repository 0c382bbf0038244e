"""Estimates what each stage costs: time of a core and of a card, disk. docs/scale.md says what they rest on.

    teacher, student = ModelSize(8.19e9, 147_456, 36), ModelSize(0.596e9, 114_688, 28)
    work = workload_of(load_config("qwen3-0.6b"), teacher=teacher, student=student, vocab_size=151_936)
    stage_costs(work)["rollout"].card_seconds / 3600          # hours of one card, H100 with 80 GB

cost_tables.py writes the tables of docs/scale.md with the same formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from star.config.experiment import Config
from star.config.training import SimRL, Training
from star.doctor.sample_rows import COMPLETION_TOKENS, PROMPT_TOKENS, Lengths, typical_lengths
from star.topk.disk_space import max_bytes_per_token

# Measured with benchmarks/scale.py: seconds of one core, and bytes.
SECONDS_TO_MAKE_A_ROW = 0.0007  # generated or imported, and cleaned
SECONDS_TO_SCORE_AN_ANSWER = 0.00004
SECONDS_TO_COMPARE_A_ROW = 0.0001  # three models: intervals, differences, reports
SECONDS_TO_STORE_A_TOKEN = 1.3e-5  # at top_k = 100; in proportion to it
SECONDS_TO_HASH_A_BYTE = 7e-10
BYTES_OF_A_ROW = 1000
SECONDS_TO_SORT_AN_ID = 1.6e-7  # of the rollout's sequences: written, sorted, merged
BYTES_OF_AN_OUTCOME = 130  # of one model and row, in outcomes.jsonl
BYTES_OF_AN_ID = 2.3  # in the rollout's sequences.parquet
BYTES_OF_A_MAPPED_ID = 4  # in the extraction's sequences.arrow

# From the data sheet of the card; the shares of it that software reaches are assumed, no card was at hand to measure them.
CARD = "H100 80 GB"
FLOPS = 989e12  # in bf16, dense
BYTES_PER_SECOND = 3.35e12  # of its memory
CARD_MEMORY = 80e9
TRAINING_UTILISATION, PREFILL_UTILISATION, DECODING_UTILISATION = 0.35, 0.5, 0.6


@dataclass(frozen=True)
class ModelSize:
    """A model: its number of parameters, the bytes that keys and values of one token take in bf16, and its number of layers."""

    parameters: float
    cache_bytes: float
    layers: int


@dataclass(frozen=True)
class Workload:
    """Everything that the costs depend on.

    Attributes:
        training_rows: rows of the training set.
        rows: those of them that are rolled out.
        made_rows, heldout_rows: rows that are generated, and rows that are evaluated on.
        samples, evaluated_samples: answers drawn for each row.
        warm_sequences: that the teacher's supervised training sees.
        healed_sequences, distilled_sequences: that healing and distillation see.
        samples_per_distilled_prompt: for which the distillation computes a prompt once.
        samples_per_extracted_prompt: for which the extraction does.
        teacher_refine, student_refine: completions that Sim-RL draws and trains on, in all.
        teacher_group, student_group: completions that Sim-RL draws of one prompt.
        prompt_tokens, completion_tokens: means over the rows that are trained on.
        heldout_prompt_tokens: mean over the rows that are evaluated on.
        bases: pretrained bases that are evaluated beside the models trained from them.
        longest_answer: tokens that an evaluated answer may have: a pretrained base writes to the last one.
    """

    teacher: ModelSize
    student: ModelSize
    training_rows: int
    rows: int
    made_rows: int
    heldout_rows: int
    samples: int
    evaluated_samples: int
    top_k: int
    vocab_size: int
    warm_sequences: int
    healed_sequences: int
    distilled_sequences: int
    samples_per_distilled_prompt: int
    samples_per_extracted_prompt: int
    teacher_refine: int
    student_refine: int
    teacher_group: int
    student_group: int
    prompt_tokens: float = PROMPT_TOKENS
    completion_tokens: float = COMPLETION_TOKENS
    heldout_prompt_tokens: float = PROMPT_TOKENS
    bases: tuple[ModelSize, ...] = ()
    longest_answer: float = 512

    @property
    def distilled_length(self) -> float:
        """Tokens that the distillation computes of each sequence: its own, and its share of the prompt."""
        return self.prompt_tokens / self.samples_per_distilled_prompt + self.completion_tokens

    @property
    def extracted_length(self) -> float:
        """Tokens that the extraction computes of each sequence: its own, and its share of the prompt."""
        return self.prompt_tokens / self.samples_per_extracted_prompt + self.completion_tokens


@dataclass(frozen=True)
class Cost:
    """What one stage costs.

    Attributes:
        core_seconds: time of one core, for what no card does.
        card_seconds: time of one card, without the time to load models.
        disk: bytes that the result takes.
    """

    core_seconds: float
    card_seconds: float
    disk: float


def workload_of(
    config: Config,
    *,
    teacher: ModelSize,
    student: ModelSize,
    bases: Sequence[ModelSize] = (),
    vocab_size: int,
    lengths: Lengths | None = None,
) -> Workload:
    """The work of a configuration.

    Args:
        bases: that are evaluated too.
        lengths: of its rows; by default typical ones within its limits.
    """
    lengths = lengths or typical_lengths(config)
    rows = min(config.rollout.prompts or lengths.rows, lengths.rows)
    # At most: how many samples of the teacher are kept is not known before.
    samples = rows * config.rollout.samples
    return Workload(
        teacher=teacher,
        student=student,
        training_rows=lengths.rows,
        rows=rows,
        made_rows=lengths.read_rows,
        heldout_rows=config.data.heldout_rows,
        samples=config.rollout.samples,
        evaluated_samples=1 + config.evaluate.samples,
        top_k=min(config.topk.top_k, vocab_size),
        vocab_size=vocab_size,
        warm_sequences=_sequences(config.teacher.sft, lengths.rows),
        healed_sequences=_sequences(config.student.heal, samples),
        distilled_sequences=_sequences(config.distill, samples),
        samples_per_distilled_prompt=_samples_per_distilled_prompt(config),
        # vLLM and servers compute it again for each.
        samples_per_extracted_prompt=1 if config.topk.vllm or config.topk.server else config.rollout.samples,
        teacher_refine=_completions(config.teacher.refine, lengths.rows),
        student_refine=_completions(config.refine, lengths.rows),
        teacher_group=config.teacher.refine.num_generations if config.teacher.refine else 1,
        student_group=config.refine.num_generations,
        prompt_tokens=lengths.prompt_tokens,
        completion_tokens=min(lengths.completion_tokens, config.rollout.kept_tokens),
        heldout_prompt_tokens=lengths.heldout_prompt_tokens,
        bases=tuple(bases),
        longest_answer=config.evaluate.max_new_tokens,
    )


def stage_costs(work: Workload) -> dict[str, Cost]:
    """The cost of each stage by its name."""
    length = work.prompt_tokens + work.completion_tokens
    answers, teacher, student = work.rows * work.samples, work.teacher, work.student
    stored_bytes = store_bytes(work)
    ids = work.rows * work.prompt_tokens + answers * work.completion_tokens
    evaluated, models = work.heldout_rows * work.evaluated_samples, 3 + len(work.bases)
    of_base = replace(work, completion_tokens=work.longest_answer)
    asked = [(model, work) for model in (teacher, student, student)] + [(model, of_base) for model in work.bases]
    return {
        "synthesize": Cost(work.made_rows * SECONDS_TO_MAKE_A_ROW, 0, work.made_rows * BYTES_OF_A_ROW),
        "refine-teacher": Cost(
            0,
            training_seconds(teacher, work.warm_sequences * length)
            + simrl_seconds(teacher, work, completions=work.teacher_refine, per_prompt=work.teacher_group),
            4 * teacher.parameters,
        ),
        "rollout": Cost(
            answers * SECONDS_TO_SCORE_AN_ANSWER + ids * SECONDS_TO_SORT_AN_ID,
            generation_seconds(teacher, work, prompts=work.rows, answers=answers),
            BYTES_OF_AN_ID * ids,
        ),
        "extract-topk": Cost(
            answers * work.completion_tokens * SECONDS_TO_STORE_A_TOKEN * work.top_k / 100,
            2 * teacher.parameters * answers * work.extracted_length / (FLOPS * PREFILL_UTILISATION),
            stored_bytes + BYTES_OF_A_MAPPED_ID * ids,
        ),
        "distill": Cost(
            stored_bytes * SECONDS_TO_HASH_A_BYTE,
            training_seconds(student, work.healed_sequences * length)
            + training_seconds(student, work.distilled_sequences * work.distilled_length),
            4 * student.parameters,
        ),
        "refine": Cost(
            0,
            simrl_seconds(student, work, completions=work.student_refine, per_prompt=work.student_group),
            4 * student.parameters,
        ),
        "evaluate": Cost(
            models * (evaluated * SECONDS_TO_SCORE_AN_ANSWER + work.heldout_rows * SECONDS_TO_COMPARE_A_ROW / 3),
            sum(generation_seconds(model, of, prompts=work.heldout_rows, answers=evaluated) for model, of in asked),
            models * work.heldout_rows * BYTES_OF_AN_OUTCOME,
        ),
    }


def store_bytes(work: Workload) -> float:
    """What the teacher's signal takes at most: the bound holds for any output of a softmax, and few stay far below it."""
    tokens = work.rows * work.samples * work.completion_tokens
    return tokens * max_bytes_per_token(work.top_k, work.vocab_size)


def training_seconds(model: ModelSize, tokens: float) -> float:
    """Card seconds of a supervised training: forward and backward, the activations computed twice."""
    return 8 * model.parameters * tokens / (FLOPS * TRAINING_UTILISATION)


def generation_seconds(model: ModelSize, work: Workload, *, prompts: float, answers: float) -> float:
    """Card seconds of sampling with vLLM: each prompt is read once, then a step reads weights and caches for a full batch."""
    context = work.prompt_tokens + work.completion_tokens / 2
    weights = 2 * model.parameters
    batch = max(1.0, (0.9 * CARD_MEMORY - weights) / (model.cache_bytes * context))
    step = (weights + batch * model.cache_bytes * context) / (BYTES_PER_SECOND * DECODING_UTILISATION)
    per_token = max(step / batch, 2 * model.parameters / (FLOPS * PREFILL_UTILISATION))
    read = 2 * model.parameters * prompts * work.prompt_tokens / (FLOPS * PREFILL_UTILISATION)
    return read + answers * work.completion_tokens * per_token


def simrl_seconds(model: ModelSize, work: Workload, *, completions: float, per_prompt: int) -> float:
    """Card seconds of Sim-RL: sampling, the training on what was sampled, and its log-probs by the starting model and the sampling one."""
    sampled = generation_seconds(model, work, prompts=completions / per_prompt, answers=completions)
    tokens = completions * (work.prompt_tokens + work.completion_tokens)
    log_probs = 2 * 2 * model.parameters * tokens / (FLOPS * PREFILL_UTILISATION)
    return sampled + training_seconds(model, tokens) + log_probs


def _sequences(training: Training | None, available: int) -> int:
    """Sequences that a training reads, of a set with so many."""
    return training.count_steps(available) * training.batch_size if training else 0


def _samples_per_distilled_prompt(config: Config) -> int:
    distill = config.distill
    return min(config.rollout.samples, distill.micro_batch_size or distill.batch_size) if distill.share_prompts else 1


def _completions(training: SimRL | None, prompts: int) -> int:
    return training.count_steps(prompts) * training.prompts_per_step * training.num_generations if training else 0
