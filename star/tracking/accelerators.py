"""Reckons how long a stage has held accelerators, and what that costs.

A compiled task is told in STAR_ACCELERATORS what its pod holds, or all pods of its TrainJob. A task that holds none has no such variable,
and neither has a stage on one machine.

    STAR_ACCELERATORS={"count": 16, "price_per_hour": 2.5, "currency": "EUR"}

    held_accelerators().metrics(900)      # {"accelerator_seconds": 14400.0, "accelerator_cost": 10.0}

The MLflow run of each attempt has both as metrics, and the variable as the tag `star.accelerators`. What a stage costs is the sum over its
attempts and shards (star/cluster/accelerator_costs.py). A task from the cache has no run, and costs nothing.
"""

import json
import math
import os
from dataclasses import asdict, dataclass

VARIABLE = "STAR_ACCELERATORS"
TAG = "star.accelerators"
SECONDS, COST = "accelerator_seconds", "accelerator_cost"


@dataclass(frozen=True)
class Accelerators:
    """What a task holds while it runs.

    Attributes:
        count: accelerators of all its pods.
        price_per_hour: of one of them; None where the profile names none.
        currency: of the price.
    """

    count: int
    price_per_hour: float | None = None
    currency: str = ""

    def metrics(self, seconds: float) -> dict[str, float]:
        """What these accelerators cost when they are held for so many seconds."""
        held = {SECONDS: round(self.count * seconds, 1)}
        if self.price_per_hour is not None:
            held[COST] = round(self.count * seconds / 3600 * self.price_per_hour, 4)
        return held

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Accelerators":
        """Reads the text of the variable or of the tag.

        Raises:
            ValueError: it is another text.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or set(found) != {"count", "price_per_hour", "currency"}:
            raise ValueError("not what a task holds")
        count, price, currency = found["count"], found["price_per_hour"], found["currency"]
        is_price = price is None or (isinstance(price, int | float) and math.isfinite(price))
        if not (isinstance(count, int) and is_price and isinstance(currency, str)):
            raise ValueError("not what a task holds")
        return cls(count, price, currency)


def held_accelerators() -> Accelerators | None:
    """What this task holds; None for none."""
    text = os.environ.get(VARIABLE)
    return Accelerators.from_json(text) if text else None


def metrics_of_held(seconds: float) -> dict[str, float]:
    """What the accelerators of this task cost when they are held for so many seconds; nothing for none."""
    held = held_accelerators()
    return held.metrics(seconds) if held else {}
