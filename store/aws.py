"""AWS clients, batch calls and the classification of failures.

There is one client for each service and process, and a batch has ten entries.

Only what the settings choose imports this module, since it imports boto3. Credentials and region
come from boto3's own chain; nothing here logs them. boto3 renews the credentials of roles, and
keeps those of a file as it first read them: a client whose credentials AWS rejects looks for
others by itself, so that a process that lives for hours outlives a rotation.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import boto3
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoRegionError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError

from store.errors import RetryableError, StoreError, first_of

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sqs.client import SQSClient

LONGEST_POLL_SECONDS = 20
"""The longest that SQS lets a receiver wait."""
BATCH_ENTRIES = 10
"""SQS and SNS take so many entries in one call."""
BATCH_BYTES = 256 * 1024
"""SNS takes so much in one call, and so did SQS until it took more."""
ENTRY_RETRY_DELAYS_SECONDS = (0.2, 1.0, 3.0)
"""For entries that AWS did not take of a call that succeeded, which botocore does not see. The
task that sends tries again after longer delays."""

_CONFIG = Config(
    # "standard" backs off at random on throttling, 5xx and lost connections, and stops retrying
    # when most calls fail. "adaptive" would also hold calls back for a time without a bound. Three
    # attempts pass over a hiccup; an outage is left to the task's own, longer delays.
    retries={"mode": "standard", "total_max_attempts": 3},
    connect_timeout=5,
    # A long poll is silent until it ends.
    read_timeout=LONGEST_POLL_SECONDS + 10,
    # Balancers drop a connection that was idle between two sends without a word.
    tcp_keepalive=True,
)
_OUTAGES = (
    NoConnection,
    HTTPClientError,
    IncompleteReadError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    # A proxy's page instead of an answer.
    ResponseParserError,
)
_PASSING_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "OverLimit",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "SlowDown",
        "TooManyRequestsException",
    }
)
"""What passes by itself, although some of it comes with a status that says it was our fault."""
REJECTED_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
"""What AWS answers where the credentials are expired, rotated or unknown: the codes of SQS, SNS,
STS, DynamoDB and S3 (each service's "Common errors", and S3's "Error responses")."""
_SAME_ROTATION_SECONDS = 30.0
NAME_LENGTH = 200
"""Characters of an entry's name that an error quotes."""

_creating = threading.Lock()
_clients: dict[tuple[str, str | None], Any] = {}

Entry = TypeVar("Entry", bound=Mapping[str, object])
Failure: TypeAlias = BotoCoreError | ClientError | ResponseParserError
FAILURES = (BotoCoreError, ClientError, ResponseParserError)
"""All that boto3 raises when a call fails."""


def sqs(endpoint_url: str | None) -> "SQSClient":
    """Return this process's SQS client, shared by its threads."""
    client: SQSClient = _client("sqs", endpoint_url)
    return client


def sns(endpoint_url: str | None) -> "SNSClient":
    """Return this process's SNS client, shared by its threads."""
    client: SNSClient = _client("sns", endpoint_url)
    return client


def s3(endpoint_url: str | None) -> "S3Client":
    """Return this process's S3 client, shared by its threads."""
    client: S3Client = _client("s3", endpoint_url)
    return client


def dynamodb(endpoint_url: str | None) -> "DynamoDBClient":
    """Return this process's DynamoDB client, shared by its threads."""
    client: DynamoDBClient = _client("dynamodb", endpoint_url)
    return client


def sts(endpoint_url: str | None) -> Any:
    """Return this process's STS client, shared by its threads."""
    return _client("sts", endpoint_url)


def _client(service: str, endpoint_url: str | None) -> Any:
    # Two threads that miss the same client would create one each.
    with _creating:
        client = _clients.get((service, endpoint_url))
        if client is None:
            # boto3.client() would use a session that all threads of the process share.
            session = boto3.session.Session()
            create: Callable[..., Any] = session.client
            client = create(service, endpoint_url=endpoint_url or None, config=_CONFIG)
            used = session.get_credentials()
            # A client without credentials would never get any.
            if used is not None:
                client.meta.events.register("needs-retry", _Renewal(used).renew)
                _clients[service, endpoint_url] = client
        return client


class _Renewal:
    """Renewal of rejected credentials where newer ones are available."""

    def __init__(self, used: Credentials) -> None:
        self._used = used
        self._renewing = threading.Lock()
        self._renewed_at: float | None = None

    def renew(
        self, response: tuple[object, Mapping[str, Any]] | None, attempts: int, **_: object
    ) -> float | None:
        """Return the seconds until botocore's retry, or None for its own rules.

        It is botocore's handler of the event ``needs-retry``, which signs the retried call.
        """
        code = response[1].get("Error", {}).get("Code") if response is not None else None
        # The others renew themselves.
        if code not in REJECTED_CREDENTIALS or type(self._used) is not Credentials:
            return None
        with self._renewing:
            present = boto3.session.Session().get_credentials()
            if present is None:
                return None
            if _secrets(present) != _secrets(self._used):
                self._used.access_key = present.access_key
                self._used.secret_key = present.secret_key
                self._used.token = present.token
                self._renewed_at = time.monotonic()
                return 0.0
            # Another thread has renewed them while this call was on its way.
            is_renewed = (
                self._renewed_at is not None
                and time.monotonic() - self._renewed_at < _SAME_ROTATION_SECONDS
            )
            return 0.0 if is_renewed and attempts == 1 else None


def _secrets(credentials: Credentials) -> tuple[str, str, str | None]:
    return credentials.access_key, credentials.secret_key, credentials.token


@dataclass(frozen=True, slots=True)
class Errors:
    """The retryable and the terminal error of a service."""

    unavailable: type[RetryableError]
    refused: type[StoreError]

    def of(self, *, retryable: bool) -> type[StoreError]:
        """Return the service's error for a transient or permanent failure."""
        return self.unavailable if retryable else self.refused


@contextmanager
def calling(what: str, errors: Errors) -> Iterator[None]:
    """Raise boto3's errors as one of ``errors``, naming ``what`` was done."""
    try:
        yield
    except FAILURES as error:
        raise errors.of(retryable=is_retryable(error))(f"{what}: {describe(error)}") from error


def is_retryable(error: Failure) -> bool:
    """Return whether a retry may succeed (outage or throttling)."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        return status >= 500 or status in (408, 429) or _passes(code)
    return isinstance(error, _OUTAGES)


def _passes(code: str) -> bool:
    # Throttling, ThrottlingException, RequestThrottled, KmsThrottled, …
    return "throttl" in code.lower() or code in _PASSING_CODES


def describe(error: Failure) -> str:
    """Return the reason of a failed AWS call as text."""
    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        return f"{details.get('Code', 'Unknown')}: {details.get('Message', '')}"
    if isinstance(error, NoRegionError):
        return "no region is known: set AWS_DEFAULT_REGION, or a profile that has one"
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A batch entry that AWS refused, or left without an answer."""

    id: str
    reason: str
    retryable: bool
    cause: Exception | None = None


def call_in_batches(
    entries: Sequence[Entry], call: Callable[[Sequence[Entry]], Mapping[str, Any]]
) -> list[NotTaken]:
    """Call AWS with ten entries at a time, retrying those not taken.

    An entry that AWS calls the sender's fault is not tried again. When a whole call fails, after
    botocore's own retries, the entries after it are not tried either.

    Args:
        entries: Entries of the batch call, each with its own ``Id``.
        call: Makes the call for up to ten of them and returns AWS's response.

    Returns:
        The entries that were not taken, and why.
    """
    not_taken: list[NotTaken] = []
    cause: Failure | None = None
    for batch in _batches(entries):
        if cause is None:
            failures, cause = _call(batch, call)
            not_taken += failures
        else:
            not_taken += [_lost(entry, cause) for entry in batch]
    return not_taken


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    batch_bytes = 0
    for entry in entries:
        # A little more than AWS counts: the names and quotes are no part of its sum.
        entry_bytes = len(json.dumps(entry, ensure_ascii=False).encode())
        if batch and (len(batch) == BATCH_ENTRIES or batch_bytes + entry_bytes > BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(entry)
        batch_bytes += entry_bytes
    if batch:
        yield batch


def _call(
    batch: Sequence[Entry], call: Callable[[Sequence[Entry]], Mapping[str, Any]]
) -> tuple[list[NotTaken], Failure | None]:
    """Call until each entry is taken, refused, or out of retries.

    Returns:
        The entries that were not taken, and the error if the last call failed as a whole.
    """
    todo = {str(entry["Id"]): entry for entry in batch}
    at_fault: list[NotTaken] = []
    failures: dict[str, NotTaken] = {}
    for delay_seconds in (0.0, *ENTRY_RETRY_DELAYS_SECONDS):
        if delay_seconds:
            time.sleep(delay_seconds)
        try:
            response = call(list(todo.values()))
        except FAILURES as error:
            return [*at_fault, *(_lost(entry, error) for entry in todo.values())], error
        taken = {entry["Id"] for entry in response.get("Successful", ())}
        said = {entry["Id"]: entry for entry in response.get("Failed", ())}
        failures = {id_: _not_taken(id_, said.get(id_, {})) for id_ in todo if id_ not in taken}
        at_fault += [failure for failure in failures.values() if not failure.retryable]
        failures = {id_: failure for id_, failure in failures.items() if failure.retryable}
        todo = {id_: entry for id_, entry in todo.items() if id_ in failures}
        if not todo:
            break
    return [*at_fault, *failures.values()], None


def _lost(entry: Mapping[str, object], error: Failure) -> NotTaken:
    return NotTaken(str(entry["Id"]), describe(error), is_retryable(error), error)


def _not_taken(id_: str, said: Mapping[str, Any]) -> NotTaken:
    code = said.get("Code", "not mentioned in the answer")
    return NotTaken(
        id=id_,
        reason=f"{code}: {said['Message']}" if said.get("Message") else code,
        # Throttling is sometimes put down to the sender, but passes.
        retryable=not said.get("SenderFault", False) or _passes(code),
    )


def raise_if_any(
    not_taken: Sequence[NotTaken], what: str, names: Mapping[str, str], errors: Errors
) -> None:
    """Raise an error naming each entry that was not taken.

    Args:
        not_taken: What :func:`call_in_batches` returned.
        what: What was to be done with the entries, as in "sent to …".
        names: By its id, what each entry is known by; the error has those in ``left_out``.
        errors: The errors of the service; one entry that is refused for good decides.
    """
    if not not_taken:
        return
    reasons = "; ".join(dict.fromkeys(failure.reason for failure in not_taken))
    left_out = [names[failure.id] for failure in not_taken]
    named = first_of(name[:NAME_LENGTH] for name in left_out)
    error = errors.of(retryable=all(failure.retryable for failure in not_taken))(
        f"{len(not_taken)} of {len(names)} {what}: {reasons}. Not taken: {named}"
    )
    error.left_out = set(left_out)
    raise error from not_taken[0].cause
