"""Training jobs on megatron-core."""
