"""What the times must keep to, as ratios of rows that were measured together."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from measure import FAILED, WRONG, Record
from peers import OURS
from peers.names import (
    AFTER,
    BEFORE,
    BOUND_ANEW,
    CALL,
    COPY,
    COUNT,
    FIVE_ARRAYS,
    FIVE_DLPACK,
    FOUND_AGAIN,
    IMPORT,
    LAUNCH,
    NODE,
    PLAN,
    REPLAY_CALL,
    REPLAY_PLAN,
    SCHEDULE,
    SGLANG_FUSED,
    TRITON_SCHEDULE,
    WITH_SCHEDULE,
)

Rows = dict[str, Record]
COPY_MATTERS = 2_000_000  # bytes
NO_COMPILATION_US = 5000.0  # a first call at a new shape that takes longer compiles or loads something
PARITY_CONFIGURATIONS = 300
SCHEDULE_ADDS_AT_MOST = {32: 0.15, 512: 0.3}  # microseconds, up to so many requests


@dataclass
class Limit:
    """One demand, and the cases in which it was measured."""

    name: str
    at_most: float
    values: dict[str, float] = field(default_factory=dict)

    @property
    def failing(self) -> dict[str, float]:
        return {case: value for case, value in self.values.items() if value > self.at_most}

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.values.items(), key=lambda item: item[1])

    @property
    def verdict(self) -> str:
        if not self.values:
            return "not measured"
        return "FAIL" if self.failing else "PASS"


def by_case(records: Iterable[Record], part: str) -> dict[str, Rows]:
    cases: dict[str, Rows] = {}
    for record in records:
        if record.part == part:
            cases.setdefault(record.case, {})[record.row] = record
    return cases


def median(record: Record | None, column: str) -> float | None:
    time_us = getattr(record, column) if record else None
    return time_us.median if time_us else None


def ratio(rows: Rows, column: str, above: str, below: str) -> float | None:
    """The ratio of two rows' medians; None where one was not measured."""
    over, under = median(rows.get(above), column), median(rows.get(below), column)
    return over / under if over is not None and under else None


def ratios(cases: dict[str, Rows], column: str, above: str, below: str) -> dict[str, float]:
    found = {case: ratio(rows, column, above, below) for case, rows in cases.items()}
    return {case: value for case, value in found.items() if value is not None}


def differences(cases: dict[str, Rows], column: str, larger: str, smaller: str) -> dict[str, float]:
    """Microseconds that one row takes more than another, of the cases where both were measured."""
    pairs = {case: [median(rows.get(row), column) for row in (larger, smaller)] for case, rows in cases.items()}
    return {case: more - less for case, (more, less) in pairs.items() if more is not None and less is not None}


def selected(cases: dict[str, Rows], keep: Callable[[Record], bool]) -> dict[str, Rows]:
    """The cases whose shape passes."""
    return {case: rows for case, rows in cases.items() if keep(next(iter(rows.values())))}


def _draft_extend(cases: dict[str, Rows]) -> Iterator[Limit]:
    yield Limit("asynchronous call / empty launch, host", 1.25, ratios(cases, "host", CALL, LAUNCH))
    yield Limit("plan.run / empty launch, host", 1.05, ratios(cases, "host", PLAN, LAUNCH))
    yield Limit("call that returns the count / empty launch, host", 2.2, ratios(cases, "host", COUNT, LAUNCH))
    small = selected(cases, lambda record: record.shape["bs"] <= 128)
    yield Limit("in a graph / empty node, up to 128 requests", 1.6, ratios(small, "device", PLAN, NODE))
    large = selected(cases, lambda record: record.shape["bs"] == 1000)
    yield Limit("in a graph / empty node, 1000 requests", 2.5, ratios(large, "device", PLAN, NODE))


def _moves_much(record: Record) -> bool:
    return record.bytes_moved >= COPY_MATTERS


def _replay(cases: dict[str, Rows]) -> Iterator[Limit]:
    against_peer = ratios(cases, "device", REPLAY_PLAN, SGLANG_FUSED)
    yield Limit("replay / SGLang, device, each case", 1.0, against_peer)
    mean = {"geometric mean": statistics.geometric_mean(against_peer.values())} if against_peer else {}
    yield Limit("replay / SGLang, device, over all cases", 0.2, mean)
    even = selected(cases, lambda record: _moves_much(record) and "skewed" not in record.shape)
    yield Limit("replay / copy, where 2 MB or more move", 1.1, ratios(even, "device", REPLAY_PLAN, COPY))
    skewed = selected(cases, lambda record: _moves_much(record) and "skewed" in record.shape)
    yield Limit("replay / copy, skewed", 1.3, ratios(skewed, "device", REPLAY_PLAN, COPY))
    small = selected(cases, lambda record: record.shape["bs"] == 1)
    yield Limit("replay / empty node, one request", 2.0, ratios(small, "device", REPLAY_PLAN, NODE))
    yield Limit("replay call / SGLang, host", 0.2, ratios(cases, "host", REPLAY_CALL, SGLANG_FUSED))
    yield Limit("replay plan.run / empty launch, host", 1.05, ratios(cases, "host", REPLAY_PLAN, LAUNCH))


def _schedule(cases: dict[str, Rows]) -> Iterator[Limit]:
    above = 0
    for most, at_most in SCHEDULE_ADDS_AT_MOST.items():
        some = selected(cases, lambda record, above=above, most=most: above < record.shape["bs"] <= most)
        name = f"schedule and top-k plan add, us in a graph, {above + 1} to {most} requests"
        yield Limit(name, at_most, differences(some, "device", WITH_SCHEDULE, REPLAY_PLAN))
        above = most
    alone = ratios(cases, "device", SCHEDULE, TRITON_SCHEDULE)
    yield Limit("a schedule alone / a Triton kernel and a copy, in a graph", 0.5, alone)


def _sglang(cases: dict[str, Rows]) -> Iterator[Limit]:
    yield Limit("SGLang's functions after / before, host", 0.5, ratios(cases, "host", AFTER, BEFORE))


def _host(cases: dict[str, Rows]) -> Iterator[Limit]:
    yield Limit("five torch arrays / five __dlpack__", 0.1, ratios(cases, "host", FIVE_ARRAYS, FIVE_DLPACK))
    yield Limit("plan found again / bound anew", 1.05, ratios(cases, "host", FOUND_AGAIN, BOUND_ANEW))
    imported = cases.get("import", {}).get(IMPORT)
    yield Limit("import, us", 50_000.0, {"import": imported.host.median} if imported and imported.host else {})


def _everywhere(records: list[Record]) -> Iterator[Limit]:
    wrong = sum(record.status in (WRONG, FAILED) for record in records)
    yield Limit("rows that are wrong or failed", 0, {"all": float(wrong)})
    first_calls = {
        f"{record.part}, {record.case}, {record.row}": record.first_call
        for record in records
        if record.group == OURS and record.first_call is not None
    }
    yield Limit("first call at a new shape, us", NO_COMPILATION_US, first_calls)
    equal = [record.configurations for record in records if record.part == "parity" and record.row == SGLANG_FUSED]
    missing = {"parity": float(PARITY_CONFIGURATIONS - sum(equal))} if equal else {}
    yield Limit(f"configurations short of {PARITY_CONFIGURATIONS} equal to SGLang", 0, missing)


def limits(records: list[Record]) -> list[Limit]:
    """Every demand, with the values of the cases that were measured."""
    return [
        *_draft_extend(by_case(records, "draft_extend")),
        *_replay(by_case(records, "replay")),
        *_schedule(by_case(records, "schedule")),
        *_sglang(by_case(records, "sglang")),
        *_host(by_case(records, "host")),
        *_everywhere(records),
    ]
