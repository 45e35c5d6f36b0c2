"""Configs of judges: how one is trained, and where a recipe takes one from."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alignflow.config import Config

JudgeTask = Literal["toxicity", "truth", "information"]
"""What a judge says of a text."""

FileRole = Literal["data", "references", "transfer"]
"""What a file is for in training a judge."""

JUDGE_FOLDER = "judge"
"""Where the output of a `ClassifierJob` holds the judge."""

Share = Annotated[float, Field(ge=0, le=1)]


class DataFile(Config):
    """A file that a judge was fitted on or tried on."""

    role: FileRole
    name: str
    """Without its folder, which says nothing of the content."""
    sha256: str


class JudgeTraining(Config):
    """What a judge is fitted on, and how."""

    task: JudgeTask
    """`toxicity` reads ToxiGen's annotated statements, `truth` and `information` the judge samples
    of TruthfulQA."""
    data: str
    """File of labelled texts: a path, `s3://…`, or `hf://datasets/OWNER/NAME/FILE`."""
    references: str | None = None
    """`TruthfulQA.csv`, with whose true and false answers an answer to the same question is
    compared."""
    transfer: str | None = None
    """HateCheck's test cases, on which a toxicity judge is tried besides."""
    model: str | None = None
    """Causal language model whose hidden states the judge reads: a folder, a GGUF file,
    `package:NAME`, `s3://…` or a hub id. Without one the judge reads n-grams, which is weaker and
    takes seconds."""
    revision: str | None = None
    """Commit, branch or tag of a hub id."""
    licence: str = "not stated"
    """Licence of the data, for the card."""
    threshold: Share = 0.5
    """Probability from which a text counts as toxic, true or informative."""
    num_folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Parts of the cross-validation."""
    seed: int = Field(default=1234, ge=0)
    """Of the split into folds."""

    @model_validator(mode="after")
    def _revision_is_of_a_model(self) -> Self:
        if self.revision is not None and self.model is None:
            raise ValueError("revision does nothing without model")
        return self

    @property
    def uris(self) -> dict[FileRole, str]:
        """Its files by what they are for."""
        named: dict[FileRole, str | None] = {
            "data": self.data,
            "references": self.references,
            "transfer": self.transfer,
        }
        return {role: uri for role, uri in named.items() if uri is not None}


class JudgeQuality(Config):
    """How good a judge has to be for its scores to gate."""

    min_auc: Share = 0.8
    """Least area under the ROC curve on texts that it was not fitted on."""
    max_ece: Share = 0.1
    """Largest expected calibration error."""

    @property
    def uris(self) -> tuple[str, ...]:
        """Files of labelled texts that it takes."""
        return ()


class LocalJudge(JudgeQuality):
    """A judge that `alignflow judge train` made."""

    kind: Literal["local"]
    source: str
    """Digest of the artifact in the recipe's store, or a folder with its files."""


class TrainedJudge(JudgeQuality):
    """A judge that the run trains."""

    kind: Literal["trained"]
    training: JudgeTraining

    @property
    def uris(self) -> tuple[str, ...]:
        """Files of labelled texts that it takes."""
        return tuple(self.training.uris.values())


class ClassifierSettings(Config):
    """How a classifier of transformers is asked, and on what its quality is measured."""

    label: str = "LABEL_1"
    """Its name for toxic, true or informative."""
    labelled: str
    """Labelled texts, in the format of `JudgeTraining.data`; it may have been fitted on them."""
    licence: str = "not stated"
    """Licence of the labelled texts, for the card."""
    threshold: Share = 0.5
    """Probability from which a text counts as toxic, true or informative."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of a text; of longer ones the end is cut."""


class HubJudge(JudgeQuality, ClassifierSettings):
    """A classifier of transformers, such as `tomh/toxigen_roberta`.

    Only safetensors are read, and no code of a repository is run.
    """

    kind: Literal["hub"]
    model: str
    """Hub id, `s3://…`, or a folder."""
    revision: str | None = None
    """Commit, branch or tag of a hub id."""

    @property
    def uris(self) -> tuple[str, ...]:
        """Files of labelled texts that it takes."""
        return (self.labelled,)


class LanguageModelUsed(Config):
    """The language model of a judge."""

    name: str
    """As the training names it."""
    files: dict[str, str]
    """SHA-256 of each of its files: what names its content."""


class TrainingJob(Config):
    """Config of `python -m alignflow.evaluation.judges.reading`: a language model is read."""

    training: JudgeTraining
    """With local files."""
    model: Path
    """Hugging Face folder or one GGUF file of its language model."""
    files: list[DataFile]
    """What the card says of the files."""
    language_model: LanguageModelUsed
    """What it says of the model."""


class ClassifierJob(Config):
    """Config of `python -m alignflow.evaluation.judges`: a classifier becomes a judge."""

    task: JudgeTask
    model: Path
    """Its Hugging Face folder."""
    settings: ClassifierSettings
    """Those of the recipe, `labelled` a local file."""
    file: DataFile
    """What the card says of the labelled file."""


JudgeConfig = Annotated[LocalJudge | TrainedJudge | HubJudge, Field(discriminator="kind")]
