"""Trains on completions: the common part of fine-tuning and distillation, on transformers' Trainer.

A row is a prompt and a completion, and the loss is over the completion's tokens. So the head is applied to the hidden
states that predict these, and the logits of prompts, most of all logits, are never computed. The loss itself comes from
a child class (star/teacher/sft.py, star/ckd/trainer.py).

One process and several ranks (DDP, FSDP) make the same step: the loss is divided by the number of completion tokens of
the whole batch, and the forward pass and the loss go through whatever accelerate wrapped the model in. The last step of
an epoch may differ: on several ranks accelerate fills it up to a whole micro batch on each, with rows from the beginning
of the epoch (`even_batches`).

A batch may share prompts (PACKED): then each is computed once for its neighbouring rows (star/modeling/prompt_groups.py).

Shapes: B sequences, L padded length, T completion tokens of a micro batch, H hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer

from star.modeling.prompt_groups import packed_inputs
from star.modeling.step_order import SortedSteps, TellEpoch
from star.modeling.training import IGNORE_INDEX

PACKED = "packed"  # key of a batch whose prompts are shared: its PackedGroups


class CompletionTrainer(Trainer):
    """Trainer whose micro batches hold rows of similar length, and whose loss is computed from hidden states.

    Its data set has the attributes `lengths`, by which the rows of a step are sorted, and `starts`: index of the first row of each prompt
    where the rows of a prompt stay together, else None.
    """

    model: PreTrainedModel  # narrower than in Trainer, where it may be None or any module

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Trainer counts the labels of a whole step only for models that take their number. Here no model gets it, and
        # `compute_loss` of the child class divides by it instead.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Overrides Trainer's method: rows of similar length come together within a step."""
        step_rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        rows: Any = self.train_dataset
        # A step that is one micro batch has nothing to sort.
        if step_rows == self.args.per_device_train_batch_size and rows.starts is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.data_seed or self.args.seed
        sampler = SortedSteps(np.asarray(rows.lengths), step_rows=step_rows, seed=seed, starts=rows.starts)
        self.add_callback(TellEpoch(sampler))
        return sampler

    def loss_of_completions(
        self, model: nn.Module, inputs: dict[str, Tensor], loss: Callable[[Tensor, Tensor, Tensor], Any]
    ) -> Any:
        """Runs the decoder, and the loss on the hidden states that predict completion tokens.

        Args:
            model: what accelerate wrapped the model in, or the model itself.
            inputs: input_ids, labels and attention_mask [B, L]; or PACKED.
            loss: called with hidden_TH, weight_VH of the head, and labels_T; its result is returned.
        """
        student = self.accelerator.unwrap_model(model)
        return call_as_forward_of(model, student, self._loss_of_model, inputs, loss)

    def _loss_of_model(self, model: PreTrainedModel, inputs: dict[str, Any], loss: Callable) -> Any:
        with self.accelerator.autocast():
            hidden_TH, labels_T = _completion_states(model, inputs)
        # The loss runs outside autocast. On a GPU it multiplies the head in bf16. A CPU would convert both for each chunk.
        if self.args.bf16 and hidden_TH.is_cuda:
            hidden_TH = hidden_TH.bfloat16()
        head = model.get_output_embeddings()
        return call_as_forward_of(head, head, lambda head: loss(hidden_TH, head.weight, labels_T))

    def divisor(self, tokens: int, *, tokens_of_batch: Tensor | None) -> Tensor:
        """What a micro batch's summed loss is divided by, so that a whole batch adds up to its mean per completion token.

        Args:
            tokens: completion tokens of the micro batch, the divisor where the batch's are not known: outside of a training.
            tokens_of_batch: completion tokens of all micro batches of the step, over all ranks.
        """
        # Trainer sums the loss over accumulation steps; DDP and FSDP average it over ranks, so the divisor is the
        # batch's tokens per rank.
        return torch.tensor(tokens) if tokens_of_batch is None else tokens_of_batch / self.accelerator.num_processes


def _completion_states(model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The decoder's hidden states that predict completion tokens [T, H], and these tokens [T]."""
    decoder, packed = model.get_decoder(), inputs.get(PACKED)
    if packed is not None:
        hidden_GLH = decoder(**packed_inputs(packed, model), use_cache=False).last_hidden_state
        return hidden_GLH[packed.rows_N, packed.columns_N], packed.targets_N
    hidden_BLH = decoder(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    ).last_hidden_state
    # The state at a token predicts the next one: labels begin at 1, and states end before the last.
    labels_BL = inputs["labels"][:, 1:]
    is_completion_BL = labels_BL != IGNORE_INDEX
    return hidden_BLH[:, :-1][is_completion_BL], labels_BL[is_completion_BL]


def call_as_forward_of(wrapped: nn.Module, module: nn.Module, function: Callable, *arguments: Any) -> Any:
    """Calls `function(module, *arguments)` as the forward pass of `wrapped`, inside the hooks of DDP and FSDP.

    Inside, FSDP has gathered the sharded weights; afterwards the gradients are synchronised. The loss needs this
    because it uses the decoder and the weights of the head directly, without `module.forward`. The method `forward` is
    replaced for this one call:

        wrapped(*arguments) -> hooks -> replaced module.forward -> restores `forward`, calls function(module, *arguments)

    Args:
        wrapped: what accelerate wrapped `module` in, or `module` itself.
    """
    own_forward = vars(module).get("forward")  # accelerate sets one on the instance; else it is the class's

    def restore_forward() -> None:
        if own_forward is not None:
            module.forward = own_forward
        else:
            vars(module).pop("forward", None)

    def call_function(*inner: Any, **_: Any) -> Any:
        restore_forward()
        return function(module, *inner)

    module.forward = call_function
    # Restored also where the hooks raise before the call, or later forward passes would run `function`.
    try:
        return wrapped(*arguments)
    finally:
        restore_forward()
