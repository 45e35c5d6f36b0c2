"""The report of a run: its data, and the page made from it."""
