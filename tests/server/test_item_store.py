"""What LMDB does with the mounts that an item store may get. Asked of LMDB itself, in the server's environment."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from server import find_environment

pytestmark = pytest.mark.server

WRITE = """
import lmdb, sys
with lmdb.open(sys.argv[1], map_size=1 << 20) as store, store.begin(write=True) as transaction:
    transaction.put(b"item", sys.argv[2].encode())
"""

READ = """
import lmdb, os, sys
if len(sys.argv) > 2:
    os.setgroups([])
    os.setuid(int(sys.argv[2]))
with lmdb.open(sys.argv[1], readonly=True, lock=True) as store, store.begin() as transaction:
    registered = str(os.getpid()) in store.readers()
    print(transaction.get(b"item").decode(), "registered" if registered else "not registered")
"""

READ_WHILE_WRITING = f"""
import lmdb, subprocess, sys
store = lmdb.open(sys.argv[1], readonly=True, lock=True)
with store.begin() as before:
    subprocess.run([sys.executable, "-c", {WRITE!r}, sys.argv[1], "new"], check=True)
    during = before.get(b"item").decode()
with store.begin() as after:
    print(during, after.get(b"item").decode())
"""

MOUNT_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
NOBODY = "65534"


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    python = str(find_environment().bin / "python")
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True)


def in_read_only_mount(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace of its own, where `folder` is mounted read-only."""
    script = f'{MOUNT_READ_ONLY} && shift && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(folder), *command], capture_output=True, text=True
    )


def can_mount(folder: Path) -> bool:
    try:
        return in_read_only_mount(folder, "true").returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    assert run(WRITE, str(folder), "old").returncode == 0
    return folder


def test_a_reader_sees_an_update_with_its_next_transaction(store: Path) -> None:
    assert run(READ_WHILE_WRITING, str(store)).stdout.split() == ["old", "new"]


def test_a_reader_that_may_write_the_lock_file_is_registered(store: Path) -> None:
    assert run(READ, str(store)).stdout == "old registered\n"


def test_a_reader_on_a_read_only_mount_is_not_registered_and_lmdb_does_not_say_so(store: Path) -> None:
    """So a writer may overwrite what it reads: a served model must refuse such a mount."""
    if not can_mount(store):
        pytest.skip("needs the right to mount")
    python = str(find_environment().bin / "python")
    read = in_read_only_mount(store, python, "-c", READ, str(store))
    assert read.stdout == "old not registered\n", read.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_user_needs_write_permission_on_the_lock_file_and_on_nothing_else(store: Path) -> None:
    for folder in (each for each in (store, *store.parents) if Path(tempfile.gettempdir()) in each.parents):
        folder.chmod(0o755)
    assert "Permission denied" in run(READ, str(store), NOBODY).stderr
    (store / "lock.mdb").chmod(0o666)
    assert run(READ, str(store), NOBODY).stdout == "old registered\n"
