"""A real MQTT broker, mosquitto, and somebody who listens to it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from tests.support.debian import need

USER, PASSWORD = "eyeline", "s3cret"


class Broker:
    """mosquitto on a free port; `stop` stops it, `start` starts it again on the same one."""

    def __init__(self, folder: Path, *, tls: tuple[Path, Path] | None = None, password: bool = False) -> None:
        need("mosquitto")
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {folder}/"]
        lines.append(f"allow_anonymous {'false' if password else 'true'}")
        if tls is not None:
            lines += [f"certfile {tls[0]}", f"keyfile {tls[1]}"]
        if password:
            subprocess.run(
                ["mosquitto_passwd", "-b", "-c", str(folder / "passwords"), USER, PASSWORD], check=True
            )
            lines.append(f"password_file {folder / 'passwords'}")
        if subprocess.run(["id", "-u"], capture_output=True, text=True, check=True).stdout.strip() == "0":
            lines.append("user root")
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        log = (self.folder / "mosquitto.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                ["/usr/sbin/mosquitto", "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                break
            threading.Event().wait(0.02)
        raise AssertionError((self.folder / "mosquitto.log").read_text())

    def stop(self) -> None:
        """Stop it; what it has for listeners that are away is kept."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


class Listener:
    """Keeps every message, over lost connections; `messages` are (topic, JSON or text)."""

    def __init__(self, broker: Broker, *, user: tuple[str, str] | None = None) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.subscribed = threading.Event()
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False
        )
        if user is not None:
            self._client.username_pw_set(*user)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        self._client.on_disconnect = lambda *_: self.subscribed.clear()
        self._client.on_message = lambda _, __, message: self._keep(message)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def _keep(self, message: Any) -> None:
        text = message.payload.decode()
        with contextlib.suppress(ValueError):
            text = json.loads(text)
        self.messages.append((message.topic, text))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def running_broker(folder: Path, **options: Any) -> Iterator[Broker]:
    """A broker that listens."""
    broker = Broker(folder, **options)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
