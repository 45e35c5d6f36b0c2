"""What the cluster would be given for a job, for a person to review before there is a run."""

from pathlib import Path

from alignflow.errors import ConfigError
from alignflow.jobs.kubernetes.launcher import as_yaml
from alignflow.jobs.kubernetes.manifests import manifests
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.launcher import batch_script
from alignflow.tasks.config import RunConfig
from alignflow.tasks.specs import job_folder, job_spec

# The key of a stage is known when its parents are there.
_NO_KEY = "0" * 12


def render_job(
    recipe: RunConfig, stage: str, module: str, *, num_processes: int, on_cpu: bool
) -> str:
    """Return the batch script, or the manifest, of a stage's job.

    The key in its name, and the digests made from that, are those of no run.

    Raises:
        ConfigError: Jobs of the recipe run on this machine, or the cluster can't take such a job.
    """
    folder = RunFolder(job_folder(Path(recipe.workspace).absolute(), stage, _NO_KEY))
    cluster = recipe.cluster
    spec = job_spec(
        cluster,
        folder.path.name,
        module,
        config={},
        num_processes=num_processes,
        on_cpu=on_cpu,
    )
    if cluster.kubernetes is not None:
        return as_yaml(manifests(spec, folder, cluster.kubernetes, attempt=1))
    if cluster.slurm is not None:
        return batch_script(spec, folder, cluster.slurm)
    raise ConfigError(
        "The recipe's jobs run on this machine, which is given no script; set cluster.launcher to "
        "slurm or kubernetes."
    )
