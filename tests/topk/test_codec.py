"""The codec: the worked example of its docstring is what it really writes."""

import doctest

from star.topk import codec


def test_the_example_of_the_docstring_is_true() -> None:
    result = doctest.testmod(codec)
    assert result.attempted >= 5 and result.failed == 0
