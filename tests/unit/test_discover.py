"""Finding ONVIF cameras and asking them for their streams, with a small camera on loopback."""

from __future__ import annotations

import dataclasses
import time

import pytest

from edge_agent import safe_xml
from edge_agent.discover import FoundCamera, discover, parse_answer
from edge_agent.errors import SourceInvalid, SourceUnavailable
from edge_agent.onvif import FoundStream, stream_uri, streams
from tests.support.onvif_camera import OnvifCamera

BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>"""


def test_a_camera_is_found_once_beside_noise() -> None:
    with OnvifCamera() as camera:
        camera.forged = [b"\xff\xfe garbage", BOMB, camera.probe_match("urn:uuid:of-somebody-else")]
        began = time.monotonic()
        found = discover(0.4, targets=[camera.target])
        assert time.monotonic() - began < 1
        url = f"http://127.0.0.1:{camera.http_port}/onvif/device"
        endpoint = f"urn:uuid:camera-{camera.http_port}"
        assert found == [FoundCamera(endpoint, "127.0.0.1", url, "Front Door", "X1000")]


def test_several_cameras() -> None:
    with OnvifCamera() as one, OnvifCamera() as two:
        assert len(discover(0.4, targets=[one.target, two.target])) == 2


def test_nobody_answers_on_the_real_network_path() -> None:
    # The multicast probe itself; whether a camera is there is not the test's business.
    try:
        assert isinstance(discover(0.1), list)
    except SourceUnavailable as problem:
        assert "no network" in str(problem)  # noqa: PT017 - a machine without a network says so


def test_streams_largest_first_without_credentials() -> None:
    with OnvifCamera(user="admin", password="p<&>ss") as camera:
        (found,) = discover(0.2, targets=[camera.target])
        assert streams(found, "admin", "p<&>ss") == [
            FoundStream("p1", "rtsp://127.0.0.1:554/profile1?a=1&b=2", 1280, 640),
            FoundStream("p0", "rtsp://127.0.0.1:554/profile0?a=1&b=2", 640, 320),
        ]
        assert stream_uri(found, "admin", "p<&>ss") == "rtsp://127.0.0.1:554/profile1?a=1&b=2"
        assert camera.requests[:3] == ["GetSystemDateAndTime", "GetCapabilities", "GetProfiles"]


def test_what_can_go_wrong_with_a_found_camera() -> None:
    with OnvifCamera(user="admin", password="right") as camera:
        (found,) = discover(0.2, targets=[camera.target])
        for user, password in ((None, None), ("admin", "wrong"), ("other", "right")):
            with pytest.raises(SourceInvalid, match="it refuses the user or the password"):
                stream_uri(found, user, password)
    with pytest.raises(SourceUnavailable, match="does not answer"):
        stream_uri(found)
    with OnvifCamera(profiles=0) as empty:
        (found,) = discover(0.2, targets=[empty.target])
        with pytest.raises(SourceInvalid, match="no RTSP stream"):
            stream_uri(found)


@pytest.mark.parametrize(
    "raw",
    [
        BOMB,
        BOMB.decode().encode("utf-16"),
        b"<a>" * 100,
        b"<a>" * 100 + b"</a>" * 100,
        b"",
        b"<a></b>",
        b" " * (safe_xml.MAX_BYTES + 1),
    ],
)
def test_hostile_xml_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"XML"):
        safe_xml.parse(raw)
    assert parse_answer(raw, "10.0.0.1", "urn:uuid:1") == []


def test_addresses_that_are_none_are_passed_over() -> None:
    with OnvifCamera() as camera:
        good = camera.probe_match("urn:uuid:1")
    host = b"http://10.9.8.7/onvif"
    for bad in (b"ftp://10.9.8.7/", b"http://10.9.8.7:99999/", b"http://[/"):
        (found,) = parse_answer(good.replace(host, bad), "10.0.0.1", "urn:uuid:1")
        assert found.service_url.startswith("http://127.0.0.1:")
    (found,) = parse_answer(good, "10.9.8.7", "urn:uuid:1")
    assert found.service_url == host.decode()
    assert dataclasses.replace(found, name="") != found
