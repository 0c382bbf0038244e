"""Says which form a manifest has, because whoever reads one relies on it and others can write one too.

A form is a type; `[form]` is a list of such values, `{ANY: form}` an object of such values, and `{"a": form, "b?": form}` an object
with an entry `a` and maybe an entry `b`. Other entries are not looked at.

The entries of `origin` come from star/registry (lineage.py, card_facts.py). Older STARs write fewer of them.
"""

from typing import Any

ANY, MAYBE = "*", "?"

_BASE_TEXTS = ("kind", "name", "revision", "sha256", "license", "license_name", "license_link")
_ORIGIN = {
    **{f"{key}?": str for key in ("commit", "dirty", "image", "kfp_run", "mlflow_run", "seed")},
    "inputs?": {ANY: {"path": str, "sha256": str}},
    "base?": {**{f"{key}?": str for key in _BASE_TEXTS}, "layers?": int},
    "trained?": [{"phase": str, "steps?": int, "epochs?": float, "reward?": str}],
    "data?": {"sources?": {ANY: int}, "licences?": {ANY: int}},
}
_SUMMARY = {
    **dict.fromkeys(("stage", "fingerprint", "config_digest", "code_digest", "code_version"), str),
    "inputs": {ANY: str},
    "origin?": _ORIGIN,
}
_FILE = {"path": str, "size": int, "sha256": str}
FORM = {**_SUMMARY, "files": [_FILE], "ancestors?": {ANY: _SUMMARY}}


def place_of_misfit(value: Any, form: Any) -> str | None:
    """Where a value of JSON has another form, such as `.origin.base`; None if it has this one."""
    if isinstance(form, type):
        return None if isinstance(value, form) else ""
    if not isinstance(value, type(form)):
        return ""
    if isinstance(form, list):
        inner = {f"[{number}]": (entry, form[0]) for number, entry in enumerate(value)}
    elif ANY in form:
        inner = {f".{key}": (entry, form[ANY]) for key, entry in value.items()}
    else:
        if missing := [key for key in form if not key.endswith(MAYBE) and key not in value]:
            return f".{missing[0]}"
        known = {key.removesuffix(MAYBE): of for key, of in form.items()}
        inner = {f".{key}": (value[key], of) for key, of in known.items() if key in value}
    found = ((key, place_of_misfit(entry, of)) for key, (entry, of) in inner.items())
    return next((key + place for key, place in found if place is not None), None)
