"""Scores and answers equal those of transformers, with and without a shared root."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from alignflow.errors import DataError
from alignflow.training.attributes import AttributeScale
from alignflow.training.megatron.frozen import all_of
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel, RewardModel
from alignflow.training.megatron.trees import Branch, Tree, pack_trees
from alignflow.training.sampling import Sampling, uniforms

FEW_SHOT = [5, 17, 23, 42, 8, 61]
PROMPTS = [[7, 9, 11], [3, 1, 4, 1, 5, 9, 2], [88], [2, 7, 1, 8]]
TREES = [
    Tree(
        [*FEW_SHOT, 12, 13],
        [Branch.scored([31, 32]), Branch.scored([33]), Branch.scored([1, 2, 3])],
    ),
    Tree([*FEW_SHOT, 12, 14, 15], [Branch.scored([31, 32])]),
    Tree([*FEW_SHOT, 70], [Branch.scored([9]), Branch.scored([10])]),
]
ALIKE_TREES = [
    Tree(
        [9, 8],
        [
            Branch.scored([4, 5, 6]),
            Branch.scored([4, 5, 7]),
            Branch.scored([4, 5]),
            Branch.scored([4, 5, 6]),
            Branch([5, 4, 5], [False, False, True]),
        ],
    ),
]
LONE_TREES = [Tree([9], [Branch.scored([4, 5])]), Tree([50, 51], [Branch([4, 5], [False, True])])]


def load_reference(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def naive_sums(model: PreTrainedModel, trees: Sequence[Tree]) -> list[list[float]]:
    """Each continuation on its own, after its whole prefix."""

    def total(prefix: Sequence[int], branch: Branch) -> float:
        tokens = torch.tensor([*prefix, *branch.tokens])
        with torch.no_grad():
            logprobs_TV = model(tokens[None]).logits[0].log_softmax(-1)
        picked = logprobs_TV[len(prefix) - 1 : -1].gather(1, tokens[len(prefix) :, None])[:, 0]
        return float(picked[torch.tensor(list(branch.is_scored))].sum())

    return [[total(tree.prefix, branch) for branch in tree.branches] for tree in trees]


@pytest.fixture(scope="module", params=["llama_dir", "mistral_dir"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> LanguageModel:
    return LanguageModel.load(folder, precision="fp32")


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return load_reference(folder)


@pytest.mark.parametrize("trees", [TREES, TREES[:1], [*TREES, *LONE_TREES], ALIKE_TREES])
@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_scores_equal_those_of_whole_sequences(
    policy: LanguageModel, reference: PreTrainedModel, trees: list[Tree], max_tokens: int
) -> None:
    scores = policy.score(trees, max_tokens=max_tokens)
    for ours, theirs in zip(scores, naive_sums(reference, trees), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_progress_adds_up_to_all_trees_without_the_root(policy: LanguageModel) -> None:
    seen: list[tuple[int, int]] = []
    policy.score(TREES, max_tokens=6, progress=lambda done, tokens: seen.append((done, tokens)))
    assert sum(done for done, _ in seen) == len(TREES)
    # Own prefixes of 2, 3 and 1 tokens; of each branch all but the last token is fed.
    assert sum(tokens for _, tokens in seen) == (2 + 1 + 0 + 2) + (3 + 1) + 1


def test_greedy_answers_equal_those_of_transformers(
    policy: LanguageModel, reference: PreTrainedModel
) -> None:
    reference.generation_config.eos_token_id = None
    expected = [
        reference.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    told: list[tuple[int, int]] = []
    answers = policy.generate(
        PROMPTS, max_new_tokens=12, stop_tokens=(), progress=lambda *done: told.append(done)
    )
    assert answers == expected
    assert told == [(0, 8 * len(PROMPTS)), (len(PROMPTS), 4 * len(PROMPTS))]
    # Rows that stop at different steps don't disturb the others.
    stops = {expected[0][2], expected[2][5]}
    answers = policy.generate(PROMPTS, max_new_tokens=12, stop_tokens=stops)
    for answer, whole in zip(answers, expected, strict=True):
        ends = [n + 1 for n, token in enumerate(whole) if token in stops]
        assert answer == whole[: ends[0] if ends else 12]


def test_logits_equal_those_of_transformers(
    policy: LanguageModel, reference: PreTrainedModel
) -> None:
    ((_, batch),) = pack_trees(TREES[1:2], max_tokens=100)
    slices = policy.logit_slices(policy.hidden(batch)[batch.read_index_P])
    logits_NV = torch.cat([logits for _, logits in slices])
    tree = TREES[1]
    with torch.no_grad():
        expected = reference(torch.tensor([[*tree.prefix, *tree.branches[0].tokens]])).logits[0]
    torch.testing.assert_close(logits_NV, expected[len(tree.prefix) - 1 : -1], atol=1e-4, rtol=0)


def test_bf16_scores_are_near(llama_dir: Path) -> None:
    policy = LanguageModel.load(llama_dir, precision="bf16")
    scores = policy.score(TREES, max_tokens=100)
    for ours, theirs in zip(scores, naive_sums(load_reference(llama_dir), TREES), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.3, rtol=0)


@pytest.fixture
def reward_dir(llama_dir: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((llama_dir / name).read_bytes())
    weight = torch.linspace(-1, 1, 32)[None]
    save_file({"weight": weight}, tmp_path / "reward_head.safetensors")
    scale = {"mean": 0.5, "std": 2.0, "num_responses": 10}
    (tmp_path / "reward_scale.json").write_text(json.dumps(scale))
    return tmp_path


def test_reward_is_read_at_the_last_token_in_the_recorded_scale(reward_dir: Path) -> None:
    reward = RewardModel.load(reward_dir, precision="fp32")
    trunk = AutoModel.from_pretrained(reward_dir, dtype=torch.float32).eval()
    rows = [[*tree.prefix, *branch.tokens] for tree in TREES for branch in tree.branches]
    with torch.no_grad():
        last = [trunk(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    expected = [(float(h @ torch.linspace(-1, 1, 32)) - 0.5) / 2.0 for h in last]
    rewards = all_of(reward.row_passes(rows, max_tokens=20), None)
    torch.testing.assert_close(rewards, expected, atol=1e-4, rtol=0)
    by_tree = reward.score(TREES, max_tokens=20)
    assert [len(rewards) for rewards in by_tree] == [3, 1, 2]
    flat = [value for rewards in by_tree for value in rewards]
    torch.testing.assert_close(flat, expected, atol=1e-4, rtol=0)


def test_ratings_are_read_at_the_last_token_and_counted_from_their_means(
    llama_dir: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((llama_dir / name).read_bytes())
    weight_KH = torch.linspace(-1, 1, 64).view(2, 32)
    AttributeScale(("quality", "humor"), (2.5, 1.0)).save(tmp_path)
    with pytest.raises(DataError, match=r"attribute_head\.safetensors: no such file"):
        AttributeModel.load(tmp_path, precision="fp32")
    save_file({"weight": weight_KH}, tmp_path / "attribute_head.safetensors")
    model = AttributeModel.load(tmp_path, precision="fp32")
    trunk = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rows = [[*tree.prefix, *branch.tokens] for tree in TREES for branch in tree.branches]
    with torch.no_grad():
        last = [trunk(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    expected = [(weight_KH @ hidden + torch.tensor([2.5, 1.0])).tolist() for hidden in last]
    ratings = model.rate(rows, max_tokens=20)
    torch.testing.assert_close(ratings, expected, atol=1e-4, rtol=0)
    by_tree = model.rate_trees(TREES, max_tokens=20)
    assert [len(of_tree) for of_tree in by_tree] == [3, 1, 2]
    flat = [of_branch for of_tree in by_tree for of_branch in of_tree]
    torch.testing.assert_close(flat, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("scale", "problem"),
    [("{}", "mean and std"), ('{"mean": 0, "std": 0}', "above 0"), (None, "no such file")],
)
def test_reward_scale_that_is_missing_or_broken_is_refused(
    reward_dir: Path, scale: str | None, problem: str
) -> None:
    path = reward_dir / "reward_scale.json"
    path.unlink()
    if scale is not None:
        path.write_text(scale)
    with pytest.raises(DataError, match=problem):
        RewardModel.load(reward_dir, precision="fp32")


def noise(number: int, num_tokens: int) -> torch.Tensor:
    return torch.stack([uniforms((0, row), num_tokens) for row in range(number)])


def test_log_probabilities_of_samples_are_those_of_transformers(
    policy: LanguageModel, reference: PreTrainedModel
) -> None:
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9)
    answers = policy.sample(PROMPTS, noise(4, 9), sampling=sampling, stop_tokens=())
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer.tokens) == 9
        with torch.no_grad():
            logits = reference(torch.tensor([[*prompt, *answer.tokens]])).logits[0]
        logps = (logits / 0.7).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = logps.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logps), expected, atol=1e-4, rtol=0)


def test_a_sample_does_not_depend_on_what_is_sampled_beside_it(policy: LanguageModel) -> None:
    uniforms_BT, stops = noise(8, 12), range(0, 96, 7)

    def sampled(prompts: Sequence[list[int]], rows: slice) -> list[list[int]]:
        answers = policy.sample(
            prompts, uniforms_BT[rows], sampling=Sampling(), stop_tokens=set(stops)
        )
        assert all(len(answer.tokens) == len(answer.logps) for answer in answers)
        return [answer.tokens for answer in answers]

    # Two answers to each prompt, in one batch, prompt by prompt, and one by one.
    together = sampled(PROMPTS, slice(8))
    by_prompt = [sampled([prompt], slice(2 * n, 2 * n + 2)) for n, prompt in enumerate(PROMPTS)]
    assert together == [answer for answers in by_prompt for answer in answers]
    assert together == [sampled([PROMPTS[n // 2]], slice(n, n + 1))[0] for n in range(8)]
    assert len({tuple(answer) for answer in together}) == 8
    for answer in together:
        ends = [n for n, token in enumerate(answer) if token in stops]
        assert ends == [len(answer) - 1] or (not ends and len(answer) == 12)


def test_nothing_ends_a_sample_before_its_fewest_tokens(policy: LanguageModel) -> None:
    stops = set(range(0, 96, 7))
    answers = policy.sample(
        PROMPTS, noise(8, 12), sampling=Sampling(), stop_tokens=stops, min_new_tokens=6
    )
    for answer in answers:
        ends = [n for n, token in enumerate(answer.tokens) if token in stops]
        assert ends == [len(answer.tokens) - 1] or (not ends and len(answer.tokens) == 12)
        assert not ends or ends[0] >= 6
    assert any(6 < len(answer.tokens) < 12 for answer in answers)


def test_nothing_is_sampled_without_prompts(policy: LanguageModel) -> None:
    assert policy.sample([], noise(1, 3)[:0], sampling=Sampling(), stop_tokens=()) == []
