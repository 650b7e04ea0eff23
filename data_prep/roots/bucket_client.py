"""The library for buckets: a client for a URL, and one sentence for each way in which it may refuse."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, NamedTuple

_NO_LIBRARY = "the package obstore was required, found none; pip install 'robust-vote[bucket]'"
PATIENCE_S = 180.0
"""How long a request is repeated while nothing answers."""
HURRY_S = 5.0
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ENDPOINT_URL"),
    "az": ("AZURE_STORAGE_ENDPOINT",),
}
"""Scheme -> variables of the environment with another address than the provider's."""
_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Scheme -> the variables of the environment that hold keys."""
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")


class ClientRefused(Exception):  # noqa: N818 - says what is the case
    """There is no client for a URL; the message is one sentence."""


class _Refusal(NamedTuple):
    """What a bucket may answer, and the sentence for it."""

    words: tuple[str, ...]  # one of them is in the answer
    sentence: str  # may name {entry}, {rights}, the {keys} and the {answer}


_REFUSALS = (
    _Refusal(
        ("RequestTimeTooSkewed",),
        "a clock that agrees with the bucket's was required, this machine's is many minutes off; "
        "set it (`timedatectl set-ntp true`)",
    ),
    _Refusal(
        _NO_BUCKET,
        "a bucket was required, there is none of this name; create it, or correct {entry}",
    ),
    _Refusal(
        ("QuotaExceeded", "StorageFull", "InsufficientStorage", "BucketQuota", "507 "),
        "room for another object was required, the bucket is full (its quota); free some space or "
        "raise the quota and submit again, what is finished is kept",
    ),
    _Refusal(
        ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 ", "401 "),
        "the right to {rights} was required, the bucket denies it; check the keys in the "
        "environment ({keys}) and the bucket's policy",
    ),
    _Refusal(
        ("object with invalid path", "not parse path"),
        "names of objects without empty parts, `.` and `..` were required, found another one "
        "({answer}); rename it, or correct {entry}",
    ),
    _Refusal(
        ("169.254.169.254", "redential"),
        "keys of the bucket were required, found none; set {keys}, or give this machine a role",
    ),
)


def has_no_bucket(answer: str) -> bool:
    """Return True if an answer says that there is no such bucket, and not only no such object."""
    return any(word in answer for word in _NO_BUCKET)


def refusal_sentence(url: str, answer: str, *, entry: str, rights: str) -> str:
    """Return the sentence for an answer. The answer itself may hold a signed address.

    Args:
        url: of the store or the data.
        answer: what the library raised.
        entry: what a user corrects, such as --store.
        rights: what was asked for, such as "read and write".
    """
    reason = _first_line(answer)
    keys = _KEYS.get(url.partition("://")[0], "its keys")
    for refusal in _REFUSALS:
        if any(word in answer for word in refusal.words):
            sentence = refusal.sentence.format(entry=entry, rights=rights, keys=keys, answer=reason)
            return f"{url}: {sentence}"
    if "error sending request" in answer or "timed out" in answer:
        where = endpoint(url) or "the provider's address"
        names = _set_names(url) or _endpoint_names(url)[-1:]
        to_check = " and ".join(["the network", *names[:1]])
        return f"{url}: a bucket was required at {where}, nothing answers there; check {to_check}"
    return f"{url}: the bucket refused a request: {reason}"


def _first_line(answer: str) -> str:
    return answer.partition("\n")[0].partition("Debug source")[0][:300]


def _endpoint_names(url: str) -> tuple[str, ...]:
    return _ENDPOINTS.get(url.partition("://")[0], ())


def _set_names(url: str) -> list[str]:
    return [name for name in _endpoint_names(url) if os.environ.get(name)]


def endpoint(url: str) -> str | None:
    """Return the address that the environment names for a URL instead of the provider's."""
    names = _set_names(url)
    return os.environ[names[0]] if names else None


def open_client(url: str, patience_s: float) -> Any:
    """Return the library's client for the objects below a URL; no request is made yet.

    Raises:
        ClientRefused: the library is missing, or cannot make a client of the URL and what the
            environment says.
    """
    try:
        from obstore import exceptions  # noqa: PLC0415
        from obstore.store import from_url  # noqa: PLC0415
    except ImportError:
        raise ClientRefused(f"{url}: {_NO_LIBRARY}") from None
    try:
        return from_url(
            url,
            client_options={
                "allow_http": (endpoint(url) or "").startswith("http://"),
                "connect_timeout": "5s",
                "timeout": "120s",
            },
            retry_config={
                "max_retries": 2 if patience_s <= HURRY_S else 1000,
                "retry_timeout": timedelta(seconds=patience_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=200),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
        )
    except (exceptions.BaseError, ValueError) as error:
        raise ClientRefused(
            f"{url}: the name of a bucket and an account were required, found: "
            f"{_first_line(str(error))}; correct the URL, or the account and keys in the environment"
        ) from None
