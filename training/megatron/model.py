"""The model: megatron-core's GPT with a head that reads the scored positions only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignflow.training.batch import PackedBatch
from alignflow.training.config import LoRAConfig, ParallelConfig, Precision, Recompute
from alignflow.training.megatron.architecture import Architecture, check_layout
from alignflow.training.megatron.attention import AttentionPlan, PackedRows
from alignflow.training.megatron.convert import (
    Shard,
    Whole,
    canonical_name,
    check_names,
    conversion_rules,
    padded_vocab_size,
)
from alignflow.training.megatron.core import (
    HAVE_TE,
    GPTModel,
    ModuleSpec,
    PackedSeqParams,
    TransformerBlockSubmodules,
    TransformerConfig,
    parallel_state,
    tensor_parallel,
)
from alignflow.training.megatron.cpu_host import cuda_calls_on_cpu
from alignflow.training.megatron.head import scored_log_probabilities
from alignflow.training.megatron.kernels import EAGER, compiled_kernels
from alignflow.training.megatron.layers import decoder_spec, transformer_config
from alignflow.training.megatron.score_heads import AttributeHead, RewardHead
from alignflow.training.megatron.weights import Weights

Head = Literal["lm", "reward", "value", "attributes"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PackedModel(GPTModel):  # type: ignore[misc]
    """A pipeline stage of a decoder that reads packed rows.

    With the head `lm` the last stage returns log-probabilities of the scored tokens; the logits of
    other positions, most of a chat batch, are never computed. With the head `reward` it returns a
    score of each row, read off the row's last token; with the head `value`, the same layer read at
    the scored positions: what is to come there, before the token is known;
    with the head `attributes`, several scores of each row.

    Attributes:
        temperature: Divides the logits that log-probabilities are made of.
    """

    temperature = 1.0

    def __init__(
        self,
        config: TransformerConfig,
        layer_spec: ModuleSpec | TransformerBlockSubmodules,
        architecture: Architecture,
        *,
        head: Head,
        has_transformer_engine: bool,
        num_attributes: int = 0,
    ) -> None:
        super().__init__(
            config,
            layer_spec,
            vocab_size=padded_vocab_size(
                architecture.vocab_size, config.tensor_model_parallel_size
            ),
            max_sequence_length=architecture.max_positions,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            share_embeddings_and_output_weights=head == "lm" and architecture.has_tied_embeddings,
            position_embedding_type="rope",
        )
        self.architecture = architecture
        self.head = head
        self.has_transformer_engine = has_transformer_engine
        self.lora: LoRAConfig | None = None
        self.rotary_pos_emb.inv_freq = architecture.rope.frequencies(architecture.head_dim)
        self.num_attributes = num_attributes
        self.output_layer: Any
        if head in ("reward", "value") and self.post_process:
            self.output_layer = RewardHead(architecture.hidden_size)
        elif head == "attributes" and self.post_process:
            self.output_layer = AttributeHead(architecture.hidden_size, num_attributes)
        elif config.sequence_parallel and self.post_process:
            # It gets all tokens' hidden states, not this rank's share of them.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = True

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return what this stage hands on.

        Returns:
            Before the last pipeline stage, hidden states, [T, 1, hidden]. On the last,
            log-probabilities in nats of `targets_N` or values, [N] float32, scores, [R] float32, or
            attributes, [R, K] float32.
        """
        batch = batch.filled_up(self._token_shares)
        plan = self._thd_rows(batch) if self.has_transformer_engine else PackedRows.of(batch)
        hidden_T1H = self.hidden_states(batch.tokens_T, batch.positions_T, plan)
        if not self.post_process:
            return hidden_T1H
        if self.head != "lm":
            read = batch.row_last_R if self.head != "value" else batch.score_index_N
            scores: Tensor = self.output_layer(hidden_T1H.index_select(0, read)[:, 0])
            return scores
        return self.log_probabilities(hidden_T1H, batch.score_index_N, batch.targets_N)

    def hidden_states(
        self, tokens_T: Tensor, positions_T: Tensor, plan: AttentionPlan | PackedSeqParams
    ) -> Tensor:
        """Return this stage's last hidden states, [T, 1, hidden].

        Where ranks share the tokens, stages before the last return this rank's share of them.

        Args:
            tokens_T: [T] int64, embedded on the first pipeline stage.
            positions_T: [T] int64, position of each token in its row.
            plan: Which tokens attend to which.
        """
        if isinstance(plan, PackedRows):
            plan = plan.rotating(self._angles(positions_T), self.config.params_dtype)
        tokens_T, positions_T = self._own_share(tokens_T), self._own_share(positions_T)
        embedded_T1H = None
        if self.pre_process:
            embedded_T1H = self.embedding(input_ids=tokens_T[None], position_ids=positions_T[None])
            if self.lora is not None and self.config.recompute_granularity == "full":
                # Layers that are computed again have a gradient only if their input has one, and
                # that of the first comes from frozen embeddings.
                embedded_T1H.requires_grad_()
        hidden_T1H: Tensor = self.decoder(
            hidden_states=embedded_T1H,
            attention_mask=None,
            rotary_pos_emb=self._rotary(positions_T, plan),
            packed_seq_params=plan,
        )
        return self._all_shares(hidden_T1H) if self.post_process else hidden_T1H

    def log_probabilities(
        self, hidden_T1H: Tensor, score_index_N: Tensor, targets_N: Tensor
    ) -> Tensor:
        """Return the log-probability in nats of each target at its position, [N] float32."""
        return scored_log_probabilities(
            hidden_T1H.index_select(0, score_index_N)[:, 0],
            self._output_weight(),
            targets_N,
            num_entries=self._num_own_entries,
            temperature=self.temperature,
            kernels=self.config.kernels,
        )

    def logits(self, hidden_N1H: Tensor) -> Tensor:
        """Return the logits of the whole vocabulary on every rank, [N, vocabulary] float32."""
        logits_N1V: Tensor = tensor_parallel.gather_from_tensor_model_parallel_region(
            self._local_logits(hidden_N1H)
        )
        return logits_N1V[:, 0, : self.architecture.vocab_size]

    @property
    def _token_shares(self) -> int:
        """Into how many shares of equal size the tokens of a batch are split."""
        context: int = self.config.context_parallel_size
        tensor: int = self.config.tensor_model_parallel_size
        return context * tensor if self.config.sequence_parallel else context

    def _own_share(self, values_T: Tensor) -> Tensor:
        """Return what this context-parallel rank computes; Megatron splits over tensor ranks."""
        rank: int = parallel_state.get_context_parallel_rank()
        return values_T.chunk(self.config.context_parallel_size)[rank]

    def _all_shares(self, hidden_T1H: Tensor) -> Tensor:
        """Return the hidden states of all tokens from those of each rank's share.

        All ranks go on alike. The gradient of tensor-parallel ranks is then the same on each and is
        split again. Context-parallel ranks are replicas to Megatron, which adds their gradients and
        their units up: so each gets its share of the sum.
        """
        if self.config.sequence_parallel:
            hidden_T1H = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_T1H, tensor_parallel_output_grad=False
            )
        if self.config.context_parallel_size > 1:
            hidden_T1H = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_T1H,
                tensor_parallel_output_grad=True,
                group=parallel_state.get_context_parallel_group(),
            )
        return hidden_T1H

    def _rotary(self, positions_T: Tensor, plan: AttentionPlan | PackedSeqParams) -> Tensor | None:
        """Return rotary angles as Megatron takes them; packed rows rotate for themselves."""
        if isinstance(plan, PackedRows):
            return None
        if not isinstance(plan, AttentionPlan):
            rotary: Tensor = self.rotary_pos_emb(plan.max_seqlen_q, packed_seq=True)
            return rotary
        angles_TF = self._angles(positions_T)
        return torch.cat([angles_TF, angles_TF], dim=-1)[:, None, None]

    def _angles(self, positions_T: Tensor) -> Tensor:
        """Return the angle by which each pair of channels turns at each position, [T, F]."""
        frequencies: Tensor = self.rotary_pos_emb.inv_freq.to(positions_T.device)
        return torch.outer(positions_T.float(), frequencies)

    def _thd_rows(self, batch: PackedBatch) -> PackedSeqParams:
        """Return the row boundaries as Transformer Engine takes them."""
        starts = batch.row_starts_R1
        longest = int(starts.diff().max())
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=starts,
            cu_seqlens_kv=starts,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )

    def _local_logits(self, hidden_N1H: Tensor) -> Tensor:
        """Return the logits of this rank's part of the vocabulary, [N, 1, part] float32."""
        logits_N1V, _ = self.output_layer(hidden_N1H, weight=self._output_weight())
        # The rows that only fill up the vocabulary have no probability.
        logits_N1V[..., self._num_own_entries :] = -torch.inf
        local: Tensor = logits_N1V.float()
        return local

    def _output_weight(self) -> Tensor:
        """Return this rank's rows of the weight that makes logits, [part, hidden]."""
        tied = self.share_embeddings_and_output_weights
        weight: Tensor = (
            self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        )
        return weight

    @property
    def _num_own_entries(self) -> int:
        """How many rows of this rank's part are entries of the vocabulary, not filling."""
        share = self._output_weight().size(0)
        start = parallel_state.get_tensor_model_parallel_rank() * share
        num_entries: int = min(max(self.architecture.vocab_size - start, 0), share)
        return num_entries


@cuda_calls_on_cpu()
def build_model(
    architecture: Architecture,
    *,
    head: Head,
    precision: Precision,
    parallel: ParallelConfig,
    device: torch.device,
    recompute: Recompute = "none",
    compiles: bool = False,
    allow_transformer_engine: bool = True,
    num_attributes: int = 0,
) -> PackedModel:
    """Return this rank's part of the model, its weights not yet set.

    Args:
        architecture: What to build.
        head: What the last stage returns.
        precision: Type of the weights; a head of scores stays float32.
        parallel: The layout, as `setup.initialize` made it.
        device: Where the weights go.
        recompute: What the backward pass computes again.
        compiles: Compile the element-wise parts.
        allow_transformer_engine: Use its layers on CUDA where Megatron finds it. They know packed
            rows only, and these in bf16 only; without them every `AttentionPlan` works.
        num_attributes: Scores that the head `attributes` gives a row.

    Raises:
        ConfigError: The model doesn't split over the ranks as configured.
    """
    check_layout(architecture, parallel)
    has_transformer_engine = (
        allow_transformer_engine
        and HAVE_TE
        and device.type == "cuda"
        and precision == "bf16"
        and parallel.context_parallel_size == 1
    )
    config = transformer_config(
        architecture,
        _DTYPES[precision],
        parallel,
        recompute,
        compiled_kernels() if compiles else EAGER,
        device,
        has_transformer_engine,
    )
    model = PackedModel(
        config,
        decoder_spec(architecture, parallel, has_transformer_engine),
        architecture,
        head=head,
        has_transformer_engine=has_transformer_engine,
        num_attributes=num_attributes,
    )
    for name, parameter in model.named_parameters():
        # torch's RMSNorm knows nothing of Megatron's parameter type; the reward head stays float32.
        is_reward_head = head != "lm" and name.startswith("output_layer.")
        dtype = torch.float32 if is_reward_head else _DTYPES[precision]
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    return model


@torch.no_grad()
def load_weights(model: PackedModel, model_dir: Path, *, seed: int) -> None:
    """Set every parameter from a Hugging Face folder; each rank reads only its own part.

    A head of attributes stays as it is: `AttributeHead.load`.

    Raises:
        DataError: The folder's weights don't fit the model exactly.
    """
    check_names(Weights.of_folder(model_dir), model.architecture)
    rules = conversion_rules(model.architecture)
    parameters = trunk_parameters(model)
    for name, weight in stored_weights(model, model_dir):
        parameters[name].copy_(weight)
        # Megatron counts a parameter in the gradient norm on every rank only where this is set,
        # and sets it in an initialization that is skipped here.
        parameters[name].tensor_model_parallel = not isinstance(rules[name], Whole)  # type: ignore[attr-defined]
    if isinstance(getattr(model, "output_layer", None), RewardHead):
        model.output_layer.initialize(model_dir, seed=seed)


def stored_weights(model: PackedModel, model_dir: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's part of each weight of the trunk by name, in the type that its file has."""
    weights = Weights.of_folder(model_dir)
    rules = conversion_rules(model.architecture)
    shard = Shard(
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    for name in trunk_parameters(model):
        yield name, rules[name].read(weights, shard)


def trunk_parameters(model: PackedModel) -> dict[str, nn.Parameter]:
    """Return this stage's parameters by their name in the whole model, as `convert` has rules.

    A head of scores and adapters are not among them.
    """
    first_layer = model.decoder.layers[0].layer_number - 1
    return {
        canonical_name(name, first_layer): parameter
        for name, parameter in model.named_parameters()
        if not (model.head != "lm" and name.startswith("output_layer.")) and ".adapter." not in name
    }
