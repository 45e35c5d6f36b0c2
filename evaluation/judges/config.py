"""Configs of judges: how one is trained, and where a recipe takes one from."""

from typing import Annotated, Literal

from pydantic import Field

from alignflow.config import Config

JudgeTask = Literal["toxicity", "truth", "information"]
"""What a judge says of a text."""

FileRole = Literal["data", "references", "transfer"]
"""What a file is for in training a judge."""

Share = Annotated[float, Field(ge=0, le=1)]


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
    licence: str = "not stated"
    """Licence of the data, for the card."""
    threshold: Share = 0.5
    """Probability from which a text counts as toxic, true or informative."""
    num_folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Parts of the cross-validation."""
    seed: int = Field(default=1234, ge=0)
    """Of the split into folds."""

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


class LocalJudge(JudgeQuality):
    """A judge that `alignflow judge train` made."""

    kind: Literal["local"]
    source: str
    """Digest of the artifact in the recipe's store, or a folder with its files."""


class TrainedJudge(JudgeQuality):
    """A judge that the run trains."""

    kind: Literal["trained"]
    training: JudgeTraining


JudgeConfig = Annotated[LocalJudge | TrainedJudge, Field(discriminator="kind")]
