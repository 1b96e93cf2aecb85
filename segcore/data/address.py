"""Where data may lie: a path, or s3://bucket/prefix; free of what reads it."""

import re
from pathlib import Path

from segcore.errors import OptionError

SCHEME = "s3://"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#@]*)?")


def is_remote(address: str | Path) -> bool:
    """Whether an address is one of an object store."""
    return str(address).startswith(SCHEME)


def check_address(address: str, setting: str) -> str:
    """`address`, if it is a path or s3://bucket/prefix. What is refused is not repeated.

    Raises:
        OptionError: another scheme, or more in it than bucket and prefix: options, credentials.
    """
    if "://" not in address:
        return address
    if not _ADDRESS.fullmatch(address) or ".." in address.split("/"):
        raise OptionError(
            f"{setting} is an address other than s3://bucket/prefix: name a path or such an "
            f"address; the endpoint is that of {ENDPOINTS[1]}, and credentials come from the "
            "environment, ~/.aws or the machine's role, never from an address"
        )
    return address.rstrip("/")
