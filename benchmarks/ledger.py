"""Measures what commands cost as a ledger grows: requests, bytes, statements and CPU time, and the growth exponents.

    python benchmarks/ledger.py s3 --sizes 10 100 1000 10000           # moto's server, which speaks S3 over HTTP
    python benchmarks/ledger.py sqlite --sizes 10 100 1000 10000
    python benchmarks/ledger.py postgresql --sizes 10 100 1000 10000   # a cluster of its own

Every size is a model of its own with three versions, so that all growth is the ledger's; benchmarks/registry.py lets
versions and decisions grow together. MLflow's tables are in the same database and are not counted: the statements are
those about the ledger's table. CPU time is this process's alone, of one call after a first one that loads all modules.
"""

import argparse
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from star.registry.location import registry_s3_client
from star.registry.promotion.audit import read_history
from star.registry.promotion.find import find_by_reference
from star.registry.promotion.ledger import Ledger, entry_name
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.overview import look_at_versions
from star.registry.promotion.promote_and_rollback import promote, rollback, write_aliases
from star.registry.promotion.reconcile import reconcile
from star.registry.promotion.records import Attempt, Decision, record_text, signed_digest
from star.registry.promotion.register_model import register_model
from star.tracking.server import connect

VERSIONS = 3


def fill_ledger(name: str, decisions: int, *, versions: Sequence[int] = (1, 2, 3)) -> None:
    """Adds promotions of these versions in turn to the ledger of a registered model, and shows the newest in MLflow."""
    from registry import write_entries

    client = connect()
    ledger = open_ledger(name, client)
    before, made = ledger.newest(), []
    for number in range(decisions):
        version, old = versions[number % len(versions)], before.aliases.get("champion")
        attempt = _signed(Attempt("promote", version, before.seq, "one of many", registry=ledger.registry), ledger)
        aliases = {"champion": version, **({"previous-champion": old} if old else {})}
        before = _signed(Decision(before.seq + 1, aliases, attempt, before.digest, ledger.registry), ledger)
        made.append((ledger.folder_of("attempts"), f"{attempt.at}-{attempt.attempt}", record_text(attempt)))
        made.append((ledger.folder_of("decisions"), entry_name(before.seq), record_text(before)))
    write_entries(ledger.store, made)
    write_aliases(name, client=client, ledger=open_ledger(name, client), writer="fill")


def _signed(record, ledger: Ledger):
    return replace(record, signature=ledger.keys.sign(signed_digest(record))) if ledger.keys else record


# Counting


@dataclass
class Cost:
    """What one command cost."""

    requests: int = 0  # to S3, or statements about the ledger's table
    received: int = 0  # bytes of the answers, or of the rows
    cpu: float = 0.0  # seconds of this process

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.requests - other.requests, self.received - other.received, self.cpu - other.cpu)


TOTAL = Cost()


def count_s3() -> None:
    def after_call(http_response, **_) -> None:
        TOTAL.requests += 1
        TOTAL.received += int(http_response.headers.get("content-length", 0))

    registry_s3_client().meta.events.register("after-call.s3", after_call)


def count_sql() -> None:
    from sqlalchemy import Engine, event
    from sqlalchemy.engine.cursor import CursorFetchStrategy

    def before(connection, cursor, statement, *_) -> None:
        TOTAL.requests += "star_records" in statement

    def counted(real: Callable, *, many: bool) -> Callable:
        def fetch(self, result, cursor, *limits):
            found = real(self, result, cursor, *limits)
            if found and "star_records" in result.context.statement:
                TOTAL.received += sum(len(value) for row in (found if many else [found]) for value in row)
            return found

        return fetch

    event.listen(Engine, "before_cursor_execute", before)
    for part, many in (("fetchall", True), ("fetchone", False)):
        setattr(CursorFetchStrategy, part, counted(getattr(CursorFetchStrategy, part), many=many))


def cost_of(command: Callable[[], object]) -> Cost:
    before = replace(TOTAL, cpu=_cpu())
    command()
    return replace(TOTAL, cpu=_cpu()) - before


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# The commands


def commands(name: str, folder: Path) -> dict[str, Callable[[], object]]:
    def register() -> object:
        (folder / "config.json").write_text(f'{{"model_type": "qwen3", "made": {time.time_ns()}}}')
        return register_model(folder, name=name, scores={}, lineage={}, model_digest=f"d{time.time_ns()}")

    return {
        "star models": lambda: look_at_versions(name),
        "find champion": lambda: find_by_reference("champion", name=name),
        "promote": lambda: promote(name, 3 if find_by_reference("champion", name=name).version != 3 else 2),
        "rollback": lambda: rollback(name),
        "register": register,
        "registry ledger": lambda: read_history(open_ledger(name, connect())),
        "reconcile": lambda: _right(reconcile(name)),
    }


def _right(found: tuple[list[str], list[str]]) -> None:
    assert found == ([], []), found


def measure(sizes: Sequence[int], folder: Path) -> dict[str, list[Cost]]:
    found: dict[str, list[Cost]] = {}
    for size in (1, *sizes):  # the first one loads the modules
        name = f"of{size}"
        for number in range(VERSIONS):
            (folder / "config.json").write_text(f'{{"model_type": "qwen3", "number": {number}, "of": {size}}}')
            register_model(folder, name=name, scores={}, lineage={}, model_digest=f"{size}-{number}")
        fill_ledger(name, size)
        for command, call in commands(name, folder).items():
            if size == 1:
                if command != "rollback":
                    call()
            else:
                found.setdefault(command, []).append(cost_of(call))
                print(size, command, found[command][-1], file=sys.stderr, flush=True)
    return found


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms of size and value."""
    points = [(math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True) if value > 0]
    if len(points) < 2:
        return 0.0
    x0, y0 = (sum(part) / len(points) for part in zip(*points, strict=True))
    return sum((x - x0) * (y - y0) for x, y in points) / sum((x - x0) ** 2 for x, _ in points)


def print_table(sizes: Sequence[int], found: dict[str, list[Cost]]) -> None:
    print(f"| command | requests at {', '.join(map(str, sizes))} | growth | kB | growth | CPU s | growth |")
    print("|---|---|---|---|---|---|---|")
    for command, costs in found.items():
        columns: list[tuple[list[float], str]] = [
            ([float(cost.requests) for cost in costs], "{:.0f}"),
            ([cost.received / 1000 for cost in costs], "{:.1f}"),
            ([cost.cpu for cost in costs], "{:.3f}"),
        ]
        cells = [
            f"{', '.join(form.format(value) for value in values)} | {exponent(sizes, values):.2f}"
            for values, form in columns
        ]
        print(f"| {command} | {' | '.join(cells)} |")


# Servers


@contextmanager
def server(store: str, folder: Path) -> Iterator[None]:
    """Starts a server of the tests, and leads the environment to it."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from conftest import BUCKET, postgres, s3

    os.environ.pop("STAR_REGISTRY", None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if store == "s3":
        with s3(folder) as variables:
            os.environ.update(variables, STAR_REGISTRY=f"s3://{BUCKET}/ledgers")
            count_s3()
            yield
    elif store == "postgresql":
        with postgres() as uri:
            os.environ["MLFLOW_TRACKING_URI"] = uri
            count_sql()
            yield
    else:
        count_sql()
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", choices=["s3", "sqlite", "postgresql"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    given = parser.parse_args()
    # MLflow on PostgreSQL writes artifacts to ./mlruns.
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        home, folder = Path(scratch) / "home", Path(scratch) / "model"
        os.environ["STAR_HOME"] = str(home)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(range(256)))
        (folder / "tokenizer.json").write_text("{}")
        with server(given.store, Path(scratch)):
            print_table(given.sizes, measure(given.sizes, folder))


if __name__ == "__main__":
    main()
