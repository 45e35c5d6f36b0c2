import pytest

from alignflow.urls import without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host:5000/a", "https://host:5000/a"),
        ("postgresql://me:p@ss@host/db", "postgresql://host/db"),
        ("https://token@host", "https://host"),
        ("a: s3://bucket/key\nb: http://me:x@host", "a: s3://bucket/key\nb: http://host"),
        ("hf://datasets/OWNER/NAME@main/file", "hf://datasets/OWNER/NAME@main/file"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("me@host", "me@host"),
    ],
)
def test_credentials_are_left_out_and_all_else_stays(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
