"""The package's own functions and plans."""

from collections.abc import Callable
from functools import partial
from typing import Any

import nsa_kernel
import nsa_kernel.sglang

from peers import OURS, Row, schedule_alone
from peers.names import AFTER, CALL, COUNT, PLAN, REPLAY_CALL, REPLAY_PLAN, SCHEDULE, WITH_SCHEDULE
from peers.sglang_kernels import expand_call, fused_call


def _call(buffers: Any) -> Callable[[], object]:
    return partial(nsa_kernel.fill_draft_extend_metadata, *buffers.arguments_with_count)


def _numpy_call(buffers: Any) -> Callable[[], object]:
    arguments = [value.numpy() if hasattr(value, "numpy") else value for value in buffers.arguments_with_count]
    return partial(nsa_kernel.fill_draft_extend_metadata, *arguments)


def _counting_call(buffers: Any) -> Callable[[], object]:
    return partial(nsa_kernel.fill_draft_extend_metadata_cuda, *buffers.arguments)


def _plan(buffers: Any, variant: str = "optimized") -> Callable[[], object]:
    return nsa_kernel.DraftExtendPlan(*buffers.arguments_with_count, variant=variant).run


def draft_extend(device: str) -> list[Row]:
    rows = [
        Row(CALL, OURS, _call, exact=True, stores_count=True),
        Row(PLAN, OURS, _plan, exact=True, stores_count=True, in_graph=True),
        Row(COUNT, OURS, _counting_call, exact=True, returns_count=True),
    ]
    for variant in ("basic", "adaptive"):
        bind = partial(_plan, variant=variant)
        rows.append(Row(f"{PLAN}, {variant}", OURS, bind, exact=True, stores_count=True, in_graph=True))
    if device == "cpu":
        rows.append(Row(f"{CALL}, numpy arrays", OURS, _numpy_call, exact=True, stores_count=True))
    return rows


def _replay_call(buffers: Any) -> Callable[[], object]:
    return partial(nsa_kernel.fill_replay_metadata, buffers.case.mode, **buffers.arguments)


def _replay_plan(buffers: Any) -> Callable[[], object]:
    return nsa_kernel.ReplayPlan(buffers.case.mode, **buffers.arguments).run


def replay(_device: str) -> list[Row]:
    return [
        Row(REPLAY_CALL, OURS, _replay_call, exact=True),
        Row(REPLAY_PLAN, OURS, _replay_plan, exact=True, in_graph=True),
    ]


def schedule(_device: str) -> list[Row]:
    return [
        Row(REPLAY_PLAN, OURS, _replay_plan, exact=True, in_graph=True, narrow=_without_schedule),
        Row(WITH_SCHEDULE, OURS, _replay_plan, exact=True, in_graph=True),
        Row(SCHEDULE, OURS, _replay_plan, exact=True, in_graph=True, narrow=schedule_alone),
    ]


def _without_schedule(buffers: Any) -> Any:
    return buffers.narrowed(lambda name: name not in ("schedule", "topk_plan"))


def sglang_fused(_device: str) -> list[Row]:
    return [Row(AFTER, OURS, partial(fused_call, nsa_kernel.sglang), exact=True, in_graph=True)]


def sglang_expand(_device: str) -> list[Row]:
    bind = partial(expand_call, nsa_kernel.sglang)
    return [Row(AFTER, OURS, bind, computes=False, returns_lengths=True, in_graph=True)]
