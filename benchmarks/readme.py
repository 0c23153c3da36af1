"""The README's measured block, out of one results file, so that no number in it is written by hand."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    SGLANG_FUSED,
    TRITON_AFTER_ITEM,
)
from results import Results

README_BATCH_SIZES = (1, 32, 128, 1000)
README_REPLAY_BATCHES = ("1 x 4", "32 x 4, kv 4096", "128 x 4", "256 x 2", "512 x 4")  # the rest: results.txt
README_HOST_ROWS = (CALL, PLAN, COUNT, LAUNCH, TRITON_AFTER_ITEM, PYTHON_LOOP)
BEGIN, END = "<!-- measured: {} -->", "<!-- /measured -->"
BLOCK = re.compile(r"<!-- measured:? ?(?P<source>\S*) -->\n(?P<body>.*?)<!-- /measured -->", re.DOTALL)
README_PLOT = "scaling_bs.svg"


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _draft_extend_lines(results: Results) -> list[str]:
    cases = by_case(results.records, "draft_extend")
    measured = [cases.get(f"bs {bs}", {}) for bs in README_BATCH_SIZES]

    def line(label: str, row: str, column: str) -> list[str]:
        return [label, *(_short(median(rows.get(row), column)) for rows in measured)]

    host = [line(f"`{row}`" if row in (CALL, PLAN, COUNT) else row, row, "host") for row in README_HOST_ROWS]
    labels = {"in a graph, device time": PLAN, "empty graph node, device time": NODE}
    device = [line(label, row, "device") for label, row in labels.items()]
    return _markdown(["draft-extend, host time", *(f"bs {bs}" for bs in README_BATCH_SIZES)], host + device)


def _replay_lines(results: Results) -> list[str]:
    uniform = {
        case.replace("draft_extend uniform ", ""): rows
        for case, rows in by_case(results.records, "replay").items()
        if " uniform " in case
    }
    cases = {case: rows for case, rows in uniform.items() if case.startswith(README_REPLAY_BATCHES)}
    lines = [
        [
            case,
            *(_short(median(rows.get(row), "device")) for row in (REPLAY_PLAN, SGLANG_FUSED, COPY)),
        ]
        for case, rows in cases.items()
    ]
    return _markdown(["replay, device time in a graph", "ours", SGLANG_FUSED, COPY], lines)


def _sglang_lines(results: Results) -> list[str]:
    """A line a function, or nothing where none was measured."""
    functions: dict[str, dict[str, str]] = {}
    for case, rows in by_case(results.records, "sglang").items():
        function, _, batch = case.partition(", ")
        pairs = [[_short(median(rows.get(row), column)) for row in (BEFORE, AFTER)] for column in ("host", "device")]
        functions.setdefault(function, {})[batch] = ", ".join(f"{before} → {after}" for before, after in pairs)
    batches = list(dict.fromkeys(batch for cells in functions.values() for batch in cells))
    lines = [[f"`{name}`", *(cells.get(batch, "-") for batch in batches)] for name, cells in functions.items()]
    header = [f"{BEFORE} → with this plug-in: host, device time", *batches]
    return ["", *_markdown(header, lines)] if functions else []


def readme_block(results: Results, source: str) -> str:
    """The README's tables out of one results file, whose path from the README is `source`."""
    known = results.environment
    where = f"{known['gpu']}, driver {known['driver']}, CUDA {known['cuda']}, torch {known['torch']}, {known['date']}"
    plot = Path(source).with_name(README_PLOT).as_posix()
    lines = [
        f"Medians in us. {where}.",
        "",
        *_draft_extend_lines(results),
        "",
        *_replay_lines(results),
        *_sglang_lines(results),
        "",
        f"![draft-extend: host and device time over the batch size]({plot})",
    ]
    return "\n".join([BEGIN.format(source), *lines, END])


def with_block(readme: str, block: str) -> str:
    """Puts the block in the place of the one that is there."""
    if not BLOCK.search(readme):
        raise ValueError(f"README has no place for it, must hold the lines '<!-- measured -->' and '{END}'")
    return BLOCK.sub(lambda _match: block, readme, count=1)


MEASURED = re.compile(r"\d[\d.,]*\s?(?:us|µs|μs|ms|ns|GB/s|TB/s)\b|\b\d[\d.,]*\s?(?:x|times) (?:faster|slower|as fast)")


def measured_numbers(readme: str) -> list[str]:
    """The measured numbers of a README outside its block."""
    return MEASURED.findall(BLOCK.sub("", readme))
