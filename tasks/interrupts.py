"""Ctrl-C, and what would keep it from ending a run in order."""

import signal
import threading


def restore_interrupts() -> None:
    """Give SIGINT back to Python.

    When polars is imported, from whatever thread, it puts its own handler before Python's, with the
    flag by which a main thread that waits for a lock goes on waiting: Ctrl-C would do nothing. So
    it is imported here, and Python's handler is installed again. In another thread than the main
    one there is nothing to do, since only the main thread hears of signals.
    """
    import polars  # noqa: F401

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
