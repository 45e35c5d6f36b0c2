"""Training stages: each a `run(config)` with its loop on one page."""
