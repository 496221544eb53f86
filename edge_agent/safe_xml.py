"""XML from strangers on the network: no document types, so no entities; bounded in size and depth."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MAX_BYTES = 1_000_000
MAX_DEPTH = 64


def parse(raw: bytes) -> Element:
    """The root element, tags without their namespaces; raises ValueError."""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"XML of {len(raw)} bytes; at most {MAX_BYTES}")
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"XML nested deeper than {MAX_DEPTH}")
        builder.start(_local(tag), {_local(name): value for name, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(tag))

    def doctype(*_: object) -> None:
        raise ValueError("XML with a document type is not read")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as problem:
        raise ValueError(f"not XML: {problem}") from None
    return builder.close()


def texts(root: Element, tag: str) -> Iterator[str]:
    """The texts of all elements of this name that have any, in order."""
    for element in root.iter(tag):
        text = (element.text or "").strip()
        if text:
            yield text


def text(root: Element, tag: str) -> str | None:
    """The first such text."""
    return next(texts(root, tag), None)


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
