"""What a run shows in the terminal: where it is all the time, and at its end what came of it."""

from alignflow.terminal.displays import (
    Display,
    NullDisplay,
    PlainDisplay,
    RichDisplay,
    current_display,
    make_display,
)
from alignflow.terminal.summary import print_comparison, print_models, print_summary

__all__ = [
    "Display",
    "NullDisplay",
    "PlainDisplay",
    "RichDisplay",
    "current_display",
    "make_display",
    "print_comparison",
    "print_models",
    "print_summary",
]
