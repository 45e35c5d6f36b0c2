"""The servers of one machine, without Docker: `alignflow up`, `down`, `status`, `env`.

Prefect, MLflow and a worker; with `--full` PostgreSQL and SeaweedFS below them. They listen on this
machine only, ask for a password, and live in one folder of the workspace.
"""
