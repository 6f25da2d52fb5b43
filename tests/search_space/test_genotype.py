import pytest

from detnas_d2.search_space.genotype import Genotype, GenotypeError, parse_part
from detnas_d2.search_space.hit_network import HIT_NETWORKS, get_hit_network

TINY = get_hit_network("hit_tiny")
BACKBONE = ["ir_k3_e3_d1", "skip"] * 4
NECK = ["sep_k3_d1"] * 8
HEAD = ["conv_k3", "ir_k7_e6"]


def test_text_round_trip_and_value():
    genotype = Genotype(TINY, BACKBONE, NECK, HEAD)
    assert Genotype.from_text(TINY, str(genotype)) == genotype
    assert hash(genotype) == hash(Genotype(TINY, " ".join(BACKBONE), NECK, "conv_k3,ir_k7_e6"))
    assert str(genotype).startswith("backbone: ir_k3_e3_d1 skip / ir_k3_e3_d1 skip / ")
    assert genotype.part_text("head") == "conv_k3 ir_k7_e6"
    assert parse_part(TINY, "neck", genotype.part_text("neck")) == tuple(NECK)


def test_parts_may_be_missing():
    genotype = Genotype.from_text(TINY, "head: conv_k3 skip")
    assert genotype.parts == {"head": ("conv_k3", "skip")}
    assert Genotype.from_text(TINY, str(genotype)) == genotype


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("head: conv_k3", "2 layers.*has 1"),
        ("head: conv_k3 / skip", "groups of"),
        ("head: conv_k3 conv_k9", "head, layer 1: no operation 'conv_k9'"),
        ("tail: skip", "tail"),
        ("head: skip skip; head: skip skip", "once"),
    ],
)
def test_errors_name_what_is_wrong(text, match):
    with pytest.raises(GenotypeError, match=match):
        Genotype.from_text(TINY, text)


def test_networks():
    assert get_hit_network("hit").feature_channels == (48, 96, 256, 2048)
    assert get_hit_network("hit_paper").feature_channels == (48, 96, 256, 352)
    assert get_hit_network("hit_half").stage_depths == (2, 2, 4, 2)
    with pytest.raises(ValueError, match="hit_paper"):
        get_hit_network("nothing")
    for network in HIT_NETWORKS.values():
        assert [s.stride for s in network.backbone_layers(("skip",))].count(2) == 4
        strides = [s.reduction for s in network.neck_layers(("skip",))]
        assert strides == [4, 8, 16, 32] * 2
