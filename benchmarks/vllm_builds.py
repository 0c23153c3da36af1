"""Times vLLM's own builds of metadata as it makes them ("off") and with the plug-in ("on").

    python benchmarks/vllm_builds.py FOLDER                    # a table, and JSON beside the other results
    python benchmarks/vllm_builds.py FOLDER --compare 2000     # compares random builds of decodes, and times nothing
    python benchmarks/vllm_builds.py FOLDER --collect SMALL    # copies the few files of it that are needed

FOLDER has vLLM 0.33.0's Python files, as `make test` keeps them in build/peers; the rest of vLLM is stubs
(tests/vllm_stubs.py). It needs torch and Triton. Both ways run in one process and take turns; before a build of decodes
is timed, what both ways build is compared. DeepGEMM's own schedule is not timed: where vLLM asks for it, it gets a
tensor that was made before, unless `--deep-gemm` has FOLDER's DeepGEMM make it. Ours is always made.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nsa_kernel
import torch
from environment import environment, folder_name
from nsa_kernel.tools.benchmark import device_timer, host_timer, interleave

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import vllm_stubs as stubs  # noqa: E402

GPU = torch.cuda.is_available()
WAYS = ("off", "on")
DEEP_GEMM = "vllm.third_party.deep_gemm"
BATCH_SIZES = (1, 8, 32, 128, 512)
PREFILLS = ((1, 8192, 8192), (1, 8192, 131072), (16, 512, 512), (4, 2048, 32768), (64, 128, 4096))  # requests, q, kv
FAMILIES = (90, 100)  # vLLM's own kernel for SM100 runs on any GPU
KV, WIDTH, TOKENS, REQUESTS = 8192, 2048, 8192, 520
SMALL = {"BATCH_SIZES": (1, 3), "PREFILLS": ((2, 20, 100),), "KV": 200, "WIDTH": 12, "TOKENS": 96, "REQUESTS": 8}


class Build(NamedTuple):
    """Something that vLLM builds; `compared` is a builder and its batch."""

    name: str
    facts: dict[str, Any]
    call: Callable[[], object]
    compared: tuple[Any, Any] | None = None
    goal: bool = True  # whether it is one of the decode builds that the limits are for


def table_of(rows: int) -> torch.Tensor:
    return torch.randint(1, 1 << 20, (rows, WIDTH), dtype=torch.int32, device=stubs.DEVICE)


def lengths(bs: int) -> list[int]:
    return torch.linspace(KV // 2, KV, bs).long().tolist()


def make_builder(family: int, tokens: int) -> Any:
    return stubs.make_builder(family, drafts=tokens - 1, width=WIDTH, tokens=TOKENS, requests=REQUESTS)


def decodes() -> Iterator[Build]:
    for family, tokens in itertools.product(FAMILIES, (1, 2, 3, 4)):
        builder = make_builder(family, tokens)
        for bs in BATCH_SIZES:
            table = table_of(bs + 1)
            table[bs] = 0
            facts = {"sm": family, "tokens": tokens, "bs": bs}
            exact = stubs.make_batch([tokens] * bs, lengths(bs), table[:bs])
            # What a CUDA graph replays for one request less than it was captured with.
            padded = stubs.make_batch([tokens] * bs + [0], [*lengths(bs), 0], table, num_tokens=(bs + 1) * tokens)
            drafted = stubs.make_batch([1] * bs, lengths(bs), table[:bs])
            for name, batch in (("exact", exact), ("padded", padded), ("draft step", drafted)):
                if name != "draft step" or tokens > 1:
                    yield Build("decode", facts | {"batch": name}, partial(rebuild, builder, batch), (builder, batch))


def random_decodes(count: int) -> Iterator[Build]:
    """Batches of all sizes with lengths of all magnitudes, some of them padded."""
    builders = {(family, tokens): make_builder(family, tokens) for family in FAMILIES for tokens in (1, 2, 3, 4)}
    for seed in range(count):
        draw = random.Random(seed)
        (family, tokens), builder = draw.choice(list(builders.items()))
        bs = draw.randint(1, draw.choice(BATCH_SIZES))
        longest = draw.choice((1, 256, 1024, KV, 32 * WIDTH))
        kv = [tokens + draw.randrange(longest) for _ in range(bs)]
        queries, padded = [tokens] * bs, draw.randrange(3) == 0
        if padded:
            queries, kv = [*queries, 0], [*kv, 0]
        batch = stubs.make_batch(queries, kv, table_of(len(kv)), num_tokens=len(kv) * tokens)
        facts = {"seed": seed, "sm": family, "tokens": tokens, "bs": bs, "padded": padded}
        yield Build("decode", facts, partial(rebuild, builder, batch), (builder, batch))


def refreshes() -> Iterator[Build]:
    for family, bs in itertools.product(FAMILIES, BATCH_SIZES):
        builder = make_builder(family, 4)
        metadata = builder.build(0, stubs.make_batch([1] * bs, lengths(bs), table_of(bs)))
        yield Build("refresh of drafts", {"sm": family, "bs": bs}, partial(refresh, builder, metadata), goal=False)


def prefills() -> Iterator[Build]:
    for requests, q, kv in PREFILLS:
        builder = make_builder(90, 2)
        batch = stubs.make_batch([q] * requests, [kv] * requests, table_of(requests))
        facts = {"requests": requests, "q": q, "kv": kv}
        seq_lens, host = batch.seq_lens, batch.seq_lens_cpu_upper_bound
        arguments = (0, 1, batch.query_start_loc, batch.query_start_loc_cpu, seq_lens, seq_lens, host)
        chunk = partial(build_chunk, *arguments, batch.block_table_tensor, 1, query_slice=slice(0, q))
        yield Build("prefill chunk", facts, chunk, goal=False)
        chunks = len(builder.build(0, batch).prefill.chunks)
        yield Build("prefill", facts | {"chunks": chunks}, partial(rebuild, builder, batch), goal=False)


def sparse_mla() -> Iterator[Build]:
    for tokens, bs in itertools.product((1, 3), BATCH_SIZES):
        builder = stubs.make_sparse_builder(tokens=TOKENS, width=WIDTH)
        builder.require_uniform_decodes = True
        batch = stubs.make_batch([tokens] * bs, lengths(bs), table_of(bs))

        yield Build("FlashMLA", {"tokens": tokens, "bs": bs}, partial(rebuild, builder, batch), goal=False)


# What is replaced is looked up at each call: it changes with the way.


def rebuild(builder: Any, batch: Any) -> object:
    batch._token_to_req_indices_cache = None
    return builder.build(0, batch)


def refresh(builder: Any, metadata: Any) -> object:
    return builder.update_draft_decode_metadata(metadata)


def build_chunk(*arguments: Any, **options: Any) -> object:
    return sys.modules[stubs.INDEXER].build_prefill_chunk_metadata(*arguments, **options)


def finish() -> None:
    if GPU:
        torch.cuda.synchronize()


def launches(call: Callable[[], object]) -> int | None:
    if not GPU:
        return None
    call()
    finish()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        call()
        finish()
    return sum(e.count for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA)


def in_graph(call: Callable[[], object]) -> Callable[[], float] | None:
    """Times a build on the device; None where it cannot be captured."""
    if not GPU:
        return None
    try:
        return device_timer(torch, [call])
    except RuntimeError as error:
        finish()
        print(f"  not captured: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def measure(build: Build, ways: dict[str, Any], rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": build.name, **build.facts, "goal": build.goal}
    timers: dict[str, Callable[[], float]] = {}
    for way in WAYS:
        with ways[way]():
            start = time.perf_counter_ns()
            build.call()
            finish()
            row[f"first_{way}"] = (time.perf_counter_ns() - start) / 1e3
            row[f"launches_{way}"] = launches(build.call)
            made = {"host": host_timer(build.call, finish), "device": in_graph(build.call)}
        for what, timer in made.items():
            if timer is not None:
                timers[f"{what}_{way}"] = timer_of(timer, ways[way])
    row |= {name: taken.median for name, taken in interleave(timers, rounds).items()}
    for what in ("host", "device"):
        if f"{what}_off" in row and f"{what}_on" in row:
            row[f"{what}_ratio"] = row[f"{what}_on"] / row[f"{what}_off"]
    return row


def timer_of(timer: Callable[[], float], way: Callable[[], Any]) -> Callable[[], float]:
    def sample() -> float:
        with way():
            return timer()

    return sample


def compare(build: Build, ways: dict[str, Any]) -> None:
    if build.compared is not None and build.name == "decode":
        with ways["off"]():
            expected = stubs.run(*build.compared)
        with ways["on"]():
            stubs.assert_equal(stubs.run(*build.compared), expected, f"{build.name} {build.facts}")


COLUMNS = ("host_off", "host_on", "host_ratio", "launches_off", "launches_on")
COLUMNS += ("device_off", "device_on", "device_ratio", "first_off", "first_on")


def line(row: dict[str, Any]) -> str:
    facts = " ".join(f"{name} {value}" for name, value in row.items() if name not in ("name", "goal", *COLUMNS))
    cells = []
    for column in COLUMNS:
        value = row.get(column)
        digits = 2 if column.endswith("ratio") else 0 if "launches" in column or "first" in column else 1
        cells.append("-" if value is None else f"{value:.{digits}f}")
    return f"{row['name'] + ' ' + facts:<52}" + "".join(f"{cell:>13}" for cell in cells)


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The limits, and what was found."""
    decode = [row for row in rows if row["goal"]]
    if not decode:
        return
    worst = max(decode, key=lambda row: row["host_ratio"])
    yield f"decode, host: at most {worst['host_ratio']:.2f} of vLLM's (limit 0.15), in {line(worst).split('  ')[0]}"
    yield f"decode, host: at most {max(row['host_on'] for row in decode):.1f} us (limit 45)"
    counts = sorted({row["launches_on"] for row in decode if row["launches_on"] is not None})
    yield f"decode, launches: {counts or '-'} (limit 1)"
    ratios = [row["device_ratio"] for row in decode if "device_ratio" in row]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        yield f"decode, device: at most {max(ratios):.2f} of vLLM's (limit 1), geometric mean {mean:.2f} (limit 0.3)"
    chunks = [row["host_ratio"] for row in rows if row["name"] == "prefill chunk"]
    if chunks:
        yield f"prefill chunk, host: at most {max(chunks):.2f} of vLLM's (limit 0.15)"


made: dict[int, torch.Tensor] = {}


def fixed_schedule(context_lens: torch.Tensor, block_kv: int, num_slots: int, **_: Any) -> torch.Tensor:
    """Costs nothing, so that of vLLM's own call for a schedule the copy is left that follows it."""
    if num_slots not in made:
        made[num_slots] = torch.zeros((num_slots + 1, 2), dtype=torch.int32, device=context_lens.device)
    return made[num_slots]


def collect(folder: Path, target: Path) -> None:
    for name in stubs.REAL:
        file = Path("vllm", *name.split(".")[1:])
        file = file / "__init__.py" if (folder / file).is_dir() else file.with_suffix(".py")
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, target / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--collect", type=Path, metavar="SMALL", help="copy what is needed into this folder, and end")
    parser.add_argument(
        "--deep-gemm", action="store_true", help="FOLDER has DeepGEMM too: have it make vLLM's schedules"
    )
    parser.add_argument(
        "--compare", type=int, metavar="COUNT", help="compare as many random builds of decodes, and end"
    )
    parser.add_argument("--only", default="", help="builds whose name has this, for example decode")
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--small", action="store_true", help="small batches, once: to see that all runs")
    parser.add_argument("--out", type=Path, help="the JSON file; the default is results/<gpu>/vllm_builds.json")
    options = parser.parse_args()
    if options.collect:
        collect(options.folder, options.collect)
        return
    if options.small:
        globals().update(SMALL)
    os.environ.setdefault("TRITON_INTERPRET", "0" if GPU else "1")
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())  # empty: the first calls compile
    os.environ.pop("NSA_KERNEL_VLLM", None)

    stubs.import_vllm(options.folder, real=[DEEP_GEMM] if options.deep_gemm else [])
    versions = importlib.import_module("nsa_kernel.vllm.versions")
    own = {target: stubs.find(target) for level in versions.LEVELS.values() for target in level.replacements}
    importlib.import_module("nsa_kernel.vllm").register()
    kept = [target for target, value in own.items() if stubs.find(target) is value]
    if kept:
        sys.exit(f"the plug-in left these in place: {', '.join(kept)}")
    if not GPU:
        nsa_kernel.is_cuda_kernel_available = lambda: True
    ways: dict[str, Any] = {"off": lambda: stubs.originals(own), "on": contextlib.nullcontext}

    deep_gemm = importlib.import_module("vllm.utils.deep_gemm")
    deep_gemm._lazy_init()
    plan = deep_gemm._get_paged_mqa_logits_metadata_impl
    if options.deep_gemm:  # which has kernels for this GPU alone
        globals()["FAMILIES"] = (torch.cuda.get_device_capability()[0] * 10,)
    if options.compare:
        for build in random_decodes(options.compare):
            compare(build, ways)
        print(f"{options.compare} random builds of decodes are equal to vLLM's")
        return
    rows = []
    print(f"{'microseconds':<52}" + "".join(f"{column.replace('_', ' '):>13}" for column in COLUMNS))
    for build in itertools.chain(decodes(), refreshes(), prefills(), sparse_mla()):
        if options.only not in build.name:
            continue
        deep_gemm._get_paged_mqa_logits_metadata_impl = plan
        compare(build, ways)
        deep_gemm._get_paged_mqa_logits_metadata_impl = plan if options.deep_gemm else fixed_schedule
        rows.append(measure(build, ways, 1 if options.small else options.rounds))
        print(line(rows[-1]), flush=True)
    known = environment("cuda" if GPU else "cpu") | {"vllm": importlib.import_module("vllm").__version__}
    out = options.out or ROOT / "benchmarks" / "results" / folder_name(known) / "vllm_builds.json"
    if not options.small or options.out:
        out.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"environment": known, "deep_gemm": options.deep_gemm})
        out.write_text(head[:-1] + ', "rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
