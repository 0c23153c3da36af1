"""How this project takes times, and the quick table of `python -m nsa_kernel bench`.

Host time of one call is a batch of calls divided by their number. Device time of one call is a CUDA graph of many such
calls divided by their number. Rows that are compared take turns, round after round, so that a drift of the machine
reaches all of them; a row's time is the median of its rounds, and its spread is their interquartile range.
"""

import argparse
import gc
import importlib
import json
import math
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat
from typing import Any

from .. import (
    DraftExtendPlan,
    ReplayPlan,
    fill_draft_extend_metadata,
    fill_draft_extend_metadata_cuda,
    fill_replay_metadata,
    get_kernel_info,
    is_cuda_kernel_available,
)
from .._ext import launch_empty_kernel
from .devices import cpu_name
from .output import progress, say, table

__all__ = [
    "Spread",
    "device_timer",
    "done_timer",
    "host_timer",
    "interleave",
    "launch_empty_kernel",
    "main",
    "spread",
]

Call = Callable[[], object]
Timer = Callable[[], float]

HOST_BATCH_US = 1000.0
HOST_TRIALS = 5
HOST_BATCH_CALLS = 50  # well under the launches that a stream queues before the host has to wait
GRAPH_US = 1000.0
GRAPH_NODES = 1000


@dataclass(frozen=True)
class Spread:
    """Microseconds: the median of the rounds, and the quarter and three-quarter points."""

    median: float
    low: float
    high: float
    rounds: int


def spread(samples: Sequence[float]) -> Spread:
    """Sums up the rounds of one row."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high, len(samples))


def interleave(timers: Mapping[str, Timer], rounds: int) -> dict[str, Spread]:
    """Runs every timer once a round, in turn, with the garbage collector off."""
    samples: dict[str, list[float]] = {name: [] for name in timers}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, timer in timers.items():
                samples[name].append(timer())
    finally:
        if collecting:
            gc.enable()
    return {name: spread(taken) for name, taken in samples.items()}


def batch_size(call_us: float, batch_us: float, most: int) -> int:
    """How many calls fill `batch_us`, at least one and at most `most`."""
    return max(1, min(most, math.ceil(batch_us / max(call_us, 1e-3))))


def host_batch(call: Call) -> int:
    """How many calls fill a batch: the first may take longer than those after it, and any may be interrupted."""
    trials = []
    for _ in repeat(None, HOST_TRIALS):
        start = time.perf_counter_ns()
        call()
        trials.append((time.perf_counter_ns() - start) / 1e3)
    return batch_size(statistics.median(trials), HOST_BATCH_US, HOST_BATCH_CALLS)


def host_timer(call: Call, finish: Call) -> Timer:
    """Times the host's share of one call. `finish` waits for the device, outside the time."""
    finish()
    calls = host_batch(call)
    finish()

    def sample() -> float:
        start = time.perf_counter_ns()
        for _ in repeat(None, calls):
            call()
        elapsed = time.perf_counter_ns() - start
        finish()
        return elapsed / calls / 1e3

    return sample


def done_timer(call: Call, finish: Call) -> Timer:
    """Times one call until the host knows that its outputs are written: the call, then `finish`."""
    finish()
    calls = host_batch(lambda: (call(), finish()))

    def sample() -> float:
        start = time.perf_counter_ns()
        for _ in repeat(None, calls):
            call()
            finish()
        return (time.perf_counter_ns() - start) / calls / 1e3

    return sample


def _capture(torch: Any, calls: Sequence[Call], nodes: int) -> Any:
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for node in range(nodes):
                calls[node % len(calls)]()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(side)
    return graph


def _graph_timer(torch: Any, calls: Sequence[Call], nodes: int) -> Timer:
    graph = _capture(torch, calls, nodes)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample() -> float:
        graph.replay()  # keeps the device busy while the host submits the replay that is timed
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / nodes

    sample()
    return sample


def device_timer(torch: Any, calls: Sequence[Call]) -> Timer:
    """Times one call on the device: a chain of graph nodes that takes the calls in turn, divided by its length.

    Calls over several sets of buffers keep the L2 cache from holding what a single set would leave there.
    """
    pilot = _graph_timer(torch, calls, len(calls))()
    rotations = batch_size(pilot * len(calls), GRAPH_US, max(1, GRAPH_NODES // len(calls)))
    return _graph_timer(torch, calls, rotations * len(calls))


# ---- the quick table -------------------------------------------------------------------------------------------------

BATCH_SIZES = (1, 32, 128, 1000)
TOKENS, TOPK, PAGE_SIZE = 4, 2048, 64
REPLAY_KV, REPLAY_REQUESTS = 4096, 32


class _Machine:
    """Where the quick table runs: torch on the GPU, torch on the CPU, or plain Python arrays where torch is absent."""

    def __init__(self, device: str | None) -> None:
        try:
            self.torch: Any = importlib.import_module("torch")
        except ImportError:
            self.torch = None
        can_use_cuda = self.torch is not None and self.torch.cuda.is_available() and is_cuda_kernel_available()
        if device == "cuda" and not can_use_cuda:
            why = get_kernel_info().get("reason", "torch sees none")
            raise SystemExit(f"bench: no CUDA device can be used: {why}")
        self.cuda = can_use_cuda if device is None else device == "cuda"

    @property
    def name(self) -> str:
        return str(self.torch.cuda.get_device_name()) if self.cuda else cpu_name()

    def array(self, values: Iterable[int]) -> Any:
        if self.torch is None:
            return array("i", values)
        return self.torch.tensor(list(values), dtype=self.torch.int32, device="cuda" if self.cuda else "cpu")

    def table(self, rows: int, columns: int) -> Any:
        values = self.array(range(rows * columns))
        if self.torch is None:
            return memoryview(values).cast("B").cast("i", (rows, columns))
        return values.view(rows, columns)

    def finish(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def empty_launch(self) -> Call:
        return partial(launch_empty_kernel, self.torch.cuda.current_stream().cuda_stream)


def _draft_extend_calls(machine: _Machine, bs: int) -> dict[str, Call]:
    draw = random.Random(bs)
    q = [draw.randint(1, TOKENS) for _ in range(bs)]
    k = [tokens + draw.randint(0, 2 * TOPK) for tokens in q]
    outputs = [machine.array([0] * bs * TOKENS) for _ in range(2)]
    arguments = (machine.array(q), machine.array(k), TOPK, *outputs)
    return {
        "asynchronous call": partial(fill_draft_extend_metadata, *arguments),
        "plan.run": DraftExtendPlan(*arguments).run,
        "call that returns the count": partial(fill_draft_extend_metadata_cuda, *arguments),
    }


def _replay_calls(machine: _Machine) -> dict[str, Call]:
    draw = random.Random(0)
    bs, rows = REPLAY_REQUESTS, REPLAY_REQUESTS * TOKENS
    arguments = {
        "seq_lens": machine.array(draw.randint(REPLAY_KV // 2, REPLAY_KV) for _ in range(bs)),
        "nsa_index_topk": TOPK,
        "req_pool_indices": machine.array(draw.sample(range(bs), bs)),
        "req_to_token": machine.table(bs, REPLAY_KV),
        "num_draft_tokens": TOKENS,
        "page_size": PAGE_SIZE,
        "cache_seqlens": machine.array([0] * bs),
        "cu_seqlens_k": machine.array([0] * (bs + 1)),
        "seqlens_expanded": machine.array([0] * rows),
        "nsa_cache_seqlens": machine.array([0] * rows),
        "nsa_cu_seqlens_k": machine.array([0] * (rows + 1)),
        "page_table": machine.table(rows, REPLAY_KV),
        "real_page_table": machine.table(rows, REPLAY_KV // PAGE_SIZE),
    }
    return {
        "asynchronous call": partial(fill_replay_metadata, "draft_extend", **arguments),
        "plan.run": ReplayPlan("draft_extend", **arguments).run,
    }


def _measure(machine: _Machine, calls: dict[str, Call], rounds: int) -> list[dict[str, Any]]:
    floor = {"empty launch": machine.empty_launch()} if machine.cuda else {}
    host = interleave({name: host_timer(call, machine.finish) for name, call in (floor | calls).items()}, rounds)
    device: dict[str, Spread] = {}
    if machine.cuda:
        plan = {"plan.run": calls["plan.run"]}
        in_graph = {name: device_timer(machine.torch, [call]) for name, call in plan.items()}

        def empty_node() -> None:
            launch_empty_kernel(machine.torch.cuda.current_stream().cuda_stream)

        in_graph["empty launch"] = device_timer(machine.torch, [empty_node])
        device = interleave(in_graph, rounds)
    return [
        {"row": name, "host_us": asdict(host[name]), "device_us": asdict(device[name]) if name in device else None}
        for name in host
    ]


def _times(spread: dict[str, Any] | None) -> list[str]:
    return [] if spread is None else [f"{spread['median']:8.2f}", f"{spread['low']:8.2f} to {spread['high']:8.2f}"]


def _show(name: str, rows: list[dict[str, Any]], cuda: bool) -> None:
    """Prints the rows of one case; those without a time in a graph leave it out."""
    header = ["", "host", "quarter points", *(["in a graph", "quarter points"] if cuda else [])]
    lines = [[f"{row['row']:<28}", *_times(row["host_us"]), *_times(row["device_us"])] for row in rows]
    say()
    say(name, "bold")
    table([line + [""] * (len(header) - len(line)) for line in lines], header)


def round_count(text: str) -> int:
    """Reads the number of rounds."""
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError(f"{rounds} rounds are too few, must be at least 1")
    return rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Times the ops on this machine and prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nsa_kernel bench", description="Times launches on this machine.")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: CUDA where it can be used")
    parser.add_argument("--rounds", type=round_count, default=21, help="rounds of each row (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(argv)
    machine = _Machine(options.device)
    cases: dict[str, dict[str, Call]] = {
        f"draft_extend, bs {bs}": _draft_extend_calls(machine, bs) for bs in BATCH_SIZES
    }
    cases[f"replay, bs {REPLAY_REQUESTS}, {TOKENS} tokens each, kv up to {REPLAY_KV}"] = _replay_calls(machine)
    if not options.json:
        say(f"{machine.name}: microseconds, median of {options.rounds} rounds", "bold")
    results: dict[str, list[dict[str, Any]]] = {}
    for name, calls in cases.items():
        progress(f"{len(results) + 1} of {len(cases)}: {name}")
        results[name] = _measure(machine, calls, options.rounds)
        progress()
        if not options.json:
            _show(name, results[name], machine.cuda)
    if options.json:
        print(json.dumps({"device": machine.name, "cuda": machine.cuda, "cases": results}, indent=2))
    return 0
