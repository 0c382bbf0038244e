"""Dynamic filtering: which groups are kept, what fills a batch, which prompts come next."""

from hypothesis import given
from hypothesis import strategies as st

from star.rewards.breakdown import Score, ScoreParts
from star.rewards.similarity import Reward
from star.simrl.filter_and_refill import Group, Rollout, choose_batch, draw_refill_rows, is_informative, refill_size

BOUNDS = (0.01, 0.99)
contents = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def group(*totals: float) -> Group:
    rewards = [Reward(total, 1.0, max(0.0, total)) for total in totals]
    return Group({}, [Rollout([], [], "", None, Score(reward, {}, ScoreParts(1.0))) for reward in rewards])


def test_a_group_is_kept_by_its_content_scores():
    assert is_informative([0.0, 1.0], between=BOUNDS)
    assert is_informative([0.3, 0.5, 0.5], between=BOUNDS)
    assert not is_informative([0.5, 0.5], between=BOUNDS)  # all alike
    assert not is_informative([0.0, 0.0, 0.02], between=BOUNDS)  # hardly anything
    assert not is_informative([1.0, 1.0, 1.0, 0.97], between=BOUNDS)  # hardly anything missing
    assert not is_informative([0.0, 0.02], between=BOUNDS)  # a mean of 0.01 is not inside
    assert is_informative([0.5, 0.5], between=None)


@given(scores=contents)
def test_kept_groups_have_something_to_compare(scores):
    if is_informative(scores, between=BOUNDS):
        assert 0.01 < sum(scores) / len(scores) < 0.99
        assert max(scores) > min(scores)


def test_a_batch_is_filled_with_the_dropped_groups_that_differ_most():
    kept, alike, format_error, small = group(0, 1), group(1, 1), group(-1, 1), group(1, 0.96)
    assert choose_batch([kept, kept], [alike], count=2) == [kept, kept]
    assert choose_batch([kept], [alike, small, format_error], count=3) == [kept, format_error, small]


@given(
    missing=st.integers(1, 64), tried=st.integers(1, 200), share=st.floats(0, 1), multiple=st.sampled_from([1, 2, 4, 8])
)
def test_a_refill_can_be_shared_and_is_bounded(missing, tried, share, multiple):
    size = refill_size(missing=missing, kept=int(share * tried), tried=tried, limit=64, multiple=multiple)
    assert size % multiple == 0
    assert 0 < size < 64 + multiple
    assert size >= min(missing, 64)


@given(
    seed=st.integers(0, 99), step=st.integers(0, 500), tried=st.sets(st.integers(0, 29), max_size=30), data=st.data()
)
def test_refills_are_new_prompts_in_an_order_of_the_step(seed, step, tried, data):
    def draw(count: int, tried: set[int]) -> list[int]:
        return draw_refill_rows(seed=seed, step=step, count=count, rows=30, tried=tried)

    whole = draw(30, tried)
    assert set(whole) == set(range(30)) - tried
    assert len(whole) == len(set(whole))
    first = draw(data.draw(st.integers(0, 30)), tried)
    rest = draw(30, tried | set(first))
    assert first + rest == whole  # however rounds cut it


def test_refills_of_other_steps_are_others():
    draws = {tuple(draw_refill_rows(seed=7, step=step, count=8, rows=1000, tried=set())) for step in range(15)}
    assert len(draws) == 15
