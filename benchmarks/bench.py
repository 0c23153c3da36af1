"""Times this package beside its floors and its peers: `python benchmarks/bench.py --help`."""

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nsa_kernel
import torch
from cases import DraftExtendCase, replay_grid
from compare import changes, compared_times
from environment import environment, folder_name
from limits import limits
from measure import SETS, Bench, finish_on, run_checked
from nsa_kernel.tools.benchmark import round_count
from parts import BATCH_SIZES, PARTS, parts
from peers import rows
from peers.names import PLAN, REPLAY_PLAN
from plots import draw
from readme import load_engines, readme_block, tables_block, with_block
from results import Results, load, save
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tables import change_table, tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ROUNDS, QUICK_ROUNDS = 31, 21
OPS = ("draft_extend", "replay", "schedule", "sglang_fused", "sglang_expand")
QUICK_PARTS = ["draft_extend", "replay", "schedule", "sglang", "host"]
TEXT_WIDTH = 220


def console(**options) -> Console:
    """A terminal decides its own width; a file or a pipe gets room for the widest table."""
    return Console(width=None if "file" not in options and sys.stdout.isatty() else TEXT_WIDTH, **options)


def measured(options: argparse.Namespace, keep: Callable[[Results], object]) -> Results:
    """Runs the parts asked for; `keep` is called after each, so that a run cut short leaves what it has."""
    found = {op: rows(op, options.device) for op in OPS}
    missing = list(dict.fromkeys(line for _, lines in found.values() for line in lines))
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    seconds: dict[str, float] = {}
    settings = {"device": options.device, "rounds": rounds, "parts": options.only, "seconds": seconds}
    results = Results(environment(options.device), settings, missing, [])
    columns = (TextColumn("{task.description:<60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        bench = Bench(options.device, rounds, on_wrong=progress.console.print)
        chosen = parts(options.only, bench, {op: of_op for op, (of_op, _) in found.items()})
        task = progress.add_task("", total=sum(len(part.steps) for part in chosen))
        for part in chosen:
            start = time.monotonic()
            for description, step in part.steps:
                progress.update(task, description=description)
                results.records += step()
                progress.advance(task)
            seconds[part.name] = round(time.monotonic() - start, 1)
            keep(results)
    return results


def show(results: Results, target: Console) -> None:
    for table in tables(results):
        target.print(table)
        target.print()


def leave(results: Results, folder: Path, name: str) -> None:
    """Writes the JSON, the same tables as text, and the plots."""
    save(results, folder / f"{name}.json")
    text = io.StringIO()
    show(results, console(file=text))
    (folder / f"{name}.txt").write_text("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))
    draw(results.records, folder)


def run(options: argparse.Namespace) -> int:
    options.device = options.device or ("cuda" if can_use_cuda() else "cpu")
    options.only = options.only or (QUICK_PARTS if options.quick else list(PARTS))
    folder = options.out or RESULTS / folder_name(environment(options.device))
    folder.mkdir(parents=True, exist_ok=True)
    name = "results" if set(options.only) == set(PARTS) else "partial"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # an empty one, so that a first call compiles what it needs
        results = measured(options, lambda so_far: save(so_far, folder / f"{name}.json"))
    leave(results, folder, name)
    show(results, console())
    print(f"written to {folder}/{name}.json, .txt")
    return int(options.limits and any(limit.failing for limit in limits(results.records)))


def can_use_cuda() -> bool:
    return torch.cuda.is_available() and nsa_kernel.is_cuda_kernel_available()


def show_file(options: argparse.Namespace) -> int:
    show(load(options.results), console())
    return 0


def profile(options: argparse.Namespace) -> int:
    """Runs our plans once on each set of arrays: a profiler needs no more, and finds the launches by their names."""
    device = "cuda" if can_use_cuda() else "cpu"
    for case in [*map(DraftExtendCase, BATCH_SIZES), *replay_grid()]:
        if options.text in f"{case.op} {case.name}":
            (row,) = (row for row in rows(case.op, device)[0] if row.name in (PLAN, REPLAY_PLAN))
            sets = SETS[case.op](case, device)
            _, _, wrong = run_checked(row, sets, finish_on(device))
            print(f"{case.op} {case.name}: {len(sets)} launches, {wrong or 'right'}")
    return 0


def compare(options: argparse.Namespace) -> int:
    before, after = load(options.before).records, load(options.after).records
    found = changes(before, after, options.at_least)
    console().print(change_table(found, compared_times(before, after)))
    return 0


def plot(options: argparse.Namespace) -> int:
    for path in draw(load(options.results).records, options.out or options.results.parent):
        print(path)
    return 0


def readme(options: argparse.Namespace) -> int:
    page = options.write or ROOT / "README.md"
    source = Path(os.path.relpath(options.results.resolve(), page.resolve().parent)).as_posix()
    results = load(options.results)
    if options.tables:
        block = tables_block(results, source)
    else:
        block = readme_block(results, source, load_engines(options.results))
    if options.write:
        options.write.write_text(with_block(options.write.read_text(), block))
    else:
        print(block)
    return 0


def part_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"part {name!r} is unknown, must be one of {', '.join(PARTS)}")
    return names


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("run", help="measure, print the tables, write JSON, text and plots")
    command.set_defaults(function=run)
    command.add_argument("--only", type=part_names, metavar="PART,...", help=f"parts to run, of {', '.join(PARTS)}")
    command.add_argument("--quick", action="store_true", help=f"fewer rounds, and {', '.join(QUICK_PARTS)} alone")
    command.add_argument("--limits", action="store_true", help="exit with status 1 where a limit is not kept")
    command.add_argument("--device", choices=["cpu", "cuda"], help="default: CUDA where it can be used")
    rounds = f"rounds of each row (default {ROUNDS}, quick {QUICK_ROUNDS})"
    command.add_argument("--rounds", type=round_count, help=rounds)
    command.add_argument("--out", type=Path, help="folder to write to (default benchmarks/results/<gpu>)")

    command = commands.add_parser("show", help="print the tables of a results file")
    command.set_defaults(function=show_file)
    command.add_argument("results", type=Path)

    command = commands.add_parser(
        "profile", help="run our plans once in the cases whose name holds a text, for a profiler"
    )
    command.set_defaults(function=profile)
    command.add_argument("text", metavar="TEXT", help="as in 'replay draft_extend compact 256'; for a profiler")

    command = commands.add_parser("compare", help="print what changed beyond the spread between two results files")
    command.set_defaults(function=compare)
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    command.add_argument(
        "--at-least", type=float, default=0.02, help="smallest change, as a share (default %(default)s)"
    )

    command = commands.add_parser("plot", help="draw the plots of a results file again")
    command.set_defaults(function=plot)
    command.add_argument("results", type=Path)
    command.add_argument("--out", type=Path, help="folder to write to (default: that of the file)")

    command = commands.add_parser("readme", help="print the README's measured block, or write it into a page")
    command.set_defaults(function=readme)
    command.add_argument("results", type=Path)
    command.add_argument("--write", type=Path, metavar="PAGE")
    command.add_argument("--tables", action="store_true", help="the tables of docs/performance.md instead")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, "run")
    options = parser().parse_args(arguments)
    return options.function(options)


if __name__ == "__main__":
    sys.exit(main())
