"""The ledger's tables in PostgreSQL: those of the SQLite file, and `format`, which says what they are.

Text compares by bytes (collation C), as in SQLite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Table:
    """Columns with their types, and those of the primary key; whether rows stay for ever."""

    key: tuple[str, ...]
    columns: Mapping[str, str]
    unique: str = ""
    stays: bool = True

    def sql(self, name: str) -> str:
        """Return what makes it."""
        lines = [f"{column} {kind}{_C if kind == 'text' else ''} NOT NULL" for column, kind in self.columns.items()]
        lines += [f"PRIMARY KEY ({', '.join(self.key)})"] + ([f"UNIQUE ({self.unique})"] if self.unique else [])
        return f"CREATE TABLE {name} ({', '.join(lines)});" + (_STAYS.format(table=name) if self.stays else "")

    def insert(self, name: str, *, ignore: bool) -> str:
        """Return what adds rows, given as one array a column."""
        arrays = ", ".join(f"CAST(? AS {kind}[])" for kind in self.columns.values())
        return f"INSERT INTO {name} SELECT * FROM unnest({arrays})" + " ON CONFLICT DO NOTHING" * ignore  # noqa: S608

    def find(self, name: str) -> str:
        """Return what reads the row of a key."""
        return f"SELECT * FROM {name} WHERE {' AND '.join(f'{column} = ?' for column in self.key)}"  # noqa: S608

    def cursor(self, name: str) -> str:
        """Return what makes a cursor, `all_` and the name, of all rows in the order of the key."""
        return f"DECLARE all_{name} NO SCROLL CURSOR FOR SELECT * FROM {name} ORDER BY {', '.join(self.key)}"  # noqa: S608


_C = ' COLLATE "C"'
_STAYS = (
    " CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
    " FOR EACH STATEMENT EXECUTE FUNCTION append_only();"
)
TABLES: Mapping[str, Table] = MappingProxyType({
    "entries": Table(
        ("seq",), {"seq": "bigint", "leaf": "bytea", "run": "text", "kind": "text", "by": "text"}
    ),
    "nodes": Table(("level", "idx"), {"level": "bigint", "idx": "bigint", "hash": "bytea"}),
    "cards": Table(
        ("name",), {"name": "text", "key": "text", "seq": "bigint", "card": "bytea"}, unique="key", stays=False
    ),
    "checkpoints": Table(("size",), {"size": "bigint", "note": "text"}),
    "cosignatures": Table(("size", "name"), {"size": "bigint", "name": "text", "line": "text"}),
    "outside_cosignatures": Table(("size", "key"), {"size": "bigint", "key": "text", "line": "text"}),
    "past_cards": Table(
        ("key",), {"key": "text", "name": "text", "seq": "bigint", "until": "bigint", "card": "bytea"}
    ),
    "format": Table(("application_id",), {"application_id": "bigint", "version": "bigint"}),
})  # fmt: skip

SCHEMA = "\n".join([
    "CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " RAISE EXCEPTION 'a ledger is append-only: % of % refused', TG_OP, TG_TABLE_NAME; END $$;",
    *(table.sql(name) for name, table in TABLES.items()),
    "CREATE INDEX entries_run ON entries (run);",
])  # fmt: skip
"""Statements that make all of them in the schema that comes first in the search path."""


def lock_key(schema: str) -> int:
    """Return the key of the advisory lock that a schema's writer holds; such locks are a database's own."""
    digest = hashlib.sha256(b"fedseal ledger\n" + schema.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
