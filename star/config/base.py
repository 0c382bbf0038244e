"""Defines the base class of all parts of the configuration."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration: it refuses unknown keys, its values cannot be changed after validation, and no error quotes them."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flattens nested settings to `section.key` names, the form in which MLflow shows parameters.

    `{"distill": {"steps": 3}}` becomes `{"distill.steps": 3}`.
    """
    found: dict[str, object] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
