"""The one exception tree.  The class tells the user what to do; the process exits with `exit_code`.

::

    FedsealError                 1  the job failed
    ├── UsageError               2  correct the input and run again
    │   ├── JobFileError            a key, a value or a type of the job file
    │   └── DataError               a file, a column, a row of somebody's data
    ├── RefusedError             3  somebody with the right to do so said no
    │   ├── BudgetExceeded          the owner's privacy budget
    │   └── Paused                  the node takes no new jobs
    ├── JobFailed                1  what failed, at which party, in which round
    │   ├── WaitTimeout             a wait ran out; names what it waited for
    │   │   └── PeerTimeout             … for another party, in which step
    │   ├── PeerLost                another party is gone, in which step
    │   ├── ExchangeLost            the way to the other parties is gone
    │   └── TrainingDiverged        the update is not finite or over the head-room
    └── IntegrityError           1  do not trust what was received
        ├── BadSignature            a statement or checkpoint does not verify
        ├── BadMessage              malformed, oversized, altered, replayed, of another run or party
        │   └── BadFrame                … between two parties, in which step
        ├── WrongKey                a ciphertext or a card under another key
        ├── LedgerBroken            a chain, tree or proof does not hold
        └── ForkDetected            two histories of one log

A message holds the offending value and what is allowed; never a secret, never an id of a person.
"""

from __future__ import annotations

from typing import ClassVar


class FedsealError(Exception):
    """Base of everything fedseal raises on purpose.

    `code` is the machine-readable name that may travel to other parties; the text never does.
    """

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1


class UsageError(FedsealError):
    """The caller's input is wrong; correcting it helps."""

    code = "usage"
    exit_code = 2


class JobFileError(UsageError):
    """A key, value or type of the job file."""

    code = "job"

    def __init__(self, key: str, problem: str, *, allowed: str = "") -> None:
        self.key = key
        super().__init__(f"{key}: {problem}" + (f"; allowed: {allowed}" if allowed else ""))


class DataError(UsageError):
    """A party's data cannot be used: what, where, which value, what is allowed."""

    code = "data"

    def __init__(self, where: str, problem: str, *, allowed: str = "") -> None:
        super().__init__(f"{where}: {problem}" + (f"; allowed: {allowed}" if allowed else ""))


class RefusedError(FedsealError):
    """A party with the right to do so refused."""

    code = "refused"
    exit_code = 3


class BudgetExceeded(RefusedError):
    """The job would spend more privacy than the owner allows for this dataset."""

    code = "budget"


class Paused(RefusedError):
    """The node takes no new jobs at present."""

    code = "paused"


class JobFailed(FedsealError):
    """The job could not be completed."""


class WaitTimeout(JobFailed):
    """A wait ran out.  `what` names what was waited for."""

    code = "timeout"

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"waited {seconds:g} s for {what}")


class PeerTimeout(WaitTimeout):
    """Another party did not send, or did not read, in time."""

    def __init__(self, peer: str, step: str, seconds: float) -> None:
        self.peer, self.step = peer, step
        super().__init__(f"party {peer} in step {step!r}", seconds)


class PeerLost(JobFailed):
    """Another party left the session before its work was done."""

    code = "lost"

    def __init__(self, peer: str, step: str, why: str = "it left the session") -> None:
        self.peer, self.step = peer, step
        super().__init__(f"party {peer} is gone in step {step!r}: {why}")


class ExchangeLost(JobFailed):
    """The exchange does not answer, or does not let this party in."""

    code = "exchange"

    def __init__(self, step: str, why: str) -> None:
        self.step = step
        super().__init__(f"the exchange is gone in step {step!r}: {why}")


class TrainingDiverged(JobFailed):
    """The update holds NaN or infinity, or exceeds the encryption's head-room."""

    code = "diverged"


class IntegrityError(FedsealError):
    """What was received must not be trusted."""

    code = "integrity"


class BadSignature(IntegrityError):
    """A signature does not verify."""

    code = "signature"


class BadMessage(IntegrityError):
    """A message is malformed, oversized, altered, replayed, or of another run, round or party."""

    code = "message"


class BadFrame(BadMessage):
    """What came from another party is not what the step takes, or not what that party sent."""

    code = "frame"

    def __init__(self, peer: str, step: str, problem: str) -> None:
        self.peer, self.step = peer, step
        super().__init__(f"from party {peer} in step {step!r}: {problem}")


class WrongKey(IntegrityError):
    """A ciphertext or a card belongs to another key."""

    code = "key"


class LedgerBroken(IntegrityError):
    """A hash chain, a tree or a proof does not hold."""

    code = "ledger"


class ForkDetected(LedgerBroken):
    """Two checkpoints of one log cannot both be true."""

    code = "fork"
