"""Defines the base class of all parts of the configuration, and the types that several of them use."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator


class Section(BaseModel):
    """A part of the configuration: it refuses unknown keys, its values cannot be changed after validation, and no error quotes them.

    `null` removes an entry of a map, such as a Secret that a profile inherits by `extends`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _remove_null_entries(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        types = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: _without_nulls(value, types.get(name)) for name, value in content.items()}


def _without_nulls(value: object, annotation: object) -> object:
    """Removes the entries that are None from what is typed as a map, and from maps in it."""
    if not isinstance(value, dict) or get_origin(annotation) is not dict:
        return value
    inner = get_args(annotation)[1]
    return {key: _without_nulls(entry, inner) for key, entry in value.items() if entry is not None}


def _as_text(value: object) -> object:
    # YAML reads `1` and `true` as a number and a truth value where a text is meant.
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, BeforeValidator(_as_text)]  # also a number or a truth value of YAML, as it is written


def matching(pattern: str, expected: str) -> AfterValidator:
    """A validator for texts of a form. The error says what is expected, such as "a quantity, such as 64Gi", not the pattern."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {expected}")
        return value

    return AfterValidator(check)


S3Url = Annotated[str, matching(r"s3://[^/]+/.+", "s3://BUCKET/FOLDER, such as s3://star/checkpoints")]
HttpUrl = Annotated[
    str, matching(r"https?://.*", "an address with http:// or https://, such as http://teacher:8000/v1")
]


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flattens nested settings to `section.key` names, the form in which MLflow shows parameters.

    `{"distill": {"steps": 3}}` becomes `{"distill.steps": 3}`.
    """
    found: dict[str, object] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def canonical(content: object) -> str:
    """Settings as JSON text in the form that digests are taken of."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
