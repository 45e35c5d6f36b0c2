"""The only importer of megatron: models, conversion, steps and checkpoints."""
