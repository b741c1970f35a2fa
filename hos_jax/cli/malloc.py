"""What the command line asks of the C library's memory allocator: settings of the whole process."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Give back to the system what is free now, and from then on nothing more.

    To be called when the training step is compiled. XLA's CPU back end frees a step's memory at its
    end. New pages for every step, filled with zeros by the system, take a tenth of the time of a
    large step.
    """
    # Elsewhere there are no such functions, or no C library to ask.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
        library.mallopt(_M_MMAP_MAX, 0)
