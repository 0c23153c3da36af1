"""The parts of a run. Each yields records, one list a case, so that a run shows its progress and keeps what it has."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import cases
import nsa_kernel
import torch
from cases import DraftExtendCase, ReplayCase
from measure import FAILED, Bench, Record, finish_on, timed, timed_in_graph
from nsa_kernel.tools.benchmark import Spread, spread
from peers import FLOOR, OURS, Row, floors
from peers.names import BOUND_ANEW, FIVE_ARRAYS, FIVE_DLPACK, FOUND_AGAIN, IMPORT, PLAN, PYTHON_LOOP, SAFE_KEY

BATCH_SIZES = (1, 4, 16, 32, 128, 512, 1000, 4000)
SCALED_BATCH_SIZES = (1, 3, 10, 32, 100, 316, 1000, 3162, 10000, 31623, 100000)
LOOP_TIMED_UP_TO = 1000
REPLAY_WARM_UP = ReplayCase("draft_extend", 3, 2, 300, 512)


@dataclass
class Part:
    """A named list of steps; each returns records."""

    name: str
    steps: list[tuple[str, Callable[[], list[Record]]]]


def of_cases(name: str, bench: Bench, rows: list[Row], timed_cases: list[Any], warm_up: Any) -> Part:
    """One step a case, after a case that is not timed."""
    first = (f"{name}: warm up", lambda: bench.warm_up(warm_up, rows) or [])
    steps = [(f"{name}: {case.name}", partial(bench.measure, name, case, rows)) for case in timed_cases]
    return Part(name, [first, *steps])


def draft_extend(bench: Bench, rows: dict[str, list[Row]]) -> Part:
    timed_cases = [DraftExtendCase(bs) for bs in BATCH_SIZES]
    return of_cases("draft_extend", bench, rows["draft_extend"], timed_cases, DraftExtendCase(7))


def replay(bench: Bench, rows: dict[str, list[Row]]) -> Part:
    grid = cases.replay_grid() if bench.device == "cuda" else cases.replay_cpu_grid()
    return of_cases("replay", bench, rows["replay"], list(grid), REPLAY_WARM_UP)


def schedule(bench: Bench, rows: dict[str, list[Row]]) -> Part:
    """All rows of a case share its arrays: how they lie in memory makes more of a difference than a schedule."""
    grid, short = cases.scheduled_grid(bench.device), replace(bench, columns=("host", "device"))
    return of_cases("schedule", short, rows["schedule"], list(grid), replace(REPLAY_WARM_UP, scheduled=True))


# ---- SGLang's functions before and after -----------------------------------------------------------------------------


def _sglang(bench: Bench, rows: dict[str, list[Row]], function: str, case: Any) -> list[Record]:
    of_op = rows["sglang_expand" if case.op == "draft_extend" else "sglang_fused"]
    records = bench.measure("sglang", case, of_op)
    for record in records:
        record.case = f"{function}, bs {case.bs}"
    return records


def sglang(bench: Bench, rows: dict[str, list[Row]]) -> Part:
    calls = cases.sglang_calls(bench.device)
    steps = [(f"sglang: {name}, bs {case.bs}", partial(_sglang, bench, rows, name, case)) for name, case in calls]
    return Part("sglang", steps)


# ---- scaling ---------------------------------------------------------------------------------------------------------


def scaling_bs(bench: Bench, rows: dict[str, list[Row]]) -> Part:
    def unfit(case: Any) -> str | None:
        return f"not drawn above {LOOP_TIMED_UP_TO} requests" if case.bs > LOOP_TIMED_UP_TO else None

    drawn = [
        replace(row, unfit=unfit) if row.name == PYTHON_LOOP else row
        for row in rows["draft_extend"]
        if not row.name.startswith(f"{PLAN}, ")
    ]
    timed_cases = [DraftExtendCase(bs) for bs in SCALED_BATCH_SIZES]
    return of_cases("scaling_bs", replace(bench, columns=("host", "device")), drawn, timed_cases, DraftExtendCase(7))


def scaling_replay(bench: Bench, rows: dict[str, list[Row]], name: str, timed_cases: list[ReplayCase]) -> Part:
    short = replace(bench, columns=("host", "device"))
    return of_cases(name, short, rows["replay"], timed_cases, REPLAY_WARM_UP)


def scaling(bench: Bench, rows: dict[str, list[Row]]) -> list[Part]:
    width, kv = (131072, 4096) if bench.device == "cuda" else (8192, 1024)
    base = ReplayCase("draft_extend", 32, cases.TOKENS, kv, width)
    powers = [1 << exponent for exponent in range(9, width.bit_length())]
    widths = [value for value in (2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144) if kv <= value <= 2 * width]
    return [
        scaling_bs(bench, rows),
        scaling_replay(bench, rows, "scaling_kv", [replace(base, kv=value) for value in powers]),
        scaling_replay(bench, rows, "scaling_width", [replace(base, width=value) for value in widths]),
        scaling_replay(bench, rows, "scaling_draft_tokens", [replace(base, tokens=n) for n in (1, 2, 3, 4, 6, 8, 16)]),
    ]


# ---- the host's own cost ---------------------------------------------------------------------------------------------


def _record(part: str, case: str, row: str, group: str, host: Spread | None = None, **rest: Any) -> Record:
    return Record(part, case, {}, row, group, host=host, **rest)


IMPORT_COMMAND = """
import sys, time
start = time.perf_counter()
import nsa_kernel
print((time.perf_counter() - start) * 1e6, *sorted({"torch", "numpy"} & set(sys.modules)))
"""
IMPORT_RUNS = 7


def _import_time() -> list[Record]:
    taken = []
    frameworks: set[str] = set()
    for _ in range(IMPORT_RUNS):
        command = [sys.executable, "-c", IMPORT_COMMAND]
        microseconds, *imported = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        taken.append(float(microseconds))
        frameworks.update(imported)
    record = _record("host", "import", IMPORT, OURS, spread(taken))
    if frameworks:
        record.status, record.note = FAILED, f"imports {', '.join(sorted(frameworks))}"
    return [record]


def _arrays(bench: Bench) -> list[Record]:
    """A call with no requests on the CPU takes and checks five arrays and does nothing else."""
    q, k, expanded, clipped = (torch.empty(0, dtype=torch.int32) for _ in range(4))
    count = torch.empty(1, dtype=torch.int32)
    call = partial(nsa_kernel.fill_draft_extend_metadata, q, k, cases.TOPK, expanded, clipped, count)
    exported = [torch.empty(1, dtype=torch.int32) for _ in range(5)]

    def export() -> None:
        for array in exported:
            array.__dlpack__()

    times = timed({FIVE_ARRAYS: call, FIVE_DLPACK: export}, "cpu", bench.rounds)
    return [_record("host", "arrays", name, OURS if name == FIVE_ARRAYS else FLOOR, times[name]) for name in times]


FEW_SETS, MANY_SETS = 2, 16  # a call finds its plan where few buffers take turns, and never where many do


def _plans(bench: Bench) -> list[Record]:
    """A call on the CPU with no requests and all arrays: what finding its plan saves, and what a key would cost."""
    case = ReplayCase("target_verify", 0, cases.TOKENS, 0, cases.PAGE_SIZE)
    nothing = torch.empty(0, dtype=torch.int32)
    table = torch.empty(1, cases.PAGE_SIZE, dtype=torch.int32)
    sets = [cases.replay_set(case, nothing, nothing, nothing, table).arguments for _ in range(MANY_SETS)]

    def call_in_turns(count: int) -> Callable[[], object]:
        turns = cycle(sets[:count])
        return lambda: nsa_kernel.fill_replay_metadata(case.mode, **next(turns))

    tensors = [value for value in sets[0].values() if isinstance(value, torch.Tensor)]

    def key() -> object:
        return tuple([(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in tensors])

    calls = {FOUND_AGAIN: call_in_turns(FEW_SETS), BOUND_ANEW: call_in_turns(MANY_SETS), SAFE_KEY: key}
    times = timed(calls, "cpu", bench.rounds)
    return [_record("host", "plans", name, FLOOR if name == SAFE_KEY else OURS, times[name]) for name in times]


def host(bench: Bench, _rows: dict[str, list[Row]]) -> Part:
    steps = {"import": _import_time, "arrays": partial(_arrays, bench), "plans": partial(_plans, bench)}
    return Part("host", [(f"host: {name}", step) for name, step in steps.items()])


# ---- the breakdown of one call ---------------------------------------------------------------------------------------

BREAKDOWN_BATCH_SIZES = (1, 32, 1000)


def difference(larger: Spread, smaller: Spread) -> Spread:
    """The difference of two medians; its spread is that of both together, for they were not taken at one moment."""
    half = ((larger.high - larger.low) ** 2 + (smaller.high - smaller.low) ** 2) ** 0.5 / 2
    median = larger.median - smaller.median
    return Spread(median, median - half, median + half, min(larger.rounds, smaller.rounds))


def scaled(time_us: Spread, factor: int) -> Spread:
    return Spread(factor * time_us.median, factor * time_us.low, factor * time_us.high, time_us.rounds)


def _breakdown(bench: Bench, bs: int) -> list[Record]:
    """Each step is what a call costs above a call that lacks it."""
    (buffers,) = cases.draft_extend_sets(DraftExtendCase(bs), bench.device)
    four, five = buffers.arguments, buffers.arguments_with_count
    calls: dict[str, Callable[[], object]] = {
        "plan of four arrays": partial(nsa_kernel.DraftExtendPlan, *four),
        "plan of five arrays": partial(nsa_kernel.DraftExtendPlan, *five),
        "call": partial(nsa_kernel.fill_draft_extend_metadata, *five),
        "run": nsa_kernel.DraftExtendPlan(*five).run,
        "call without count": partial(nsa_kernel.fill_draft_extend_metadata, *four),
        "call that returns the count": partial(nsa_kernel.fill_draft_extend_metadata_cuda, *four),
    }
    if bench.device == "cuda":
        calls["launch"] = floors.launch(None)
    taken = timed(calls, bench.device, bench.rounds)
    arrays = scaled(difference(taken["plan of five arrays"], taken["plan of four arrays"]), 5)
    steps: dict[str, tuple[Spread | None, Spread | None]] = {"array import": (arrays, None)}
    if bench.device == "cuda":
        empty = torch.empty(0, dtype=torch.int32, device="cuda")
        nodes = {
            "empty": floors.node(None),
            "scan": nsa_kernel.DraftExtendPlan(*four[:3], empty, empty, buffers.out_num_tokens).run,
            "all": nsa_kernel.DraftExtendPlan(*five).run,
        }
        on_device = timed_in_graph(nodes, bench.rounds)
        steps["checks and arguments"] = (difference(difference(taken["call"], arrays), taken["launch"]), None)
        steps["launch"] = (taken["launch"], on_device["empty"])
        steps["scan"] = (None, difference(on_device["scan"], on_device["empty"]))
        steps["fill"] = (None, difference(on_device["all"], on_device["scan"]))
        steps["whole call"] = (taken["call"], on_device["all"])
        readback = difference(taken["call that returns the count"], taken["call without count"])
        steps["count readback, where asked for"] = (readback, None)
    else:
        steps["checks and arguments"] = (difference(difference(taken["call"], arrays), taken["run"]), None)
        steps["scan and fill"] = (taken["run"], None)
        steps["whole call"] = (taken["call"], None)
    return [
        Record("breakdown", f"bs {bs}", asdict(buffers.case), name, OURS, host=of_host, device=of_device)
        for name, (of_host, of_device) in steps.items()
    ]


def breakdown(bench: Bench, _rows: dict[str, list[Row]]) -> Part:
    return Part("breakdown", [(f"breakdown: bs {bs}", partial(_breakdown, bench, bs)) for bs in BREAKDOWN_BATCH_SIZES])


# ---- parity with the engine's kernels --------------------------------------------------------------------------------

PARITY_DRAWS = 13
PARITY_SHAPES = ((1, 1, 128), (1, 4, 1000), (2, 3, 4096), (5, 2, 777), (17, 4, 2049), (64, 1, 640))


def parity_cases() -> Iterator[ReplayCase]:
    """Shapes for which the engine's kernel compiles once each."""
    for bs, tokens, width in PARITY_SHAPES:
        uniform = ReplayCase("draft_extend", bs, tokens, width, width)
        yield from (uniform, replace(uniform, ragged=True, compact=bs == 2))
        yield replace(uniform, mode="decode", tokens=1, compact=bs == 5)
        yield replace(uniform, mode="target_verify", kv=width - tokens, compact=bs == 17)


def _parity_draw(case: ReplayCase, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengths from none to all, some of them those of padded rows, and at least one token in all."""
    s = cases.random_int32(generator, 0, case.kv, case.bs)
    s[torch.rand(case.bs, generator=generator) < 0.2] = 1
    q = torch.full_like(s, case.tokens)
    if case.ragged:
        q = cases.random_int32(generator, 0, case.tokens, case.bs)
        q[0] = max(1, int(q[0]))
    return s, q


def _parity(bench: Bench, rows: list[Row], case: ReplayCase) -> list[Record]:
    """Runs each row on its own poisoned arrays and checks both against the one set of expected values."""
    generator = torch.Generator().manual_seed(case.bs * 1000 + case.tokens)
    records = {row.name: Record("parity", case.name, asdict(case), row.name, row.group) for row in rows}
    for _ in range(PARITY_DRAWS):
        s, q = _parity_draw(case, generator)
        pool = case.bs + 3
        table = cases.random_int32(generator, 0, (1 << 24) - 1, (pool, case.width)).to(bench.device)
        indices = cases.random_int32(generator, 0, pool - 1, case.bs)
        for row in rows:
            buffers = cases.replay_set(case, s, q, indices, table)
            buffers.poison()
            record = records[row.name]
            try:
                row.bind(buffers)()
                finish_on(bench.device)()
                message = buffers.wrong(row.exact)
            except Exception as error:
                message = f"{type(error).__name__}: {error}".splitlines()[0]
            record.configurations += message is None
            if message is not None:
                record.status, record.note = FAILED, message
                bench.on_wrong(f"parity, {case.name}: {row.name}: {message}")
    return list(records.values())


def parity(bench: Bench, rows: dict[str, list[Row]]) -> Part:
    computing = [row for row in rows["replay"] if row.computes and (row.group == OURS or row.in_graph)]
    steps = [(f"parity: {case.name}", partial(_parity, bench, computing, case)) for case in parity_cases()]
    return Part("parity", steps)


PARTS = ("draft_extend", "replay", "schedule", "sglang", "host", "breakdown", "scaling", "parity")


def parts(names: list[str], bench: Bench, rows: dict[str, list[Row]]) -> list[Part]:
    """Returns the parts of the names given, in order."""
    makers = {
        "draft_extend": draft_extend,
        "replay": replay,
        "schedule": schedule,
        "sglang": sglang,
        "host": host,
        "breakdown": breakdown,
        "parity": parity,
    }
    chosen: list[Part] = []
    for name in names:
        chosen += scaling(bench, rows) if name == "scaling" else [makers[name](bench, rows)]
    return chosen
