"""A configuration with a secret in it is refused, with the place and the way to do it right; ordinary values are not."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from star.config.cluster import Cluster
from star.config.experiment import Config
from star.config.load import PROFILES, load_config
from star.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PROFILE = """
rollout: {server: "http://10.0.0.7:8000/v1"}
teacher: {base: TEAM/model-8B, revision: b968826d9c46dd6066d109eabc6255188de91218}
cluster:
  environment:
    MLFLOW_TRACKING_URI: http://mlflow.star.svc.cluster.local:5000
    AWS_ENDPOINT_URL: https://s3.eu-central-1.amazonaws.com
    STAR_REGISTRY: s3://star-models/registry/v2@eu
    STAR_LEDGER_KEY: env:LEDGER_PEM
    STAR_IMAGE: registry.example.com/team/star-python:1.2@sha256:0f3b21c4d5e60f3b21c4d5e60f3b21c4d5e60f3b21c4d5e60f3b21c4d5e60f3b
    STAR_COMMIT: 7975d51c4d5e60f3b21c4d5e60f3b21c4d5e60f3
    PYTORCH_CUDA_ALLOC_CONF: "expandable_segments:True,garbage_collection_threshold:0.8"
    NVIDIA_VISIBLE_DEVICES: GPU-8932f937-d72c-4106-c12f-20bd9faed9f6
    MLFLOW_EXPERIMENT_NAME: Llama3Instruct8BContext128k
    AWS_ROLE_ARN: arn:aws:iam::123456789012:role/TrainingRoleOfStar2026
    AWS_WEB_IDENTITY_TOKEN_FILE: /var/run/secrets/eks.amazonaws.com/serviceaccount/token
    NO_PROXY: "localhost,127.0.0.1,.svc,10.0.0.0/8"
    TOKENIZERS_PARALLELISM: "false"
  secrets: {star-s3: {AWS_SECRET_ACCESS_KEY: secret-key, AWS_ACCESS_KEY_ID: AccessKeyIdOfStar2026Training}}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "place", "cure"),
    [
        ('rollout: {server: "http://me:hunter22@host/v1"}', "rollout.server", "STAR_TEACHER_KEY"),
        ('topk: {server: "http://host/v1?api_key=hunter22"}', "topk.server", "STAR_TEACHER_KEY"),
        ('teacher: {base: "https://hf_hunter22hunter22hunter22hunter@hub/m"}', "teacher.base", "HF_TOKEN"),
        ('registry: {model_name: "hf_hunter22hunter22hunter22hunter"}', "registry.model_name", "cluster.secrets"),
        (
            'cluster: {environment: {MLFLOW_TRACKING_URI: "http://me:hunter22@mlflow:5000"}}',
            "cluster.environment.MLFLOW_TRACKING_URI",
            "MLFLOW_TRACKING_PASSWORD",
        ),
        (
            'cluster: {environment: {PLACE: "postgres://me:hunter22@h/d"}}',
            "cluster.environment.PLACE",
            "cluster.secrets",
        ),
        ('cluster: {environment: {PLACE: "host=db password=hunter22"}}', "cluster.environment.PLACE", "Secret"),
        ("cluster: {environment: {PLACE: hunter22Zx81mQ0rT7uVb2Yk9LdEw4Sg6H}}", "cluster.environment.PLACE", "Secret"),
        ("cluster: {environment: {HF_HUB_PAT: hunter22}}", "HF_HUB_PAT", "`secrets`"),
        ("cluster: {environment: {PGPASS: hunter22}}", "PGPASS", "`secrets`"),
        ("cluster: {environment: {STAR_LEDGER_KEY: hunter22}}", "STAR_LEDGER_KEY", "`secrets`"),
        (
            "cluster: {secrets: {star-s3: {AWS_SECRET_ACCESS_KEY: hunter22Zx81mQ0rT7uVb2Yk9LdEw4Sg6H}}}",
            "cluster.secrets.star-s3.AWS_SECRET_ACCESS_KEY",
            "the key under which",
        ),
    ],
)
def test_a_secret_is_refused_with_its_place_and_a_cure(tmp_path: Path, text: str, place: str, cure: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(written(tmp_path, text))
    assert place in str(error.value) and cure in str(error.value)
    assert "hunter22" not in str(error.value) + str(error.value.__cause__) and "\n" not in str(error.value)


def test_ordinary_values_are_accepted(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, PROFILE)).cluster.environment["STAR_LEDGER_KEY"] == "env:LEDGER_PEM"


@pytest.mark.parametrize("profile", [*PROFILES, *map(str, sorted((ROOT / "deploy" / "profiles").glob("*.yaml")))])
def test_every_shipped_profile_is_accepted(profile: str) -> None:
    assert Config.from_json(load_config(profile).model_dump_json()) == load_config(profile)


def test_a_configuration_from_python_or_json_is_refused_too() -> None:
    for make in (Config.model_validate, lambda content: Config.from_json(str(content).replace("'", '"'))):
        with pytest.raises(ValidationError) as error:
            make({"rollout": {"server": "http://me:hunter22@host/v1"}})
        assert "STAR_TEACHER_KEY" in str(error.value) and "hunter22" not in str(error.value)


def test_no_error_of_validation_quotes_a_value() -> None:
    with pytest.raises(ValidationError) as error:
        Cluster.model_validate({"environment": {"NAME": {"hunter22": "hunter22"}}, "retry": "hunter22"})
    assert "hunter22" not in str(error.value).replace("environment", "")
