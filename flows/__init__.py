"""Pipelines: each composes tasks into one DAG."""
