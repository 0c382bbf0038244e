"""The kinds of rows that are generated, each with its default weight."""

ROW_KIND_WEIGHTS = {
    "simple": 0.25,
    "multiple": 0.15,
    "parallel": 0.1,
    "parallel-multiple": 0.1,
    "irrelevance": 0.14,
    "missing-parameter": 0.08,
    "multi-turn": 0.09,
    "multi-step": 0.09,
}
