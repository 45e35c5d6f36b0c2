"""Names of a job's objects, the same whenever they are asked for: a name is how a job is found."""

import hashlib

from alignflow.jobs.run_folder import RunFolder

JOB_LABEL = "alignflow/job"
"""Label of a job's pods: the name of the object that made them."""
FOLDER_ANNOTATION = "alignflow/run-folder"
"""Annotation of a job: its run folder."""

RESTART_CODE = 75
"""Exit status of a pod that is to be started again: EX_TEMPFAIL of sysexits.h."""

JOB_VARIABLE = "ALIGNFLOW_KUBERNETES_JOB"
"""Variable of a pod: the name of the object that made it."""
ADDRESS_VARIABLE = "ALIGNFLOW_MASTER_ADDRESS"
"""Variable of a pod: the host name of the pod of index 0."""

# With a digest, an attempt, and what controllers append, host names stay below 63 characters.
_MAX_STEM = 32


def object_name(name: str, folder: RunFolder, attempt: int) -> str:
    """Return the name of the object that runs a job from an attempt on, a label of RFC 1035.

    Args:
        name: The job's.
        folder: Its run folder: two workspaces may hold a job of one name.
        attempt: The first that the object runs.
    """
    digest = hashlib.sha256(f"{name}\n{folder.path}".encode()).hexdigest()[:8]
    stem = name[:_MAX_STEM].rstrip("-")
    # A Service's name begins with a letter.
    return f"{stem if stem[0].isalpha() else f'j-{stem}'}-{digest}-{attempt}"


def host_of_first_pod(name: str, namespace: str) -> str:
    """Return where the pods of an Indexed Job reach the one of index 0, by its headless Service."""
    return f"{name}-0.{name}.{namespace}.svc"


def port_of(name: str) -> int:
    """Return the port at which rank 0 of an object's pods listens."""
    return 20_000 + int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10_000
