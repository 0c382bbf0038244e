"""Shards i/n: what text names one, and that all shards together are everything once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.errors import InputError
from star.folders.shard import WHOLE, Shard


def test_text_and_shard_name_each_other() -> None:
    assert Shard.parse("2/4") == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"
    assert Shard.parse("1/1") == WHOLE


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_an_invalid_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not like 2/4"):
        Shard.parse(text)


@given(items=st.lists(st.integers(), max_size=50), count=st.integers(1, 9))
def test_shards_are_disjoint_and_complete(items: list[int], count: int) -> None:
    selected = [Shard(number, count).select(list(enumerate(items))) for number in range(1, count + 1)]
    assert sorted(item for shard in selected for item in shard) == list(enumerate(items))
