"""What a process knows of the disk that its SQLite outbox is on."""

import apsw
import pytest

from relay.errors import OutboxBrokenError
from relay.outbox.sqlite.disk import Disk
from relay.outbox.sqlite.files import OutboxFiles
from tests.faults.disk import sync_error


class FilesDuringAFailure(OutboxFiles):
    """Files that are where they were; while one thread looks for them, another one's sync fails."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._failed = False

    def fault(self) -> str | None:
        """Return None, after the sync has failed."""
        if not self._failed:
            self._failed = True
            with pytest.raises(OutboxBrokenError), self._disk.used():
                raise sync_error()
        return None


def test_a_sync_that_fails_while_another_thread_looks_for_the_files_is_not_forgotten() -> None:
    disk = Disk()
    disk.watch(FilesDuringAFailure(disk))

    with pytest.raises(OutboxBrokenError, match="failed to sync"), disk.used():
        pass
    assert disk.failure == "the disk has failed to sync; relay must be started again"
    assert not disk.lost


def test_any_other_error_leaves_the_disk_usable() -> None:
    disk = Disk()
    with pytest.raises(Exception, match="no space"), disk.used():
        raise apsw.FullError("no space left")
    with disk.used():
        pass
