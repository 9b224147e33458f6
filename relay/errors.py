"""The errors relay raises on purpose.

    RelayError
    ├── SettingsError              the environment cannot be used; names every fault
    ├── OutboxError                the outbox could not do what was asked; nothing was promised
    │   ├── OutboxNotOpenError         it is still being opened
    │   ├── OutboxUnusableError        waiting does not help: the operator must act
    │   │   └── OutboxMissingError         there is none, and none is to be created
    │   └── OutboxBrokenError          it is unusable in this process: its disk or file is gone
    ├── UnreadableError            a body that is not a usable JSON object
    │   └── NestingError               it is nested more deeply than can be decoded
    ├── TooManyEventsError         a body with more events in it than relay takes at a time
    ├── HttpError                  a request got no answer
    │   └── UnusableUrlError           no request can be sent to the URL
    ├── CrashError                 the process cannot go on, by a fault in relay itself
    └── DestinationError           a destination did not accept a batch
        ├── UnavailableError           not now; the same batch may pass later
        ├── RefusedError               it refuses relay itself; no message is to blame
        └── RejectedError              it rejects something in this batch

Drivers' own errors (apsw, psycopg, urllib3) are translated where they arise; nothing above sees
them. No text of an error holds a secret, an address or a body.
"""

from collections.abc import Sequence
from datetime import timedelta


class RelayError(Exception):
    """Any error that relay raises on purpose."""


class SettingsError(RelayError):
    """The environment cannot be used.

    Attributes:
        faults: one sentence for each fault, each beginning with the variable's name.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class OutboxError(RelayError):
    """The outbox could not do what was asked; nothing was promised."""


class OutboxNotOpenError(OutboxError):
    """The outbox is still being opened, or relay waits for its store."""


class OutboxUnusableError(OutboxError):
    """The outbox cannot be used as it is, and waiting does not change that: the operator must act.

    Its URL, its password, its version or its owner is wrong, or it is damaged.
    """


class OutboxMissingError(OutboxUnusableError):
    """There is no outbox, and the caller does not want one created."""


class OutboxBrokenError(OutboxError):
    """The outbox can no longer be used in this process; relay must be restarted."""


class CrashError(RelayError):
    """The process cannot go on, by a fault in relay itself; a restart may help."""


class UnreadableError(RelayError):
    """A body is not a JSON object that relay can read; the text says why."""


class NestingError(UnreadableError):
    """A body is nested more deeply than can be decoded."""


class TooManyEventsError(RelayError):
    """A body has more events, or more bytes for all of them, than relay takes at a time."""


class HttpError(RelayError):
    """A request got no answer, or not in time; the text begins with the kind of failure."""


class UnusableUrlError(HttpError):
    """No request can be sent to this URL."""


class DestinationError(RelayError):
    """A destination did not accept a batch; the text says what it answered."""


class UnavailableError(DestinationError):
    """The destination is unavailable now; it may accept the same batch later.

    Attributes:
        retry_after: how long the destination asked relay to wait; None if it did not.
        affects_all: whether nothing else would be accepted either; if not, it may be this batch
            that the destination fails at.
        may_have_arrived: whether the destination may have taken the batch all the same.
        too_many: whether the destination says that it gets too many requests.
    """

    def __init__(
        self,
        answer: str,
        *,
        retry_after: timedelta | None = None,
        affects_all: bool = True,
        may_have_arrived: bool = False,
        too_many: bool = False,
    ) -> None:
        super().__init__(answer)
        self.retry_after = retry_after
        self.affects_all = affects_all
        self.may_have_arrived = may_have_arrived
        self.too_many = too_many


class RefusedError(DestinationError):
    """The request itself is refused (a key, a host, a redirect): no message is to blame."""


class RejectedError(DestinationError):
    """Something in this batch is not acceptable to the destination.

    Attributes:
        text: the destination's own words, which may repeat parts of the batch: for the dead
            letter, not for a log.
        done_if_repeated: whether the destination answers like this if an earlier request, whose
            answer never came, has done the same already.
    """

    def __init__(self, answer: str, *, text: str = "", done_if_repeated: bool = False) -> None:
        super().__init__(answer)
        self.text = text
        self.done_if_repeated = done_if_repeated
