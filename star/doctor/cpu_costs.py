"""Estimates how long each stage takes on the CPU of this machine, for a profile with pretrained models.

    cpu = measure_cpu(bf16=True)                       # half a second: what this CPU computes and reads per second
    stage_seconds(config, work, cpu)["distill"] / 60   # minutes

Three figures make up a time: multiplications (2 per parameter and token forwards, 6 with the backward pass), the weights that each
generated token reads, and what Python and torch take for a layer however small it is. The shares of the measured speed that a model
reaches come from SmolLM2-135M on two cores; the estimate is good to a factor of 1.5 for models of that kind.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from star.config.experiment import Config
from star.config.training import SimRL, Training
from star.doctor.costs import ModelSize, Workload

TRAINING_SHARE, READING_SHARE = 0.6, 0.75  # of the speed of one large multiplication
SECONDS_PER_LAYER = 0.0013  # of a step of generation, beside what is computed and read
SECONDS_TO_START = 25  # of a stage: imports, models loaded and written, MLflow
BYTES_PER_UPDATE = 28  # read and written per parameter by AdamW: weight, gradient, two moments
PADDING = 1.15  # tokens of a batch by those of its sequences
LONGEST_ANSWER = 2.0  # in a batch, by the mean
REFILLED = 1.5  # rounds of sampling, where new prompts replace those that the filter drops
PROBED = 1024  # rows and columns of the matrices that are multiplied


@dataclass(frozen=True)
class Cpu:
    """What a CPU does per second.

    Attributes:
        flops: operations of a large matrix multiplication.
        bytes_per_second: weights read by a multiplication with few rows.
        weight_bytes: of one weight as it is read: 2 in bf16, 4 in fp32.
    """

    flops: float
    bytes_per_second: float
    weight_bytes: int


def measure_cpu(*, bf16: bool) -> Cpu:
    """Measures this CPU with all threads of torch: the best of some multiplications, so that other work disturbs little."""
    import torch

    dtype = torch.bfloat16 if bf16 else torch.float32
    square = torch.ones(PROBED, PROBED, dtype=dtype)
    wide, few = torch.ones(8 * PROBED, 4 * PROBED, dtype=dtype), torch.ones(8, 4 * PROBED, dtype=dtype)

    def best(multiply: Callable[[], object]) -> float:
        multiply()  # the first one plans
        times: list[float] = []
        until = time.perf_counter() + 0.25
        while len(times) < 3 or time.perf_counter() < until:
            begun = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - begun)
        return min(times)

    flops = 2 * PROBED**3 / best(lambda: square @ square)
    read = wide.nbytes / best(lambda: torch.nn.functional.linear(few, wide))
    return Cpu(flops, read, 2 if bf16 else 4)


def stage_seconds(config: Config, work: Workload, cpu: Cpu) -> dict[str, float]:
    """Seconds of each stage that runs a model, by its name."""
    teacher, student = work.teacher, work.student
    sampling, answers = config.rollout, work.rows * work.samples
    seconds = {
        "refine-teacher": _supervised(teacher, work, config.teacher.sft, cpu, available=work.training_rows)
        + _simrl(teacher, work, config.teacher.refine, cpu),
        "rollout": _reading(teacher, work.rows * work.prompt_tokens, cpu)
        + _writing(
            teacher,
            cpu,
            answers=answers,
            batch=sampling.batch_size * work.samples,
            longest=_longest(work, sampling.max_new_tokens),
        ),
        "extract-topk": _reading(teacher, answers * work.extracted_length, cpu),
        "distill": _supervised(student, work, config.student.heal, cpu, available=answers)
        + _supervised(student, work, config.distill, cpu, available=answers, length=work.distilled_length),
        "refine": _simrl(student, work, config.refine, cpu),
        "evaluate": _evaluation(config, work, cpu),
    }
    return {stage: SECONDS_TO_START + value for stage, value in seconds.items()}


def _longest(work: Workload, max_new_tokens: int) -> float:
    """Tokens of the longest answer in a batch, which decides how long the batch takes."""
    return min(max_new_tokens, LONGEST_ANSWER * work.completion_tokens)


def _reading(model: ModelSize, tokens: float, cpu: Cpu) -> float:
    """A forward pass over so many tokens."""
    return 2 * model.parameters * tokens / (cpu.flops * READING_SHARE)


def _writing(model: ModelSize, cpu: Cpu, *, answers: float, batch: int, longest: float) -> float:
    """The steps that make answers after their prompts were read, one token of each answer of a batch at a time."""
    size = min(batch, answers)
    step = model.layers * SECONDS_PER_LAYER + cpu.weight_bytes * model.parameters / cpu.bytes_per_second
    return answers / size * longest * (step + _reading(model, size, cpu)) if answers else 0


def _updates(model: ModelSize, tokens: float, *, steps: int, cpu: Cpu) -> float:
    """Forward and backward passes over so many tokens, and the optimiser's steps."""
    passes = 6 * model.parameters * PADDING * tokens / (cpu.flops * TRAINING_SHARE)
    return passes + steps * BYTES_PER_UPDATE * model.parameters / cpu.bytes_per_second


def _supervised(
    model: ModelSize,
    work: Workload,
    training: Training | None,
    cpu: Cpu,
    *,
    available: int,
    length: float | None = None,
) -> float:
    """A training on a set of so many sequences, by default with a prompt for each."""
    if training is None:
        return 0
    steps = training.count_steps(available)
    tokens = steps * training.batch_size * (length or work.prompt_tokens + work.completion_tokens)
    return _updates(model, tokens, steps=steps, cpu=cpu)


def _simrl(model: ModelSize, work: Workload, training: SimRL | None, cpu: Cpu) -> float:
    """Samples groups, reads them with the starting weights (KL) and the sampling ones (several updates), and trains on them."""
    if training is None:
        return 0
    steps, group = training.count_steps(work.training_rows), training.num_generations
    groups = steps * training.prompts_per_step
    sampled = _reading(model, groups * work.prompt_tokens, cpu) + _writing(
        model,
        cpu,
        answers=groups * group,
        batch=training.prompts_per_rollout * group,
        longest=_longest(work, training.max_new_tokens),
    )
    tokens = groups * (work.prompt_tokens + group * work.completion_tokens)
    read = _reading(model, tokens, cpu) * (bool(training.beta) + (training.updates_per_rollout > 1))
    return sampled * (REFILLED if training.max_refills else 1) + read + _updates(model, tokens, steps=steps, cpu=cpu)


def _evaluation(config: Config, work: Workload, cpu: Cpu) -> float:
    """Greedy answers and samples of each model on all held-out rows, whose prompts are read once for both."""
    rows, settings = work.heldout_rows, config.evaluate
    trained = _longest(work, settings.max_new_tokens)
    asked = [(work.teacher, trained), (work.student, trained), (work.student, trained)]
    asked += [(base, work.longest_answer) for base in work.bases]
    seconds = 0.0
    for model, longest in asked:
        seconds += _reading(model, rows * work.heldout_prompt_tokens, cpu)
        for samples in (1, settings.samples):
            batch = settings.batch_size * samples
            seconds += _writing(model, cpu, answers=rows * samples, batch=batch, longest=longest)
    return seconds
