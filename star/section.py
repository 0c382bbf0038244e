"""The base of every part of the configuration: unknown keys are refused, and nothing is changed after it was read."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
