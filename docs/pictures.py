"""Draws the pictures of these pages, each for a light and for a dark page: `python docs/pictures.py`.

The numbers of a small batch are those that the library itself writes.
"""

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import nsa_kernel

FOLDER = Path(__file__).with_name("pictures")
THEMES = {
    "light": {
        "page": "#ffffff", "text": "#1f2328", "quiet": "#656d76", "line": "#afb8c1", "empty": "#f6f8fa",
        "a": "#b6d7ff", "b": "#ffd3a8", "c": "#b9e6c0", "d": "#e0c9f7", "e": "#f7c9dc",
    },
    "dark": {
        "page": "#0d1117", "text": "#e6edf3", "quiet": "#9198a1", "line": "#4d5560", "empty": "#161b22",
        "a": "#1f4f8f", "b": "#8a4b14", "c": "#216b35", "d": "#5b3a86", "e": "#84305a",
    },
}  # fmt: skip
WIDTH, HEIGHT = 30, 24  # of a cell
EMPTY = -1  # what an array holds where nothing was written


class Picture:
    """Text, cells and arrows of one theme, written as SVG."""

    def __init__(self, width: int, height: int, title: str, theme: dict[str, str]) -> None:
        self.theme = theme
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="{theme["page"]}"/>',
        ]

    def text(self, x: float, y: float, text: str, *, colour: str = "text", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{self.theme[colour]}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def cell(
        self, x: float, y: float, text: object, colour: str = "empty", width: float = WIDTH, height: float = HEIGHT
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{self.theme[colour]}" '
            f'stroke="{self.theme["line"]}"/>'
        )
        self.text(x + width / 2, y + height / 2 + 4, "" if text == EMPTY else str(text), anchor="middle")

    def row(self, x: float, y: float, values: Iterable[object], colours: Sequence[str]) -> None:
        """Cells side by side; what was not written has no colour."""
        for i, (value, colour) in enumerate(zip(values, colours, strict=True)):
            self.cell(x + i * WIDTH, y, value, "empty" if value == EMPTY else colour)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="none" '
            f'stroke="{self.theme["text"]}" stroke-width="2"/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        dx, dy = to_x - x, to_y - y
        length = (dx * dx + dy * dy) ** 0.5
        ux, uy = dx / length * 7, dy / length * 7
        head = f"M{to_x - ux - uy / 2:g} {to_y - uy + ux / 2:g} L{to_x:g} {to_y:g} "
        head += f"L{to_x - ux + uy / 2:g} {to_y - uy - ux / 2:g}"
        self.parts.append(
            f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g} {head}" fill="none" stroke="{self.theme["quiet"]}" '
            f'stroke-width="1.5"/>'
        )

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def ints(*values: int) -> array:
    return array("i", values)


def table(rows: int, columns: int, values: Iterable[int] | None = None) -> memoryview:
    flat = array("i", values if values is not None else [EMPTY] * (rows * columns))
    return memoryview(flat).cast("B").cast("i", (rows, columns))


def draw_batch(theme: dict[str, str]) -> str:
    """Two requests of a draft-extend step, from `req_to_token` to the tables."""
    names, q, k, pool_rows = ("A", "B"), (2, 1), (5, 3), (1, 0)
    pool, width, page_size, topk = 3, 6, 2, 4
    source = [8, 9, 2, 0, 0, 0, 4, 5, 10, 11, 6, 0, 0, 0, 0, 0, 0, 0]
    tokens = [b for b in range(2) for _ in range(q[b])]
    rows = len(tokens)
    per_request = {"cache_seqlens": ints(*[EMPTY] * 2), "cu_seqlens_k": ints(*[EMPTY] * 3)}
    per_token = {"seqlens_expanded": ints(*[EMPTY] * rows), "nsa_cache_seqlens": ints(*[EMPTY] * rows)}
    cumulative = {"nsa_cu_seqlens_k": ints(*[EMPTY] * (rows + 1))}
    tables = {"page_table": table(rows, width), "real_page_table": table(rows, width // page_size)}
    schedule = table(3, 2)
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=ints(*k),
        extend_seq_lens=ints(*q),
        nsa_index_topk=topk,
        req_pool_indices=ints(*pool_rows),
        req_to_token=table(pool, width, source),
        page_size=page_size,
        schedule=schedule,
        schedule_format="deepgemm_sm90",
        **per_request,
        **per_token,
        **cumulative,
        **tables,
    )

    picture = Picture(940, 520, "A batch of two requests: what is given, and what replay writes", theme)
    colour = {"A": "a", "B": "b"}
    by_request = [colour[name] for name in names]
    by_token = [by_request[b] for b in tokens]

    picture.text(20, 28, "given: one element a request", colour="quiet")
    for b, name in enumerate(names):
        picture.text(190 + b * WIDTH + WIDTH / 2, 46, name, anchor="middle")
    for i, (label, values) in enumerate((("req_pool_indices", pool_rows), ("seq_lens", k), ("extend_seq_lens", q))):
        picture.text(20, 70 + i * 30, label)
        picture.row(190, 54 + i * 30, values, by_request)

    picture.text(20, 182, "given: req_to_token, token position to slot", colour="quiet")
    left, top = 70, 206
    live = {(pool_rows[b], c): by_request[b] for b in range(2) for c in range(k[b])}
    for c in range(width):
        picture.text(left + c * WIDTH + WIDTH / 2, top - 8, str(c), colour="quiet", anchor="middle")
    for r in range(pool):
        picture.text(20, top + r * HEIGHT + 16, f"row {r}", colour="quiet")
        values = [source[r * width + c] if (r, c) in live else EMPTY for c in range(width)]
        picture.row(left, top + r * HEIGHT, values, [live.get((r, c), "empty") for c in range(width)])

    owner = {source[row * width + c]: of for (row, c), of in live.items()}
    picture.text(20, 330, f"the cache: slots, in pages of {page_size}", colour="quiet")
    for slot in range(12):
        picture.cell(20 + slot * WIDTH, 344, slot, owner.get(slot, "empty"))
    for page in range(12 // page_size):
        picture.frame(20 + page * page_size * WIDTH, 344, page_size * WIDTH, HEIGHT)
        picture.text(20 + (page + 0.5) * page_size * WIDTH, 386, f"page {page}", colour="quiet", anchor="middle")

    picture.arrow(400, 120, 440, 120)
    picture.arrow(400, 240, 440, 240)

    at = 480
    picture.text(at - 30, 28, "written: one element a request", colour="quiet")
    for i, (label, values) in enumerate(per_request.items()):
        picture.text(at - 30, 62 + i * 30, label)
        picture.row(at + 130, 46 + i * 30, values, (["empty", *by_request] if len(values) > len(q) else by_request))
    picture.text(at - 30, 140, "written: one element or row a token", colour="quiet")
    token_top = 196
    lanes = {"seqlens_expanded": at, "nsa_cache_seqlens": at + 75}
    for name, x in lanes.items():
        cut = name.rindex("_", 0, -3) + 1
        picture.text(x + WIDTH / 2, token_top - 24, name[:cut], anchor="middle")
        picture.text(x + WIDTH / 2, token_top - 10, name[cut:], anchor="middle")
    for name, x in lanes.items():
        for t in range(rows):
            picture.cell(x, token_top + t * HEIGHT, per_token[name][t], by_token[t])
    table_left = {"page_table": at + 135, "real_page_table": at + 135 + (width + 0.5) * WIDTH}
    for name, x in table_left.items():
        picture.text(x, token_top - 10, name)
        for t in range(rows):
            picture.row(x, token_top + t * HEIGHT, tables[name].tolist()[t], [by_token[t]] * tables[name].shape[1])
    for t, b in enumerate(tokens):
        number = t - tokens.index(b)
        picture.text(at - 30, token_top + t * HEIGHT + 16, f"{names[b]}{number}")
    for i, (label, values) in enumerate(cumulative.items()):
        picture.text(at - 30, 310 + i * 30, label)
        picture.row(at + 130, 294 + i * 30, values, ["empty", *by_token])
    picture.text(at - 30, 350, "schedule of two slots, as (row, split)")
    entries = schedule.tolist()
    labels = [f"starts slot {slot}" for slot in range(len(entries) - 1)] + ["the end"]
    for slot, (entry, label) in enumerate(zip(entries, labels, strict=True)):
        picture.row(at - 30 + slot * 120, 362, entry, ["c", "c"])
        picture.text(at - 30 + slot * 120, 402, label, colour="quiet")

    notes = (
        f"A has {k[0]} KV entries, of which {q[0]} are this step's tokens A0 and A1; B has {k[1]}, of which one is B0.",
        "A token sees the entries up to its own: seqlens_expanded. Sparse attention keeps at most topk of them",
        f"({topk} here): nsa_cache_seqlens. A row of page_table is the request's row of req_to_token, once a token;",
        "a row of real_page_table has the page of every first slot. Empty cells are left unmodified.",
    )
    for i, note in enumerate(notes):
        picture.text(20, 440 + i * 20, note)
    return picture.svg()


def draw_roles(picture: Picture, y: float, label: str, roles: Sequence[tuple[str, str, int]]) -> None:
    picture.text(20, y - 10, label, colour="quiet")
    x = 20.0
    for name, colour, width in roles:
        picture.cell(x, y, name, colour, width=width, height=34)
        x += width


def draw_launch(theme: dict[str, str]) -> str:
    """The roles of blocks, and the two phases in which table warps take their tasks."""
    picture = Picture(900, 560, "How one launch is divided: roles of blocks, static and overflow phase", theme)
    picture.text(20, 24, "One row of the grid, from block 0 on: roles in order, each with a known first block.")
    small = (
        ("top-k plan", "e", 100),
        ("tokens, requests, padding: by warps", "a", 270),
        ("tables", "b", 340),
        ("schedule", "c", 150),
    )
    large = (
        ("requests", "d", 90),
        ("top-k plan", "e", 100),
        ("tokens", "a", 180),
        ("tables", "b", 340),
        ("schedule", "c", 150),
    )
    draw_roles(picture, 64, "up to 32 requests: blocks of 128 threads", small)
    draw_roles(picture, 136, "more: blocks of 512 threads", large)

    bs, warps, static_tasks = 3, 6, 2
    task_counts = (1, 8, 2)
    start = ((1 << 32) // bs * warps) >> 32  # of the second request, as the kernel computes it
    picture.text(
        20,
        214,
        f"The tables of a small batch, {bs} requests and {warps} table warps. A cell is a copy task, w its warp.",
    )
    picture.text(160, 240, "static phase", colour="quiet")
    picture.text(160 + static_tasks * 70 + 30, 240, "overflow phase", colour="quiet")
    for b, tasks in enumerate(task_counts):
        y = 254 + b * 40
        picture.text(20, y + 17, f"request {b}")
        for task in range(static_tasks):
            name = f"w{task * bs + b}" if task < tasks else f"(w{task * bs + b})"
            picture.cell(160 + task * 70, y, name, "b" if task < tasks else "empty", width=70)
        for task in range(static_tasks, tasks):
            number = (start + task - static_tasks) % warps
            picture.cell(160 + static_tasks * 70 + 30 + (task - static_tasks) * 70, y, f"w{number}", "e", width=70)
    notes = (
        "Static phase: every request has warps of its own for its first tasks. Warp w has task w // bs of request",
        "w % bs, so it knows what to read as soon as it has read that request. (w3) is past the end of request 0,",
        "and does nothing more for it.",
        "Overflow phase: the other tasks of a long request are dealt round-robin over all table warps, from a start of",
        f"its own (request 1 starts at w{start}), so that no warp needs to know what the others do.",
        "A task is read once and stored to every row of the request, up to 16; a request of more rows has overflow",
        "tasks alone, some for every 16 rows.",
    )
    for i, note in enumerate(notes):
        picture.text(20, 400 + i * 20, note)
    return picture.svg()


PICTURES = {"batch": draw_batch, "launch": draw_launch}


def drawn() -> dict[str, str]:
    """Every picture by its file name."""
    return {f"{name}-{word}.svg": draw(theme) for name, draw in PICTURES.items() for word, theme in THEMES.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in drawn().items():
        (FOLDER / name).write_text(svg)
