"""Trains a student on the teacher's stored top-k with CompletionTrainer. The teacher itself is not loaded.

With `share_prompts`, the samples of a prompt come together in a step, and a wide model computes the prompt once for all of them.

Overridden of CompletionTrainer are `compute_loss` (the fused CKD loss) and `log` (its statistics, averaged over ranks).

The student's softmax is over all rows of its head, also over those that are no token. The stored distribution gives
these nothing, so their mass is a part of the loss and training removes it, as from every other wrong id. A softmax over
the tokens alone would leave them as they are, for a server that samples from all rows.

Shapes: T completion tokens of a micro batch, H hidden, V vocabulary, K teacher ids per token, S metrics.
"""

import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from star.ckd.loss import KDOutput, fused_linear_kd
from star.ckd.rows import TEACHER_ROWS, BatchCollator, DistillationRows
from star.config.training import Distill, Precision
from star.errors import InputError
from star.modeling.completion_trainer import PACKED, CompletionTrainer
from star.modeling.head import require_plain_head
from star.modeling.precision import computes_in_bf16
from star.modeling.prompt_groups import shares_prompts
from star.modeling.training import supervised_arguments

CKD_METRICS = ("fkl", "tail", "ce", "entropy", "overlap")  # fields of KDOutput, logged beside the loss


class CKDTrainer(CompletionTrainer):
    """Minimises the loss `settings.kind`, averaged over the completion tokens of the whole batch.

    Args:
        folder: the top-k store.
        state: folder for checkpoints.
        pad_id: id of the padding token.
        seed: of the order of the rows, and of the draws of RSKD.

    Raises:
        InputError: the student's head has fewer rows than the store's vocabulary, or is not all that makes its logits.
    """

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
        rows = DistillationRows(
            folder,
            draw_seed=seed if settings.kind == "rskd" else None,
            keep_prompts_together=settings.share_prompts,
        )
        vocab_size = model.get_output_embeddings().weight.shape[0]
        # A wider head is fine: its further ids are in no stored row.
        if rows.store.vocab_size > vocab_size:
            raise InputError(
                f"{folder} was stored for a vocabulary of {rows.store.vocab_size} and the student's head has {vocab_size} "
                "rows: choose a student whose head has a row for every token; if this one has, the store is of an older "
                "version, which stored ids that are no token: extract the top-k again"
            )
        require_plain_head(model, what="the student")
        packs = settings.share_prompts and shares_prompts(model, work="The distillation")
        bf16 = computes_in_bf16(precision, model.config)
        super().__init__(
            model=model,
            args=supervised_arguments(
                settings, folder=state, seed=seed, bf16=bf16, sequences=len(rows), logging_steps=1
            ),
            train_dataset=rows,
            data_collator=BatchCollator(rows, pad_id=pad_id, packs=packs),
        )
        self.settings = settings
        self._reset_log_window()

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Returns the loss of a micro batch, divided so that a whole batch adds up to its mean per completion token."""
        # The collator's thread read them while the step before this one ran.
        teacher_rows = inputs[TEACHER_ROWS].result()
        inputs = {name: value for name, value in inputs.items() if name != TEACHER_ROWS}
        inputs |= {name: rows_TK.to(self.args.device) for name, rows_TK in teacher_rows.items()}
        if PACKED in inputs:  # a batch that no loader has moved
            inputs[PACKED] = inputs[PACKED].to(self.args.device)
        output: KDOutput = self.loss_of_completions(model, inputs, partial(self._summed_loss, inputs))
        tokens = inputs["teacher_ids"].shape[0]
        self.window_tokens += tokens
        # In float64, so that a long window does not drift. On the device, so that no step waits for the GPU.
        self.window_sums_S += torch.stack([getattr(output, name).detach().double() for name in CKD_METRICS])
        loss = output.loss / self.divisor(tokens, tokens_of_batch=num_items_in_batch)
        return (loss, output) if return_outputs else loss

    def _summed_loss(
        self, inputs: dict[str, Tensor], hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor
    ) -> KDOutput:
        return fused_linear_kd(
            hidden_TH,
            weight_VH,
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


def peak_memory_mib() -> float:
    """Peak memory in MiB so far: of torch on the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
