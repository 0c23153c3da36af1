"""The tables of a run."""

from collections.abc import Iterable, Sequence

from compare import Change
from limits import Limit, Rows, by_case, differences, limits, median, ratio, ratios
from measure import COLUMNS, FAILED, OK, SKIPPED, WRONG, Record
from nsa_kernel.tools.benchmark import Spread
from peers import FLOOR, OURS, PEER
from peers.names import (
    AFTER,
    BEFORE,
    COPY,
    LAUNCH,
    NODE,
    REPLAY_CALL,
    REPLAY_PLAN,
    SCHEDULE,
    SGLANG_FUSED,
    TORCH_OPERATORS,
    TRITON_SCHEDULE,
    WITH_SCHEDULE,
)
from results import Results
from rich import box
from rich.table import Table
from server import DRAFT_EXTEND_SHARE, REQUEST_RATES, STEP_RATES, cost

STYLES = {OURS: "bold", FLOOR: "dim", PEER: "", WRONG: "red", FAILED: "red", SKIPPED: "dim"}
Line = tuple[Sequence[str], str]  # cells and style


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{number(value)}x"


def timing(time_us: Spread | None) -> str:
    """The median, and half the interquartile range."""
    return "" if time_us is None else f"{number(time_us.median)} ±{number((time_us.high - time_us.low) / 2)}"


def draw_table(title: str, header: Sequence[str], lines: Iterable[Line], words: int = 1) -> Table:
    """Makes a table of the columns that hold anything; the first `words` of them hold words, the others numbers."""
    lines = list(lines)
    filled = [0, *(i for i in range(1, len(header)) if any(len(cells) > i and cells[i] for cells, _ in lines))]
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index in filled:
        table.add_column(header[index], justify="left" if index < words else "right", no_wrap=index < words)
    for cells, style in lines:
        table.add_row(*(cells[index] if index < len(cells) else "" for index in filled), style=style)
    return table


def best_peer(rows: Rows, column: str) -> float | None:
    peers = [median(record, column) for record in rows.values() if record.group == PEER]
    return min((value for value in peers if value is not None), default=None)


def _not_timed(record: Record) -> Line:
    return [f"{record.row} ({record.status}: {record.note})"], STYLES[record.status]


def _case_line(rows: Rows, record: Record) -> Line:
    if record.status != OK:
        return _not_timed(record)
    device, moves = median(record, "device"), record.row != NODE
    of_copy = ratio(rows, "device", COPY, record.row) if moves else None
    column = "device" if device and best_peer(rows, "device") else "host"
    peer, own = best_peer(rows, column), median(record, column)
    cells = [
        record.row,
        *(timing(getattr(record, column)) for column in COLUMNS),
        number(record.first_call) if record.group != FLOOR else "",
        number(record.bytes_moved / device / 1e3) if device and moves else "",
        "" if of_copy is None else f"{of_copy:.0%}",
        times(ratio(rows, "host", record.row, LAUNCH)),
        times(ratio(rows, "device", record.row, NODE)),
        times(peer / own) if record.group == OURS and peer and own else "",
    ]
    return cells, STYLES[record.group]


def case_table(title: str, rows: Rows) -> Table:
    """Every row of one case."""
    header = ["row", "host", "until done", "in a graph", "first call", "GB/s", "of copy"]
    header += ["host / launch", "graph / node", "best peer / row"]
    return draw_table(f"{title}, us", header, (_case_line(rows, record) for record in rows.values()))


def _replay_lines(case: str, rows: Rows) -> Iterable[Line]:
    ours, peer = rows[REPLAY_PLAN], rows.get(SGLANG_FUSED)
    if ours.status == OK:
        cells = [
            case,
            number(ours.bytes_moved / 1e6),
            timing(ours.device),
            timing(peer.device) if peer else "",
            number(median(rows.get(COPY), "device")),
            times(ratio(rows, "device", REPLAY_PLAN, SGLANG_FUSED)),
            times(ratio(rows, "device", REPLAY_PLAN, COPY)),
            times(ratio(rows, "device", REPLAY_PLAN, NODE)),
            timing(ours.host),
            timing(rows[REPLAY_CALL].host),
            timing(peer.host) if peer else "",
            number(median(rows.get(LAUNCH), "host")),
            number(ours.first_call),
            number(peer.first_call) if peer else "",
        ]
        yield cells, ""
    for record in rows.values():
        if record.status in (WRONG, FAILED) or (record.status == SKIPPED and record.row == REPLAY_PLAN):
            cells, style = _not_timed(record)
            yield [f"{case}: {cells[0]}"], style


def replay_table(cases: dict[str, Rows]) -> Table:
    """One line a case: device times beside the copy and the engine's kernel, then host times, then first calls."""
    header = ["case", "MB", "ours", "SGLang", "copy", "/ SGLang", "/ copy", "/ node"]
    header += ["plan.run", "call", "SGLang", "launch", "first: ours", "SGLang"]
    title = "replay, us: device time in a graph and our ratios to it | host time | first call at a new shape"
    return draw_table(title, header, (line for case, rows in cases.items() for line in _replay_lines(case, rows)))


def _not_timed_lines(case: str, records: Iterable[Record | None]) -> Iterable[Line]:
    for record in records:
        if record and record.status != OK:
            (told,), style = _not_timed(record)
            yield [f"{case}: {told}"], style


def _with_schedule_lines(case: str, rows: Rows) -> Iterable[Line]:
    records = [rows.get(row) for row in (REPLAY_PLAN, WITH_SCHEDULE)]
    added = differences({case: rows}, "device", WITH_SCHEDULE, REPLAY_PLAN)
    device, host = ([timing(getattr(record, column, None)) for record in records] for column in ("device", "host"))
    yield [case, *device, number(added.get(case)), *host], ""
    yield from _not_timed_lines(case, records)


def with_schedule_table(cases: dict[str, Rows]) -> Table:
    """One line a case: what schedule and top-k plan add to a refresh."""
    header = ["case", "in a graph: without", "with", "added", "host: without", "with"]
    lines = (line for case, rows in cases.items() for line in _with_schedule_lines(case, rows))
    return draw_table("a refresh without and with schedule and top-k plan, us", header, lines)


def _schedule_lines(case: str, rows: Rows) -> Iterable[Line]:
    records = [rows.get(row) for row in (SCHEDULE, TRITON_SCHEDULE, TORCH_OPERATORS)]
    cells = [case]
    for column in ("device", "host"):
        ours, engine, torch = (timing(getattr(record, column, None)) for record in records)
        cells += [ours, engine, times(ratio(rows, column, SCHEDULE, TRITON_SCHEDULE)), torch]
    yield cells, ""
    yield from _not_timed_lines(case, records)


def schedule_table(cases: dict[str, Rows]) -> Table:
    """One line a case: a schedule as a launch of its own, beside what engines do."""
    header = ["case", "in a graph: ours", "Triton, copy", "ours / it", "torch"]
    header += ["host: ours", "Triton, copy", "ours / it", "torch"]
    lines = (line for case, rows in cases.items() for line in _schedule_lines(case, rows))
    return draw_table("a schedule as a launch of its own, us", header, lines)


def _sglang_lines(case: str, rows: Rows) -> Iterable[Line]:
    cells = [case]
    for column in ("host", "device"):
        cells += [timing(getattr(rows.get(row), column, None)) for row in (BEFORE, AFTER)]
        cells.append(times(ratio(rows, column, AFTER, BEFORE)))
    yield cells, ""
    yield from _not_timed_lines(case, rows.values())


def sglang_table(cases: dict[str, Rows]) -> Table:
    """One line a function and batch size."""
    header = ["function", "host: before", "after", "/ before", "in a graph: before", "after", "/ before"]
    lines = (line for case, rows in cases.items() for line in _sglang_lines(case, rows))
    return draw_table(f"SGLang's functions, us: before ({BEFORE}) and after ({AFTER})", header, lines)


def slowest_lines(cases: dict[str, Rows]) -> Iterable[str]:
    """What the cases move that are slowest beside a copy of as many bytes."""
    against_copy = ratios(cases, "device", REPLAY_PLAN, COPY)
    for case in sorted(against_copy, key=against_copy.__getitem__, reverse=True)[:SLOWEST]:
        ours = cases[case][REPLAY_PLAN]
        rate = ours.bytes_moved / median(ours, "device") / 1e3
        yield (
            f"slowest beside a copy: {case}: {against_copy[case]:.2f} of it; reads {ours.bytes_read / 1e6:.3f} MB, "
            f"writes {ours.bytes_written / 1e6:.3f} MB, {rate:.0f} GB/s"
        )


def breakdown_table(cases: dict[str, Rows]) -> Table:
    header = ["step", *(f"{case}, {column}" for column in ("host", "device") for case in cases)]
    lines = []
    for step in dict.fromkeys(step for rows in cases.values() for step in rows):
        records = [rows.get(step) for rows in cases.values()]
        lines.append(([step, *(timing(getattr(r, c, None)) for c in ("host", "device") for r in records)], ""))
    return draw_table("one draft-extend call, us, each step by difference", header, lines)


def host_table(cases: dict[str, Rows]) -> Table:
    records = [record for rows in cases.values() for record in rows.values()]
    lines = [([record.row, timing(record.host), record.note], STYLES.get(record.status, "")) for record in records]
    return draw_table("the host alone, us", ["row", "time", "note"], lines)


def parity_table(cases: dict[str, Rows]) -> Table:
    lines = []
    for name in dict.fromkeys(name for rows in cases.values() for name in rows):
        records = [rows[name] for rows in cases.values() if name in rows]
        wrong = ", ".join(record.case for record in records if record.status != OK)
        lines.append(([name, str(sum(record.configurations for record in records)), wrong], "red" if wrong else ""))
    return draw_table("random configurations with equal results", ["row", "configurations", "wrong in"], lines)


# ---- what it means for a server --------------------------------------------------------------------------------------


def _cost_cells(calls_per_second: float, call_us: float | None) -> list[str]:
    if call_us is None:
        return ["", ""]
    milliseconds, share = cost(calls_per_second, call_us)
    return [number(milliseconds), f"{share:.2%}"]


def draft_extend_server_table(case: str, rows: Rows) -> Table:
    calls = {rate: rate * DRAFT_EXTEND_SHARE for rate in REQUEST_RATES}
    columns = [(f"{rate:,} requests/s, {count:,.0f} calls/s: ms", "share") for rate, count in calls.items()]
    header = ["row", *(column for pair in columns for column in pair)]
    lines = []
    for record in rows.values():
        if (call_us := median(record, "host")) is not None:
            cells = [cell for count in calls.values() for cell in _cost_cells(count, call_us)]
            lines.append(([record.row, *cells], STYLES[record.group]))
    title = f"draft-extend in a server, {case}, {DRAFT_EXTEND_SHARE:.0%} of requests: host time in each second"
    return draw_table(title, header, lines)


def replay_server_table(case: str, rows: Rows) -> Table:
    header = ["row", *(c for rate in STEP_RATES for c in (f"{rate} steps/s: host ms", "share", "device ms", "share"))]
    lines = []
    for record in rows.values():
        if record.status == OK and record.group != FLOOR:
            both = [median(record, column) for column in ("host", "device")]
            cells = [cell for rate in STEP_RATES for call_us in both for cell in _cost_cells(rate, call_us)]
            lines.append(([record.row, *cells], STYLES[record.group]))
    return draw_table(f"replay metadata in a server, {case}: time in each second of one rank", header, lines)


# ---- the whole -------------------------------------------------------------------------------------------------------

VERDICT_STYLES = {"PASS": "green", "FAIL": "red", "not measured": "dim"}


def limit_table(found: Sequence[Limit]) -> Table:
    lines = []
    for limit in found:
        where, worst = limit.worst if limit.values else ("", None)
        kept = f"{len(limit.values) - len(limit.failing)} of {len(limit.values)}" if limit.values else ""
        cells = [limit.verdict, limit.name, where, number(worst), number(limit.at_most), kept]
        lines.append((cells, VERDICT_STYLES[limit.verdict]))
    return draw_table("limits", ["", "what", "where it is worst", "worst", "at most", "cases within"], lines, words=3)


SLOWEST = 2
SERVER_DRAFT_EXTEND, SERVER_REPLAY = "bs 32", "draft_extend uniform 32 x 4"


def tables(results: Results) -> list[Table | str]:
    """Everything that a run prints at its end."""
    records = results.records
    known = ", ".join(f"{name} {value}" for name, value in results.environment.items() if value)
    shown: list[Table | str] = [known, *results.missing]
    draft_extend, replay = by_case(records, "draft_extend"), by_case(records, "replay")
    shown += [case_table(f"draft_extend, {case}", rows) for case, rows in draft_extend.items()]
    if SERVER_DRAFT_EXTEND in draft_extend:
        shown.append(draft_extend_server_table(SERVER_DRAFT_EXTEND, draft_extend[SERVER_DRAFT_EXTEND]))
    if replay:
        shown += [replay_table(replay), *slowest_lines(replay)]
        served = [case for case in replay if case.startswith(SERVER_REPLAY)]
        shown += [replay_server_table(case, replay[case]) for case in served[-1:]]
    drawn = [("schedule", with_schedule_table), ("schedule", schedule_table), ("sglang", sglang_table)]
    drawn += [("host", host_table), ("breakdown", breakdown_table), ("parity", parity_table)]
    for part, table in drawn:
        if cases := by_case(records, part):
            shown.append(table(cases))
    found = limits(records)
    failing = [
        f"over its limit: {case}: {limit.name}: {number(value)}, must be at most {number(limit.at_most)}"
        for limit in found
        for case, value in limit.failing.items()
    ]
    return [*shown, limit_table(found), *failing]


def change_table(found: Sequence[Change], compared: int) -> Table:
    lines = [
        (
            [*change.key, change.column, timing(change.before), timing(change.after), times(change.factor)],
            "red" if change.factor > 1 else "green",
        )
        for change in found
    ]
    title = f"{len(found)} of {compared} times changed beyond the spread, us"
    return draw_table(title, ["part", "case", "row", "time", "before", "after", "after / before"], lines, words=4)
