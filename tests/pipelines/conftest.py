"""What the tests of the pipelines share."""

import inspect
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session", autouse=True)
def stacks_without_source() -> Iterator[None]:
    """Lets kfp ask for the name of its caller without the lines of all callers' source.

    It asks for each setting of each task. Where a test run has loaded thousands of modules, looking for the lines takes
    ten seconds a pipeline.
    """
    from kfp.dsl import pipeline_task

    quick = SimpleNamespace(**vars(inspect) | {"stack": lambda: inspect.stack(context=0)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", quick)
        yield
