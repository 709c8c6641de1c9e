"""Who may come in at the door: certificates that the operator issued, in `people.json`; revoked ones stay listed."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from fl_core.errors import RefusedError, UsageError
from fl_core.files import locked, write_atomic
from fl_core.trust import certificates
from fl_core.trust.certificates import Checked
from fl_core.trust.roles import Role, held


@dataclasses.dataclass(frozen=True)
class Person:
    """One issued certificate."""

    name: str
    roles: tuple[str, ...]
    fingerprint: str
    not_after: float
    revoked: float | None = None

    @property
    def held(self) -> frozenset[Role]:
        """The roles that the certificate's words give."""
        return held(self.roles)


class Rejected(RefusedError):
    """A certificate that opens nothing.  `person` is who it names, `why` is for the ledger."""

    def __init__(self, text: str, person: Person, why: str) -> None:
        super().__init__(text)
        self.person, self.why = person, why


class People:
    """The register; safe for several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[Person]:
        """Every certificate, oldest first."""
        if not self.path.exists():
            return []
        table = json.loads(self.path.read_text(encoding="utf-8"))
        return [Person(**{**fields, "roles": tuple(fields["roles"])}) for fields in table]

    def add(self, checked: Checked) -> Person:
        """Remember a certificate just issued; an older one of that name is revoked."""
        person = Person(checked.name, checked.roles, checked.fingerprint, checked.not_after.timestamp())
        with locked(self._lock):
            self._write([*(_revoked(p, checked.name) for p in self.all()), person])
        return person

    def revoke(self, name: str) -> None:
        """Take a person's certificates back.  Raises `UsageError`."""
        with locked(self._lock):
            people = self.all()
            if not any(p.name == name and p.revoked is None for p in people):
                known = ", ".join(p.name for p in people if p.revoked is None) or "nobody"
                raise UsageError(f"person {name}: holds no certificate; allowed: {known}")
            self._write([_revoked(p, name) for p in people])

    def holder(self, name: str) -> Person | None:
        """Who holds a certificate of that name now; None where it was revoked, has ended or was never issued."""
        found = [p for p in self.all() if p.name == name and p.revoked is None and p.not_after > time.time()]
        return found[-1] if found else None

    def admit(self, certificate: bytes, *, authority: bytes) -> Person:
        """Who shows this certificate.

        Raises `Rejected` for one that was revoked or is not in the register, `RefusedError` for what is no valid
        certificate of a person here.
        """
        try:
            checked = certificates.check(certificate, authority=authority, purpose="client", where="your certificate")
        except UsageError as error:
            raise RefusedError(str(error)) from None
        for person in self.all():
            if person.fingerprint == checked.fingerprint:
                if person.revoked is not None:
                    raise Rejected(f"the certificate of {person.name} was revoked", person, "revoked")
                return person
        named = Person(checked.name, checked.roles, checked.fingerprint, checked.not_after.timestamp())
        raise Rejected(f"the certificate of {named.name} is not in this coordinator's register", named, "unknown")

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def _write(self, people: list[Person]) -> None:
        write_atomic(self.path, json.dumps([dataclasses.asdict(p) for p in people], indent=1).encode())


def _revoked(person: Person, name: str) -> Person:
    if person.name != name or person.revoked is not None:
        return person
    return dataclasses.replace(person, revoked=time.time())
