"""A task's configuration: in its environment, where nothing that starts the task changes it, and under the digest of compile time."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.cluster.task_config import VARIABLE, config_for_environment, config_of_task, digest_for_task
from star.config.experiment import Config
from star.errors import InputError

# Texts with what Kubernetes and Argo replace, and with what JSON escapes.
TEXTS = st.lists(st.sampled_from(["$(HOME)", "$$", "{{", "{{inputs.parameters.x}}", "\\", '"', "é", "n"])).map("".join)


@given(TEXTS)
def test_a_name_of_any_characters_arrives_and_holds_nothing_to_replace(name: str) -> None:
    config = Config(name=name or "star")
    sent = config_for_environment(config.model_dump_json())
    assert not re.search(r"\$|\{\{", sent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, sent)
        assert config_of_task(digest_for_task(sent)) == config


def test_another_configuration_than_the_compiled_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_for_task(config_for_environment(Config().model_dump_json()))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InputError, match="STAR_CONFIG is not set"):
        config_of_task(digest)
    monkeypatch.setenv(VARIABLE, Config(seed=8).model_dump_json())
    with pytest.raises(InputError, match="not the configuration that the pipeline was compiled with"):
        config_of_task(digest)
