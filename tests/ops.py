"""The ops, for tests that treat all of them alike."""

from collections.abc import Callable
from typing import Any, NamedTuple

import draft_extend_cases
import indexer_cases
import replay_cases
import schedule_cases


class Op(NamedTuple):
    """How a case is run, how one is drawn, and those that have names."""

    check: Callable[..., None]
    draw_case: Callable[..., dict[str, Any]]
    named_cases: dict[str, dict[str, Any]]


OPS = {
    "draft_extend": Op(draft_extend_cases.check, draft_extend_cases.draw_case, draft_extend_cases.NAMED_CASES),
    "replay": Op(replay_cases.check, replay_cases.draw_case, replay_cases.NAMED_CASES),
    "schedule": Op(schedule_cases.check, schedule_cases.draw_case, schedule_cases.NAMED_CASES),
    "indexer_decode": Op(indexer_cases.check_decode, indexer_cases.draw_decode_case, indexer_cases.NAMED_DECODE_CASES),
    "indexer_prefill": Op(
        indexer_cases.check_prefill, indexer_cases.draw_prefill_case, indexer_cases.NAMED_PREFILL_CASES
    ),
    "token_requests": Op(
        indexer_cases.check_token_requests,
        indexer_cases.draw_token_requests_case,
        indexer_cases.NAMED_TOKEN_REQUESTS_CASES,
    ),
}
