"""How the edge model's answers compare with the cloud's, frame by frame, and telling the device so.

A frame that comes with pixels and with what the edge model saw is a sample of how far the edge model can be
trusted on this camera. Only the counts go back; what follows from them is the device's to decide.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

from cloud_inference.accuracy import Bands, compare
from eyeline.v1 import device_pb2, frame_pb2
from eyeline.values import Detections
from eyeline_models.catalogue import ModelCard

PREFIX_BYTES: Final = 8

_EVERY_S: Final = 10.0
# A report stays well under a kilobyte or two.
_MOST_FRAMES: Final = 100


@dataclass(slots=True)
class _Device:
    """What one run of a device has not been told yet. heard_s: since when it has something to be told."""

    last_sequence: int = 0
    frames: list[device_pb2.FrameAgreement] = field(default_factory=list)
    told_s: float = -1e9
    news: bool = False


class Reports:
    """One camera's reports to its device. Times are seconds on any clock that does not jump."""

    def __init__(self, card: ModelCard) -> None:
        self._prefix = bytes.fromhex(card.sha256)[:PREFIX_BYTES]
        # The edge model's own thresholds have decided already what it saw.
        self._bands = dataclasses.replace(Bands.of(card), answer=0.0)
        self._devices: dict[tuple[str, int], _Device] = {}

    @property
    def least(self) -> float:
        """Score from which the cloud's objects count for a comparison."""
        return self._bands.ignore

    def compare(self, device: str, epoch: int, unit: frame_pb2.AccessUnit, cloud: Detections) -> None:
        """Note how a unit's `edge` answer compares; cloud: everything from `least` on, in source pixels."""
        if not unit.HasField("edge"):
            return
        counts = compare(cloud, Detections.from_proto(unit.edge.detections), self._bands)
        frames = self._device(device, epoch).frames
        frames.append(
            device_pb2.FrameAgreement(
                sequence=unit.sequence,
                agreed=counts.true_positive,
                extra=counts.false_positive,
                missed=counts.missed,
            )
        )
        del frames[:-_MOST_FRAMES]

    def answered(self, device: str, epoch: int, sequence: int) -> None:
        """A frame of the live lane has its answer."""
        state = self._device(device, epoch)
        state.last_sequence, state.news = max(state.last_sequence, sequence), True

    def due(self, now_s: float) -> list[tuple[str, device_pb2.AnswerReport]]:
        """Devices that are to be told now, and what."""
        found = []
        for (device, epoch), state in list(self._devices.items()):
            if state.news and now_s - state.told_s >= _EVERY_S:
                found.append((device, self._report(epoch, state)))
                state.told_s, state.news, state.frames = now_s, False, []
        return found

    def _report(self, epoch: int, state: _Device) -> device_pb2.AnswerReport:
        return device_pb2.AnswerReport(
            epoch_counter=epoch,
            last_sequence=state.last_sequence,
            model_prefix=self._prefix,
            frames=sorted(state.frames, key=lambda it: it.sequence),
        )

    def _device(self, device: str, epoch: int) -> _Device:
        key = device, epoch
        if key not in self._devices:
            # A camera has one device at a time, and a device one run.
            while len(self._devices) >= 4:
                del self._devices[next(iter(self._devices))]
            self._devices[key] = _Device()
        return self._devices[key]
