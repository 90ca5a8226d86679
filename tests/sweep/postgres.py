"""A PostgreSQL server of one's own, for as long as a test needs it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "pa55word"


def programs() -> Path | None:
    """The folder with PostgreSQL's `initdb` and `postgres`, None where it is not installed."""
    beside = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    folders = [*beside, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((each for each in folders if (each / "postgres").exists() and (each / "initdb").exists()), None)


class Server:
    """A server that a test may stop and start.

    Attributes:
        url: of its database, with the password.
    """

    def __init__(self, folder: Path, port: int, as_user: dict[str, Any]) -> None:
        self.url = f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/postgres"
        self._folder, self._port, self._as_user = folder, port, as_user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it takes connections."""
        import psycopg

        found = programs()
        assert found is not None
        command = [found / "postgres", "-D", self._folder, "-p", str(self._port), "-h", "127.0.0.1", "-k", ""]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder, **self._as_user
        )
        for _ in range(300):
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise AssertionError("PostgreSQL did not start")

    def stop(self) -> None:
        """Ends it as a crash would for its clients: their connections break."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)


@contextmanager
def server() -> Iterator[Server]:
    """A server that listens on a free port of this machine."""
    found = programs()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="emu-postgres-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        other = pwd.getpwnam("nobody")
        os.chown(folder, other.pw_uid, other.pw_gid)
        as_user = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
    with tempfile.NamedTemporaryFile("w", dir="/tmp") as secret:
        secret.write(PASSWORD)
        secret.flush()
        os.chmod(secret.name, 0o644)
        make = [found / "initdb", "-D", folder / "data", "-U", "me", "-A", "scram-sha-256", f"--pwfile={secret.name}"]
        subprocess.run([*make, "--no-sync"], check=True, capture_output=True, cwd=folder, **as_user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Server(folder / "data", port, as_user)
    running.start()
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)
