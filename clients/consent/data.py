"""Where an owner's data lie, and which version of them is there, in words that tell nobody either."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import TYPE_CHECKING

from clients.consent.terms import word_of
from clients.data import dataset_name
from clients.part import source_of
from clients.policy import Policy
from fl_core.errors import DataError
from fl_core.job import Job, Party
from fl_core.urls import without_password

if TYPE_CHECKING:
    from clients.consent.book import ConsentBook
    from clients.sql_source import SqlSource

_PART = 1 << 20


def place_of(source: Path | SqlSource) -> str:
    """Return a digest, 64 hex digits, of a file's absolute path, or of a URL without its password and a query."""
    text = str(source.resolve()) if isinstance(source, Path) else f"{without_password(source.url)}\n{source.query}"
    return hashlib.sha256(text.encode()).hexdigest()


def version_of(source: Path | SqlSource | str, key: bytes) -> str:
    """Return HMAC-SHA-256, 64 hex digits, over the content of a dataset under a key of its owner.

    Of a file over its bytes; of a query over its result's columns and sorted rows; of an experiment's dataset (a text)
    over its name.

    Raises
    ------
    DataError
        If the file or the database cannot be read.
    """
    mac = hmac.new(key, b"fedseal dataset v1\n", hashlib.sha256)
    if isinstance(source, str):
        mac.update(f"named {source}".encode())
    elif isinstance(source, Path):
        try:
            with source.open("rb") as file:
                while part := file.read(_PART):
                    mac.update(part)
        except OSError as error:
            raise DataError(source.name, f"cannot be read ({error.strerror})") from None
    else:
        from clients.sql_source import read_sql

        table = read_sql(source, "data")
        mac.update(repr([(field.name, str(field.type)) for field in table.schema]).encode())
        for row in sorted(repr(tuple(row.values())) for row in table.to_pylist()):
            mac.update(f"{row}\n".encode())
    return mac.hexdigest()


def dataset_of(book: ConsentBook, job: Job, party: Party, policy: Policy | None) -> str:
    """Return the name of the dataset that a party brings to a job: as bound at its node, as published, or as it lies.

    Nothing is opened.  Raises `DataError` where nothing is bound to the name at the node.
    """
    if job.dataset is not None:
        return word_of(job.dataset.name)
    if policy is not None:
        policy.source(party)
        return word_of(party.data or "")
    return book.dataset_at(place_of(source_of(job, party, None)), word_of(dataset_name(job, party)))


def version_at(job: Job, party: Party, policy: Policy | None, key: bytes) -> str:
    """Return the version of what a party brings to a job; see `version_of`."""
    if job.dataset is not None:
        return version_of(job.dataset.name, key)
    return version_of(source_of(job, party, policy), key)
