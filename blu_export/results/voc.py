"""Pascal VOC: boxes in XML."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from blu_export.results.base import PhotoFormat, Result


class VocFormat(PhotoFormat):
    """NAME.xml: class and box of each instance; masks have no place. Pixels are counted from 1, as VOC does."""

    suffix = ".xml"

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        found = result.found
        height, width = found.image_size
        root = ElementTree.Element("annotation")
        _text(root, "filename", result.file_name)
        size = ElementTree.SubElement(root, "size")
        for name, side in (("width", width), ("height", height), ("depth", 3)):
            _text(size, name, side)
        _text(root, "segmented", 0)
        for (y1, x1, y2, x2), class_id in zip(found.rois.tolist(), found.class_ids.tolist(), strict=True):
            thing = ElementTree.SubElement(root, "object")
            for name, value in (
                ("name", found.class_names[class_id]),
                ("pose", "Unspecified"),
                ("truncated", 0),
                ("difficult", 0),
            ):
                _text(thing, name, value)
            box = ElementTree.SubElement(thing, "bndbox")
            for name, edge in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                _text(box, name, edge)
        ElementTree.indent(root)
        yield self.suffix, ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _text(parent: ElementTree.Element, name: str, value: str | int) -> None:
    """A child that holds text; characters that XML has no place for are shown as �."""
    kept = "".join(char if char.isprintable() else "�" for char in str(value))
    ElementTree.SubElement(parent, name).text = kept
