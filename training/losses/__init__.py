"""Objectives: pure tensor functions that return a sum and a count."""
