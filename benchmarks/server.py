"""What the time of one call means for a server that makes it all day."""

REQUEST_RATES, DRAFT_EXTEND_SHARE = (1_000, 10_000), 0.10
STEP_RATES = (20, 50, 100)


def cost(calls_per_second: float, call_us: float) -> tuple[float, float]:
    """Milliseconds of time in each second, and the share of the second."""
    milliseconds = calls_per_second * call_us / 1e3
    return milliseconds, milliseconds / 1e3
