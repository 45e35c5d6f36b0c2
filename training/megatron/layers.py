"""What a decoder is built of: Megatron's configuration, and the layers in place of its own."""

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignflow.training.config import ParallelConfig, Recompute
from alignflow.training.megatron.architecture import Architecture
from alignflow.training.megatron.attention import PackedAttention
from alignflow.training.megatron.core import (
    HAVE_TE,
    MegatronModule,
    ModuleSpec,
    TransformerBlockSubmodules,
    TransformerConfig,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from alignflow.training.megatron.kernels import EAGER, Kernels


@dataclass
class PackedConfig(TransformerConfig):  # type: ignore[misc]
    """Megatron's configuration with what its modules here need besides."""

    kernels: Kernels = EAGER


class RMSNorm(nn.RMSNorm):
    """Takes the place of Megatron's wrapper of torch's norm, which knows no sequence parallelism.

    There each rank sees its share of the tokens, and Megatron adds up the gradients of the weights
    that are marked.
    """

    def __init__(self, config: PackedConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._compute = config.kernels.rms_norm

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the hidden states at unit root mean square, times the weight."""
        assert self.eps is not None
        # Of two axes, whatever is normalized: a compiled function tells other strides apart.
        rows = self._compute(hidden.reshape(-1, hidden.size(-1)), self.weight, self.eps)
        return rows.view(hidden.shape)


class SwiGLU(MegatronModule):  # type: ignore[misc]
    """The activation of a feed-forward layer whose gate and up projections are one product."""

    def __init__(self, config: PackedConfig) -> None:
        super().__init__(config)
        self._compute = config.kernels.swiglu

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """Return [..., F] of [..., 2 F]."""
        activated: Tensor = self._compute(gate_and_up.flatten(0, -2))
        return activated.view(*gate_and_up.shape[:-1], -1)


def transformer_config(
    a: Architecture,
    dtype: torch.dtype,
    parallel: ParallelConfig,
    recompute: Recompute,
    kernels: Kernels,
    device: torch.device,
    has_transformer_engine: bool,
) -> PackedConfig:
    """Return Megatron's configuration of this rank's part of the model."""
    on_cuda = device.type == "cuda"
    with warnings.catch_warnings():
        # A default of Megatron's own, of a field for CUDA graphs, which are not used here.
        warnings.filterwarnings("ignore", message="full scope is deprecated")
        if not HAVE_TE:
            warnings.filterwarnings("ignore", message="If you are using transformer_engine")
        return PackedConfig(
            kernels=kernels,
            num_layers=a.num_layers,
            hidden_size=a.hidden_size,
            num_attention_heads=a.num_heads,
            num_query_groups=a.num_kv_heads,
            kv_channels=a.head_dim,
            ffn_hidden_size=a.ffn_hidden_size,
            normalization="RMSNorm",
            layernorm_epsilon=a.norm_eps,
            qk_layernorm=a.has_qk_norm,
            add_bias_linear=False,
            add_qkv_bias=a.has_qkv_bias,
            gated_linear_unit=True,
            activation_func=F.silu,
            window_size=None if a.sliding_window is None else (a.sliding_window - 1, 0),
            attention_dropout=0.0,
            hidden_dropout=0.0,
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
            sequence_parallel=parallel.sequence_parallel,
            recompute_granularity=None if recompute == "none" else recompute,
            recompute_method="uniform" if recompute == "full" else None,
            recompute_num_layers=1 if recompute == "full" else None,
            variable_seq_lengths=parallel.pipeline_model_parallel_size > 1,
            # Looked at where sequence lengths vary, experts or not.
            moe_token_dispatcher_type="alltoall",
            params_dtype=dtype,
            pipeline_dtype=dtype,
            bf16=dtype == torch.bfloat16,
            calculate_per_token_loss=True,
            perform_initialization=False,
            use_cpu_initialization=not on_cuda,
            bias_activation_fusion=has_transformer_engine,
            # Megatron's word for an activation that is a module of the layer.
            use_te_activation_func=not has_transformer_engine,
        )


def decoder_spec(
    a: Architecture, parallel: ParallelConfig, has_transformer_engine: bool
) -> ModuleSpec | TransformerBlockSubmodules:
    """Return the layers of a pipeline stage as Megatron builds them."""
    if has_transformer_engine:
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=a.has_qk_norm)
    spec = get_gpt_layer_local_spec(qk_layernorm=a.has_qk_norm, normalization="RMSNorm")
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    spec.submodules.mlp.submodules.activation_func = SwiGLU
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    if a.has_qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    # Named, for by itself Megatron ends the block with a norm of Transformer Engine where that is
    # installed, on a CPU too.
    return TransformerBlockSubmodules(
        layer_specs=[spec] * (a.num_layers // parallel.pipeline_model_parallel_size),
        layer_norm=RMSNorm,
    )
