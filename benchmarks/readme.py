"""The measured blocks of the README and of docs/performance.md, made from results: no number is written by hand."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from limits import by_case, median
from peers.names import (
    AFTER,
    BEFORE,
    CALL,
    COPY,
    COUNT,
    LAUNCH,
    NODE,
    PLAN,
    PYTHON_LOOP,
    REPLAY_PLAN,
    SCHEDULE,
    SGLANG_FUSED,
    TRITON_AFTER_ITEM,
    TRITON_SCHEDULE,
    WITH_SCHEDULE,
)
from results import Results

BATCH_SIZES = (1, 32, 128, 1000)
REPLAY_BATCHES = ("1 x 4", "32 x 4, kv 4096", "128 x 4", "256 x 2", "512 x 4")  # the rest: results.txt
HOST_ROWS = (CALL, PLAN, COUNT, LAUNCH, TRITON_AFTER_ITEM, PYTHON_LOOP)
BEGIN, END = "<!-- measured: {} -->", "<!-- /measured -->"
BLOCK = re.compile(r"<!-- measured:? ?(?P<source>\S*) -->\n(?P<body>.*?)<!-- /measured -->", re.DOTALL)
PLOT = "scaling_bs.svg"
# What the README's table has of the results: part, case, its name there, column, the row before and ours.
README_LINES = (
    ("draft_extend", "bs 32", "lengths and count of draft tokens, 32 requests", "host", TRITON_AFTER_ITEM, COUNT),
    (
        "replay",
        "draft_extend uniform 128 x 4, kv 8192, width 131072",
        "all metadata of 128 requests of 4 draft tokens, KV length 8192",
        "device",
        SGLANG_FUSED,
        REPLAY_PLAN,
    ),
    (
        "sglang",
        "fused_dsa_target_verify_metadata, bs 32",
        "SGLang's `fused_dsa_target_verify_metadata`, 32 requests",
        "host",
        BEFORE,
        AFTER,
    ),
)
# What it has of the files beside the results: a file, a row of it, its name in the table, the engine, the columns.
ENGINE_LINES = (
    (
        "sglang_refresh.json",
        {"kv": "fp8_e4m3", "mode": "decode", "bs": 32},
        "a whole refresh of SGLang's backend, decode, 32 requests, fp8 KV",
        "SGLang",
        ("host_us_off", "host_us_on"),
    ),
    (
        "vllm_builds.json",
        {"name": "decode", "tokens": 2, "bs": 32, "batch": "exact"},
        "a build of vLLM's sparse indexer, decode with 1 draft token, 32 requests",
        "vLLM",
        ("host_off", "host_on"),
    ),
)


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _draft_extend_lines(results: Results) -> list[str]:
    cases = by_case(results.records, "draft_extend")
    measured = [cases.get(f"bs {bs}", {}) for bs in BATCH_SIZES]

    def line(label: str, row: str, column: str) -> list[str]:
        return [label, *(_short(median(rows.get(row), column)) for rows in measured)]

    host = [line(f"`{row}`" if row in (CALL, PLAN, COUNT) else row, row, "host") for row in HOST_ROWS]
    labels = {"in a graph, device time": PLAN, "empty graph node, device time": NODE}
    device = [line(label, row, "device") for label, row in labels.items()]
    return _markdown(["draft-extend, host time", *(f"bs {bs}" for bs in BATCH_SIZES)], host + device)


def _replay_lines(results: Results) -> list[str]:
    uniform = {
        case.replace("draft_extend uniform ", ""): rows
        for case, rows in by_case(results.records, "replay").items()
        if " uniform " in case
    }
    cases = {case: rows for case, rows in uniform.items() if case.startswith(REPLAY_BATCHES)}
    lines = [
        [
            case,
            *(_short(median(rows.get(row), "device")) for row in (REPLAY_PLAN, SGLANG_FUSED, COPY)),
        ]
        for case, rows in cases.items()
    ]
    return _markdown(["replay, device time in a graph", "ours", SGLANG_FUSED, COPY], lines)


def _by_batch(what: str, cells: dict[str, dict[str, str]]) -> list[str]:
    """A table of a line for each name and a column for each batch, or nothing where there is none."""
    batches = list(dict.fromkeys(batch for line in cells.values() for batch in line))
    lines = [[name, *(line.get(batch, "-") for batch in batches)] for name, line in cells.items()]
    return ["", *_markdown([what, *batches], lines)] if cells else []


def _schedule_lines(results: Results) -> list[str]:
    """What a refresh takes without and with, and a schedule alone beside what engines do."""
    cases = by_case(results.records, "schedule")
    what = {
        "device time without → with schedule and top-k plan": (REPLAY_PLAN, WITH_SCHEDULE),
        f"device time of {TRITON_SCHEDULE} → of ours alone": (TRITON_SCHEDULE, SCHEDULE),
    }
    tables: list[str] = []
    for name, pair in what.items():
        cells: dict[str, dict[str, str]] = {}
        for rows in cases.values():
            shape = next(iter(rows.values())).shape
            times = [median(rows.get(row), "device") for row in pair]
            text = " → ".join("-" if time_us is None else f"{time_us:.2f}" for time_us in times)
            cells.setdefault(f"`{shape['mode']}`, kv {shape['kv']}", {})[f"bs {shape['bs']}"] = text
        tables += _by_batch(name, cells)
    return tables


def _sglang_lines(results: Results) -> list[str]:
    functions: dict[str, dict[str, str]] = {}
    for case, rows in by_case(results.records, "sglang").items():
        function, _, batch = case.partition(", ")
        pairs = [[_short(median(rows.get(row), column)) for row in (BEFORE, AFTER)] for column in ("host", "device")]
        functions.setdefault(f"`{function}`", {})[batch] = ", ".join(f"{before} → {after}" for before, after in pairs)
    return _by_batch(f"{BEFORE} → with this plug-in: host, device time", functions)


def load_engines(results: Path) -> dict[str, dict[str, Any]]:
    """What was measured of the engines on the GPU of a results file, by the file's name."""
    paths = [results.with_name(line[0]) for line in ENGINE_LINES]
    return {path.name: json.loads(path.read_text()) for path in paths if path.exists()}


def _where(results: Results) -> str:
    known = results.environment
    return f"{known['gpu']}, driver {known['driver']}, CUDA {known['cuda']}, torch {known['torch']}, {known['date']}"


def _block(source: str, lines: Iterable[str]) -> str:
    plot = Path(source).with_name(PLOT).as_posix()
    picture = f"![draft-extend: host and device time over the batch size]({plot})"
    return "\n".join([BEGIN.format(source), *lines, "", picture, END])


def readme_block(results: Results, source: str, engines: dict[str, dict[str, Any]]) -> str:
    """The README's table. `source` is the path from the page to the results file."""
    note, lines = "", []
    for part, case, label, column, before, ours in README_LINES:
        rows = by_case(results.records, part).get(case, {})
        times = [median(rows.get(row), column) for row in (before, ours)]
        if None not in times:
            lines.append([label, column, f"{_short(times[0])} ({before})", _short(times[1])])
    for file, match, label, engine, (off, on) in ENGINE_LINES:
        for row in engines.get(file, {"rows": ()})["rows"]:
            if row.items() >= match.items():
                known = engines[file]["environment"]
                name = f"{engine} {known[engine.lower()]}"
                lines.append([label, "host", f"{_short(row[off])} ({name})", _short(row[on])])
                note += f" {engine}'s row: torch {known['torch']}, {known['date']}."
    table = _markdown(["", "time", "before", "with nsa-kernel"], lines)
    return _block(source, [f"Medians in us. {_where(results)}.{note}", "", *table])


def tables_block(results: Results, source: str) -> str:
    """The tables of docs/performance.md. `source` is the path from the page to the results file."""
    lines = [*_draft_extend_lines(results), "", *_replay_lines(results)]
    lines += [*_schedule_lines(results), *_sglang_lines(results)]
    return _block(source, [f"Medians in us. {_where(results)}.", "", *lines])


def with_block(readme: str, block: str) -> str:
    """Puts the block in the place of the one that is there."""
    if not BLOCK.search(readme):
        raise ValueError(f"the page has no place for it, must hold the lines '<!-- measured -->' and '{END}'")
    return BLOCK.sub(lambda _match: block, readme, count=1)


MEASURED = re.compile(r"\d[\d.,]*\s?(?:us|µs|μs|ms|ns|GB/s|TB/s)\b|\b\d[\d.,]*\s?(?:x|times) (?:faster|slower|as fast)")


def measured_numbers(readme: str) -> list[str]:
    """The measured numbers of a README outside its block."""
    return MEASURED.findall(BLOCK.sub("", readme))
