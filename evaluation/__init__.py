"""Benchmark suites, their scorers and the gate."""
