"""What the plug-in tells vLLM's log."""

import contextlib
import logging

logger = logging.getLogger("vllm.nsa_kernel")  # below the logger that vLLM gives its handler to

# Some of vLLM's processes load plug-ins before they set up logging; there a line waits for the first call.
_unsaid: list[str] = []


def announce(line: str) -> None:
    """Says a line as soon as the log takes it."""
    _unsaid.append(line)
    if logger.isEnabledFor(logging.INFO):
        say()


def say() -> None:
    """Says what waits."""
    with contextlib.suppress(IndexError):  # another thread says the last line
        while _unsaid:
            logger.info(_unsaid.pop(0))
