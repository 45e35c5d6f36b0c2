"""Faults that strike a pipeline at random moments, and what has to stand when it is over.

`stack` holds the servers and the worker, `scene` one pipeline on them, `moments` when a fault
strikes, `faults` what it does and who puts it right, `observations` what stands at the end, and
`table` how that is told.
"""
