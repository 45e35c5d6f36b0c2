"""Where the rest of the run can be found."""

from alignflow.config import Config


class Links(Config):
    """Where the rest of the run can be found; None where there is none."""

    prefect_run: str | None = None
    """URL of the flow run's page."""
    mlflow_run: str | None = None
    """URL of the parent run's page."""
    model_version: str | None = None
    """The registered version in words, such as `demo version 3 (candidate)`; None if refused."""
    model_version_url: str | None = None
    export: str | None = None
    """Folder or URL of the Hugging Face export."""
    store: str | None = None
    """URL of the artifact store."""
