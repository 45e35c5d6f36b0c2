"""Configs of the evaluation job and of the gate."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from alignflow.config import Config
from alignflow.data_validation.config import AttributeName
from alignflow.errors import ConfigError
from alignflow.evaluation.answer_judge.config import AnswerJudgeConfig
from alignflow.evaluation.judges.config import JudgeConfig, JudgeTask
from alignflow.evaluation.suites import check_judges, score_names

_OPPONENTS = ("base", "sft", "champion")
_OF_ANSWERS = ("samples", "win_rate", "length_controlled_win_rate")
OF_ANSWER_JUDGE = ("judged_win_rate", "length_controlled_judged_win_rate", "answer_judge")
"""Scores that only a judge of answers gives."""
_BUILT_IN_SCORES = {
    "preference": (
        *("logprob_accuracy", "per_token_accuracy"),
        *("implicit_accuracy", "implicit_margin"),
    ),
    "reward_model": ("accuracy", "margin"),
    "perplexity": ("response",),
    "kl": ("parent_nats_per_token",),
    "samples": ("mean_reward", "mean_tokens"),
    "win_rate": _OPPONENTS,
    "length_controlled_win_rate": _OPPONENTS,
    "judged_win_rate": _OPPONENTS,
    "length_controlled_judged_win_rate": _OPPONENTS,
    "answer_judge": ("accuracy", "consistency"),
    "steerlm": (),  # one for each of `steered_attributes`
}
"""What is measured without a benchmark."""
SCORES_OF_A_CHILD = frozenset(
    {"preference/implicit_accuracy", "preference/implicit_margin", "kl/parent_nats_per_token"}
)
"""Scores that compare a model with its parent: the base model has none of them."""


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Let pydantic name the field of what a suite refuses."""
    try:
        yield
    except ConfigError as error:
        raise ValueError(str(error).removesuffix(".")) from None


class SuiteConfig(Config):
    """One benchmark: its scorer and its files."""

    suite: str
    """Which scorer reads the file: one of docs/suites.md, one that an installed package adds, or
    `lm_eval:TASK`, a task of lm-evaluation-harness."""
    data: str
    """File in the benchmark's own format: a path, `s3://…`, or `hf://datasets/OWNER/NAME/FILE`."""
    limit: PositiveInt | None = None
    """Judge only the first so many items; the gate then refuses."""
    judges: dict[JudgeTask, JudgeConfig] = {}
    """Who judges what the model writes, by what they judge; a suite that asks none has none."""

    @field_validator("suite")
    @classmethod
    def _is_known(cls, suite: str) -> str:
        with _as_value_error():
            score_names(suite)
        return suite

    @model_validator(mode="after")
    def _has_its_judges(self) -> Self:
        with _as_value_error():
            check_judges(self.suite, self.judges)
        for task, judge in self.judges.items():
            if judge.kind == "trained" and judge.training.task != task:
                raise ValueError(f"judges.{task} trains a judge of {judge.training.task}")
        return self


class PairSetConfig(Config):
    """Preference pairs that the reward model is judged on."""

    data: str
    """File of items with `prompt`, `chosen`, `rejected` and perhaps `subset`, as HHH alignment has:
    a path, `s3://…`, or `hf://datasets/OWNER/NAME/FILE`."""
    limit: PositiveInt | None = None
    """Judge only the first so many pairs; the gate then refuses."""


class GenerationConfig(Config):
    """How the models write what suites of generation judge."""

    max_new_tokens: PositiveInt = 48
    """Most tokens of a continuation or an answer."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of continuations, which are drawn; answers to requests are the likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Only the likeliest tokens that together have this probability are drawn."""
    seed: int = Field(default=1234, ge=0)


BenchmarkName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class EvaluationConfig(Config):
    """What is measured on the base, the SFT and the aligned model."""

    suites: dict[BenchmarkName, SuiteConfig] = {}
    """Benchmarks by the name under which scores and gate rules know them."""
    pair_sets: dict[BenchmarkName, PairSetConfig] = {}
    """Pairs beside the held-out ones that the reward model ranks; its score is
    `<name>/reward_accuracy`."""
    max_length: PositiveInt = 1024
    """Tokens of a scored sequence; of longer ones a chat loses its end, a benchmark's prompt its
    beginning, and the cuts are counted."""
    max_preference_pairs: PositiveInt | None = None
    """Judge only the first so many held-out pairs; the gate then refuses."""
    implicit_reward_beta: Annotated[float, Field(gt=0)] = 0.1
    """Scale of the implicit reward, eq. 5 of arXiv:2305.18290; margins are in its unit."""
    microbatch_tokens: PositiveInt = 4096
    precision: Literal["fp32", "bf16"] = "bf16"
    data_parallel_size: PositiveInt = 1
    """Processes that divide the items of suites and the pairs among them, each with a GPU where
    there are some."""
    num_samples: int = Field(default=6, ge=0)
    """Held-out prompts answered by every model, for win rates; the report shows the first dozen."""
    max_new_tokens: PositiveInt = 128
    """Length of a sample answer."""
    answer_judge: AnswerJudgeConfig | None = None
    """A language model that compares the sample answers, for win rates by another judge than the
    reward model."""
    steered_attributes: tuple[AttributeName, ...] = ()
    """Attributes of which a SteerLM model is asked for 4 and for 0; the attribute model says by how
    much its answers differ."""
    max_steering_prompts: PositiveInt = 32
    """Held-out prompts that are answered so."""
    generation: GenerationConfig = GenerationConfig()

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        for name in self.benchmarks:
            place = "suites" if name in self.suites else "pair_sets"
            if name in _BUILT_IN_SCORES:
                raise ValueError(f"{place}.{name}: this name is taken by a built-in measure")
            if name in self.suites and name in self.pair_sets:
                raise ValueError(f"pair_sets.{name}: this name is taken by a suite")
        return self

    @model_validator(mode="after")
    def _answer_judge_has_answers(self) -> Self:
        if self.answer_judge is not None and not self.num_samples:
            raise ValueError("answer_judge compares sample answers; give num_samples")
        return self

    @property
    def benchmarks(self) -> dict[str, SuiteConfig | PairSetConfig]:
        """All that is judged on files of its own, by name."""
        return {**self.suites, **self.pair_sets}

    @property
    def score_names(self) -> list[str]:
        """The scores that a model with a parent gets, as gate rules name them."""
        scores = {
            name: score_names(suite.suite, are_judged=bool(suite.judges))
            for name, suite in self.suites.items()
        }
        scores |= dict.fromkeys(self.pair_sets, ("reward_accuracy",))
        scores |= _BUILT_IN_SCORES
        absent = {
            *(_OF_ANSWERS if not self.num_samples else ()),
            *(OF_ANSWER_JUDGE if self.answer_judge is None else ()),
        }
        scores = {name: of for name, of in scores.items() if name not in absent}
        return [f"{suite}/{name}" for suite, names in scores.items() for name in names]


class EvaluationJob(Config):
    """Config of `python -m alignflow.evaluation`: one model, judged on every suite."""

    evaluation: EvaluationConfig
    """Suites whose `data` are local files."""
    model: Path
    """Hugging Face folder of the model to judge."""
    parent: Path | None = None
    """Hugging Face folder of the model it was trained from: KL and implicit reward."""
    reward_model: Path | None = None
    """Reward model folder that scores held-out pairs and sample answers."""
    attribute_model: Path | None = None
    """Attribute model folder that rates sample answers, and those of a SteerLM model that is asked
    for more and for less."""
    judges: dict[str, dict[JudgeTask, Path]] = {}
    """Folder of each judge that a suite names, by suite."""
    preferences: Path | None = None
    """Dataset artifact whose `held_out/` pairs are used."""

    @model_validator(mode="after")
    def _pair_sets_have_a_judge(self) -> Self:
        if self.evaluation.pair_sets and (self.reward_model is None or self.preferences is None):
            raise ValueError("evaluation.pair_sets are for a reward model beside held-out pairs")
        return self


class GateRule(Config):
    """One condition on one score; it needs a bound, a comparison, or both."""

    score: str
    """Name of a score, such as `truthfulness/mc2`."""
    at_least: float | None = None
    at_most: float | None = None
    compared_with: Literal["base", "sft", "champion"] | None = None
    """Model whose score this one must not fall behind; without a champion the rule passes."""
    max_drop: NonNegativeFloat = 0.0
    """How far the score may be worse than the other model's."""
    higher_is_better: bool = True
    """Direction in which `compared_with` reads a score as worse."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None
    """Ask every bound not of the score but of what it is with this confidence, such as 0.95: of the
    one-sided bound of its bootstrap over items, paired where the rule compares. Fewer items than
    the confidence takes fail the rule."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if self.at_least is None and self.at_most is None and self.compared_with is None:
            raise ValueError("a rule needs at_least, at_most or compared_with")
        if self.compared_with is None and self.max_drop:
            raise ValueError("max_drop does nothing without compared_with")
        if self.compared_with is None and not self.higher_is_better:
            raise ValueError("higher_is_better does nothing without compared_with")
        if self.compared_with is not None and self.is_win_rate:
            raise ValueError(
                "a win rate compares models already; give at_least without compared_with"
            )
        if self.compared_with is not None and self.score.startswith("answer_judge/"):
            raise ValueError(f"{self.score} is no model's; give at_least without compared_with")
        return self

    @property
    def is_win_rate(self) -> bool:
        """Whether the score is formed from the answers of two models."""
        return self.score.partition("/")[0].endswith("win_rate")

    @property
    def asks_for_champion(self) -> bool:
        """Whether the rule is about the model that serves now; it passes where there is none."""
        return self.compared_with == "champion" or (
            self.is_win_rate and self.score.endswith("/champion")
        )


class GateConfig(Config):
    """The rules that turn scores into a verdict."""

    rules: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], GateRule] = {}
    """Rules by name; every one must pass."""
    tie_margin: NonNegativeFloat = 0.0
    """Answers whose rewards differ by no more, in standard deviations of the reward model's
    reference set, are a tie: half a win."""
