"""Estimates the disk space, the memory and the GPU memory that a configuration needs at least.

Example: Sim-RL of all weights of Qwen3-8B (8.19e9 parameters) with a KL term takes (16 + 4) * 8.19e9 bytes = 153 GiB. With LoRA adapters
it takes 2.5 * 8.19e9 bytes = 19 GiB, which fits one 80 GB card.
"""

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from star.config.experiment import Config
from star.config.files import GgufFile, ModelFolder
from star.config.models import Architecture, Base, Student, Teacher
from star.config.training import Distill, FineTuning, SimRL, Training
from star.doctor.costs import ModelSize, Workload, stage_costs, workload_of
from star.doctor.sample_rows import COMPLETION_TOKENS, PROMPT_TOKENS, Lengths, typical_lengths
from star.evaluation.bases import bases_beside

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 1 << 30
QWEN3_VOCABULARY = 152_000
# Bytes per activation. Under autocast some stay in fp32.
ACTIVATION, ACTIVATION_BF16 = 4, 2.6
# Bytes per parameter.
TRAINED = 8  # fp32 weights and gradients
MOMENTS = 8  # two in fp32, of AdamW; Adafactor has a few numbers per row and column of a weight
REFERENCE = 4  # fp32 weights that the KL term compares with
FROZEN = 2  # bf16 weights
ADAPTED = 2.5  # bf16 weights, and adapters of a few percent of them with their gradients and moments
FULL = 4  # fp32 weights: of a training of all weights, and without an accelerator where the CPU has no bf16
SAVED = 12  # of a checkpoint of all weights: fp32, with two moments
CHECKPOINTS = 2  # the last complete one stays until the next one is
PROCESS_BYTES = GIB / 2  # of Python with torch and transformers


def topk_store_bytes(config: Config) -> tuple[int, float]:
    """Returns how many samples the rollout draws at most, and how many bytes their top-k store takes at most.

    Raises:
        InputError: a set of rows cannot be read.
    """
    from star.topk.disk_space import max_bytes_per_token

    samples = (config.rollout.prompts or typical_lengths(config).rows) * config.rollout.samples
    vocab_size = config.scratch.vocab_size if config.scratch else QWEN3_VOCABULARY
    return samples, samples * config.rollout.kept_tokens * max_bytes_per_token(config.topk.top_k, vocab_size)


def memory_needed(config: Config, stage: str) -> float:
    """Bytes of GPU memory that a stage needs at the very least: weights, gradients and optimiser state of its model on one GPU.

    Activations and the cache of generated tokens come on top.
    """
    teacher, student = config.teacher, config.student
    if stage == "refine-teacher":
        # The two trainings follow each other, so the larger one decides.
        return max(_training_bytes(teacher, training) for training in (teacher.sft, teacher.refine))
    if stage == "distill":
        return max(_training_bytes(student, training) for training in (student.heal, config.distill))
    if stage == "refine":
        return _training_bytes(student, config.refine)
    return FROZEN * max(map(_count_parameters, (teacher, *(_evaluated_bases(config) if stage == "evaluate" else ()))))


def _evaluated_bases(config: Config) -> list[Teacher | Student]:
    """The pretrained bases that the evaluation settles and asks, one at a time. A student's base has all of its layers there."""
    settings = [base.settings for base in bases_beside(config, teacher=Path()).values()]
    return [of.model_copy(update={"layers": None}) if isinstance(of, Student) else of for of in settings]


def _training_bytes(model: Teacher | Student, training: Training | SimRL | None) -> float:
    if training is None:
        return FROZEN * _count_parameters(model)
    if _adapters_only(training):
        return ADAPTED * _count_parameters(model)
    return _bytes_per_parameter(training) * _count_parameters(model)


def _bytes_per_parameter(training: Training | SimRL) -> float:
    """What a training of all weights keeps of each: weight, gradient, the optimiser's state, and where Sim-RL started from."""
    moments = 0 if isinstance(training, Training) and training.optimizer == "adafactor" else MOMENTS
    # With a KL term Sim-RL keeps the weights it started from beside the trained ones. Adapters need no copy: they are switched off.
    reference = REFERENCE if isinstance(training, SimRL) and training.beta else 0
    return TRAINED + moments + reference


def _adapters_only(training: Training | SimRL) -> bool:
    return isinstance(training, FineTuning | Distill | SimRL) and training.lora is not None


def host_memory_needed(config: Config, stage: str, *, accelerator: bool, processes: int, bf16: bool = False) -> float:
    """Bytes of a node's own memory that a stage needs at the very least.

    Without an accelerator that is all of the training, in fp32, with the activations of one micro batch. With one, each
    process loads the weights there before they move. vLLM and a teacher's server take weights elsewhere.

    Args:
        accelerator: whether the node has one.
        processes: of the training on one node.
        bf16: whether a CPU computes in it.
    """
    teacher = config.teacher
    trainings: dict[str, tuple[Teacher | Student, list[Training | SimRL]]] = {
        "refine-teacher": (teacher, [training for training in (teacher.sft, teacher.refine) if training]),
        "distill": (config.student, [training for training in (config.student.heal, config.distill) if training]),
        "refine": (config.student, [config.refine]),
    }
    model, trained = trainings.get(stage, (teacher, []))
    served = {"rollout": config.rollout.server, "extract-topk": config.topk.server}.get(stage)
    if served or (stage in ("rollout", "extract-topk") and stage in config.vllm_stages()):
        return PROCESS_BYTES
    described, source = describe_base(model)
    parameters = _parameters_of(described, source)
    frozen = FROZEN if accelerator or bf16 else FULL
    needs: list[float] = [parameters * frozen]
    if stage == "evaluate":
        needs += [frozen * _count_parameters(base) for base in _evaluated_bases(config)]
    for training in trained:
        if accelerator:
            needs.append(parameters * (FROZEN if _adapters_only(training) else FULL))
            continue
        per_parameter = FULL + ADAPTED - FROZEN if _adapters_only(training) else _bytes_per_parameter(training)
        values = _activations(config, training, described)
        needs.append(parameters * per_parameter + values * (ACTIVATION_BF16 if bf16 else ACTIVATION))
    return processes * (PROCESS_BYTES + max(needs))


def _activations(config: Config, training: Training | SimRL, described: "PretrainedConfig") -> float:
    """Number of values that the layers keep of a micro batch for the backward pass on a CPU, where nothing is computed twice.

    A layer keeps about 12 values per token of its width and 7 of its feed-forward width. Sequences are as long as the profile
    allows, up to typical lengths: batches by length bring the longest ones together.
    """
    from star.modeling.precision import MIN_WIDTH

    text, together = described.get_text_config(), 1
    if isinstance(training, SimRL):
        whole, answer = training.prompts_per_step * training.num_generations, training.max_new_tokens
        together = training.num_generations
    else:
        whole, answer = training.batch_size, config.rollout.kept_tokens
        if isinstance(training, Distill) and training.share_prompts:
            together = config.rollout.samples
    sequences = training.micro_batch_size or whole
    prompts = sequences
    if text.hidden_size >= MIN_WIDTH:
        # One prompt more than there is room for, because the border of a micro batch may part the sequences of one.
        prompts = min(sequences, ceil(sequences / together) + (together > 1))
    tokens = prompts * min(PROMPT_TOKENS, config.max_prompt_tokens) + sequences * min(COMPLETION_TOKENS, answer)
    # Of a mixture of experts a token uses a few; their widths differ by family, so the width of the model stands in.
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return tokens * text.num_hidden_layers * (12 * text.hidden_size + 7 * inner)


def disk_needed(config: Config) -> float:
    """Bytes that a run on one machine writes: results, the published student, bases of elsewhere, and what its largest stage removes.

    A base of the hub is downloaded, and one that is a GGUF file becomes a folder in fp32. Trainings remove their checkpoints, and the
    evaluation the folder of each base that it settles, before the next one.

    Raises:
        InputError: a model's configuration cannot be loaded.
    """
    work = workload(config)
    results = sum(cost.disk for cost in stage_costs(work).values()) + FROZEN * work.student.parameters
    sizes = {"teacher": (config.teacher.base, work.teacher), "student": (config.student.base, work.student)}
    # One that both share is there once.
    bases = {str(base): _bytes_to_bring(base) * size.parameters for base, size in sizes.values()}
    trained = [work.student.parameters]
    if any(training and not _adapters_only(training) for training in (config.teacher.sft, config.teacher.refine)):
        trained.append(work.teacher.parameters)
    settled = [FULL * base.parameters for base in work.bases]
    return results + sum(bases.values()) + max([CHECKPOINTS * SAVED * max(trained), *settled])


def _bytes_to_bring(base: Base) -> float:
    """Bytes per parameter that a base takes beside where it lies now."""
    if isinstance(base, GgufFile):
        return FULL
    return FROZEN if isinstance(base, str) or (isinstance(base, ModelFolder) and base.is_in_s3) else 0


def workload(config: Config, lengths: Lengths | None = None) -> Workload:
    """The work of a configuration, with the sizes of its models, for which only their configurations are downloaded.

    Args:
        lengths: of its rows; by default typical ones.

    Raises:
        InputError: a model's configuration cannot be loaded.
    """
    teacher, student = describe_base(config.teacher), describe_base(config.student)
    vocab_size = config.scratch.vocab_size if config.scratch else teacher[0].get_text_config().vocab_size
    return workload_of(
        config,
        teacher=_model_size(*teacher),
        student=_model_size(*student),
        bases=[_model_size(*describe_base(base)) for base in _evaluated_bases(config)],
        vocab_size=vocab_size,
        lengths=lengths,
    )


def _model_size(described: "PretrainedConfig", source: str) -> ModelSize:
    """A model's parameters, and the bytes of its keys and values for one token, by its configuration."""
    text = described.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # Keys and values in bf16.
    layers = text.num_hidden_layers
    return ModelSize(_parameters_of(described, source), 2 * 2 * layers * heads * width, layers)


def _count_parameters(model: Teacher | Student) -> int:
    return _parameters_of(*describe_base(model))


def _parameters_of(described: "PretrainedConfig", source: str) -> int:
    """Counts the parameters on a model without weights (meta device), for which only the model's configuration is downloaded."""
    from star.modeling.models import count_parameters, empty_model

    return count_parameters(empty_model(described, source=source))


def describe_base(model: Teacher | Student) -> tuple["PretrainedConfig", str]:
    """The configuration of the model that a base becomes, and what names it in errors.

    Raises:
        InputError: the configuration cannot be loaded.
    """
    from transformers import Qwen3Config

    from star.modeling.layers import shorten_config
    from star.modeling.models import base_source, describe_model

    if isinstance(model.base, Architecture):
        # The embedding of a model from scratch is small, so any vocabulary will do.
        return Qwen3Config(vocab_size=1024, tie_word_embeddings=True, **model.base.model_dump()), "scratch"
    source = model.base.read_description() if isinstance(model.base, ModelFolder) else base_source(model.base)
    described = describe_model(source, revision=model.revision)
    if isinstance(model, Student) and model.layers:
        described = shorten_config(described, model.layers, source=str(source))
    return described, str(source)
