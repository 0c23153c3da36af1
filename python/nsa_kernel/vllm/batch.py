"""What the host knows of a batch."""

from typing import Any, NamedTuple

import torch


class Queries(NamedTuple):
    """How many tokens the requests of a batch have."""

    longest: int
    shortest: int
    lens: Any  # all of them; None where the longest come first and the others are empty

    def padded(self) -> bool:
        """Whether all but the empty ones are as long as the first one, which is not empty."""
        lens = self.lens
        return lens is None or bool(lens[0] == self.longest > 0 and ((lens == self.longest) | (lens == 0)).all())


def queries(common: Any) -> Queries:
    """The queries of a batch, of which none is longer than `common.max_query_len` > 0."""
    starts, num_reqs, bound = common.query_start_loc_cpu.numpy(), common.num_reqs, common.max_query_len
    total = starts.item(num_reqs)
    full, rest = divmod(total, bound)
    if rest == 0 and 0 < full <= num_reqs and starts.item(full) == total:
        return Queries(bound, bound if full == num_reqs else 0, None)
    lens = starts[1 : num_reqs + 1] - starts[:num_reqs]
    return Queries(int(lens.max()), int(lens.min()), lens)


def head(array: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` elements; most often that is all of them."""
    return array if array.shape[0] == size else array[:size]
