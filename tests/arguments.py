"""The arguments of every op: those that fit, the role of each array, and how a refusal of others is checked."""

import nsa_kernel
import pytest
from memory import Output, lengths, table

DRAFT_EXTEND, REPLAY = "fill_draft_extend_metadata", "fill_replay_metadata"
CALLS = {
    DRAFT_EXTEND: [
        nsa_kernel.fill_draft_extend_metadata,
        nsa_kernel.DraftExtendPlan,
        nsa_kernel.fill_draft_extend_metadata_cuda,
        nsa_kernel.fill_draft_extend_metadata_cuda_basic,
        nsa_kernel.fill_draft_extend_metadata_cuda_adaptive,
        nsa_kernel.fill_draft_extend_metadata_cuda_optimized,
    ],
    REPLAY: [nsa_kernel.fill_replay_metadata, nsa_kernel.ReplayPlan],
}
ONLY_NEVER_WAITING = {"out_num_tokens", "variant"}
OUTPUT_SHAPES = {
    DRAFT_EXTEND: {"out_seqlens_expanded": (5,), "out_nsa_cache_seqlens": (5,), "out_num_tokens": (1,)},
    REPLAY: {
        "cache_seqlens": (2,),
        "cu_seqlens_k": (3,),
        "seqlens_expanded": (6,),
        "nsa_cache_seqlens": (6,),
        "nsa_cu_seqlens_k": (7,),
        "page_table": (6, 8),
        "real_page_table": (6, 4),
        "ctx_lens_2d": (2, 3),
        "num_tokens": (1,),
        "schedule": (5, 2),
        "topk_plan": (7, 2),
    },
}

LENGTH, TABLE, OUTPUT, OUTPUT_TABLE = "length", "table", "output", "output table"
ROLES = {
    (DRAFT_EXTEND, "extend_seq_lens"): LENGTH,
    (DRAFT_EXTEND, "seq_lens"): LENGTH,
    (REPLAY, "seq_lens"): LENGTH,
    (REPLAY, "extend_seq_lens"): LENGTH,
    (REPLAY, "req_pool_indices"): LENGTH,
    (REPLAY, "req_to_token"): TABLE,
}
for op, shapes in OUTPUT_SHAPES.items():
    ROLES |= {(op, name): OUTPUT if len(shape) == 1 else OUTPUT_TABLE for name, shape in shapes.items()}


def shape_that_fits(op, name):
    rank = 2 if ROLES[op, name] in (TABLE, OUTPUT_TABLE) else 1
    return OUTPUT_SHAPES[op].get(name, (2, 8)[:rank])


def drop_in(call):
    """Whether it is a drop-in function, which has fewer arguments."""
    return "_cuda" in getattr(call, "__name__", "")


def valid_arguments(op, device, call=None):
    """Arguments that fit the op, or one way to call it, and the outputs among them, poisoned."""
    outputs = {name: Output(*shape, device=device) for name, shape in OUTPUT_SHAPES[op].items()}
    arguments = {name: output.array for name, output in outputs.items()}
    arguments |= {"seq_lens": lengths([10, 15], device=device), "nsa_index_topk": 12}
    if op == DRAFT_EXTEND:
        arguments["extend_seq_lens"] = lengths([2, 3], device=device)
    else:
        arguments |= {"mode": "draft_extend", "num_draft_tokens": 3, "page_size": 2, "schedule_format": "deepgemm_sm90"}
        arguments |= {"topk_plan_format": "sglang_topk_v2_sm90", "topk_plan_clusters": 2}
        arguments["req_pool_indices"] = lengths([1, 0], device=device)
        arguments["req_to_token"] = table([[5] * 8, [6] * 8], 8, device=device)
    if drop_in(call):
        del arguments["out_num_tokens"]
    return arguments, outputs


def check_refusal(op, device, exceptions, pattern, **changes):
    """Every way to call the op refuses the changed arguments in words that match, and nothing was written before.

    A function among `changes` makes its argument for each call anew, from the device.
    """
    for call in CALLS[op]:
        if drop_in(call) and changes.keys() & ONLY_NEVER_WAITING:
            continue
        arguments, outputs = valid_arguments(op, device, call)
        arguments.update({name: value(device) if callable(value) else value for name, value in changes.items()})
        with pytest.raises(exceptions, match=f"^{op}: {pattern}") as caught:
            call(**arguments)
        assert type(caught.value) in (exceptions if isinstance(exceptions, tuple) else (exceptions,))
        for name, output in outputs.items():
            output.check_untouched(name)
