"""Opens a pretrained base of any family, settled once: chat template, special tokens, embeddings, generation settings.

The stages refine-teacher and distill open bases here, and write ordinary Hugging Face folders. All later stages load
those as they are. The teacher's settled tokenizer travels with the top-k store, and the student's base is made to fit it.

    base's tokenizer ─► open_tokenizer ─► settled tokenizer ─┐
    base's weights   ────────────────────────────────────────┴► open_base ─► model that goes with the tokenizer
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from star.chat import CHAT_TEMPLATE, IM_END, THINK_OPEN
from star.config.models import Architecture, Student, Teacher
from star.config.training import Lora, Precision
from star.errors import InputError
from star.modeling.chat_templates import choose_template, end_of_turn, with_bos, with_open_think
from star.modeling.models import add_lora_adapters, base_source, load_model, load_tokenizer
from star.modeling.special_tokens import (
    PRODUCT_TOKENS,
    adds_bos,
    is_one_token,
    missing_tokens,
    rebuild,
    settle_alike,
)
from star.modeling.tokenizer import tokenizer_differences

# Settings of generation that are kept. Others, such as suppressed tokens or a penalty for repetition, would change what
# a model says in the stages that use transformers' `generate`, and in no other.
KEPT_GENERATION = ("do_sample", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class OpenedTokenizer:
    """A settled tokenizer.

    Attributes:
        about: what was settled, as one phrase.
    """

    tokenizer: PreTrainedTokenizerBase
    about: str


def open_tokenizer(settings: Teacher) -> OpenedTokenizer:
    """Loads the tokenizer of the teacher's base and settles it.

    Raises:
        InputError: it cannot be loaded, or `chat_template: own` is set for a template that cannot be used.
    """
    assert not isinstance(settings.base, Architecture)  # noqa: S101 - a tokenizer from scratch is trained instead
    source = base_source(settings.base)
    return settle_tokenizer(load_tokenizer(source, revision=settings.revision), settings=settings, source=str(source))


def settle_tokenizer(raw: PreTrainedTokenizerBase, *, settings: Teacher, source: str) -> OpenedTokenizer:
    """Settles a tokenizer as its base has it: template, tokens of the format, end of turn, padding, BOS.

    Args:
        source: names the base in errors.

    Raises:
        InputError: as `open_tokenizer`.
    """
    template, choice = choose_template(raw, settings.chat_template, source=source)
    end = IM_END if template == CHAT_TEMPLATE else end_of_turn(raw)
    assert end is not None  # noqa: S101 - choose_template refuses an own template without one
    wanted = PRODUCT_TOKENS if settings.add_format_tokens else (end,)
    added = [token for token in wanted if not is_one_token(token, raw)]
    template = with_bos(template, raw, adds_bos=adds_bos(raw))
    if settings.open_think:
        template, choice = with_open_think(template, raw), f"{choice}, prompts end with {THINK_OPEN}"
    tokenizer = rebuild(raw, added=added, chat_template=template, end=end)
    about = f"chat template: {choice}; end of turn {end}, padding {tokenizer.pad_token}"
    if added:
        about += f"; added tokens {' '.join(added)}"
    return OpenedTokenizer(tokenizer, about)


def open_base(
    settings: Teacher | Student,
    *,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision = "auto",
    training: bool = False,
    lora: Lora | None = None,
    adapters_first: bool = False,
) -> PreTrainedModel:
    """Loads a pretrained base and makes it fit a settled tokenizer: its own, or that of its teacher.

    Args:
        tokenizer: the settled tokenizer.
        precision: the setting.
        training: whether the weights themselves are trained, unless `lora` is given.
        lora: adapters to train.
        adapters_first: whether adapters are what is trained first, here or later (`Config.adapters_come_first`).

    Raises:
        InputError: the base cannot be loaded, its tokenizer makes other ids than the settled one, or adapters are to be
            trained first on a base that gets new tokens.
    """
    assert not isinstance(settings.base, Architecture)  # noqa: S101 - a base from scratch is built instead
    source, revision = base_source(settings.base), settings.revision
    # Compared before the model is loaded: another family is refused without reading its weights.
    raw = load_tokenizer(source, revision=revision)
    if differences := tokenizer_differences(settle_alike(raw, tokenizer), tokenizer):
        raise InputError(
            f"the tokenizer of the student {source} is not the one that its teacher's signal was stored with ({differences}): "
            "choose a student of the teacher's family, or extract the top-k again with a teacher of the student's"
        )
    if adapters_first:
        refuse_new_tokens(raw, tokenizer, source=str(source))
    model = load_model(source, revision=revision, precision=precision, training=training and lora is None)
    fit_to_tokenizer(model, tokenizer, raw=raw)
    return add_lora_adapters(model, lora) if lora else model


def refuse_new_tokens(raw: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Checks that a base gets no new token, because adapters leave the embeddings and the head as they are.

    The logit of a token that stays the mean of its pieces is the mean of their logits. One of the pieces always has a
    larger one, so that no greedy answer would have the token, and none would end.

    Args:
        raw: the tokenizer as the base has it.
        tokenizer: the settled tokenizer.
        source: names the base in the error.

    Raises:
        InputError: it gets new tokens.
    """
    if added := missing_tokens(raw, tokenizer):
        raise InputError(
            f"{source} lacks the tokens {' '.join(added)}, and adapters (`lora`) do not train new ones, so that it would never "
            "write them: train all weights first (leave `lora` out), or choose a base that has them"
        )


@torch.no_grad()
def fit_to_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, raw: PreTrainedTokenizerBase
) -> None:
    """Gives a model rows for the tokens that its tokenizer got, and the ids of the settled tokens.

    A new token starts as the mean of the rows of its pieces, in the embedding and in an untied head. The head grows only
    where it has no row for the token: many have rows to spare.

    Args:
        tokenizer: the settled tokenizer.
        raw: the tokenizer as the base has it.
    """
    ids: Any = tokenizer.convert_tokens_to_ids
    pieces: dict[int, list[int]] = {
        ids(token): raw(token, add_special_tokens=False)["input_ids"] for token in missing_tokens(raw, tokenizer)
    }
    grown: Any = model
    rows = grown.get_input_embeddings().weight.shape[0]
    if pieces and (needed := max(pieces) + 1) > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    embedding, head = grown.get_input_embeddings(), grown.get_output_embeddings()
    weights = [embedding.weight, head.weight, getattr(head, "bias", None)]
    # A tied head is the same tensor, and its rows are set once.
    for weight in {id(weight): weight for weight in weights if weight is not None}.values():
        for id_, of in pieces.items():
            weight[id_] = weight[of].float().mean(0).to(weight.dtype)
    _settle_ids(model, tokenizer)


def _settle_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets the ids of the end of turn and of padding wherever a model keeps them, and drops leftovers of generation."""
    config: Any = model.config.get_text_config()
    generation: Any = model.generation_config
    end = tokenizer.eos_token_id
    if end not in _as_list(config.eos_token_id):
        config.eos_token_id = end
    # None stays: this model pads with whatever its tokenizer says.
    if config.pad_token_id not in (None, tokenizer.pad_token_id):
        config.pad_token_id = tokenizer.pad_token_id
        embedding: Any = model.get_input_embeddings()
        # The row of the padding gets no gradient. The former one may be the end of turn, which must learn.
        if embedding.padding_idx is not None:
            embedding.padding_idx = tokenizer.pad_token_id
    ends = _as_list(generation.eos_token_id)
    # Of a model that does not sample, the others have no effect, and transformers would refuse to save them.
    names = KEPT_GENERATION if generation.do_sample else ()
    kept = {name: value for name in names if (value := getattr(generation, name, None)) is not None}
    model.generation_config = GenerationConfig(
        bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id if end in ends else [end, *ends],
        pad_token_id=tokenizer.pad_token_id,
        **kept,
    )


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids or [])
