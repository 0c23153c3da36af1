"""What changed between two runs, beyond the spread of both."""

from collections.abc import Iterable
from dataclasses import dataclass

from measure import COLUMNS, Record
from nsa_kernel.tools.benchmark import Spread


@dataclass(frozen=True)
class Change:
    """One time of one row that moved by more than the spread of both runs."""

    key: tuple[str, str, str]
    column: str
    before: Spread
    after: Spread

    @property
    def factor(self) -> float:
        return self.after.median / self.before.median


def apart(before: Spread, after: Spread, at_least: float) -> bool:
    """Whether the interquartile ranges do not meet, and the medians differ by the share given."""
    disjoint = before.high < after.low or after.high < before.low
    return disjoint and abs(after.median - before.median) > at_least * abs(before.median)


def changes(before: Iterable[Record], after: Iterable[Record], at_least: float) -> list[Change]:
    """What moved between two runs, the largest change first."""
    old = {(record.part, record.case, record.row): record for record in before}
    found = []
    for record in after:
        key = (record.part, record.case, record.row)
        for column in COLUMNS:
            pair = (getattr(old[key], column), getattr(record, column)) if key in old else (None, None)
            if None not in pair and apart(*pair, at_least):
                found.append(Change(key, column, *pair))
    return sorted(found, key=lambda change: -abs(change.after.median / change.before.median - 1))


def compared_times(before: Iterable[Record], after: Iterable[Record]) -> int:
    old = {(record.part, record.case, record.row): record for record in before}
    return sum(
        getattr(record, column) is not None and getattr(old[key], column) is not None
        for record in after
        if (key := (record.part, record.case, record.row)) in old
        for column in COLUMNS
    )
