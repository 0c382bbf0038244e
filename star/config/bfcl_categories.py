"""Lists the categories of the Berkeley Function Calling Leaderboard (BFCL) that STAR runs, in the groups that its score formulas use.

They are part of the configuration's room because the configuration validates `evaluate.bfcl_categories` against them.
"""

SIMPLE = ("simple_python", "simple_java", "simple_javascript")
IRRELEVANCE = ("irrelevance", "live_irrelevance")
NON_LIVE = (*SIMPLE, "multiple", "parallel", "parallel_multiple", "irrelevance")
LIVE_CALLS = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
LIVE = (*LIVE_CALLS, "live_irrelevance", "live_relevance")
RELEVANCE = (*IRRELEVANCE, "live_relevance")  # whether to call is all that is scored
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
CATEGORIES = (*NON_LIVE, *LIVE, *MULTI_TURN)
