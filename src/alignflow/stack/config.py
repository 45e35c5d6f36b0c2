"""What a stack consists of and where it listens."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from alignflow.config import Config
from alignflow.errors import ConfigError

Port = Annotated[int, Field(ge=1, le=65535)]

HOST = "127.0.0.1"
"""Where everything listens: a proxy with TLS belongs before it to let others in."""

WEED_GRPC = 10000
"""SeaweedFS takes a second port this much above each of its own."""
NUM_WEED_PORTS = 4


class StackConfig(Config):
    """Kept in `stack.json` from the first start on, so that later ones need no options."""

    full: bool = False
    """PostgreSQL and SeaweedFS below Prefect and MLflow, instead of SQLite and a folder."""
    prefect_port: Port = 4200
    mlflow_port: Port = 5000
    postgres_port: Port = 5432
    s3_port: Annotated[int, Field(ge=1, le=65535 - WEED_GRPC - NUM_WEED_PORTS + 1)] = 8333
    """S3 listens here; three more ports above it, and one 10000 above each, are SeaweedFS's own."""

    @property
    def prefect_url(self) -> str:
        """Address of Prefect's pages."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow's pages and API."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def s3_url(self) -> str:
        """Address of the object store."""
        return f"http://{HOST}:{self.s3_port}"

    @property
    def s3_ports(self) -> tuple[int, ...]:
        """Every port that SeaweedFS takes."""
        own = range(self.s3_port, self.s3_port + NUM_WEED_PORTS)
        return (*own, *(port + WEED_GRPC for port in own))

    def changed(self, options: dict[str, Any]) -> Self:
        """Return the config with those options that were given.

        Raises:
            ConfigError: A value doesn't fit.
        """
        try:
            return self.replaced(**{k: v for k, v in options.items() if v is not None})
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            raise ConfigError(f"{option} {first['input']}: {first['msg']}.") from None


def read_config(path: Path) -> StackConfig | None:
    """Return what a file says, None where there is none.

    Raises:
        ConfigError: The file can't be read as a config.
    """
    try:
        return StackConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ConfigError(f"{path}: can't be read ({message}); mend or remove it.") from None


def write_config(config: StackConfig, path: Path) -> None:
    """Write the file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(config.model_dump(), indent=2) + "\n", encoding="utf-8")
    draft.rename(path)
