"""The arguments of every op: those that fit, the role of each array, and how a refusal of others is checked.

Which arrays an op has, and what each is, is read from its docstring.
"""

import inspect
import re

import nsa_kernel
import pytest
import torch
from memory import Output, lengths, table
from replay_cases import shapes_of

DRAFT_EXTEND, REPLAY = "fill_draft_extend_metadata", "fill_replay_metadata"
DECODE, PREFILL = "fill_indexer_decode_metadata", "fill_indexer_prefill_metadata"
TOKEN_REQUESTS = "fill_token_requests"
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
    DECODE: [nsa_kernel.fill_indexer_decode_metadata, nsa_kernel.IndexerDecodePlan],
    PREFILL: [nsa_kernel.fill_indexer_prefill_metadata],
    TOKEN_REQUESTS: [nsa_kernel.fill_token_requests],
}
ONLY_ASYNCHRONOUS = {"out_num_tokens", "variant"}
OUTPUT_SHAPES = {
    DRAFT_EXTEND: {"out_seqlens_expanded": (5,), "out_nsa_cache_seqlens": (5,), "out_num_tokens": (1,)},
    REPLAY: shapes_of("draft_extend", bs=2, rows=6, n=3, width=8, page_size=2)
    | {"schedule": (5, 2), "topk_plan": (7, 2)},
    DECODE: {
        "decode_seq_lens": (5,),
        "global_seq_lens": (5,),
        "decode_lens": (5,),
        "per_req_lens": (3,),
        "indices": (5,),
        "expanded_block_table": (5, 4),
        "schedule": (5, 2),
    },
    PREFILL: {
        "cu_seq_lens": (4,),
        "local_cu_seq_lens": (4,),
        "token_to_seq": (9,),
        "cu_seqlen_ks": (5,),
        "cu_seqlen_ke": (5,),
    },
    TOKEN_REQUESTS: {"out": (7,)},
}

LENGTH, TABLE, OUTPUT, OUTPUT_TABLE = "length", "table", "output", "output table"
FLAT_OUTPUT = "output of one or two dimensions"


def documented(function):
    """What the docstring says of each argument, by its name, in one line each."""
    text = inspect.getdoc(function).partition("\nArgs:\n")[2].partition("\n\n")[0]
    lines = re.sub(r"\n {8}", " ", text).splitlines()
    return dict(line.strip().split(": ", 1) for line in lines)


def role_of(line):
    """The role of an argument that is documented so; None where it is no array."""
    found = re.match(r"\[(.*?)\] (int32 or int64|int32 out|int32), ", line)
    if not found:
        return None
    if found[2] == "int32 or int64":
        return LENGTH
    if "May have two dimensions." in line:
        return FLAT_OUTPUT
    is_table, is_output = ", " in found[1], found[2] == "int32 out"
    return {(0, 1): OUTPUT, (1, 0): TABLE, (1, 1): OUTPUT_TABLE}[is_table, is_output]


ROLES = {
    (op, name): role
    for op in CALLS
    for name, line in documented(getattr(nsa_kernel, op)).items()
    if (role := role_of(line))
}


def is_output(role):
    return role in (OUTPUT, OUTPUT_TABLE, FLAT_OUTPUT)


def shape_that_fits(op, name):
    rank = 2 if ROLES[op, name] in (TABLE, OUTPUT_TABLE) else 1
    return OUTPUT_SHAPES[op].get(name, (2, 8)[:rank])


def drop_in(call):
    """Whether it is a drop-in function, which has fewer arguments."""
    return "_cuda" in getattr(call, "__name__", "")


def draft_extend_inputs(device):
    arrays = {"seq_lens": lengths([10, 15], device=device), "extend_seq_lens": lengths([2, 3], device=device)}
    return arrays | {"nsa_index_topk": 12}


def replay_inputs(device):
    arrays = {"seq_lens": lengths([10, 15], device=device), "req_pool_indices": lengths([1, 0], device=device)}
    arrays["req_to_token"] = table([[5] * 8, [6] * 8], 8, device=device)
    schedule = {"schedule_format": "deepgemm_sm90", "topk_plan_format": "sglang_topk_v2_sm90", "topk_plan_clusters": 2}
    return arrays | schedule | {"mode": "draft_extend", "nsa_index_topk": 12, "num_draft_tokens": 3, "page_size": 2}


def decode_inputs(device):
    arrays = {"seq_lens": lengths([9, 4, 7], device=device), "query_start_loc": lengths([0, 2, 2, 5], device=device)}
    arrays["block_table"] = table([[1, 2, 3]] * 3, 3, device=device)
    return arrays | {"layout": "rows", "num_tokens": 5, "schedule_format": "deepgemm_sm90"}


def prefill_inputs(device):
    arrays = {"seq_lens": lengths([9, 4, 7], device=device), "query_start_loc": lengths([0, 2, 2, 5], device=device)}
    return arrays | {"first_request": 0, "end_request": 3}


def token_requests_inputs(device):
    return {"query_start_loc": lengths([0, 2, 2, 5], device=device)}


INPUTS = {
    DRAFT_EXTEND: draft_extend_inputs,
    REPLAY: replay_inputs,
    DECODE: decode_inputs,
    PREFILL: prefill_inputs,
    TOKEN_REQUESTS: token_requests_inputs,
}


def with_outputs(inputs, shapes, device):
    """These inputs with outputs of these shapes, and the outputs, poisoned."""
    outputs = {name: Output(*shape, device=device) for name, shape in shapes.items()}
    return inputs(device) | {name: output.array for name, output in outputs.items()}, outputs


def valid_arguments(op, device, call=None):
    """Arguments that fit the op, or one way to call it, and the outputs among them, poisoned."""
    arguments, outputs = with_outputs(INPUTS[op], OUTPUT_SHAPES[op], device)
    if drop_in(call):
        del arguments["out_num_tokens"]
    return arguments, outputs


def check_refusal(op, device, exceptions, pattern, valid=valid_arguments, **changes):
    """Every way to call the op refuses the changed arguments in words that match, and nothing was written before.

    A function among `changes` makes its argument for each call anew, from the device.
    """
    for call in CALLS[op]:
        if drop_in(call) and changes.keys() & ONLY_ASYNCHRONOUS:
            continue
        arguments, outputs = valid(op, device, call)
        arguments.update({name: value(device) if callable(value) else value for name, value in changes.items()})
        with pytest.raises(exceptions, match=f"^{op}: {pattern}") as caught:
            call(**arguments)
        assert type(caught.value) in (exceptions if isinstance(exceptions, tuple) else (exceptions,))
        for name, output in outputs.items():
            output.check_untouched(name)


# What `changes` may hold: arrays that are made anew.


def ints(*values):
    return lambda device: lengths(list(values), device=device)


def words(*shape, dtype=torch.int32):
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


RAGGED = {"extend_seq_lens": ints(2, 3), "ctx_lens_2d": None}
