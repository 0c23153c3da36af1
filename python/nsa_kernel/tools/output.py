"""What the command line prints: with colours where a terminal reads it and rich is installed, plain text elsewhere."""

import importlib
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

PROGRESS_SECONDS = 0.1
_progress = {"shown_at": 0.0}


def _rich() -> dict[str, Any]:
    """The modules of rich that are used here; none where plain text is printed."""
    if not sys.stdout.isatty():
        return {}
    try:
        modules: dict[str, ModuleType] = {n: importlib.import_module(f"rich.{n}") for n in ("box", "console", "table")}
    except ImportError:
        return {}
    return modules


def say(text: str = "", style: str = "") -> None:
    """Prints a line."""
    if rich := _rich():
        rich["console"].Console(markup=False, highlight=False, soft_wrap=True).print(text, style=style)
    else:
        print(text)


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = (), left: int = 1) -> None:
    """Prints rows in columns, of which the first `left` are aligned at the left, the others at the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    if rich := _rich():
        frame = rich["box"].SIMPLE_HEAD if header else None
        made = rich["table"].Table(box=frame, show_header=bool(header), pad_edge=bool(header))
        for at in range(len(cells[0])):
            name, style = (header[at], "") if header else ("", "" if at else "cyan")
            made.add_column(name, justify="left" if at < left else "right", style=style, overflow="fold")
        for row in cells:
            made.add_row(*row)
        rich["console"].Console(markup=False, highlight=False).print(made)
        return
    lines = [list(header), *cells] if header else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        sized = enumerate(zip(line, widths, strict=True))
        padded = [cell.ljust(width) if at < left else cell.rjust(width) for at, (cell, width) in sized]
        print("  ".join(padded).rstrip())


def progress(text: str = "") -> None:
    """Shows how far long work is, in a line of a terminal that the next overwrites; without a text clears it."""
    now = time.monotonic()
    if not sys.stderr.isatty() or (text and now - _progress["shown_at"] < PROGRESS_SECONDS):
        return
    _progress["shown_at"] = now
    sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
    sys.stderr.flush()
