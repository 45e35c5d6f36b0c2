"""Parts that several integration tests share."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kube_cluster import KubeCluster
from slurm_cluster import Cluster, missing_programs
from tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as the tiny model's are slower with several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights in a Hugging Face folder, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("tiny-model")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def varied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights so large that it writes more than the last token repeated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("varied-model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    config.initializer_range = 0.2
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster of two nodes, up until the tests end."""
    if missing := missing_programs():
        pytest.skip(f"needs a Slurm installation (apt install slurm-wlm): {missing} missing")
    if os.geteuid() != 0:
        pytest.skip("needs root: the nodes' GPUs are device files")
    cluster = Cluster()
    with ExitStack() as stack:
        try:
            stack.enter_context(cluster.running())
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"Slurm's daemons don't start on this machine: {error}")
        yield cluster


@pytest.fixture(scope="session")
def kube() -> Iterator[KubeCluster]:
    """A stub of a Kubernetes cluster, up until the tests end."""
    with KubeCluster().running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def classifier(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of random weights, two labels, in a Hugging Face folder."""
    import torch
    from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=140,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder
