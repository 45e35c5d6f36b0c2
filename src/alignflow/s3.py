"""S3 by s3fs: paths, one client for store and sources, and its errors as one sentence.

Credentials and endpoint come from the environment alone (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, …), as every AWS tool reads them. s3fs takes a second to
import and is imported where it is used.
"""

import asyncio
import functools
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from alignflow.errors import AlignflowError, ConfigError, InputError, StoreAwayError, StoreError

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_REASONS: Mapping[str, str] = {
    "NoSuchBucket": "there is no bucket {bucket}; create it or correct the URL",
    "NoSuchKey": "there is no such object",
    "InvalidAccessKeyId": "the server doesn't know the access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "access is denied; use credentials that are allowed to do this",
    "ExpiredToken": "the session token has expired; log in again",
    "InvalidToken": "the session token is not valid; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's; set it",
    "NotImplemented": "the server lacks an S3 operation that is needed (conditional writes)",
    "PreconditionFailed": "the object changed while it was read; run again when nobody writes it",
}

# Together they bound the memory of a transfer: 4 files, 4 parts of each, 16 MiB a part.
_TRANSFERS = 4
_PARTS = 4
_PART_BYTES = 16 * 2**20
_TRIES = 5

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class S3Path:
    """A bucket and a key in it; the key may be empty or a prefix and never starts with `/`."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `s3://bucket/key`.

        Raises:
            ConfigError: It is no such URL, or credentials stand in it.
        """
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if "@" in bucket:
            # The URL is not repeated: it holds a secret.
            raise ConfigError(
                "an s3:// URL holds no credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY instead."
            )
        if not url.startswith("s3://") or not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"{url}: not an S3 URL; it looks like s3://bucket/folder.")
        return cls(bucket, key.strip("/"))

    def __truediv__(self, name: str) -> Self:
        """Return the path of a name below this one."""
        return type(self)(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        """Return the URL."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def target(self) -> dict[str, str]:
        """Arguments that name the object in a call of the client."""
        return {"Bucket": self.bucket, "Key": self.key}


@dataclass(frozen=True)
class S3Object:
    """One object of a listing."""

    path: S3Path
    size: int
    """Bytes."""
    etag: str


def client() -> Any:
    """Return the s3fs file system for the environment as it is now.

    It is made once per process and environment. Listings are never cached: other processes write.
    """
    environ = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _client(os.getpid(), environ)


@functools.lru_cache(maxsize=4)
def _client(pid: int, environ: tuple[tuple[str, str], ...]) -> Any:
    import s3fs

    retries: dict[str, Any] = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _TRIES
    fs = s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"connect_timeout": 10, "retries": retries},
    )
    # botocore tries again; with s3fs's own tries on top each of its tries would be five.
    fs.retries = 1
    return fs


def stat(path: S3Path) -> dict[str, Any]:
    """Return the answer to a HEAD request.

    Raises:
        FileNotFoundError: There is no such object.
    """
    answer: dict[str, Any] = client().call_s3("head_object", **path.target)
    return answer


def head(path: S3Path) -> dict[str, Any] | None:
    """Return the answer to a HEAD request, or None where there is no such object."""
    try:
        return stat(path)
    except FileNotFoundError:
        return None


def read_bytes(path: S3Path) -> bytes | None:
    """Return the content of an object, or None where there is none."""
    try:
        return run_parallel([functools.partial(_get, path=path)])[0]
    except FileNotFoundError as error:
        if error_code(error) == "NoSuchBucket":
            raise
        return None


def write_bytes(path: S3Path, content: bytes) -> None:
    """Write a small object."""
    client().call_s3("put_object", **path.target, Body=content)


def delete(path: S3Path) -> None:
    """Delete an object, if it is there."""
    client().call_s3("delete_object", **path.target)


def age_s(answer: Mapping[str, Any]) -> float:
    """Return the seconds since an object was written, by the clock of the server alone."""
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - answer["LastModified"]).total_seconds())


def list_objects(path: S3Path) -> list[S3Object]:
    """Return every object whose key starts with the path's key, in the order of their keys."""
    return [
        S3Object(S3Path(path.bucket, item["Key"]), item["Size"], item["ETag"])
        for page in _pages(path)
        for item in page.get("Contents", [])
        if not item["Key"].endswith("/")
    ]


def ages(path: S3Path) -> dict[str, float]:
    """Return the seconds since each object under a prefix was written, by the server's clock.

    The names are what follows the prefix.
    """
    return {
        item["Key"].removeprefix(path.key): age_s({**page, **item})
        for page in _pages(path)
        for item in page.get("Contents", [])
    }


def list_folders(path: S3Path) -> list[str]:
    """Return the names, without their slash, that continue the path's key up to a `/`."""
    parent = path.key.rpartition("/")[0]
    return [
        item["Prefix"].strip("/").removeprefix(parent).strip("/")
        for page in _pages(path, Delimiter="/")
        for item in page.get("CommonPrefixes", [])
    ]


def run_parallel(calls: Iterable[Callable[[Any], Awaitable[_Result]]]) -> list[_Result]:
    """Run coroutines of the client, a few at once, and return their results in order.

    On the client's own loop and not in threads of ours: Ctrl-C ends it at once, where a thread
    would have to finish its file first.

    Args:
        calls: Each gets the client and returns one of its coroutines, such as `upload`.
    """
    fs = client()
    bound = [functools.partial(call, fs) for call in calls]
    future = asyncio.run_coroutine_threadsafe(_gather(bound, _TRANSFERS), fs.loop)
    try:
        return future.result()
    finally:
        future.cancel()


async def _gather(calls: Iterable[Callable[[], Awaitable[_Result]]], at_once: int) -> list[_Result]:
    """Await so many calls at once; the first that fails ends the others, and then raises."""
    gate = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Awaitable[_Result]]) -> _Result:
        async with gate:
            return await call()

    tasks = [asyncio.create_task(one(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def upload(fs: Any, source: Path, path: S3Path, metadata: Mapping[str, str]) -> None:
    """Write a file to an object, a large one in parts; it is there whole or not at all."""
    transfer = asyncio.ensure_future(
        fs._put_file(
            str(source),
            f"{path.bucket}/{path.key}",
            Metadata=dict(metadata),
            chunksize=_PART_BYTES,
            max_concurrency=_PARTS,
        )
    )
    try:
        await asyncio.shield(transfer)
    except asyncio.CancelledError:
        # s3fs removes the parts of an upload that fails, and not of one that is cancelled.
        await asyncio.gather(transfer, return_exceptions=True)
        raise


async def download(
    fs: Any, path: S3Path, target: Path, *, size: int, etag: str | None = None
) -> None:
    """Write an object to a file, whose folder is made where it is missing.

    Args:
        fs: The client.
        path: The object.
        target: The file; it may be half-written after an error.
        size: Bytes of the object.
        etag: Entity tag of the state of the object that is wanted, so that no other is read, nor
            parts of two; None where the caller verifies the content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    condition = {} if etag is None else {"IfMatch": etag}
    with target.open("wb") as file:

        async def copy_part(start: int) -> None:
            part = {"Range": f"bytes={start}-{start + _PART_BYTES - 1}"} if size else {}
            content = await _get(fs, path, **part, **condition)
            os.pwrite(file.fileno(), content, start)

        starts = range(0, max(size, 1), _PART_BYTES)
        await _gather([functools.partial(copy_part, start) for start in starts], _PARTS)


async def _get(fs: Any, path: S3Path, **options: str) -> bytes:
    """Return the content of an object, or of a part of it, asked for again where it was cut."""
    from s3fs.core import S3_RETRYABLE_ERRORS

    tries = _TRIES
    while True:
        # The client itself tries again until an answer begins, and not what is cut after that.
        answer = await fs._call_s3("get_object", **path.target, **options)
        try:
            async with answer["Body"] as body:
                content: bytes = await body.read()
                return content
        except S3_RETRYABLE_ERRORS:
            tries -= 1
            if not tries:
                raise
            await asyncio.sleep(2.0**-tries)


def abort_uploads(path: S3Path) -> None:
    """End every upload in parts, begun but not completed, whose key starts with the path's."""
    answer = client().call_s3("list_multipart_uploads", Bucket=path.bucket, Prefix=path.key)
    for part in answer.get("Uploads", []):
        # Another process may be ending the same one.
        with suppress(FileNotFoundError):
            client().call_s3(
                "abort_multipart_upload",
                Bucket=path.bucket,
                Key=part["Key"],
                UploadId=part["UploadId"],
            )


def _pages(path: S3Path, **options: str) -> Iterator[dict[str, Any]]:
    token: dict[str, str] = {}
    while True:
        page = client().call_s3(
            "list_objects_v2", Bucket=path.bucket, Prefix=path.key, **options, **token
        )
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def error_code(error: BaseException | None) -> str | None:
    """Return the S3 error code behind an exception, or None where S3 didn't answer."""
    answer = _answer(error)
    return None if answer is None else str(answer.get("Error", {}).get("Code"))


def _answer(error: BaseException | None) -> dict[str, Any] | None:
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return answer
        error = error.__cause__
    return None


def is_conflict(error: BaseException) -> bool:
    """Whether a conditional write was refused because another writer came first."""
    return error_code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


@contextmanager
def translated(error_class: type[InputError], action: str, path: S3Path) -> Iterator[None]:
    """Turn what the client raises into one sentence that names bucket and key, and no secret.

    Errors of the local disk pass through.
    """
    try:
        yield
    except AlignflowError:
        raise
    except Exception as error:
        reason = _reason(error, path)
        if reason is None:
            raise
        if error_class is StoreError and _may_pass(error):
            error_class = StoreAwayError
        raise error_class(f"can't {action} {path}: {reason}.") from None


def _reason(error: Exception, path: S3Path) -> str | None:
    from botocore import exceptions as boto
    from s3fs.core import S3_RETRYABLE_ERRORS

    code = error_code(error)
    if code in ("403", "404"):
        code = _code_of_listing(path) or {"403": "AccessDenied", "404": "NoSuchKey"}[code]
    if code is not None:
        return _REASONS.get(code, "the server answered {code}").format(
            bucket=path.bucket, code=code
        )
    if isinstance(error, boto.NoCredentialsError):
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, (boto.ConnectionError, *S3_RETRYABLE_ERRORS)):
        return (
            f"{_endpoint()} doesn't answer, or the connection to it is cut each time; check the "
            "network and AWS_ENDPOINT_URL"
        )
    if isinstance(error, boto.BotoCoreError):
        return f"the AWS settings are not usable ({type(error).__name__})"
    if isinstance(error, ValueError) and "Invalid endpoint" in str(error):
        return "AWS_ENDPOINT_URL is not a URL like https://host:port"
    return None


def _may_pass(error: Exception) -> bool:
    """Whether the server was not there, or had trouble of its own."""
    from botocore import exceptions as boto
    from s3fs.core import S3_RETRYABLE_ERRORS

    answer = _answer(error) or {}
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status >= 500 or isinstance(error, (boto.ConnectionError, *S3_RETRYABLE_ERRORS))


def _code_of_listing(path: S3Path) -> str | None:
    """Ask again by a request whose answer has a body: HEAD says 403 and 404 without a reason."""
    try:
        client().call_s3("list_objects_v2", Bucket=path.bucket, Prefix=path.key, MaxKeys=1)
    except Exception as error:
        return error_code(error)
    return None


def _endpoint() -> str:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urlsplit(url or "https://s3.amazonaws.com")
    # Only host and port: user and password may stand before them.
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
