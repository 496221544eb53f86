"""Results to an MQTT broker (3.1.1); needs paho-mqtt (`pip install 'eyeline[export]'`)."""

from __future__ import annotations

import asyncio
import re
import secrets
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from eyeline.errors import ConfigError
from eyeline.optional import needed
from eyeline.sinks.pump import SinkError
from eyeline.values import Result

# Not allowed in the topic of a message.
_WILD: Final = re.compile(r"[+#\x00]")
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
# Refusals that stay, as MQTT 5 numbers them: protocol, client id, user or password, not authorized, banned.
_FOR_GOOD: Final = {132, 133, 134, 135, 138}


class Mqtt:
    """Publishes each result to `topic(result)`; taken means acknowledged by the broker (QoS 1 or 2).

    url: mqtt:// or mqtts://, a user name in it, the password apart. With QoS 0 nothing is acknowledged: what
    the broker did not get is lost. A lost connection is made again by the next `send`.
    """

    def __init__(
        self,
        url: str,
        topic: Callable[[Result], str],
        render: Callable[[Result], str],
        *,
        qos: int = 1,
        retain: bool = False,
        password: str | None = None,
        ca: Path | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._paho = needed("paho.mqtt.client", "export")
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigError(
                f"broker {_shown(url)!r} must be mqtt://HOST or mqtts://HOST, with :PORT if need be"
            )
        if parts.password:
            raise ConfigError("a broker's password does not belong into its address: use --password-file")
        try:
            self._port = parts.port or _PORTS[parts.scheme]
        except ValueError:
            raise ConfigError(f"broker {_shown(url)!r} has no usable port") from None
        self._host, self._address = parts.hostname, f"{parts.hostname}:{self._port}"
        self._topic, self._render, self._qos, self._retain = topic, render, qos, retain
        self._user, self._password = unquote(parts.username or "") or None, password
        self._context = _context(ca) if parts.scheme == "mqtts" else None
        self._timeout_s = timeout_s
        self._client: Any = None
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def send(self, results: Sequence[Result]) -> None:
        """Publish all, then wait until the broker has all; raises `SinkError`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._client is None:
                    await self._connect()
                await self._publish(results)
        except TimeoutError:
            await self.close()
            raise SinkError(f"broker {self._address} does not answer in time", retryable=True) from None
        except SinkError:
            await self.close()
            raise

    async def close(self) -> None:
        """Hang up."""
        client, self._client = self._client, None
        self._waiting.clear()
        if client is not None:
            client.on_disconnect = None
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)

    async def _connect(self) -> None:
        paho = self._paho
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=f"eyeline-{secrets.token_hex(6)}",
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._context is not None:
            client.tls_set_context(self._context)
        connected: asyncio.Future[Any] = self._loop.create_future()
        client.on_connect = lambda *a: self._soon(_settle, connected, a[3])
        client.on_publish = lambda *a: self._soon(self._taken, a[2])
        client.on_disconnect = lambda *_: self._soon(self._lost, connected)
        client.connect_timeout = self._timeout_s
        try:
            await asyncio.to_thread(client.connect, self._host, self._port, 30)
        except ssl.SSLCertVerificationError as problem:
            why = f"its certificate is not trusted ({problem.verify_message})"
            raise SinkError(f"broker {self._address}: {why}", retryable=True) from None
        except OSError as problem:
            why = problem.strerror or type(problem).__name__
            raise SinkError(f"broker {self._address} cannot be reached: {why}", retryable=True) from None
        self._client = client
        client.loop_start()
        reason = await connected
        if reason.is_failure:
            line = f"broker {self._address} refuses: {str(reason).lower()}"
            raise SinkError(line, retryable=reason.value not in _FOR_GOOD)

    async def _publish(self, results: Sequence[Result]) -> None:
        taken = []
        for result in results:
            topic = _WILD.sub("_", self._topic(result))
            # Acknowledged on another thread, but heard of in this one, which goes on to write it down first.
            info = self._client.publish(topic, self._render(result).encode(), self._qos, self._retain)
            if info.rc != self._paho.MQTT_ERR_SUCCESS:
                raise SinkError(f"broker {self._address}: the connection is lost", retryable=True)
            taken.append(self._waiting.setdefault(info.mid, self._loop.create_future()))
        await asyncio.gather(*taken)

    def _taken(self, mid: int) -> None:
        future = self._waiting.pop(mid, None)
        if future is not None:
            _settle(future, None)

    def _lost(self, connected: asyncio.Future[Any]) -> None:
        problem = SinkError(f"broker {self._address}: the connection is lost", retryable=True)
        for future in [connected, *self._waiting.values()]:
            if not future.done():
                future.set_exception(problem)
                future.exception()  # somebody may wait for it, or nobody
        self._waiting.clear()

    def _soon(self, call: Callable[..., None], *arguments: Any) -> None:
        """From paho's thread into ours."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _shown(url: str) -> str:
    """Without what may be a password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"[:200]


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as problem:
        raise ConfigError(f"certificate {ca} cannot be used: {problem.strerror or problem}") from None
