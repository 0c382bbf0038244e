"""Makes the tools of the study's task: more than a small student can learn by heart, from words that combine.

    python -m star.study.task > configs/study-tools.json

A tool is a verb and an object (`book_hotel`: "Book a hotel") with one to three parameters of a pool. Which verbs, objects and parameters
come together is drawn by a seed. So the prompt must be read: that `book` goes with `hotel` says nothing about the parameters, and a
held-out tool (`data.split: tool`) is a new combination of known words. Tools that share a verb or an object with the one that is meant
stand beside it in some prompts, so a request is ambiguous to a model that reads one of the two words only.

The difficulty was set once, before any comparison: the number of tools, the pool and the profile's kinds of rows were chosen so that the
teacher reaches its bar on tools that it has not seen. No student was trained for it.
"""

import json
import random
from itertools import product

SEED = 5
TOOLS = 240
VERBS = (
    "add", "book", "cancel", "check", "compare", "delete", "find", "move", "open", "order", "rate", "renew", "repair", "send", "share",
    "track",
)  # fmt: skip
OBJECTS = (
    "alarm", "camera", "car", "concert", "contract", "course", "dinner", "file", "flight", "garden", "gift", "hotel", "invoice", "lamp",
    "letter", "meeting", "parcel", "photo", "report", "room", "song", "taxi", "ticket", "tour",
)  # fmt: skip
CITIES = (
    "Oslo",
    "Rome",
    "Paris",
    "Berlin",
    "Madrid",
    "Lisbon",
    "Vienna",
    "Prague",
    "Athens",
    "Dublin",
    "Warsaw",
    "Zurich",
)
PEOPLE = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Lukas")
WORDS = (
    "river",
    "castle",
    "window",
    "bridge",
    "forest",
    "mirror",
    "candle",
    "summer",
    "market",
    "island",
    "silver",
    "winter",
)
PARAMETERS: dict[str, dict[str, object]] = {
    "city": {"type": "string", "examples": CITIES},
    "origin": {"type": "string", "examples": CITIES},
    "person": {"type": "string", "examples": PEOPLE},
    "owner": {"type": "string", "examples": PEOPLE},
    "label": {"type": "string", "examples": WORDS},
    "topic": {"type": "string", "examples": WORDS},
    "count": {"type": "integer", "minimum": 2, "maximum": 99},
    "days": {"type": "integer", "minimum": 2, "maximum": 60},
    "price": {"type": "integer", "minimum": 10, "maximum": 999},
    "hour": {"type": "integer", "minimum": 0, "maximum": 23},
    "color": {"type": "string", "enum": ["red", "green", "blue", "black", "white"]},
    "size": {"type": "string", "enum": ["small", "medium", "large"]},
}


def make_tools(*, count: int = TOOLS, seed: int = SEED) -> list[dict]:
    """Draws `count` tools, in the form of a tools file. The same arguments give the same tools."""
    rng = random.Random(seed)  # noqa: S311 - tools are repeatable
    chosen = sorted(rng.sample(list(product(VERBS, OBJECTS)), count))
    return [_tool(verb, thing, rng) for verb, thing in chosen]


def _tool(verb: str, thing: str, rng: random.Random) -> dict:
    names = rng.sample(list(PARAMETERS), rng.choice((1, 2, 2, 3)))
    article = "an" if thing[0] in "aeiou" else "a"
    return {
        "name": f"{verb}_{thing}",
        "description": f"{verb.capitalize()} {article} {thing}",
        "parameters": {"type": "object", "properties": {name: PARAMETERS[name] for name in names}, "required": names},
    }


def tools_file() -> str:
    """The content of configs/study-tools.json: one tool per line."""
    return "[\n" + ",\n".join(f"  {json.dumps(tool)}" for tool in make_tools()) + "\n]\n"


if __name__ == "__main__":
    print(tools_file(), end="")
