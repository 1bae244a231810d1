"""A reverse proxy with TLS before a server, with a certificate of its own: what it takes in, it hands on as it is."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

_CHUNK = 65_536


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate that it signed itself; skips the test where there is no openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    key, made = folder / "key.pem", folder / "certificate.pem"
    asked = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run(
        [openssl, "req", "-x509", *asked, "-keyout", str(key), "-out", str(made)], check=True, capture_output=True
    )
    return key, made


class TLSProxy:
    """Listens with TLS on a free port and passes what comes to `port`, web sockets too; Host stays as it was sent."""

    def __init__(self, port: int, folder: Path) -> None:
        key, made = certificate(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(made, key)
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        try:
            secure = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        threading.Thread(target=_pump, args=(server, secure), daemon=True).start()
        _pump(secure, server)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(_CHUNK):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            end.close()
