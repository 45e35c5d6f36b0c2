"""The one import of megatron-core: the modules of this package take its names from here.

Without Transformer Engine and Apex megatron-core warns at its import that it falls back to torch,
which is what is wanted where there is no CUDA; and it imports deprecated names of its own and of
torch. These warnings are dropped while it is imported; all others pass.
"""

import warnings

from alignflow.training.megatron.cpu_host import compile_nothing_on_cpu

with warnings.catch_warnings(), compile_nothing_on_cpu():
    for _message in (
        "Transformer Engine and Apex are not installed",
        "Apex is not installed",
        "The following imports from `dynamic_context.py`",
        r"The 'megatron\.core\.transformer\.custom_layers",
        r"`torch\.jit\.script",
        "invalid escape sequence",
    ):
        warnings.filterwarnings("ignore", message=rf"\s*{_message}")
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        TorchDistSaveShardedStrategy,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt.gpt_layer_specs import (
        HAVE_TE,
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import (
        MegatronOptimizer,
        OptimizerConfig,
        ParamKey,
        get_megatron_optimizer,
        get_standard_config_overrides,
    )
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

__all__ = [
    "HAVE_TE",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "GPTModel",
    "MCoreSavePlanner",
    "MegatronModule",
    "MegatronOptimizer",
    "ModuleSpec",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "PackedSeqParams",
    "ParamKey",
    "ShardedTensor",
    "TorchDistSaveShardedStrategy",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "_replace_state_dict_keys_with_sharded_keys",
    "apply_swiglu_sharded_factory",
    "dist_checkpointing",
    "finalize_model_grads",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_gpt_layer_with_transformer_engine_spec",
    "get_megatron_optimizer",
    "get_standard_config_overrides",
    "make_sharded_tensors_for_checkpoint",
    "mcore_to_pyt_state_dict",
    "parallel_state",
    "tensor_parallel",
]
