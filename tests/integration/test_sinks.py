"""Results passed on to a real MQTT broker and a web address: nothing is lost, whatever goes away."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_inference import pki
from eyeline.errors import ConfigError
from eyeline.sinks.template import Template
from eyeline.values import Result
from tests.support.eventually import eventually
from tests.support.eyeline_command import finish, run_eyeline, start_eyeline
from tests.support.fake_api import FakeApi, made_result, running_fake_api
from tests.support.mqtt_broker import PASSWORD, USER, Broker, Listener, running_broker
from tests.support.web_hook import running_hook

EARLY = ("--since", "2001-01-01T00:00:00Z")


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with running_fake_api() as running:
        yield running


def authority(folder: Path) -> tuple[Path, Path, Path]:
    """Certificate, key, and the authority's certificate."""
    made = pki.ensure(folder, ["127.0.0.1", "localhost"])
    return made.certificate, made.key, made.ca


async def test_mqtt_gets_all_though_broker_and_command_go_away(api: FakeApi, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with running_broker(tmp_path) as broker:
        listener = Listener(broker)
        try:
            await eventually(listener.subscribed.is_set)
            url = f"mqtt://127.0.0.1:{broker.port}"
            process = await start_eyeline("sink", "mqtt", url, "--state", str(state), server=api.address)
            await eventually(state.exists, within_s=20)  # from now on, even without a result so far
            api.store(made_result(1), made_result(2, "door"))
            await eventually(lambda: len(listener.messages) == 2, within_s=20)
            assert [topic for topic, _ in listener.messages] == ["eyeline/yard/gate", "eyeline/yard/door"]
            assert listener.messages[0][1]["detections"][0]["class"] == "person"
            broker.stop()
            api.store(made_result(3), made_result(4))
            await eventually(lambda: not listener.subscribed.is_set(), within_s=10)
            broker.start()
            await eventually(lambda: sequences(listener) >= {1, 2, 3, 4}, within_s=40)
            process.send_signal(signal.SIGTERM)
            done = await finish(process)
            assert done.status == 130
            assert "trying again" in done.err
            # Stored while the command was away.
            api.store(made_result(5))
            again = await run_eyeline(
                "sink", "mqtt", url, "--state", str(state), "--count", "1", "--json", server=api.address
            )
            assert again.status == 0, again.err
            assert json.loads(again.out)["sent"] == 1
            await eventually(lambda: 5 in sequences(listener), within_s=10)
            order = [message["sequence"] for _, message in listener.messages]
            assert order == sorted(order)
        finally:
            listener.close()


def sequences(listener: Listener) -> set[int]:
    return {message["sequence"] for _, message in listener.messages}


async def test_mqtt_over_tls_with_a_password_and_a_template(api: FakeApi, tmp_path: Path) -> None:
    cert, key, ca = authority(tmp_path / "tls")
    template = tmp_path / "message.json"
    template.write_text('{"what": "$summary", "n": $count, "cost": "$$", "all": $classes}')
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    quoted = made_result(1)
    quoted.detections[0].class_name = 'a "quoted" one'
    api.store(quoted)
    with running_broker(tmp_path, tls=(cert, key), password=True) as broker:
        address = f"127.0.0.1:{broker.port}"
        command = ("sink", "mqtt", f"mqtts://{USER}@{address}", *EARLY, "--count", "1", "--retain")
        more = ("--template", str(template), "--topic", "$camera/$provenance/seen")
        secure = ("--sink-ca", str(ca), "--password-file", str(secret))
        done = await run_eyeline(*command, *more, *secure, server=api.address)
        assert done.status == 0, done.err
        assert retained(broker, ca) == {
            "gate/CLOUD/seen": {"what": '1 a "quoted" one', "n": 1, "cost": "$", "all": ['a "quoted" one']}
        }
        secret.write_text("wrong")
        refused = await run_eyeline(*command, *secure, server=api.address)
        assert refused.status == 4
        assert refused.err.splitlines()[-1].startswith(f"eyeline: broker {address} refuses: ")
        assert "wrong" not in refused.err


def retained(broker: Broker, ca: Path) -> dict[str, object]:
    """What the broker keeps."""
    from paho.mqtt import subscribe  # noqa: PLC0415

    message = subscribe.simple(
        "#", hostname="127.0.0.1", port=broker.port, auth={"username": USER, "password": PASSWORD},
        tls={"ca_certs": str(ca)},
    )  # fmt: skip
    return {message.topic: json.loads(message.payload)}


async def test_a_webhook_gets_all_in_order_whatever_it_answers(api: FakeApi, tmp_path: Path) -> None:
    api.store(*(made_result(i) for i in range(1, 7)))
    secret = tmp_path / "secret"
    secret.write_text("key")
    with running_hook() as hook:
        hook.statuses.extend([200, 503, 0, 429, 200, 200])
        done = await run_eyeline(
            "sink", "webhook", hook.url, *EARLY, "--count", "6", "--header", "Authorization: Bearer x",
            "--secret-file", str(secret), "--state", str(tmp_path / "state"), "--json", server=api.address,
        )  # fmt: skip
        assert done.status == 0, done.err
        told = json.loads(done.out)
        assert (told["sent"], told["refused"]) == (6, 0)
        assert told["retries"] >= 2
        taken = [body["sequence"] for _, _, body in hook.posts]
        # At least once, and never one before another.
        assert sorted(set(taken)) == [1, 2, 3, 4, 5, 6]
        keys = {headers["Idempotency-Key"] for _, headers, _ in hook.posts}
        assert len(keys) == 6
        path, headers, body = hook.posts[0]
        assert path == "/in?key=1"
        assert headers["Authorization"] == "Bearer x"
        text = json.dumps(body, separators=(",", ":")).encode()
        signature = hmac.new(b"key", text, hashlib.sha256).hexdigest()
        assert headers["X-Eyeline-Signature"] == f"sha256={signature}"
        assert json.loads((tmp_path / "state").read_text())["resume_token"] == "t5"


async def test_a_webhook_that_refuses_stops_it_and_nothing_is_lost(api: FakeApi, tmp_path: Path) -> None:
    api.store(*(made_result(i) for i in range(1, 5)))
    state = tmp_path / "state"
    command = ("--state", str(state), "--json")
    with running_hook() as hook:
        hook.statuses.extend([200, 200, 401])
        done = await run_eyeline("sink", "webhook", hook.url, *EARLY, *command, server=api.address)
        assert done.status == 4
        assert done.err.startswith("eyeline: http://127.0.0.1:")
        assert "answers 401 Unauthorized" in done.err
        assert "key=1" not in done.err
        more = await run_eyeline("sink", "webhook", hook.url, *command, "--count", "2", server=api.address)
        assert more.status == 0, more.err
        assert [body["sequence"] for _, _, body in hook.posts] == [1, 2, 3, 4]
        api.store(*(made_result(i) for i in range(5, 8)))
        # 5 and 6 come together; the second is refused, alone.
        hook.statuses.extend([200, 422, 200, 422])
        skipping = await run_eyeline(
            "sink", "webhook", hook.url, *command, "--skip-refused", "--count", "2", server=api.address
        )
        assert skipping.status == 0, skipping.err
        assert json.loads(skipping.out)["refused"] == 1
        assert {body["sequence"] for _, _, body in hook.posts} == {1, 2, 3, 4, 5, 7}


async def test_a_webhook_over_tls_and_only_what_is_wanted(api: FakeApi, tmp_path: Path) -> None:
    cert, key, ca = authority(tmp_path / "tls")
    empty, car = made_result(1), made_result(2)
    del empty.detections[:]
    car.detections[0].class_name = "car"
    api.store(empty, car, made_result(3))
    template = tmp_path / "text"
    template.write_text("$camera sees $summary at $captured")
    with running_hook(tls=(cert, key)) as hook:
        done = await run_eyeline(
            "sink", "webhook", hook.url, *EARLY, "--class", "person", "--min-score", "0.5", "--count", "1",
            "--template", str(template), "--text", "--sink-ca", str(ca), server=api.address,
        )  # fmt: skip
        assert done.status == 0, done.err
        ((_, headers, body),) = hook.posts
        assert body == "gate sees 1 person at 2025-10-09T08:53:23.000Z"
        assert headers["Content-Type"].startswith("text/plain")
        assert done.out.startswith("1 sent, 2 passed over")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mqtt", "http://x"), "must be mqtt://HOST"),
        (("mqtt", "mqtt://u:p@x"), "use --password-file"),
        (("mqtt", "mqtt://x", "--topic", "$nothing"), "there is no $nothing"),
        (("webhook", "ftp://x"), "must be an http:// or https://"),
        (("webhook", "http://u:p@x"), "use --header-file"),
        (("webhook", "http://x", "--header", "x"), "must be NAME: VALUE"),
        (("webhook", "http://x", "--template", "/nowhere"), "cannot be read"),
        (("webhook", "https://x", "--sink-ca", "/nowhere"), "certificate /nowhere cannot be used"),
    ],
)
async def test_what_cannot_work_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = await run_eyeline("sink", *arguments, server="127.0.0.1:1")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert words in done.err
    assert ":p@" not in done.err


def test_templates() -> None:
    result = Result.from_proto(made_result(7))
    assert Template("$site/$camera $sequence $delay_ms").render(result) == "yard/gate 7 80.0"
    assert json.loads(Template('{"r": $result}').render(result))["r"]["sequence"] == 7
    assert Template("${count}x", as_json=False).render(result) == "1x"
    with pytest.raises(ConfigError, match="must be written"):
        Template("costs 5 $ a day")
    Template(
        '{"n": $count, "who": "$camera", "late": $late, "delay": $delay_ms, "all": $result}'
    ).check_json()
    for text in ('{"who": $camera}', '{"who": "$camera"', "$camera sees $summary", ""):
        with pytest.raises(ConfigError, match="no JSON comes of it"):
            Template(text).check_json()


async def test_a_template_that_makes_no_json_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    """A text without its quotes would be refused by whoever reads it, message by message."""
    template = tmp_path / "message.json"
    template.write_text('{"camera": $camera}')
    done = await run_eyeline("sink", "webhook", "http://x", "--template", str(template), server="127.0.0.1:1")
    assert (done.status, done.out) == (2, "")
    assert "no JSON comes of it" in done.err
    assert len(done.err.splitlines()) == 1
