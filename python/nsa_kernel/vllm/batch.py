"""What the host knows of a batch."""

from typing import Any

import torch


def queries(common: Any) -> tuple[int, int, Any]:
    """The longest query of a batch, the shortest, and all; no query is longer than `common.max_query_len` > 0.

    In place of all stands None where the longest come first and the others are empty.
    """
    starts, num_reqs, bound = common.query_start_loc_cpu.numpy(), common.num_reqs, common.max_query_len
    total = starts.item(num_reqs)
    if total == num_reqs * bound:
        return bound, bound, None
    full, rest = divmod(total, bound)
    if rest == 0 and 0 < full < num_reqs and starts.item(full) == total:
        return bound, 0, None
    lens = starts[1 : num_reqs + 1] - starts[:num_reqs]
    return int(lens.max()), int(lens.min()), lens


def are_padded(longest: int, lens: Any) -> bool:
    """Whether all queries that are not empty are as long as the first one; `lens` are those of `queries`."""
    return lens is None or bool(lens[0] == longest > 0 and ((lens == longest) | (lens == 0)).all())


def head(array: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` elements; most often that is all of them."""
    return array if array.shape[0] == size else array[:size]
