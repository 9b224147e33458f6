"""The errors relay raises on purpose.

    RelayError
    ├── SettingsError              the environment cannot be used; names every fault
    ├── OutboxError                the outbox could not do it; nothing was promised
    │   ├── OutboxNotOpenError         not yet
    │   ├── OutboxUnusableError        nor will waiting change that: the operator must act
    │   │   └── OutboxMissingError         there is none, and it is not to be made
    │   └── OutboxBrokenError          nor will it, in this process: its disk or file is gone
    ├── UnreadableError            a body that is not a usable JSON object
    ├── TransportError             a request got no answer
    │   └── UnusableUrlError           it cannot be sent there at all
    ├── CrashError                 the process cannot go on, by a fault of relay's own
    └── SegmentError               a batch was not accepted
        ├── SegmentUnavailableError    not now; the same batch may pass later
        ├── SegmentRefusedError        our fault or the operator's; no message is to blame
        └── BatchRejectedError         something in this batch

Drivers' own errors (apsw, urllib3) are translated where they arise; nothing above sees them.
No text of an error holds a secret, an address or a body.
"""

from collections.abc import Sequence
from datetime import timedelta


class RelayError(Exception):
    """Whatever relay raises on purpose."""


class SettingsError(RelayError):
    """The environment cannot be used.

    Attributes:
        faults: one sentence for each fault, each beginning with the variable's name.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class OutboxError(RelayError):
    """The outbox could not do what it was asked; nothing that was asked has happened."""


class OutboxNotOpenError(OutboxError):
    """The outbox is still being opened, or its store awaited."""


class OutboxUnusableError(OutboxError):
    """The outbox cannot be used as it is, and waiting does not change that: the operator must act.

    Its URL, its password, its version or its owner is wrong, or it is damaged.
    """


class OutboxMissingError(OutboxUnusableError):
    """There is no outbox there, and whoever wants it open is not to make one."""


class OutboxBrokenError(OutboxError):
    """The outbox does nothing more in this process, which had better end and start again."""


class CrashError(RelayError):
    """The process cannot go on, by a fault of relay's own; started again, the next one may."""


class UnreadableError(RelayError):
    """A body that is not a JSON object relay can read; the text says why."""


class TransportError(RelayError):
    """A request got no answer, or not in time; the text begins with the kind of failure."""


class UnusableUrlError(TransportError):
    """No request can be sent to this URL."""


class SegmentError(RelayError):
    """Segment did not accept a batch; the text says what it answered."""


class SegmentUnavailableError(SegmentError):
    """Not now: the same batch may be accepted later.

    Attributes:
        retry_after: how long Segment asked us to wait, where it did.
    """

    def __init__(self, answer: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(answer)
        self.retry_after = retry_after


class SegmentRefusedError(SegmentError):
    """The request itself is refused (a key, a host, a redirect): no message is to blame."""


class BatchRejectedError(SegmentError):
    """Something in this batch is not acceptable to Segment.

    Attributes:
        said: Segment's own words, which may repeat parts of the batch: for the dead letter, not
            for a log.
    """

    def __init__(self, answer: str, *, said: str = "") -> None:
        super().__init__(answer)
        self.said = said
