"""The base of every part of the configuration: unknown keys are refused, and nothing is changed after it was read."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def flat(settings: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings as `section.key`, the way MLflow shows parameters."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
