"""Trains a student on the teacher's stored top-k with transformers' Trainer. The teacher itself is not loaded.

Overridden of Trainer are `compute_loss` (the fused CKD loss) and `log` (its statistics, averaged over ranks).

The student's softmax is over all rows of its head, also over those that are no token. The stored distribution gives
these nothing, so their mass is a part of the loss and training removes it, as from every other wrong id. A softmax over
the tokens alone would leave them as they are, for a server that samples from all rows.

One process and several ranks (DDP, FSDP) make the same step: the loss is divided by the number of completion tokens of
the whole batch, and the forward pass and the loss go through whatever accelerate wrapped the model in.

Shapes: B sequences, L padded length, T completion tokens of a micro batch, H hidden, V vocabulary, K teacher ids per
token, S metrics.
"""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from star.ckd.loss import KDOutput, fused_linear_kd
from star.ckd.rows import TEACHER_ROWS, BatchCollator, DistillationRows
from star.config.training import Distill, Precision
from star.errors import InputError
from star.modeling.precision import computes_in_bf16
from star.modeling.training import IGNORE_INDEX, supervised_arguments

CKD_METRICS = ("fkl", "tail", "ce", "entropy", "overlap")  # fields of KDOutput, logged beside the loss


class CKDTrainer(Trainer):
    """Minimises the loss `settings.kind`, averaged over the completion tokens of the whole batch.

    Args:
        folder: the top-k store.
        state: folder for checkpoints.
        pad_id: id of the padding token.
        seed: of the order of the rows, and of the draws of RSKD.

    Raises:
        InputError: the student's head has fewer rows than the store's vocabulary.
    """

    model: PreTrainedModel  # narrower than in Trainer, where it may be None or any module

    def __init__(
        self,
        model: PreTrainedModel,
        folder: Path,
        *,
        settings: Distill,
        state: Path,
        pad_id: int,
        seed: int,
        precision: Precision = "auto",
    ) -> None:
        rows = DistillationRows(folder, draw_seed=seed if settings.kind == "rskd" else None)
        vocab_size = model.get_output_embeddings().weight.shape[0]
        # A wider head is fine: its further ids are in no stored row.
        if rows.store.vocab_size > vocab_size:
            raise InputError(
                f"{folder} was stored for a vocabulary of {rows.store.vocab_size} and the student's head has {vocab_size} "
                "rows: choose a student whose head has a row for every token; if this one has, the store is of an older "
                "version, which stored ids that are no token: extract the top-k again"
            )
        bf16 = computes_in_bf16(precision, model.config)
        super().__init__(
            model=model,
            args=supervised_arguments(settings, folder=state, seed=seed, bf16=bf16, logging_steps=1),
            train_dataset=rows,
            data_collator=BatchCollator(rows, pad_id=pad_id),
        )
        self.settings = settings
        self._reset_log_window()

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Returns the loss of a micro batch, divided so that a whole batch adds up to its mean per completion token."""
        # The collator's thread read them while the step before this one ran.
        teacher_rows = inputs[TEACHER_ROWS].result()
        inputs = {name: value for name, value in inputs.items() if name != TEACHER_ROWS}
        inputs |= {name: rows_TK.to(self.args.device) for name, rows_TK in teacher_rows.items()}
        student = self.accelerator.unwrap_model(model)
        output: KDOutput = call_as_forward_of(model, student, self._summed_loss, inputs)
        tokens = inputs["teacher_ids"].shape[0]
        self.window_tokens += tokens
        # In float64, so that a long window does not drift. On the device, so that no step waits for the GPU.
        self.window_sums_S += torch.stack([getattr(output, name).detach().double() for name in CKD_METRICS])
        # The sum must be divided by the tokens of the whole batch. Trainer sums the loss over accumulation steps; DDP
        # and FSDP average it over ranks, so the divisor is the batch's tokens per rank.
        divisor = tokens if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        loss = output.loss / divisor
        return (loss, output) if return_outputs else loss

    def _summed_loss(self, student: PreTrainedModel, inputs: dict[str, Tensor]) -> KDOutput:
        """The loss of a micro batch, summed over its completion tokens.

        Hidden states that predict prompt tokens are dropped.
        """
        with self.accelerator.autocast():
            hidden_BLH = student.get_decoder()(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state
        # The state at a token predicts the next one: labels begin at 1, and states end before the last.
        labels_BL = inputs["labels"][:, 1:]
        is_completion_BL = labels_BL != IGNORE_INDEX
        hidden_TH = hidden_BLH[:, :-1][is_completion_BL]
        if self.args.bf16:  # the loss runs outside autocast, which would multiply the head by bf16
            hidden_TH = hidden_TH.bfloat16()
        head = student.get_output_embeddings()
        return call_as_forward_of(
            head, head, self._summed_loss_of_hidden, hidden_TH, labels_BL[is_completion_BL], inputs
        )

    def _summed_loss_of_hidden(
        self, head: nn.Linear, hidden_TH: Tensor, labels_T: Tensor, inputs: dict[str, Tensor]
    ) -> KDOutput:
        return fused_linear_kd(
            hidden_TH,
            head.weight,
            inputs["teacher_ids"],
            inputs["teacher_logprobs"],
            labels_T,
            kind=self.settings.kind,
            kd_ratio=self.settings.kd_ratio,
            top_m=self.settings.top_m,
            tail_weight=self.settings.tail_weight,
            reduction="sum",
            statistics=True,
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds averages over the tokens since the last log on all ranks, the speed and the peak memory. Collective.

        Raises:
            FloatingPointError: the loss is NaN.
        """
        if self.window_tokens and "loss" in logs:
            # Sums and tokens, not means: ranks with few completion tokens must not weigh as much as the others.
            sums_and_tokens = torch.cat([self.window_sums_S, self.window_sums_S.new_tensor([self.window_tokens])])
            *sums, tokens = self.accelerator.reduce(sums_and_tokens, reduction="sum").tolist()
            logs |= {name: total / tokens for name, total in zip(CKD_METRICS, sums, strict=True)}
            logs["tokens_per_second"] = tokens / max(time.monotonic() - self.window_began, 1e-9)
            logs["memory_mib"] = peak_memory_mib()
            # NaN is the only value that differs from itself. Checked after the collective, so that no rank waits in it.
            if logs["loss"] != logs["loss"] or logs["fkl"] != logs["fkl"]:
                raise FloatingPointError(f"the loss is NaN at step {self.state.global_step}: lower the learning rate")
            self._reset_log_window()
        super().log(logs, *args, **kwargs)

    def _reset_log_window(self) -> None:
        self.window_sums_S = torch.zeros(len(CKD_METRICS), dtype=torch.float64, device=self.args.device)
        self.window_tokens, self.window_began = 0, time.monotonic()


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


def peak_memory_mib() -> float:
    """Peak memory in MiB so far: of torch on the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
