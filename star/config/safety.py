"""Defines the section `safety`: how much foreign input may cost before it is refused."""

from pydantic import Field

from star.config.base import Section


class Safety(Section):
    """What a model of others may cost when it is tried, before it is loaded. The settings change no result."""

    model_seconds: int = Field(
        5, ge=1, description="Most seconds of CPU time that a model's templates, tokenizer and configuration may take"
    )
    model_memory: float = Field(4.0, ge=0.5, description="Most memory in GiB that they may take")


_current = Safety()


def current_safety() -> Safety:
    """The limits that hold in this process: those of its configuration, or the defaults."""
    return _current


def use_safety(safety: Safety) -> None:
    """Makes the limits of a configuration those of this process."""
    # Not an argument of every function that loads a model: a process has one configuration.
    global _current
    _current = safety
