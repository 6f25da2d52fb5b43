"""Fields of VOC's XML are read as ElementTree's paths and Detectron2 read them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from detnas_d2.data.datasets.voc_xml import BrokenXml, read_object, read_xml, texts_below

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>4</ymax></bndbox>"


@pytest.mark.parametrize(
    "content",
    ["", "<a/>", "<a><x>1</x><x>2</x></a>", "<a><x/></a>", "<a/><a><x>3</x></a><a><y>4</y></a>"],
)
def test_the_first_text_of_a_path(content: str) -> None:
    item = ET.fromstring(f"<o>{content}</o>")
    assert texts_below(item, "a", "xyz") == [item.findtext(f"a/{key}") for key in "xyz"]


@pytest.mark.parametrize(
    ("fields", "box", "plain"),
    [
        ("<truncated>0</truncated><difficult>1</difficult>", BOX, True),
        ("<truncated> 1 </truncated><difficult>0</difficult>", BOX, True),
        ("<truncated>0.4</truncated><difficult>0</difficult>", BOX, False),
        ("<truncated>0</truncated><difficult>False</difficult>", BOX, False),
        ("<difficult>0</difficult>", BOX, False),
        ("<truncated>0</truncated><difficult>0</difficult>", BOX.replace("30", "30.0"), False),
        ("<truncated>0</truncated><difficult>0</difficult>", BOX.replace("30", " 30\n"), True),
    ],
)
def test_what_detectron2_reads_as_it_is(fields: str, box: str, plain: bool) -> None:
    text = f"<object><name>cat</name><pose>Left</pose>{fields}{box}</object>"
    for _ in range(2):  # as remembered, too
        found = read_object(ET.fromstring(text))
        assert found.plain == plain and found.box == (1, 2, 30, 4)
    assert not read_object(ET.fromstring(text.replace(">cat", "> cat"))).plain
    assert not read_object(ET.fromstring(text.replace("Left", ""))).plain
    with pytest.raises(BrokenXml, match="bndbox must hold numbers xmin, ymin, xmax, ymax: .*None"):
        read_object(ET.fromstring(text.replace("ymax", "bottom")))


@pytest.mark.parametrize(
    "text",
    [
        '<annotation xmlns="u"><object/></annotation>',
        '<annotation xmlns:v="u"><v:object/></annotation>',
        "<annotation><xml:object/></annotation>",
        "<!DOCTYPE annotation [<!ENTITY o \"<object &#120;mlns='u'/>\">]>"
        "<annotation>&o;</annotation>",
    ],
)
def test_namespaces_however_they_come(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    root, plain = read_xml(str(tmp_path / "a.xml"))
    assert len(root.findall("object")) == 1 and not plain
