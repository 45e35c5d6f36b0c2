"""One module a benchmark: its file format, its prompts, its scorer."""
