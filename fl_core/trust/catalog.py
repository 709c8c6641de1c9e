"""The catalog: what owners say of their data, folded from the ledger's `dataset` statements. The data never leave.

A card tells everybody who reads the ledger: the owner, a name, the number of rows rounded to two significant digits
(below a hundred it is exact), a digest of the columns, which anybody who guesses them can confirm, the columns
themselves only if the owner wants, and the owner's terms. `version` commits to the content under a key of the owner
and tells nothing without it.

A dataset is its owner and its name. Its budget belongs to the name: another version or a withdrawal gives nothing
spent back, and δ never changes, since spendings at different δ do not add up.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any

from fl_core.errors import BadMessage, FedsealError, UsageError
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.fields import check_hex, check_named, check_texts, check_whole, closed, jsonable, listed
from fl_core.trust.identity import Card, Identity, check_name

MICRO = 1_000_000
UNLIMITED = canonical.MAX_INT
MAX_COLUMNS = 4096

_DELTA = re.compile(r"0|0\.[0-9]{0,29}[1-9]")


@dataclasses.dataclass(frozen=True)
class DatasetCard:
    """One version of a dataset; a card that exists is well formed.

    Attributes
    ----------
    owner, name
        Which dataset: the owner's name, and a name that the owner chose, both as a party is named.
    schema
        `schema_digest` of its columns, 64 hex digits.
    columns
        (name, type) pairs, sorted, if the owner shows them; they have that digest.
    rows
        How many, as `round_rows` gives it.
    purposes, kinds
        What the data may be used for, 1 to 32 short texts, and in which kinds of job, 1 to 32 names.
    epsilon
        The budget of all jobs together, in millionths of ε; `UNLIMITED` for no limit.
    delta
        At which δ, a plain decimal number from 0 to below 1 without trailing zeros.
    min_cohort
        How many data owners must take part in a job at least.
    version
        HMAC-SHA-256 of the content under a key of the owner, 64 hex digits.
    published
        The owner's time, milliseconds since 1970 UTC; later with every statement about the dataset.
    """

    owner: str
    name: str
    schema: str
    columns: tuple[tuple[str, str], ...]
    rows: int
    purposes: tuple[str, ...]
    kinds: tuple[str, ...]
    epsilon: int
    delta: str
    min_cohort: int
    version: str
    published: int

    def __post_init__(self) -> None:
        what = "dataset card"
        check_name(self.owner)
        check_named(self.name, f"{what}: name")
        check_hex(self.schema, f"{what}: schema")
        check_hex(self.version, f"{what}: version")
        for name, low in (("rows", 0), ("epsilon", 0), ("min_cohort", 1), ("published", 0)):
            check_whole(getattr(self, name), f"{what}: {name}", low=low)
        if self.rows != round_rows(self.rows):
            raise BadMessage(f"{what}: rows are not rounded to two significant digits")
        if not isinstance(self.delta, str) or not _DELTA.fullmatch(self.delta):
            raise BadMessage(f"{what}: delta {self.delta!r:.40}; allowed: a plain decimal number such as 0.00001")
        check_texts(self.purposes, f"{what}: purposes", low=1, high=32)
        check_texts(self.kinds, f"{what}: kinds", low=1, high=32, named=True)
        if self.columns and (
            list(self.columns) != sorted(set(self.columns)) or schema_digest(self.columns) != self.schema
        ):
            raise BadMessage(f"{what}: the columns are not sorted or do not have the digest that it names")

    @classmethod
    def from_dict(cls, table: Any) -> DatasetCard:
        """Build a card from untrusted JSON; raises BadMessage for any missing, unknown or bad field."""
        fields = closed(cls, table, "dataset card")
        columns = listed(fields["columns"], "dataset card: columns")
        lists = {name: listed(fields[name], f"dataset card: {name}") for name in ("purposes", "kinds")}
        return cls(**{**fields, **lists, "columns": tuple(listed(pair, "dataset card: columns") for pair in columns)})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return jsonable(self)

    def sign(self, identity: Identity, *, log: str) -> Statement:
        """Return the owner's statement that publishes this version."""
        body = {"act": "publish", "card": self.to_dict()}
        return Statement.make(identity, log=log, kind="dataset", run="", body=body)


def withdraw(identity: Identity, name: str, *, time: int, log: str) -> Statement:
    """Return the owner's statement that withdraws a dataset; `time` is as `DatasetCard.published`."""
    body = {"act": "withdraw", "name": name, "time": time}
    return Statement.make(identity, log=log, kind="dataset", run="", body=body)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The present state of one dataset; `time` is that of the last statement about it, `versions` all that were."""

    card: DatasetCard
    withdrawn: bool
    time: int
    versions: tuple[str, ...]


class Catalog:
    """What the `dataset` statements so far, in the ledger's order, come to."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Listing] = {}

    @classmethod
    def fold(
        cls, statements: Iterable[Statement], card_of: Callable[[str], Card | None]
    ) -> tuple[Catalog, tuple[str, ...]]:
        """Take up all `dataset` statements; return the catalog and, in words, what was refused.

        One bad statement hides no good one: it is left out and named. `card_of` gives a party's card by name.
        """
        catalog, refused = cls(), []
        for statement in statements:
            if statement.kind != "dataset":
                continue
            card = card_of(statement.by)
            try:
                if card is None:
                    raise BadMessage("its signer shows no card")
                catalog.add(statement, card)
            except FedsealError as error:
                refused.append(f"dataset statement {statement.digest[:16]}… of {statement.by}: {error}")
        return catalog, tuple(refused)

    def add(self, statement: Statement, card: Card) -> Listing:
        """Take up one statement, signed by the party of `card`; return what the dataset is now.

        Raises
        ------
        BadSignature
            If that party did not sign it.
        BadMessage
            If it is malformed, about another owner's data, not later than the last one about the same dataset
            (replayed, or out of order), another δ, or withdraws what is not published.
        """
        statement.verify(card)
        body = statement.body
        if statement.kind != "dataset" or body.get("act") not in ("publish", "withdraw"):
            raise BadMessage(f"{statement.kind} of {statement.by}: not a statement about a dataset")
        if body["act"] == "publish":
            return self._publish(statement.by, body)
        return self._withdraw(statement.by, body)

    def get(self, owner: str, name: str) -> Listing | None:
        """Return the present state of a dataset, if it was ever published."""
        return self._held.get((owner, name))

    def listings(self, *, withdrawn: bool = False) -> tuple[Listing, ...]:
        """Return all datasets by owner and name; with `withdrawn`, those as well."""
        return tuple(held for _, held in sorted(self._held.items()) if withdrawn or not held.withdrawn)

    def _publish(self, by: str, body: dict[str, Any]) -> Listing:
        if set(body) != {"act", "card"}:
            raise BadMessage("dataset: expected exactly act, card")
        card = DatasetCard.from_dict(body["card"])
        if card.owner != by:
            raise BadMessage(f"dataset {card.owner}/{card.name}: published by {by}; allowed: its owner")
        before = self._held.get((by, card.name))
        if before is not None:
            _check_later(before, card.published)
            if before.card.delta != card.delta:
                raise BadMessage(f"{by}/{card.name}: delta {card.delta}; allowed: {before.card.delta}, as before")
        versions = before.versions if before is not None else ()
        if card.version not in versions:
            versions += (card.version,)
        return self._replace(Listing(card, False, card.published, versions))

    def _withdraw(self, by: str, body: dict[str, Any]) -> Listing:
        if set(body) != {"act", "name", "time"}:
            raise BadMessage("dataset: expected exactly act, name, time")
        time = check_whole(body["time"], "dataset: time")
        before = self._held.get((by, check_named(body["name"], "dataset: name")))
        if before is None:
            raise BadMessage(f"dataset {by}/{body['name']}: withdrawn, but was never published")
        _check_later(before, time)
        return self._replace(dataclasses.replace(before, withdrawn=True, time=time))

    def _replace(self, listing: Listing) -> Listing:
        self._held[listing.card.owner, listing.card.name] = listing
        return listing


def _check_later(before: Listing, time: int) -> None:
    if time <= before.time:
        where = f"dataset {before.card.owner}/{before.card.name}"
        raise BadMessage(f"{where}: a statement of time {time}, replayed or out of order; allowed: after {before.time}")


# ---- numbers


def schema_digest(columns: Iterable[tuple[str, str]]) -> str:
    """Return SHA-256, 64 hex digits, over the sorted (name, type) pairs.

    Raises BadMessage unless they are 1 to 4,096 distinct pairs of printable texts of at most 200 characters.
    """
    pairs = list(columns)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise BadMessage("columns: not pairs of a name and a type")
        check_texts(pair, "columns", low=2, high=2, distinct=False)
    if not 1 <= len(pairs) <= MAX_COLUMNS or len({name for name, _ in pairs}) < len(pairs):
        raise BadMessage(f"columns: {len(pairs)}, or one named twice; allowed: 1 to {MAX_COLUMNS} distinct names")
    return canonical.digest([list(pair) for pair in sorted(pairs)])


def round_rows(rows: int) -> int:
    """Return a number of rows rounded to two significant digits, halves up."""
    unit = 10 ** max(len(str(rows)) - 2, 0)
    return (2 * rows + unit) // (2 * unit) * unit


def to_micro(value: float | str | Decimal, *, up: bool) -> int:
    """Return an ε in millionths: a spending is rounded `up`, a limit down.  Raises UsageError unless it is from 0."""
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
        micro = int((number * MICRO).to_integral_value(ROUND_CEILING if up else ROUND_FLOOR))
    except (InvalidOperation, ValueError, OverflowError):
        micro = -1
    if not 0 <= micro < UNLIMITED:
        raise UsageError(f"epsilon {value!s:.40}; allowed: a number from 0 to {UNLIMITED // MICRO}")
    return micro


def from_micro(epsilon: int) -> str:
    """Return millionths of ε as a plain decimal number, `no limit` for `UNLIMITED`."""
    return "no limit" if epsilon == UNLIMITED else format(Decimal(epsilon).scaleb(-6).normalize(), "f")
