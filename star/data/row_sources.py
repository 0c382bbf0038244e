"""Reads the sets of rows of `data.sources`, and chooses the rows of each that are used.

    sources:
      - {path: xlam.json, source: xlam}                                      # all rows
      - {path: graphsyn.jsonl, source: toolmind, rows: 50000, strata: {}}    # of all clean rows 50,000, in the paper's shares

Rows are chosen after the cleaning, so that the wanted number is one of clean rows. They are taken in the order of a hash of the
seed and their content, so the choice does not depend on their places in the file.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import groupby, islice

from star.config.data import Data, RowSource, Strata
from star.data.filters import at_most_prompt_tokens
from star.data.importers import import_rows
from star.data.row_files import row_files
from star.data.rows import Reject
from star.data.splits import places_by_rank, row_rank
from star.data.turn_labels import label_turn

SET = "set"  # field of a row with the name of the source that it was read from, until the samples are taken
CANDIDATES = 1.1  # a stratified sample is drawn from that many times its rows, as in the paper's script
CATEGORIES = ("single_turn", "multi_turn", "parallel", "single", "response", "multi_step")


@dataclass
class Sample:
    """Which rows of a source are used.

    Attributes:
        ranks: those of the rows that are used.
        shortfalls: number of missing rows: of the wanted number as `rows`, and by category those that the source does not have.
    """

    ranks: set[int] = field(default_factory=set)
    shortfalls: Counter = field(default_factory=Counter)


def read_seed_data(data: Data) -> Iterator[dict | Reject]:
    """Yields the rows and rejects of `data.seed_data`; none where it is not set.

    Raises:
        InputError: the file has changed since the configuration was loaded, or holds no rows.
    """
    if data.seed_data is None:
        return
    path = data.seed_data.read_verified()
    files = row_files(path)
    for file in files:
        # A folder that was fetched has another name, and must make the same rejects.
        label = "seed_data" if len(files) == 1 else f"seed_data/{file.name}"
        yield from import_rows(file, source="seed", label=label if path.is_dir() else None)


def read_source(source: RowSource) -> Iterator[dict | Reject]:
    """Yields the rows and rejects of one set, as `star data import` makes them, each with the name of the source.

    Ids begin with that name, because those of several sets may be the same. `within_samples` takes the field SET away again.

    Raises:
        InputError: the file has changed since the configuration was loaded, or holds no rows.
    """
    name, files = source.source, row_files(source.path.read_verified())
    for file in files:
        # Not by the name of a single file: one that was fetched has another name, and must make the same rejects.
        label = name if len(files) == 1 else f"{name}/{file.name}"
        for row in import_rows(
            file,
            source=name,
            licence=source.licence,
            every_turn=source.every_turn,
            label=label,
            among_others=True,
        ):
            # Rows that STAR wrote keep the name of an older origin; here all have that of this set.
            yield replace(row, source=name) if isinstance(row, Reject) else {**row, "source": name, SET: name}


def is_sampled(source: RowSource) -> bool:
    """Whether a part of the source's rows is used."""
    return source.rows is not None or source.share is not None


def sample_rank(row: dict, seed: int) -> int:
    """Returns the rank of a row in its source's sample, which has nothing to do with its rank in the split."""
    return row_rank(row, f"sample {seed}")


def choose_samples(rows: Iterable[dict], sources: Iterable[RowSource], *, seed: int) -> dict[str, Sample]:
    """Chooses the rows of the sampled sources: all that a second pass over the rows needs. Takes 9 bytes of memory per row.

    Args:
        rows: the clean rows of all sources, and others. Those of `seed_data` are no source's, whatever name they have.
    """
    sampled = {source.source: source for source in sources if is_sampled(source)}
    # Arrays instead of lists: a list of integers would take several times the memory.
    found = {name: (array("Q"), array("B")) for name in sampled}
    for row in rows:
        source = sampled.get(row.get(SET, ""))
        if source and not _fault_of_limits(row, source.strata):
            ranks, categories = found[source.source]
            ranks.append(sample_rank(row, seed))
            categories.append(_categories_of(row))
    return {name: _choose_sample(source, *found[name]) for name, source in sampled.items()}


def within_samples(
    rows: Iterable[dict], samples: dict[str, Sample], sources: Iterable[RowSource], *, seed: int, used: Counter
) -> Iterator[dict | Reject]:
    """Yields every row, or a Reject (`too_many_turns`, `too_long`, `not_sampled`) for one that is not used.

    Args:
        samples: their ranks are used up.
        used: the used rows of each source are counted here.
    """
    strata = {source.source: source.strata for source in sources}
    empty = {name for name, sample in samples.items() if not sample.ranks}
    for marked in rows:
        name = marked.get(SET, "")
        row = {key: value for key, value in marked.items() if key != SET}
        if (sample := samples.get(name)) is None:
            used[name] += 1
            yield row
        elif fault := _fault_of_limits(row, strata[name]):
            yield Reject(row["id"], *fault, row)
        elif (rank := sample_rank(row, seed)) in sample.ranks:
            # Two rows may have one rank, where they differ in their tools only.
            sample.ranks.remove(rank)
            used[name] += 1
            yield row
        else:
            why = (
                f"the sample of {name} has no rows: too few are asked for"
                if name in empty
                else f"other rows of {name} are used"
            )
            yield Reject(row["id"], "not_sampled", why, row)


def all_shortfalls(samples: dict[str, Sample]) -> Counter:
    """The missing rows of all samples, such as {"toolmind: parallel": 120}."""
    return Counter(
        {f"{name}: {label}": count for name, sample in samples.items() for label, count in sample.shortfalls.items()}
    )


def _choose_sample(source: RowSource, ranks: array, categories: array) -> Sample:
    total = source.rows if source.rows is not None else round(len(ranks) * (source.share or 1))
    if source.strata is None:
        # Once each: two rows may have one rank.
        distinct = (rank for rank, _ in groupby(ranks[place] for place in places_by_rank(ranks)))
        chosen = set(islice(distinct, total))
        return Sample(chosen, +Counter({"rows": total - len(chosen)}))
    least = _least_counts(source.strata, total)
    candidates = sorted(_choose_by_categories(ranks, categories, least, most=int(CANDIDATES * total)), key=_redraw_key)
    chosen = set(candidates[:total])
    # A category with enough rows is short of none, even where the shares of the others left no room for all of them.
    available = Counter(name for bits in categories for name in _names_of(bits))
    missing = {name: count - available[name] for name, count in least.items()}
    return Sample(chosen, +Counter({"rows": total - len(chosen), **missing}))


def _choose_by_categories(ranks: array, categories: array, least: dict[str, int], *, most: int) -> list[int]:
    """Returns the ranks of the rows that are taken while one of their categories lacks rows, replies up to their share only."""
    taken: list[int] = []
    counts: Counter = Counter()
    for place in places_by_rank(ranks):
        if len(taken) >= most:
            break
        given = _names_of(categories[place])
        is_one_too_many = "response" in given and counts["response"] >= least["response"]
        if is_one_too_many or ranks[place] in taken[-1:]:
            continue
        if any(counts[name] < least[name] for name in given):
            taken.append(ranks[place])
            counts.update(given)
    return taken


def _redraw_key(rank: int) -> bytes:
    """Another random order of the ranks, in which the candidates are cut down to the sample."""
    return sha256(f"candidate {rank}".encode()).digest()


def _least_counts(strata: Strata, total: int) -> dict[str, int]:
    shares = {
        "single_turn": strata.single_turn,
        "multi_turn": 1 - strata.single_turn,
        "parallel": strata.parallel,
        "single": 1 - strata.parallel,
        "response": strata.response,
        "multi_step": strata.multi_step,
    }
    return {name: int(share * total) for name, share in shares.items()}


def _names_of(bits: int) -> list[str]:
    return [name for number, name in enumerate(CATEGORIES) if bits >> number & 1]


def _categories_of(row: dict) -> int:
    """The categories of a row, one bit each in the order of CATEGORIES."""
    turn = label_turn(row["messages"])
    has = (
        turn.number == 1,
        turn.number > 1,
        turn.calls > 1,
        turn.calls == 1,
        "response" in turn.labels,
        "multi-step" in turn.labels,
    )
    return sum(given << number for number, given in enumerate(has))


def _fault_of_limits(row: dict, strata: Strata | None) -> tuple[str, str] | None:
    if strata is None:
        return None
    if (number := label_turn(row["messages"]).number) > strata.max_turns:
        return "too_many_turns", f"{number} turns; at most {strata.max_turns} are wanted"
    return at_most_prompt_tokens(strata.max_prompt_tokens)(row)
