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


def start_temporary_server() -> None:
    """Start Prefect's temporary server so that Ctrl-C on the terminal doesn't end it.

    The terminal interrupts the whole process group. A server that ended first would leave the run
    without a place to record how it ended. A blocked signal stays blocked in the new process;
    Prefect itself ends the server when this process leaves.
    """
    from prefect.server.api.server import SubprocessASGIServer

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
