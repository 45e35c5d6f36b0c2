"""SteerLM and SteerLM 2.0, and the attribute model that they go by."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from alignflow.config import Config
from alignflow.data_validation.config import AttributeName, Rating, Share
from alignflow.training.config.sampling import SamplingConfig
from alignflow.training.config.trainer import Precision, TrainerConfig


class AttributeModelConfig(TrainerConfig):
    """Attribute model of SteerLM (arXiv:2310.05344), by regression as in arXiv:2406.08673."""

    stage: Literal["attribute_model"] = "attribute_model"


class AnnotationConfig(Config):
    """How the attribute model rates the demonstrations, for SteerLM to learn from."""

    max_length: PositiveInt = 1024
    """Tokens of a rated conversation; longer ones are cut at the end, and the cuts are counted."""
    microbatch_tokens: PositiveInt = 4096
    """Most tokens of one pass; a single longer conversation forms its own."""
    precision: Precision = "bf16"
    """Compute type of the model."""
    keep_ratings: bool = True
    """Where people rated an answer, their ratings stay and the model adds what is missing; false
    rates these answers anew too, as NeMo-Aligner does, which evens out how people differ."""


class SteerLMConfig(TrainerConfig):
    """Fine-tuning on answers whose prompts name their ratings (arXiv:2310.05344, step 3)."""

    stage: Literal["steerlm"] = "steerlm"
    wanted: dict[AttributeName, Rating] = {
        "quality": 4,
        "toxicity": 0,
        "helpfulness": 4,
        "correctness": 4,
        "coherence": 4,
        "violence": 0,
    }
    """What the trained model is asked for. Names that no training row has are left out; an
    attribute that isn't named takes its commonest value in the training rows."""


class SteerLM2Config(SamplingConfig):
    """Drawing a SteerLM model towards the best one there is (arXiv:2406.08673, section 4.5).

    That is P(y|a,x) ~ P(a|x,y) P(y|x), of the attribute model and the SFT model. Responses are
    sampled from the model that training starts from, which is asked for what is wanted of it; they
    are rated and weighed, then learnt from. Rows are prompts, each once. A further round samples
    from what this one made: a stage of its own.
    """

    stage: Literal["steerlm2"] = "steerlm2"
    learning_rate: PositiveFloat = 1e-7
    """Peak learning rate; 1e-7 in the paper, for a model of 70B."""
    global_batch_size: PositiveInt = 128
    """Prompts of one optimizer step over all ranks, with all of their responses."""
    num_epochs: PositiveInt = 2
    """Passes over the responses, each in an order of its own; 2 in the paper."""
    max_prompts: PositiveInt = 20_000
    """Most prompts of the training set that are answered, chosen by the seed; 20,000 in the
    paper."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 10
    """Responses to each prompt, among which the weights are normalised; 10 in the paper."""
    max_unended_share: Share = 1.0
    """Largest share of the responses that may be cut at `max_new_tokens`. More end the job before
    anything is learnt from them: a model learns from them not to stop."""
    concentration: PositiveFloat = 24.0
    """How closely ratings lie around what the attribute model predicts, as alpha + beta of a Beta
    distribution over the scale; 24 in the paper, where it fits HelpSteer2."""
