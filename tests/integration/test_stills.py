"""What a camera shows now, over the real API, hub and worker code."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cloud_inference import audit
from cloud_inference.hub import LocalHub
from cloud_inference.stills import Stills
from eyeline import Client, subjects
from eyeline.errors import NotFound, PermissionDenied
from eyeline.v1 import frame_pb2
from tests.support.access import Issuer
from tests.support.api import running_api
from tests.support.eventually import eventually
from tests.support.simulated import HEIGHT, WIDTH, Device, picture, publish
from tests.support.working import working


def pixels(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))[:, :, ::-1]


def left_edge(image: NDArray[np.uint8]) -> int:
    """Where the bright square of a simulated picture begins."""
    return int(np.nonzero(image[50, :, 1] > 150)[0].min())


async def answered(client: Client, sequence: int) -> Any:
    async def there() -> Any:
        return [r for r in await client.latest("yard/gate") if r.last_sequence >= sequence]

    await eventually(there, within_s=15)


async def test_the_newest_answered_picture_and_its_answer(hub: LocalHub) -> None:
    device = Device()
    async with running_api(hub) as serving, Client(serving.address, "for-acme") as client:
        with pytest.raises(NotFound, match="no picture of yard/gate"):
            await client.still("yard", "gate")
        tenant = serving.tenants.hubs["acme"]
        async with working(tenant.connection):
            await publish(tenant.js, device.frames(5))
            await answered(client, 5)
            still = await client.still("yard", "gate")
            assert (still.sequence, still.size, still.device) == (5, (WIDTH, HEIGHT), "box")
            assert still.shows == (0, 0, 2 * WIDTH, 2 * HEIGHT)
            assert np.abs(pixels(still.jpeg).astype(int) - picture(5)).mean() < 4
            assert still.answer is not None
            assert still.answer.sequence == 5
            assert abs(still.answer.detections.boxes[0][0] - 2 * left_edge(picture(5))) <= 4
            # Later frames without pixels: the picture stands, and the newest answer says so.
            await publish(tenant.js, [device.envelope([device.range(7, frame_pb2.RANGE_KIND_IDLE)])])
            await answered(client, 12)
            later = await client.still("yard", "gate")
            assert later.sequence == 5
            assert later.latest is not None
            assert later.latest.last_sequence == 12
            # A chain begins anew; the first message of the one before is gone from the hub.
            await publish(tenant.js, device.frames(3, keyframe_first=True))
            await answered(client, 15)
            newest = await client.still("yard", "gate", width_px=2 * WIDTH, annotated=True)
            assert (newest.sequence, newest.size) == (15, (2 * WIDTH, 2 * HEIGHT))
        # Nobody answers any more: the picture goes on, and has no answer.
        await publish(tenant.js, [*device.frames(2), *device.frames(1, keyframe_first=True)])
        unanswered = await eventually(lambda: newer(client, 18), within_s=10)
        assert unanswered.answer is None
        assert left_edge(pixels(unanswered.jpeg)) == pytest.approx(left_edge(picture(18)), abs=2)


async def newer(client: Client, sequence: int) -> Any:
    still = await client.still("yard", "gate")
    return still if still.sequence >= sequence else None


async def test_the_drawn_box_lies_on_the_object(hub: LocalHub) -> None:
    device = Device()
    async with running_api(hub) as serving, Client(serving.address, "for-acme") as client:
        tenant = serving.tenants.hubs["acme"]
        async with working(tenant.connection):
            await publish(tenant.js, device.frames(4))
            await answered(client, 4)
        plain = pixels((await client.still("yard", "gate", width_px=512)).jpeg)
        drawn = pixels((await client.still("yard", "gate", width_px=512, annotated=True)).jpeg)
    changed = np.abs(plain.astype(int) - drawn).max(2) > 60
    edges = np.nonzero(changed[200, :])[0]
    left = left_edge(picture(4)) * 4
    assert abs(edges.min() - left) <= 3
    assert abs(edges.max() - (left + 24 * 4)) <= 3


async def test_looking_is_for_those_whose_camera_it_is(hub: LocalHub, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "keys")
    async with running_api(hub, token_keys=[str(issuer.public)]) as serving:
        tenant = serving.tenants.hubs["acme"]
        await publish(tenant.js, Device().frames(2))
        for cameras, method, trouble in (
            (["yard/gate"], "read", None),
            (["yard/door"], "read", PermissionDenied),
            (["yard/*"], "detect", PermissionDenied),
        ):
            async with Client(serving.address, issuer.token(cameras=cameras, methods=[method])) as client:
                if trouble is None:
                    assert (await client.still("yard", "gate")).sequence == 2
                    (entry,) = [it async for it in audit.read(tenant.js)]
                    assert (entry.what, entry.cameras) == ("view", ("yard/gate",))
                else:
                    with pytest.raises(trouble):
                        await client.still("yard", "gate")
        async with Client(serving.address, issuer.token("globex")) as other:
            with pytest.raises(NotFound):
                await other.still("yard", "gate")


async def test_many_looks_read_the_chain_once_and_end(hub: LocalHub) -> None:
    async with running_api(hub) as serving:
        tenant = serving.tenants.hubs["acme"]
        await publish(tenant.js, Device().frames(30))
        async with Stills(keep_s=0.2) as stills:

            async def look() -> int:
                found = await stills.look("acme", tenant.connection, tenant.js, "yard", "gate")
                return found.still.of.unit.sequence if found is not None else 0

            assert await asyncio.gather(*(look() for _ in range(10))) == [30] * 10
            assert len(await tenant.js.consumers_info(subjects.FRAMES)) == 1

            async def none_left() -> bool:
                return not await tenant.js.consumers_info(subjects.FRAMES)

            await eventually(none_left, within_s=5)
            assert await look() == 30
