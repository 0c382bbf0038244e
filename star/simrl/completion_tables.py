"""Writes tables of sampled completions during a Sim-RL training, and shows them as one page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from star.json_file import write_json
from star.simrl.completions_page import completions_page

if TYPE_CHECKING:
    from star.simrl.trainer import SimRLTrainer

GROUPS_PER_TABLE = 8  # of each, the best and the worst completion


class CompletionTables(TrainerCallback):
    """Writes a table at the first step, every `table_steps` steps and the last step, and the page of all tables so far.

    The tables are files in `state`, so the page of a resumed training shows the steps from before the kill too.

    Args:
        state: folder for one JSON file per table.
        page: the HTML file to write.
        log_artifact: called with the page after each table.
    """

    def __init__(
        self, trainer: "SimRLTrainer", *, state: Path, page: Path, log_artifact: Callable[[Path], None]
    ) -> None:
        self.trainer, self.state, self.page, self.log_artifact = trainer, state, page, log_artifact

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Writes the table and the page when one is due, on rank 0 only."""
        step = state.global_step
        is_due = step in (1, state.max_steps) or step % self.trainer.settings.table_steps == 0
        if state.is_world_process_zero and is_due:
            self.state.mkdir(parents=True, exist_ok=True)
            # One file per step, so that a step repeated after a kill overwrites its own table.
            write_json(self.state / f"{step:06d}.json", completion_table(self.trainer))
            self.write_page()
            self.log_artifact(self.page)

    def write_page(self) -> None:
        """Writes the page of all steps so far."""
        tables = {int(file.stem): json.loads(file.read_text(encoding="utf-8")) for file in self.state.glob("*.json")}
        self.page.write_text(completions_page(tables), encoding="utf-8")


def completion_table(trainer: "SimRLTrainer") -> list[dict[str, Any]]:
    """Best and worst completion (one where both are equal) of the last step's first groups, with their scores."""
    table: list[dict[str, Any]] = []
    for group in trainer.sampled_groups[:GROUPS_PER_TABLE]:
        ranked = sorted(group.rollouts, key=lambda rollout: -rollout.score.trained.total)
        prompt = trainer.prompts[group.row["row"]]
        # Keyed by the text, so that a best and a worst completion with the same text are shown once.
        shown = {rollout.completion: rollout for rollout in (ranked[0], ranked[-1])}
        table.extend(
            {
                "prompt": prompt.text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0],
                "target": prompt.target,
                "completion": rollout.completion,
                "rewards": {name: reward.total for name, reward in rollout.score.rewards.items()},
                "format": rollout.score.parts.format,
                "content": rollout.score.trained.content,
                "kept": trainer.is_kept(group),
            }
            for rollout in shown.values()
        )
    return table
