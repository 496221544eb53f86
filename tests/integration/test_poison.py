"""A message at which the worker itself fails costs its own camera some seconds, and nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloud_inference.consume import Intake, Source, Work
from cloud_inference.hub import LocalHub
from eyeline import subjects
from tests.integration.test_worker import SquareModel, answered, tenant_bus, worker
from tests.support.eventually import eventually
from tests.support.simulated import Device, publish


async def test_it_is_set_aside_after_two_tries(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    device, other, model = Device(), Device(camera="door"), SquareModel()
    real, tried = Intake.work, []

    def work(self: Intake, source: Source) -> Iterator[Work] | list[Work]:
        if source.envelope.camera == device.camera and source.stream_sequence == poison:
            tried.append(source.stream_sequence)
            raise RuntimeError("a defect of ours")
        return real(self, source)

    monkeypatch.setattr(Intake, "work", work)
    async with tenant_bus(hub) as bus:
        sequences = await publish(bus.js, device.frames(4))
        poison = sequences[1]
        await publish(bus.js, other.frames(4))
        # Who loses it for a moment counts anew.
        async with worker(bus, model, lease_s=30):
            assert len(await answered(bus, other, 4)) == 4
            # What it would have brought is told as lost.
            found = await answered(bus, device, 4)
            assert [(one.key.sequence, one.reason) for one in found][1] == (2, "lost")

            async def aside() -> Any:
                subject = subjects.dead_subject(device.site, device.device, device.camera)
                return await bus.js.get_last_msg(subjects.DEAD, subject)

            message = await eventually(aside)
            assert (message.headers or {})["Eyeline-Reason"] == "poison"
    assert tried == [poison] * 2
