"""Holds the paper's numbers that the study's tables show beside ours, and the paper's claims that they test.

Source: Ni et al., "STAR: Similarity-guided Teacher-Assisted Refinement for Super-Tiny Function Calling Models" (arXiv 2602.03022), the two
ablation tables, student Qwen3-0.6B. BFCL is version 3, overall; ACEBench is its normal part.
"""

from typing import Literal, NamedTuple


class PaperScore(NamedTuple):
    """BFCLv3 overall and ACEBench normal; None where the paper gives none."""

    bfcl: float | None
    acebench: float | None


# Cell -> the paper's score of the same way to train.
PAPER: dict[str, PaperScore] = {
    "none+none": PaperScore(47.33, 27.20),
    "none+toolrl": PaperScore(47.35, None),
    "none+similarity": PaperScore(49.35, None),
    "ce+none": PaperScore(47.59, 28.7),
    "ce+similarity": PaperScore(50.41, 38.9),
    "fkl+none": PaperScore(49.51, 36.8),
    "fkl+similarity": PaperScore(51.46, 50.0),
    "rkl+none": PaperScore(49.26, 35.3),
    "rkl+similarity": PaperScore(50.49, 41.3),
    "akl+none": PaperScore(49.47, 44.2),
    "akl+similarity": PaperScore(50.29, 49.0),
    "rskd+none": PaperScore(49.03, 35.4),
    "rskd+similarity": PaperScore(50.65, 49.8),
    "ckd+none": PaperScore(49.56, 39.0),
    "ckd+binary": PaperScore(51.05, 35.7),
    "ckd+toolrl": PaperScore(48.59, 40.5),
    "ckd+similarity": PaperScore(51.70, 53.0),
}


class Claim(NamedTuple):
    """A claim of the paper as a difference of two cells in one column of the results."""

    text: str
    better: str
    worse: str
    column: Literal["exact_match", "before_rl_pass_at_8", "before_rl_entropy"] = "exact_match"

    def papers_difference(self) -> PaperScore | None:
        """The paper's own difference of the two cells, in points of its benchmarks; None where its tables have none."""
        if self.column != "exact_match" or not {self.better, self.worse} <= PAPER.keys():
            return None
        return PaperScore(
            *(
                None if better is None or worse is None else better - worse
                for better, worse in zip(PAPER[self.better], PAPER[self.worse], strict=True)
            )
        )


CLAIMS = (
    Claim("After Sim-RL, CKD is better than forward KL", "ckd+similarity", "fkl+similarity"),
    Claim("After Sim-RL, CKD is better than AKL", "ckd+similarity", "akl+similarity"),
    Claim("After Sim-RL, CKD is better than RSKD", "ckd+similarity", "rskd+similarity"),
    Claim("After Sim-RL, CKD is better than reverse KL", "ckd+similarity", "rkl+similarity"),
    Claim("After Sim-RL, CKD is better than hard labels (CE)", "ckd+similarity", "ce+similarity"),
    Claim("Before Sim-RL, CKD is better than hard labels (CE)", "ckd+none", "ce+none"),
    Claim("Forward KL is better than reverse KL before Sim-RL", "fkl+none", "rkl+none"),
    Claim(
        "Reverse KL collapses: forward KL has more entropy before Sim-RL", "fkl+none", "rkl+none", "before_rl_entropy"
    ),
    Claim(
        "Reverse KL collapses: forward KL has a higher pass@8 before Sim-RL",
        "fkl+none",
        "rkl+none",
        "before_rl_pass_at_8",
    ),
    Claim(
        "CKD keeps exploration: more entropy before Sim-RL than forward KL", "ckd+none", "fkl+none", "before_rl_entropy"
    ),
    Claim(
        "CKD keeps exploration: a higher pass@8 before Sim-RL than forward KL",
        "ckd+none",
        "fkl+none",
        "before_rl_pass_at_8",
    ),
    Claim("After CKD, the similarity reward is better than the binary one", "ckd+similarity", "ckd+binary"),
    Claim("After CKD, the similarity reward is better than ToolRL's", "ckd+similarity", "ckd+toolrl"),
    Claim("After forward KL, the similarity reward is better than the binary one", "fkl+similarity", "fkl+binary"),
    Claim("Sim-RL makes the student of CKD better", "ckd+similarity", "ckd+none"),
    Claim("Distillation before Sim-RL is better than Sim-RL alone", "ckd+similarity", "none+similarity"),
)
# The distillation that an arm is compared with where the grid has no cell of the same name.
NEIGHBOURS = {"cold-start": "ckd", "on-policy-fkl": "fkl", "on-policy-rkl": "rkl"}
# What the paper does not claim and people ask: whether the stored signal of the teacher's samples loses against other ways to the student.
# The cells are those of a sweep `arms`.
QUESTIONS = (
    Claim("The student's own samples are better than the teacher's: forward KL", "arms/on-policy-fkl+none", "fkl+none"),
    Claim("The student's own samples are better than the teacher's: reverse KL", "arms/on-policy-rkl+none", "rkl+none"),
    Claim("The same after Sim-RL: forward KL", "arms/on-policy-fkl+similarity", "fkl+similarity"),
    Claim("The same after Sim-RL: reverse KL", "arms/on-policy-rkl+similarity", "rkl+similarity"),
    Claim(
        "CKD is a better start for Sim-RL than the rows' own answers", "ckd+similarity", "arms/cold-start+similarity"
    ),
    Claim(
        "CKD leaves more to explore than the rows' own answers: pass@8",
        "ckd+none",
        "arms/cold-start+none",
        "before_rl_pass_at_8",
    ),
)
