"""Measures one case: every row is run and checked first, then the right ones are timed in turns."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from cases import DoesNotFitError, draft_extend_sets, replay_sets
from nsa_kernel.tools.benchmark import Spread, device_timer, done_timer, host_timer, interleave
from peers import Row

Call = Callable[[], object]
SETS = {"draft_extend": draft_extend_sets, "replay": replay_sets}
COLUMNS = ("host", "done", "device")
OK, WRONG, FAILED, SKIPPED = "ok", "wrong", "failed", "skipped"


@dataclass
class Record:
    """One row of one case. Times are in microseconds; a missing one was not measured."""

    part: str
    case: str
    shape: dict[str, Any]
    row: str
    group: str
    status: str = OK
    note: str = ""
    host: Spread | None = None
    done: Spread | None = None
    device: Spread | None = None
    first_call: float | None = None
    bytes_read: int = 0
    bytes_written: int = 0
    sets: int = 0
    configurations: int = 0  # found equal, where the part counts them

    @property
    def bytes_moved(self) -> int:
        return self.bytes_read + self.bytes_written


def to_json(record: Record) -> dict[str, Any]:
    return asdict(record)


def from_json(entry: dict[str, Any]) -> Record:
    times = {name: Spread(**entry[name]) for name in ("host", "done", "device") if entry[name] is not None}
    return Record(**(entry | times))


def finish_on(device: str) -> Call:
    return torch.cuda.synchronize if device == "cuda" else int


def run_checked(row: Row, sets: Sequence[Any], finish: Call) -> tuple[list[Call], float, str | None]:
    """Runs a row once on every set; returns the calls, the microseconds of the first, and what is wrong."""
    calls: list[Call] = []
    first_call = 0.0
    for buffers in map(row.narrow, sets):
        buffers.poison()
        finish()
        start = time.perf_counter_ns()
        call = row.bind(buffers)
        returned = call()
        finish()
        if not calls:
            first_call = (time.perf_counter_ns() - start) / 1e3
        calls.append(call)
        message = buffers.wrong(row.exact) if row.computes else None
        if message is None and row.returns_count and int(returned) != buffers.total:
            message = f"returned {int(returned)}, must be {buffers.total}"
        if message is None and row.returns_lengths:
            message = buffers.wrong_lengths("the returned tensor", returned)
        if message is None and row.stores_count and int(buffers.out_num_tokens) != buffers.total:
            message = f"stored the count {int(buffers.out_num_tokens)}, must be {buffers.total}"
        if message is not None:
            return calls, first_call, message
    return calls, first_call, None


@dataclass
class Bench:
    """Where and how long to measure."""

    device: str
    rounds: int
    columns: Sequence[str] = COLUMNS
    on_wrong: Callable[[str], object] = field(default=print)

    def measure(self, part: str, case: Any, rows: Sequence[Row]) -> list[Record]:
        """Checks and times the rows of one case."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
        shape = {name: value for name, value in vars(case).items() if value is not False}
        records = [Record(part, case.name, shape, row.name, row.group, SKIPPED) for row in rows]
        try:
            sets = SETS[case.op](case, self.device)
        except (DoesNotFitError, torch.cuda.OutOfMemoryError) as error:
            for record in records:
                record.note = str(error).splitlines()[0]
            return records
        timers: dict[str, dict[str, Callable[[], float]]] = {column: {} for column in self.columns}
        for row, record in zip(rows, records, strict=True):
            record.sets = len(sets)
            buffers = row.narrow(sets[0])
            record.bytes_read, record.bytes_written = buffers.bytes_read, buffers.bytes_written
            self._prepare(row, record, sets, timers)
        for column, of_rows in timers.items():
            for name, time_us in interleave(of_rows, self.rounds).items():
                setattr(next(record for record in records if record.row == name), column, time_us)
        return records

    def _prepare(self, row: Row, record: Record, sets: Sequence[Any], timers: dict[str, dict]) -> None:
        """Runs and checks one row; adds its timers where it is right."""
        if reason := row.unfit(sets[0].case):
            record.note = reason
            return
        finish = finish_on(self.device)
        try:
            calls, record.first_call, wrong = run_checked(row, sets, finish)
            if wrong is None:
                if row.host:
                    timers.get("host", {})[row.name] = host_timer(calls[0], finish)
                    timers.get("done", {})[row.name] = done_timer(calls[0], finish)
                if row.in_graph and self.device == "cuda" and "device" in timers:
                    timers["device"][row.name] = device_timer(torch, calls)
        except Exception as error:
            record.status, record.note = FAILED, f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            record.status, record.note = (OK, "") if wrong is None else (WRONG, wrong)
        if record.status != OK:
            self.on_wrong(f"{record.case}: {record.row} is {record.status}: {record.note}")

    def warm_up(self, case: Any, rows: Sequence[Row]) -> None:
        """Runs every row once at a shape that is not timed, so that a first call there loads nothing but its own."""
        for buffers in SETS[case.op](case, self.device)[:1]:
            for row in rows:
                with contextlib.suppress(Exception):  # the cases that follow report it
                    row.unfit(case) or row.bind(row.narrow(buffers))()
        finish_on(self.device)()


def timed(calls: dict[str, Call], device: str, rounds: int) -> dict[str, Spread]:
    """Host time of calls that need no check, in turns."""
    finish = finish_on(device)
    return interleave({name: host_timer(call, finish) for name, call in calls.items()}, rounds)


def timed_in_graph(calls: dict[str, Call], rounds: int) -> dict[str, Spread]:
    """Device time of calls that need no check, in turns."""
    return interleave({name: device_timer(torch, [call]) for name, call in calls.items()}, rounds)
