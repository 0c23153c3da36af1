"""The benchmarks' own arithmetic and checks, and where the README's numbers come from."""

import contextlib
import gc
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nsa_kernel.sglang
import pytest
import torch
from nsa_kernel.tools import benchmark
from nsa_kernel.tools.benchmark import Spread
from sglang_process import in_child

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cases  # noqa: E402
import compare  # noqa: E402
import limits  # noqa: E402
import measure  # noqa: E402
import parts  # noqa: E402
import peers  # noqa: E402
import readme  # noqa: E402
import results  # noqa: E402
import server  # noqa: E402
from measure import Record  # noqa: E402
from peers import names, sglang_kernels  # noqa: E402

# ---- taking times ----------------------------------------------------------------------------------------------------


def test_spread_is_median_and_quarter_points():
    assert benchmark.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert benchmark.spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_rows_take_turns_with_the_collector_off():
    order = []

    def timer(name):
        def sample():
            order.append((name, gc.isenabled()))
            return float(len(order))

        return sample

    found = benchmark.interleave({"a": timer("a"), "b": timer("b")}, rounds=3)
    assert order == [("a", False), ("b", False)] * 3
    assert gc.isenabled()
    assert found["a"].median == 3.0
    assert found["b"].median == 4.0


@pytest.mark.parametrize(("call_us", "calls"), [(0.0, 50), (1.0, 50), (100.0, 10), (999.0, 2), (5000.0, 1)])
def test_a_batch_has_a_bounded_length(call_us, calls):
    assert benchmark.batch_size(call_us, 1000.0, 50) == calls


@pytest.mark.parametrize("slow", [0, 1, 2, 4])
def test_a_batch_is_sized_without_the_calls_that_take_longer(monkeypatch, slow):
    times = iter([900_000] * slow + [20_000] * (benchmark.HOST_TRIALS - slow))
    now = 0

    def clock():
        return now

    def call():
        nonlocal now
        now += next(times)

    monkeypatch.setattr(benchmark.time, "perf_counter_ns", clock)
    assert benchmark.host_batch(call) == (50 if slow <= benchmark.HOST_TRIALS // 2 else 2)


def test_host_time_leaves_the_wait_out_and_done_time_does_not():
    waits = []
    host = benchmark.host_timer(lambda: None, lambda: waits.append(1))
    waits.clear()
    assert host() > 0
    assert len(waits) == 1
    done = benchmark.done_timer(lambda: None, lambda: waits.append(1))
    waits.clear()
    assert done() > 0
    assert len(waits) > 1


class FakeTorch:
    """Graphs of which every node takes two microseconds."""

    def __init__(self):
        self.captured = []
        self.clock_ms = 0.0
        fake = self

        class Graph:
            def capture_begin(self, **_options):
                fake.captured.clear()

            def capture_end(self):
                self.nodes = len(fake.captured)

            def replay(self):
                fake.clock_ms += self.nodes * 2e-3

        class Event:
            def record(self):
                self.at = fake.clock_ms

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return end.at - self.at

        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.cuda = SimpleNamespace(
            CUDAGraph=Graph,
            Event=lambda **_options: Event(),
            Stream=lambda: stream,
            current_stream=lambda: stream,
            stream=lambda side: contextlib.nullcontext(),
        )


def test_device_time_is_that_of_one_node_and_the_sets_take_turns():
    torch = FakeTorch()
    calls = [lambda name=name: torch.captured.append(name) for name in "abc"]
    assert benchmark.device_timer(torch, calls)() == pytest.approx(2.0)
    assert torch.captured[:4] == ["a", "b", "c", "a"]
    assert len(torch.captured) % 3 == 0
    assert 300 <= len(torch.captured) <= benchmark.GRAPH_NODES


@pytest.mark.parametrize("as_json", [True, False])
def test_quick_table(as_json, capsys):
    assert benchmark.main(["--device", "cpu", "--rounds", "1", *(["--json"] if as_json else [])]) == 0
    printed = capsys.readouterr().out
    if as_json:
        assert len(json.loads(printed)["cases"]) == len(benchmark.BATCH_SIZES) + 1
    else:
        assert "plan.run" in printed


@pytest.mark.parametrize("rounds", ["0", "-5", "many"])
def test_rounds_that_cannot_be_are_refused(rounds, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--device", "cpu", "--rounds", rounds])
    assert stopped.value.code == 2
    assert "--rounds" in capsys.readouterr().err


def test_differences_carry_both_spreads():
    assert parts.difference(Spread(10, 8, 14, 5), Spread(4, 0, 8, 3)) == Spread(6, 1, 11, 3)
    assert parts.scaled(Spread(2, 1, 3, 5), 5) == Spread(10, 5, 15, 5)


# ---- checking before timing ------------------------------------------------------------------------------------------

REPLAY_CASES = [
    cases.ReplayCase("draft_extend", 5, 4, 300, 512),
    cases.ReplayCase("draft_extend", 5, 4, 300, 512, ragged=True),
    cases.ReplayCase("draft_extend", 5, 4, 300, 500, compact=True),
    cases.ReplayCase("draft_extend", 5, 4, 512, 512, skewed=True),
    cases.ReplayCase("decode", 5, 1, 300, 512),
    cases.ReplayCase("target_verify", 5, 4, 300, 512),
]
SCHEDULED_CASES = [
    cases.ReplayCase("decode", 40, 1, 300_000, 512, compact=True, scheduled=True),
    cases.ReplayCase("target_verify", 5, 4, 300, 512, scheduled=True),
    cases.ReplayCase("draft_extend", 150, 4, 300, 512, scheduled=True),
]
CASES = [cases.DraftExtendCase(1), cases.DraftExtendCase(40), *REPLAY_CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case.name}")
def test_every_row_of_the_cpu_is_right(case):
    rows, missing = peers.rows(case.op, "cpu")
    records = measure.Bench("cpu", rounds=1).measure("part", case, rows)
    for record in records:
        assert record.status == measure.OK or record.note
        assert record.status in (measure.OK, measure.SKIPPED), record.note
        assert (record.host is not None) == (record.status == measure.OK)
    assert "sglang kernels: skipped, it needs a GPU" in missing


@pytest.mark.parametrize("case", SCHEDULED_CASES, ids=lambda case: case.name)
def test_every_schedule_of_the_cpu_is_right(case):
    rows, missing = peers.rows("schedule", "cpu")
    records = {record.row: record for record in measure.Bench("cpu", rounds=1).measure("schedule", case, rows)}
    assert records.keys() == {names.REPLAY_PLAN, names.WITH_SCHEDULE, names.SCHEDULE, names.TORCH_OPERATORS}
    assert [record.note for record in records.values() if record.status != measure.OK or record.host is None] == []
    assert any(line.startswith("triton kernels: skipped") for line in missing)
    alone, without = records[names.SCHEDULE], records[names.REPLAY_PLAN]
    assert alone.bytes_written == 4 * 2 * (cases.SLOTS + 1)
    assert without.bytes_moved + alone.bytes_written <= records[names.WITH_SCHEDULE].bytes_moved


def test_rows_of_a_schedule_share_their_arrays():
    (buffers,) = cases.replay_sets(SCHEDULED_CASES[1], "cpu")
    with_schedule = set(buffers.outputs.values())
    for row in peers.rows("schedule", "cpu")[0]:
        narrowed = row.narrow(buffers)
        assert set(narrowed.outputs.values()) <= with_schedule
        assert narrowed.req_to_token is buffers.req_to_token


def child_interprets_the_schedule_of_triton(_folder):
    triton_kernels = importlib.import_module("peers.triton_kernels")
    triton_kernels._gpu_only = lambda device: None
    (row,) = triton_kernels.schedule("cpu")
    for case in SCHEDULED_CASES:
        print(measure.run_checked(row, cases.replay_sets(case, "cpu"), int)[2])


def test_the_schedule_of_triton_is_right(sglang_folder):
    printed = in_child(sglang_folder, child_interprets_the_schedule_of_triton, TRITON_INTERPRET="1")
    assert printed == "None\n" * len(SCHEDULED_CASES)


def spoiled(case, spoil):
    """Returns what the check says once `spoil` has changed right outputs."""
    (buffers,) = measure.SETS[case.op](case, "cpu")
    (row,) = [row for row in peers.rows(case.op, "cpu")[0] if row.name in (names.PLAN, names.REPLAY_PLAN)]
    buffers.poison()
    row.bind(buffers)()
    assert buffers.wrong(exact=True) is None
    spoil(buffers)
    return buffers.wrong(exact=True)


def test_a_wrong_length_is_found():
    def spoil(buffers):
        buffers.out_nsa_cache_seqlens[3] += 1

    assert "out_nsa_cache_seqlens[3]" in spoiled(cases.DraftExtendCase(40), spoil)


def test_a_write_past_the_tokens_is_found():
    def spoil(buffers):
        buffers.out_seqlens_expanded[buffers.total] = 5

    assert f"[0] is 5, must be {cases.POISON}" in spoiled(cases.DraftExtendCase(40), spoil)


@pytest.mark.parametrize("case", [*REPLAY_CASES, *SCHEDULED_CASES], ids=lambda case: case.name)
def test_every_spoiled_output_is_found(case):
    for name in cases.replay_shapes(case):

        def spoil(buffers, name=name):
            buffers.outputs[name].view(-1)[0] += 1

        assert name in spoiled(case, spoil)


@pytest.mark.parametrize("name", ["page_table", "real_page_table"])
def test_a_table_written_past_its_live_prefix_is_found(name):
    def spoil(buffers):
        buffers.outputs[name][-1, -1] = 0

    assert name in spoiled(REPLAY_CASES[0], spoil)


def test_a_row_past_the_tokens_is_found():
    def spoil(buffers):
        assert buffers.total < buffers.case.rows
        buffers.outputs["page_table"][buffers.total, 0] = 0

    assert "must be left alone" in spoiled(REPLAY_CASES[1], spoil)


@pytest.fixture
def sglang_on_the_cpu(monkeypatch):
    """The functions of nsa_kernel.sglang stand in for SGLang's, which need a GPU."""
    monkeypatch.setattr(sglang_kernels, "_gpu_only", lambda device: None)
    monkeypatch.setattr(sglang_kernels, "_load", lambda name: nsa_kernel.sglang)


def sglang_records():
    bench = measure.Bench("cpu", rounds=1)
    rows = {op: peers.rows(op, "cpu")[0] for op in ("sglang_fused", "sglang_expand")}
    return [record for _, step in parts.sglang(bench, rows).steps for record in step()]


def test_sglangs_functions_are_timed_before_and_after(sglang_on_the_cpu):
    records = sglang_records()
    timed_cases = limits.by_case(records, "sglang")
    assert len(timed_cases) == 4 * len(cases.SGLANG_BATCH_SIZES)
    assert {"fused_dsa_decode_metadata, bs 1", "seqlens_expand_triton, bs 512"} <= set(timed_cases)
    for rows in timed_cases.values():
        assert {name: row.group for name, row in rows.items()} == {
            names.BEFORE: peers.PEER,
            names.AFTER: peers.OURS,
        }
    assert [record.note for record in records if record.status != measure.OK or record.host is None] == []


def test_sglangs_functions_get_equal_arguments(sglang_on_the_cpu):
    for op in ("sglang_fused", "sglang_expand"):
        before, after = (row for row in peers.rows(op, "cpu")[0])
        for _, case in cases.sglang_calls("cpu"):
            if (case.op == "draft_extend") == (op == "sglang_expand"):
                (buffers,) = measure.SETS[case.op](case, "cpu")
                one, other = before.bind(buffers), after.bind(buffers)
                assert one.func is other.func
                assert one.args == other.args
                assert one.keywords == other.keywords


def test_without_sglang_only_ours_are_timed():
    records = sglang_records()
    assert {record.row for record in records} == {names.AFTER}
    assert {record.status for record in records} == {measure.OK}


@pytest.mark.parametrize("spoil", [lambda lengths: lengths + 1, lambda lengths: lengths[:-1]])
def test_wrong_lengths_that_are_returned_are_found(spoil):
    (row,) = peers.rows("sglang_expand", "cpu")[0]
    sets = cases.draft_extend_sets(cases.DraftExtendCase(3), "cpu")
    assert measure.run_checked(row, sets, int)[2] is None
    wrong = replace(row, bind=lambda buffers: lambda: spoil(row.bind(buffers)()))
    assert "the returned tensor" in measure.run_checked(wrong, sets, int)[2]


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch before 2.10 is slow to read")
def test_finding_a_plan_costs_no_more_than_binding_one_and_far_less_than_a_key_made_in_python():
    bench = measure.Bench("cpu", rounds=101)
    (step,) = [step for name, step in parts.host(bench, {}).steps if name == "host: plans"]
    times = {record.row: record.host.median for record in step()}
    assert times[names.FOUND_AGAIN] < 1.2 * times[names.BOUND_ANEW] < times[names.SAFE_KEY]


def test_wrong_and_failing_rows_are_told_and_not_timed():
    def fails(_buffers):
        raise RuntimeError("no such kernel")

    rows = [
        peers.Row("idle", peers.PEER, lambda buffers: int),
        peers.Row("fails", peers.PEER, fails),
        peers.Row("unfit", peers.PEER, fails, unfit=lambda case: "too large"),
    ]
    told = []
    bench = measure.Bench("cpu", rounds=1, on_wrong=told.append)
    records = bench.measure("part", cases.DraftExtendCase(2), rows)
    assert [record.status for record in records] == [measure.WRONG, measure.FAILED, measure.SKIPPED]
    assert all(record.host is None and record.done is None for record in records)
    assert "must be" in records[0].note
    assert records[1].note == "RuntimeError: no such kernel"
    assert len(told) == 2


def test_a_wrong_count_is_found():
    def bind(buffers):
        buffers.out_seqlens_expanded[: buffers.total] = buffers.expected.int()
        buffers.out_nsa_cache_seqlens[: buffers.total] = buffers.expected.clamp(max=cases.TOPK).int()
        return lambda: buffers.total + 1

    row = peers.Row("miscounts", peers.PEER, bind, returns_count=True)
    _, _, wrong = measure.run_checked(row, cases.draft_extend_sets(cases.DraftExtendCase(3), "cpu"), int)
    assert "returned" in wrong


def test_bytes_count_live_entries_read_once_and_written_to_every_row():
    case = cases.ReplayCase("draft_extend", 1, 4, 128, 256)
    (buffers,) = cases.replay_sets(case, "cpu")
    kv = int(buffers.expected["cache_seqlens"][0])
    pages = -(-kv // cases.PAGE_SIZE)
    assert buffers.bytes_read == 16 + 4 * kv
    assert buffers.bytes_written == 4 * (1 + 2 + 4 + 5 + 4 + 4 * kv + 4 * pages)


def test_compact_reads_a_sector_a_page():
    (buffers,) = cases.replay_sets(cases.ReplayCase("draft_extend", 1, 4, 128, 256, compact=True), "cpu")
    pages = -(-int(buffers.expected["cache_seqlens"][0]) // cases.PAGE_SIZE)
    assert buffers.bytes_read == 16 + cases.SECTOR * pages


def test_schedules_are_timed_in_every_mode_and_where_requests_are_long():
    for device in ("cpu", "cuda"):
        grid = list(cases.scheduled_grid(device))
        assert len({case.name for case in grid}) == len(grid) == 4 * len(cases.SCHEDULED_BATCH_SIZES)
        assert {case.mode for case in grid} == {"decode", "target_verify", "draft_extend"}
        assert all(case.scheduled for case in grid)


def test_the_grid_holds_every_kind():
    grid = list(cases.replay_grid())
    assert len(grid) == 8 * 3 + 3 * 2 + 1
    assert len({case.name for case in grid}) == len(grid)
    assert len(list(parts.parity_cases())) * parts.PARITY_DRAWS >= limits.PARITY_CONFIGURATIONS


# ---- judging ---------------------------------------------------------------------------------------------------------


def record(part, case, row, group=peers.OURS, host=None, device=None, shape=None, **rest):
    def around(median):
        return None if median is None else Spread(median, round(median * 0.99, 3), round(median * 1.01, 3), 9)

    return Record(part, case, shape or {"bs": 1}, row, group, host=around(host), device=around(device), **rest)


def limit(records, beginning):
    (found,) = [limit for limit in limits.limits(records) if limit.name.startswith(beginning)]
    return found


def test_nothing_measured_is_neither_pass_nor_fail():
    verdicts = {found.name: found.verdict for found in limits.limits([])}
    assert verdicts.pop("rows that are wrong or failed") == "PASS"
    assert set(verdicts.values()) == {"not measured"}


@pytest.mark.parametrize(("call_us", "verdict"), [(4.9, "PASS"), (5.1, "FAIL")])
def test_host_limit_is_a_ratio_to_the_launch_of_the_same_case(call_us, verdict):
    records = [
        record("draft_extend", "bs 1", names.CALL, host=call_us),
        record("draft_extend", "bs 1", names.LAUNCH, peers.FLOOR, host=4.0),
        record("draft_extend", "bs 4", names.CALL, host=1.0),
    ]
    found = limit(records, "asynchronous call")
    assert found.verdict == verdict
    assert found.worst == ("bs 1", pytest.approx(call_us / 4.0))
    assert list(found.values) == ["bs 1"]


def test_device_limits_depend_on_the_batch_size():
    records = []
    for bs, device in ((128, 1.5), (512, 9.0), (1000, 2.4)):
        shape = {"bs": bs}
        records.append(record("draft_extend", f"bs {bs}", names.PLAN, device=device, shape=shape))
        records.append(record("draft_extend", f"bs {bs}", names.NODE, peers.FLOOR, device=1.0, shape=shape))
    assert limit(records, "in a graph / empty node, up to 128").verdict == "PASS"
    assert limit(records, "in a graph / empty node, 1000").verdict == "PASS"


def replay_records(case, ours, sglang, copy, moved, shape):
    times = {names.REPLAY_PLAN: ours, names.SGLANG_FUSED: sglang, names.COPY: copy}
    return [record("replay", case, row, device=us, shape=shape, bytes_written=moved) for row, us in times.items()]


def test_replay_limits():
    records = [
        *replay_records("small", 2.0, 8.0, 1.0, 1_000_000, {"bs": 8}),
        *replay_records("large", 10.5, 420.0, 10.0, 20_000_000, {"bs": 64}),
        *replay_records("skewed", 12.5, 100.0, 10.0, 20_000_000, {"bs": 128, "skewed": True}),
    ]
    assert limit(records, "replay / SGLang, device, over all").values == {
        "geometric mean": pytest.approx(0.0921, abs=1e-4)
    }
    assert limit(records, "replay / copy, where 2 MB").values == {"large": pytest.approx(1.05)}
    assert limit(records, "replay / copy, skewed").values == {"skewed": pytest.approx(1.25)}
    assert {found.verdict for found in limits.limits(records)} == {"PASS", "not measured"}
    slower = [*records, *replay_records("slower", 8.1, 8.0, 1.0, 1_000_000, {"bs": 9})]
    assert limit(slower, "replay / SGLang, device, each").failing == {"slower": pytest.approx(1.0125)}


def schedule_records(bs, without, with_schedule, alone, peer, case=None):
    times = {
        names.REPLAY_PLAN: without,
        names.WITH_SCHEDULE: with_schedule,
        names.SCHEDULE: alone,
        names.TRITON_SCHEDULE: peer,
    }
    shape = {"mode": "decode", "kv": 8192, "bs": bs}
    return [record("schedule", case or f"bs {bs}", row, device=us, shape=shape) for row, us in times.items()]


def test_schedule_limits():
    records = [
        *schedule_records(1, 1.5, 1.625, 1.3, 3.0),
        *schedule_records(32, 2.0, 2.25, 1.4, 3.0),
        *schedule_records(128, 3.0, 3.25, 1.6, 3.0),
    ]
    few, many = (found for found in limits.limits(records) if found.name.startswith("schedule and top-k plan add"))
    assert few.values == {"bs 1": pytest.approx(0.125), "bs 32": pytest.approx(0.25)}
    assert list(few.failing) == ["bs 32"]
    assert many.values == {"bs 128": pytest.approx(0.25)}
    assert many.verdict == "PASS"
    assert list(limit(records, "a schedule alone").failing) == ["bs 128"]


def test_wrong_rows_and_slow_first_calls_and_missing_parity_fail():
    records = [
        record("replay", "a", names.REPLAY_PLAN, first_call=6000.0, status=measure.WRONG),
        record("replay", "a", names.REPLAY_CALL, first_call=60.0),
        record("parity", "a", names.SGLANG_FUSED, peers.PEER, configurations=299),
    ]
    assert limit(records, "rows that are wrong").verdict == "FAIL"
    assert list(limit(records, "first call").failing) == [f"replay, a, {names.REPLAY_PLAN}"]
    assert limit(records, "configurations short").worst == ("parity", 1.0)
    assert limit([*records, *records[2:]], "configurations short").verdict == "PASS"


def test_cost_of_calls_for_a_server():
    assert server.cost(100, 54.0) == (pytest.approx(5.4), pytest.approx(0.0054))
    assert server.cost(1000, 54.0) == (pytest.approx(54.0), pytest.approx(0.054))


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        (Spread(10.5, 10.2, 10.8, 9), False),  # the ranges meet
        (Spread(11.0, 10.7, 11.3, 9), True),
        (Spread(9.0, 8.8, 9.2, 9), True),
        (Spread(10.1, 10.61, 10.7, 9), False),  # too small to tell
    ],
)
def test_a_change_is_beyond_both_spreads(after, changed):
    assert compare.apart(Spread(10.0, 9.5, 10.6, 9), after, at_least=0.02) == changed


def test_compare_matches_rows_by_part_case_and_row():
    before = [record("draft_extend", "bs 1", "a", host=10.0), record("draft_extend", "bs 1", "gone", host=1.0)]
    after = [record("draft_extend", "bs 1", "a", host=20.0, device=3.0), record("draft_extend", "bs 2", "a", host=9.0)]
    (change,) = compare.changes(before, after, 0.02)
    assert change.key == ("draft_extend", "bs 1", "a")
    assert change.column == "host"
    assert change.factor == pytest.approx(2.0)
    assert compare.compared_times(before, after) == 1


# ---- files -----------------------------------------------------------------------------------------------------------

ENVIRONMENT = {"gpu": "A GPU", "driver": "1.2", "cuda": "13.0", "torch": "2.11", "date": "2026-01-02"}


def some_results():
    records = [
        record("draft_extend", "bs 32", names.PLAN, host=4.25, device=1.5),
        record("draft_extend", "bs 32", names.PYTHON_LOOP, peers.PEER, host=1476.0),
        *replay_records("draft_extend uniform 32 x 4, kv 4096, width 4096", 1.7, 2.8, 1.6, 1, {"bs": 32}),
    ]
    return results.Results(ENVIRONMENT, {"rounds": 9}, ["a peer: skipped, not here"], records)


def test_results_come_back_from_their_file(tmp_path):
    results.save(some_results(), tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == some_results()


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format is 0, must be 1"):
        results.load(path)


def test_the_readmes_table_has_what_was_measured():
    found = some_results()
    found.records.append(record("draft_extend", "bs 32", names.TRITON_AFTER_ITEM, peers.PEER, host=41.26))
    found.records.append(record("draft_extend", "bs 32", names.COUNT, host=8.25))
    engines = {}
    for file, row, _, engine, (off, on) in readme.ENGINE_LINES:
        environment = {engine.lower(): "1.2", "torch": "2.14.1", "date": "a day"}
        rows = [{**row, "bs": bs, off: 270.4, on: 8.12} for bs in (8, 32)]
        engines[file] = {"environment": environment, "rows": rows}
    draft_extend = (
        "| lengths and count of draft tokens, 32 requests | host | 41.3 (Triton after cumsum and item) | 8.2 |"
    )
    block = readme.readme_block(found, "a-gpu/results.json", engines)
    lines = [line for line in block.splitlines() if line.startswith("| ")]
    assert lines[2:] == [
        draft_extend,
        "| a whole refresh of SGLang's backend, decode, 32 requests, fp8 KV | host | 270 (SGLang 1.2) | 8.1 |",
        "| a build of vLLM's sparse indexer, decode with 1 draft token, 32 requests | host | 270 (vLLM 1.2) | 8.1 |",
    ]
    assert "SGLang's row: torch 2.14.1, a day. vLLM's row: torch 2.14.1, a day." in block
    block = readme.readme_block(found, "a-gpu/results.json", {})
    assert [line for line in block.splitlines() if line.startswith("| ")][2:] == [draft_extend]


def test_a_block_replaces_the_block_that_is_there():
    block = readme.tables_block(some_results(), "benchmarks/results/a-gpu/results.json")
    assert "| `DraftExtendPlan.run` | - | 4.2 | - | - |" in block
    assert "| Python loop | - | 1,476 | - | - |" in block
    assert "| 32 x 4, kv 4096, width 4096 | 1.7 | 2.8 | 1.6 |" in block
    assert "(benchmarks/results/a-gpu/scaling_bs.svg)" in block
    text = f"before\n<!-- measured -->\n{readme.END}\nafter 5 us\n"
    once = readme.with_block(text, block)
    assert once == f"before\n{block}\nafter 5 us\n"
    assert readme.with_block(once, block) == once
    assert readme.BLOCK.search(once)["source"] == "benchmarks/results/a-gpu/results.json"
    assert readme.measured_numbers(once) == ["5 us"]
    assert "plug-in" not in block
    with pytest.raises(ValueError, match="no place"):
        readme.with_block("no markers", block)


def test_the_tables_have_sglangs_functions_where_they_were_measured():
    found = some_results()
    for function, bs, before, after in [("fused", 1, 40.0, 8.0), ("fused", 32, 41.0, None), ("expand", 32, 150.0, 9.5)]:
        for row, us in ((names.BEFORE, before), (names.AFTER, after)):
            found.records.append(record("sglang", f"{function}, bs {bs}", row, host=us, device=us and us / 2))
    lines = readme.tables_block(found, "benchmarks/results/a-gpu/results.json").splitlines()
    at = lines.index(f"| {names.BEFORE} → with this plug-in: host, device time | bs 1 | bs 32 |")
    assert lines[at - 1] == ""
    assert lines[at + 2 : at + 5] == [
        "| `fused` | 40.0 → 8.0, 20.0 → 4.0 | 41.0 → -, 20.5 → - |",
        "| `expand` | - | 150 → 9.5, 75.0 → 4.8 |",
        "",
    ]


def test_the_tables_have_schedules_where_they_were_measured():
    found = some_results()
    found.records += [*schedule_records(1, 1.5, 1.625, 1.3, 3.0), *schedule_records(8, 2.0, None, 1.4, 3.5)]
    lines = readme.tables_block(found, "benchmarks/results/a-gpu/results.json").splitlines()
    at = lines.index("| device time without → with schedule and top-k plan | bs 1 | bs 8 |")
    assert lines[at + 2 : at + 4] == ["| `decode`, kv 8192 | 1.50 → 1.62 | 2.00 → - |", ""]
    assert lines[at + 4] == f"| device time of {names.TRITON_SCHEDULE} → of ours alone | bs 1 | bs 8 |"
    assert lines[at + 6] == "| `decode`, kv 8192 | 3.00 → 1.30 | 3.50 → 1.40 |"


PAGES = {"README.md": readme.readme_block, "docs/performance.md": readme.tables_block}


@pytest.mark.parametrize("page", PAGES)
def test_every_measured_number_of_a_block_comes_from_a_committed_file(page):
    path = ROOT / page
    text = path.read_text() if path.exists() else ""
    files = [file for file in ROOT.glob("benchmarks/results/*/results.json") if results.load(file).environment["gpu"]]
    block = readme.BLOCK.search(text)
    if not files:
        assert block is None or not block["body"]
        return
    assert block is not None, f"write it with `bench.py readme {files[0].relative_to(ROOT)} --write {page}`"
    source = path.parent / block["source"]
    more = [readme.load_engines(source)] if page == "README.md" else []
    assert block[0] == PAGES[page](results.load(source), block["source"], *more)
    for link in (source, source.with_name(readme.PLOT)):
        assert link.exists()


def test_the_readme_has_no_measured_number_outside_its_block():
    path = ROOT / "README.md"
    assert readme.measured_numbers(path.read_text() if path.exists() else "") == []


TOOLS = ("rich", "matplotlib")


@pytest.mark.skipif(any(importlib.util.find_spec(tool) is None for tool in TOOLS), reason="needs rich and matplotlib")
def test_bench_runs_on_the_cpu(tmp_path):
    def bench(*arguments):
        command = [sys.executable, ROOT / "benchmarks" / "bench.py", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run = ["--device", "cpu", "--only", "host,breakdown,schedule", "--rounds", "2", "--out", tmp_path]
    printed = bench("run", *run)
    assert "five torch arrays" in printed
    assert "draft_extend uniform 512 x 4" in printed
    path = tmp_path / "partial.json"
    assert results.load(path).settings["parts"] == ["host", "breakdown", "schedule"]
    assert "whole call" in bench("show", path)
    assert "0 of" in bench("compare", path, path)
