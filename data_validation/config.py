"""Config of data sources, row limits and the set as a whole."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from alignflow.config import Config

DataKind = Literal["sft", "preference", "unpaired", "steerlm"]
AttributeName = Literal[
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
    "violence",
]
"""Attributes by which people rate an answer, those of OASST and of HelpSteer."""
Rating = Annotated[int, Field(ge=0, le=4)]
"""How much of an attribute an answer has."""
Share = Annotated[float, Field(ge=0, le=1)]
Severity = Literal["critical", "warning"]
"""What follows from a bound that is not kept: the end of the run, or a note."""
PrivatePolicy = Literal["flag", "refuse", "mask"]
"""What becomes of a row with something private: it is noted, refused, or masked and noted."""


class RowLimits(Config):
    """Bounds that a single row must keep; a row past one is refused."""

    max_field_chars: PositiveInt = 32768
    """Longest text of a turn."""
    max_word_chars: PositiveInt = 4096
    """Longest run of characters without white space."""
    max_line_bytes: PositiveInt = 4 * 1024 * 1024
    """Longest line; one past it refuses the whole file, for reading stops there."""
    max_json_depth: Annotated[int, Field(ge=1, le=512)] = 64
    """Deepest nesting of JSON."""
    pii: PrivatePolicy = "refuse"
    """Personal data: e-mail addresses, phone, social security, card and account numbers, public IP
    addresses. Under `mask` a row is compared, checked, stored and trained on with `[pii]`."""
    secrets: PrivatePolicy = "refuse"
    """Credentials: access keys, tokens, private keys; `[secret]` under `mask`."""


class NearDuplicatesConfig(Config):
    """When a row nearly repeats an earlier one, and what becomes of it."""

    threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """Smallest share of word triples in common, of all that either row has; every turn counts, both
    responses of a pair too."""
    action: Literal["flag", "refuse"] = "flag"


ExpectationName = Literal[
    "enough_rows",
    "few_refused",
    "few_duplicates",
    "few_near_duplicates",
    "few_repeated_prompts",
    "few_score_ties",
    "one_script",
    "ratings_vary",
    "ids_unique",
    "response_length",
    "no_length_bias_longer",
    "no_length_bias_shorter",
    "both_labels",
    "lengths_stable",
]


class SetExpectations(Config):
    """What the accepted rows must look like as a set; judged by Great Expectations.

    Rows are held to their contract one by one, by pandera: here is what only the set can tell.
    """

    severities: dict[ExpectationName, Severity] = {}
    """What a failure means, where not by default: `enough_rows` and `few_refused` are critical and
    end the run, all others warn."""

    min_rows: PositiveInt = 1
    """Fewest accepted rows."""
    max_refused_share: Share = 0.2
    """Largest share of refused rows among all rows."""
    max_duplicate_share: Share = 0.2
    """Largest share of rows that are refused because the same row stands earlier."""
    max_near_duplicate_share: Share = 0.2
    """Largest share of rows that nearly repeat an earlier one, refused or not, where
    `near_duplicates` looks for them."""
    max_duplicate_prompt_share: Share = 0.5
    """Largest share of rows whose prompt stands in an earlier row."""
    min_median_response_chars: PositiveInt = 2
    max_median_response_chars: PositiveInt = 8000
    max_length_bias: Share = 0.9
    """Largest share of pairs in which the chosen response is the longer one, or the shorter one."""
    max_score_tie_share: Share = 0.5
    """Largest share of pairs whose responses have equal scores."""
    max_label_share: Annotated[float, Field(ge=0.5, le=1)] = 0.95
    """Largest share of unpaired responses that have the same label."""
    min_main_script_share: Share = 0.5
    """Smallest share of rows whose response is mostly in the commonest script. It tells Latin from
    Cyrillic or Han, not one language of a script from another."""
    max_rating_share: Share = 0.99
    """Largest share of rated rows that agree in an attribute; nothing is learnt from a constant."""
    max_length_drift: NonNegativeFloat = 0.25
    """Largest population stability index of the lengths of prompts or responses against the last
    accepted version of the set, where there is one."""

    @model_validator(mode="after")
    def _median_is_a_range(self) -> Self:
        if self.min_median_response_chars > self.max_median_response_chars:
            raise ValueError("min_median_response_chars must not exceed max_median_response_chars")
        return self


class DatasetConfig(Config):
    """One training set: where it comes from, how it is split and judged."""

    sources: Annotated[list[str], Field(min_length=1)]
    """Files, folders, globs, `s3://…` or hub ids (`hf://datasets/OWNER/NAME[/FILE]`)."""
    licence: str | None = None
    """Licence under which the set may be used, as its card shall state it."""
    max_rows: PositiveInt | None = None
    """Take only the first so many accepted rows."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows kept from training; rows of one prompt, or of one conversation tree, stay
    together."""
    max_held_out_rows: PositiveInt | None = None
    seed: NonNegativeInt = 1234
    """Seed of the split."""
    limits: RowLimits = RowLimits()
    near_duplicates: NearDuplicatesConfig | None = None
    """Look for rows that nearly repeat an earlier one, by MinHash; None doesn't, which spares a
    second pass over the accepted rows. Those that are kept stay on one side of the split."""
    expectations: SetExpectations = SetExpectations()


class DataConfig(Config):
    """The training sets of a pipeline."""

    demonstrations: DatasetConfig
    preferences: DatasetConfig
    attributes: DatasetConfig | None = None
    """Rated answers: an attribute model is trained on them, and rates what other models say."""
    unpaired: DatasetConfig | None = None
    """Responses judged one by one, for KTO to train on in place of the preferences."""
    decontaminate: bool = True
    """Refuse rows that hold an item of a benchmark the model is judged on."""
    max_leaked_share: Share = 0.0
    """Largest share of the rows a set holds out whose prompt any set trains on."""
    leak_severity: Severity = "warning"
    """What follows where more are; `critical` ends the run before a training job starts."""

    @property
    def sets(self) -> dict[str, DatasetConfig]:
        """The sets that there are, by name."""
        named = {
            "demonstrations": self.demonstrations,
            "preferences": self.preferences,
            "unpaired": self.unpaired,
            "attributes": self.attributes,
        }
        return {name: config for name, config in named.items() if config is not None}

    @model_validator(mode="after")
    def _something_is_held_out(self) -> Self:
        if self.preferences.held_out_share == 0:
            raise ValueError("preferences.held_out_share must be above 0, for evaluation")
        return self
