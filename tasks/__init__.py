"""Side effects of the pipeline as thin Prefect tasks around plain functions."""
