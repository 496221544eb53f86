"""The camera's own coded pictures beside the decoded ones, so that they can be passed on as they came.

What a decoder elsewhere needs is brought in: start codes instead of lengths (ISO/IEC 14496-15), parameter
sets before each keyframe. A picture has its packet only where passing it on is safe: H.264 or HEVC, pictures
in the order in which they were coded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from eyeline.pictures import colours
from eyeline.v1 import frame_pb2 as pb

_CODECS: Final = {"h264": pb.CODEC_H264, "hevc": pb.CODEC_HEVC}
_START: Final = b"\x00\x00\x00\x01"
# NAL unit types (Rec. ITU-T H.264, table 7-1; H.265, table 7-1): where decoding can begin, parameter sets.
# Of HEVC all random access points count: without pictures out of order, none has leading pictures.
_ENTRY: Final = {pb.CODEC_H264: frozenset({5}), pb.CODEC_HEVC: frozenset(range(16, 22))}
_SETS: Final = {pb.CODEC_H264: frozenset({7, 8}), pb.CODEC_HEVC: frozenset({32, 33, 34})}
NO_OWN_PICTURE: Final = "this source has no coded pictures"
# Pictures that wait for their decoder.
_MOST_WAITING: Final = 64


@dataclass(frozen=True, slots=True)
class OwnPicture:
    """One coded picture as the camera made it: an access unit with start codes (Annex B).

    index: counts the stream's coded pictures, so that a picture which depends on a lost one shows. keyframe:
    decoding can begin here, nothing after it refers to what came before.
    """

    codec: pb.Codec.ValueType
    index: int
    keyframe: bool
    data: bytes


class OwnPictures:
    """Pairs the packets of one opening of a stream with the pictures that come out of its decoder."""

    def __init__(self, stream: Any) -> None:
        context = self._context = stream.codec_context
        self._codec = _CODECS.get(context.name)
        self._refused = (
            "" if self._codec is not None else f"the camera codes {context.name}, not H.264 or HEVC"
        )
        self._sets, self._length_bytes = b"", 0
        if self._codec is not None:
            self._sets, self._length_bytes = _configuration(bytes(context.extradata or b""), self._codec)
        self._waiting: dict[int | None, tuple[int, bytes]] = {}
        self._coded = 0
        self._shown = -1

    def take(self, packet: Any) -> None:
        """A packet on its way to the decoder."""
        if self._refused:
            return
        self._waiting[packet.pts] = self._coded, bytes(packet)
        self._coded += 1
        if len(self._waiting) > _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def of(self, picture: Any) -> OwnPicture | str:
        """The packet of a picture that the decoder gave, or why it cannot be passed on."""
        if self._refused or self._codec is None:
            return self._refused
        index, data = self._waiting.pop(picture.pts, (-1, b""))
        if index < 0:
            return "the camera's packets cannot be told apart"
        # A decoder that expects such pictures holds back each one.
        if index < self._shown or self._context.has_b_frames:
            self._refused = "the camera codes pictures out of order (B-frames)"
            self._waiting.clear()
            return self._refused
        self._shown = index
        units = list(split(data, self._length_bytes))
        kinds = {_kind(unit, self._codec) for unit in units}
        keyframe = bool(kinds & _ENTRY[self._codec])
        sets = b"" if not keyframe or kinds & _SETS[self._codec] else self._sets
        return OwnPicture(self._codec, index, keyframe, sets + b"".join(_START + unit for unit in units))


def own_format(own: OwnPicture, picture: Any) -> pb.PictureFormat:
    """What a decoder has to know about it; picture: as it was decoded here."""
    matrix, range_ = colours(picture)
    return pb.PictureFormat(
        codec=own.codec,
        color_matrix=matrix,
        color_range=range_,
        coded_width_px=picture.width,
        coded_height_px=picture.height,
        source_width_px=picture.width,
        source_height_px=picture.height,
        scale_x=1,
        scale_y=1,
    )


def split(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The NAL units of an access unit: behind lengths of so many bytes, or (0) behind start codes."""
    if length_bytes == 0:
        for part in data.split(b"\x00\x00\x01"):
            unit = part.rstrip(b"\x00")
            if unit:
                yield unit
        return
    at = 0
    while at + length_bytes <= len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if size:
            yield data[at : at + size]
        at += size


def _kind(unit: bytes, codec: pb.Codec.ValueType) -> int:
    return unit[0] & 0x1F if codec == pb.CODEC_H264 else (unit[0] >> 1) & 0x3F


def _configuration(extradata: bytes, codec: pb.Codec.ValueType) -> tuple[bytes, int]:
    """Parameter sets with start codes, and the bytes of a length (0 where there are start codes)."""
    if not extradata or extradata.startswith((b"\x00\x00\x01", _START)):
        return b"".join(_START + unit for unit in split(extradata, 0)), 0
    sets: list[bytes] = []
    if codec == pb.CODEC_H264:
        # AVCDecoderConfigurationRecord.
        at, length = 5, (extradata[4] & 3) + 1
        for mask in (0x1F, 0xFF):
            count, at = extradata[at] & mask, at + 1
            at = _read_sets(extradata, at, count, sets)
    else:
        # HEVCDecoderConfigurationRecord.
        length, at = (extradata[21] & 3) + 1, 23
        for _ in range(extradata[22]):
            count = int.from_bytes(extradata[at + 1 : at + 3], "big")
            at = _read_sets(extradata, at + 3, count, sets)
    return b"".join(_START + unit for unit in sets), length


def _read_sets(record: bytes, at: int, count: int, sets: list[bytes]) -> int:
    for _ in range(count):
        size = int.from_bytes(record[at : at + 2], "big")
        sets.append(record[at + 2 : at + 2 + size])
        at += 2 + size
    return at
