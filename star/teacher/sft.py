"""Fine-tunes a model on rows: supervised training on prompts and targets, with the loss over the targets' tokens.

Shapes: B sequences, L padded length, T target tokens of a micro batch, H hidden, V vocabulary.
"""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.loss.loss_utils import ForCausalLMLoss

from star.ckd.loss import fused_linear_kd
from star.config.training import Precision, Training
from star.folders.workspace import Workspace
from star.modeling.completion_trainer import CompletionTrainer
from star.modeling.head import is_plain_head
from star.modeling.precision import computes_in_bf16
from star.modeling.prompts import Prompt
from star.modeling.tokenizer import TOKENIZED_AT_ONCE, tokenize
from star.modeling.training import (
    IGNORE_INDEX,
    LogMetrics,
    collate_completions,
    seed_everything,
    supervised_arguments,
    train,
)

# With so few ids the logits of the prompts take less than the passes over chunks, which leave them out.
SMALL_VOCABULARY = 4096


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    settings: Training,
    seed: int,
    precision: Precision,
    workspace: Workspace,
    log_metrics: LogMetrics,
    label: str = "train the teacher",
) -> None:
    """Trains `model` on the targets of the rows; a killed training resumes from `workspace.state`. Collective.

    Args:
        label: text beside the progress bar.
    """
    # Seeded here, so that a base that is only read and one that was trained just now give the same fine-tuning.
    seed_everything(seed)
    bf16 = computes_in_bf16(precision, model.config)
    trainer = SupervisedTrainer(
        model=model,
        args=supervised_arguments(
            settings, folder=workspace.state / "sft", seed=seed, bf16=bf16, sequences=len(prompts)
        ),
        train_dataset=SupervisedRows(prompts, tokenizer),
        data_collator=partial(collate_completions, pad_id=tokenizer.pad_token_id),
    )
    train(trainer, phase="sft", label=label, state=workspace.state, log_metrics=log_metrics)


class SupervisedTrainer(CompletionTrainer):
    """Minimises the cross-entropy of the targets. A large head is applied to their tokens only, chunk by chunk."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        is_large = self.model.get_output_embeddings().weight.shape[0] > SMALL_VOCABULARY
        config = self.model.config.get_text_config()
        # Weight of the loss that keeps the experts of a mixture evenly used, where its config.json asks for it.
        asks = getattr(config, "output_router_logits", False)
        self.router_weight: float = getattr(config, "router_aux_loss_coef", 0.0) if asks else 0.0
        # The forward pass of the whole model has what the head alone lacks: changed logits, and the routers' loss.
        self.fuses_head = is_large and not self.router_weight and is_plain_head(self.model)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Returns the loss of a micro batch, divided so that a whole batch adds up to its mean per target token."""
        tokens = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        divisor = self.divisor(tokens, tokens_of_batch=num_items_in_batch)
        if self.fuses_head:
            loss = self.loss_of_completions(model, inputs, summed_cross_entropy) / divisor
        else:
            loss = self._loss_of_all_logits(model, inputs, tokens=tokens, divisor=divisor)
        return (loss, None) if return_outputs else loss

    def _loss_of_all_logits(
        self, model: nn.Module, inputs: dict[str, Tensor], *, tokens: int, divisor: Tensor
    ) -> Tensor:
        """The cross-entropy of all logits, and the routers' loss."""
        # Without labels, because not every architecture divides its own loss by the number of tokens that it is told.
        outputs = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
        logits_BLV = outputs.logits
        loss = ForCausalLMLoss(
            logits_BLV, inputs["labels"], vocab_size=logits_BLV.shape[-1], num_items_in_batch=divisor
        )
        if self.router_weight:
            # A mean over the micro batch, which counts for its share of the tokens.
            loss = loss + self.router_weight * outputs.aux_loss * (tokens / divisor)
        return loss


def summed_cross_entropy(hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> Tensor:
    """The cross-entropy of labels, summed over the tokens, without their logits [T, V] as a whole."""
    # The loss of a distillation whose teacher is sure of the label.
    certain_T1 = labels_T.new_zeros((len(labels_T), 1)).to(hidden_TH.dtype)
    output = fused_linear_kd(hidden_TH, weight_VH, labels_T[:, None], certain_T1, labels_T, kind="ce", reduction="sum")
    return output.loss


class SupervisedRows(Dataset):
    """The tokens of prompts and targets; the labels are those of what the model has to write.

    `lengths` has the tokens per row, and every row has a prompt of its own. The tokens are kept as Arrow arrays, four bytes per token, and
    become lists one row at a time.
    """

    starts = None

    def __init__(self, prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase) -> None:
        # Tokenized apart, as in use, where the prompt's tokens are fixed before the model writes.
        self._prompts = _token_arrays([prompt.text for prompt in prompts], tokenizer)
        self._targets = _token_arrays([prompt.target_after_opening for prompt in prompts], tokenizer)
        self._count, self._end = len(prompts), tokenizer.eos_token_id
        # With the end token.
        self.lengths = _lengths(self._prompts) + _lengths(self._targets) + 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        array, row = divmod(index, TOKENIZED_AT_ONCE)
        prompt_ids, target_ids = (
            arrays[array][row].values.to_numpy().tolist() for arrays in (self._prompts, self._targets)
        )
        target_ids.append(self._end)
        return {"input_ids": prompt_ids + target_ids, "labels": [IGNORE_INDEX] * len(prompt_ids) + target_ids}


def _token_arrays(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[pa.Array]:
    """The ids of the texts, TOKENIZED_AT_ONCE texts per array."""
    return [pa.array(batch, pa.list_(pa.int32())) for batch in tokenize(texts, tokenizer)]


def _lengths(arrays: list[pa.Array]) -> np.ndarray:
    """Tokens of each text."""
    return np.concatenate([np.zeros(0, np.int64), *(pc.list_value_length(array).to_numpy() for array in arrays)])
