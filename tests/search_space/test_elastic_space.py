"""Spaces and tables with a choice of the channels of neck and head among the layers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random

import pytest

from detnas_d2.programs.optuna_export import parameter_names
from detnas_d2.search_space import AdditiveTable, Cost, CostTable, LatencyTable, PathError
from detnas_d2.search_space.candidates import Candidates, ConditionalCosts, ConditionalTable
from detnas_d2.search_space.elastic_latency import ElasticLatency, latency_from_json
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.genotype import Genotype, GenotypeError
from detnas_d2.search_space.hit_network import get_hit_network
from detnas_d2.search_space.hit_space import HitSpace
from detnas_d2.search_space.space import space_digest
from detnas_d2.utils.errors import InputError

NETWORK = get_hit_network("hit_tiny_half")
OPS = {
    "backbone": ("skip", "sep_k3_d1"),
    "neck": ("conv_k1", "conv_k3"),
    "head": ("skip", "conv_k1", "ir_k3_e1_d1"),
}
CHANNELS = (12, 20, 32)


def space(*parts: str) -> ElasticHitSpace:
    names = parts or tuple(OPS)
    wide = HitSpace.of_network(NETWORK, [(part, OPS[part]) for part in names])
    return ElasticHitSpace(wide, CHANNELS)


def test_the_channels_are_a_choice_behind_the_backbone() -> None:
    found = space()
    assert found.cardinalities == (2, 2, 2, 2, 3, *(2,) * 8, 3, 3)
    assert found.stage_depths == (1, 1, 1, 1, 1, 4, 4, 2) and found.gene == 4
    assert [layer.index for layer in found.layers] == list(range(15))
    stages = [layer.stage for layer in found.layers]
    assert stages == [0, 1, 2, 3, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7]
    path = found.path(
        "skip / skip / skip / sep_k3_d1 / c20 / conv_k1 1 1 1 / 0 0 0 0 / skip conv_k1"
    )
    assert path.choices == (0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1)
    assert found.path(str(path)) == path == found.path(path.choices)
    assert found.channels(path) == 20
    assert found.split(path) == {
        "backbone": (0, 0, 0, 1),
        "neck": (0, 1, 1, 1, 0, 0, 0, 0),
        "head": (0, 1),
    }
    with pytest.raises(PathError, match="layer 4: 'c16' is not .* expected one of c12, c20, c32"):
        found.path("skip / skip / skip / skip / c16 / 0 0 0 0 / 0 0 0 0 / 0 0")
    assert space("neck", "head").gene == 0 == space("head").gene
    assert space("backbone").cardinalities == (2, 2, 2, 2, 3)
    rng = random.Random(0)
    assert len({found.channels(found.random_path(rng)) for _ in range(40)}) == 3
    names = parameter_names(found)
    assert len(set(names)) == 15 and names[4] == "neck_channels" and names[5] == "neck 00"


def test_a_genotype_has_the_channels() -> None:
    found = space("neck", "head")
    path = found.path("c12 / conv_k1 1 1 1 / 0 0 0 0 / skip conv_k1")
    genotype = found.genotype(path)
    assert genotype.network == dataclasses.replace(NETWORK, neck_channels=12)
    assert str(genotype) == (
        "neck_channels: 12; neck: conv_k1 conv_k3 conv_k3 conv_k3 / conv_k1 conv_k1 conv_k1 "
        "conv_k1; head: skip conv_k1"
    )
    assert Genotype.from_text(NETWORK, str(genotype)) == genotype
    assert genotype != dataclasses.replace(genotype, neck_channels=20)
    plain = found.widest.genotype(found.widest.path(path.choices[1:]))
    assert "channels" not in str(plain) and plain.network == NETWORK
    for text in ("neck_channels: many", "neck_channels: 0", "neck_channels: 8; neck_channels: 8"):
        with pytest.raises(GenotypeError, match="neck_channels"):
            Genotype.from_text(NETWORK, f"{text}; head: skip skip")


def test_at_one_number_it_is_the_space_of_that_frame() -> None:
    narrow = dataclasses.replace(NETWORK, neck_channels=20)
    expected = HitSpace.of_network(narrow, [(part, OPS[part]) for part in OPS])
    found = space()
    assert found.at(20) == expected and found.at(32) == found.widest
    assert len({space_digest(found.at(channels)) for channels in CHANNELS}) == 3
    with pytest.raises(PathError, match=r"16 channels: expected one of \[12, 20, 32\]"):
        found.at(16)


def test_wrong_channels() -> None:
    for channels in ((32,), (32, 20), (20, 20, 32)):
        with pytest.raises(ValueError, match="expected two or more, rising"):
            ElasticHitSpace(space().widest, channels)
    with pytest.raises(ValueError, match="the widest space has 32"):
        ElasticHitSpace(space().widest, (12, 20))
    skipped = HitSpace.of_network(NETWORK, [("neck", ("skip", "conv_k1"))])
    ElasticHitSpace(skipped, CHANNELS)
    with pytest.raises(InputError, match=r"\[24, 32\]: 24 are .* layer 1 of the neck"):
        ElasticHitSpace(skipped, (24, 32))
    ElasticHitSpace(space().widest, (24, 32))  # nothing is skipped there
    grouped = HitSpace.of_network(NETWORK, [("head", ("conv_k1", "ir_k3_e1_g2"))])
    with pytest.raises(InputError, match=r"'ir_k3_e1_g2' of MODEL.HIT.OPS.HEAD .* divide 13"):
        ElasticHitSpace(grouped, (12, 13, 32))


@pytest.mark.parametrize("gene", [0, 1, 3, -1])
def test_tables_that_depend_on_one_gene(gene: int) -> None:
    """Against the definition, for all candidates."""
    rng = random.Random(gene)
    costs, sizes, values = [], (2, 3, 2), 3
    for _ in range(values):
        rows = tuple(
            tuple(Cost(rng.randrange(99), rng.randrange(99)) for _ in range(n)) for n in sizes
        )
        costs.append(CostTable(Cost(rng.randrange(99), rng.randrange(99)), rows, (8, 8)))
    table = ConditionalCosts(tuple(costs), gene)
    place = gene if gene >= 0 else len(sizes)
    cardinalities = (*sizes[:place], values, *sizes[place:])
    every = list(itertools.product(*map(range, cardinalities)))
    for choices in every:
        others = choices[:place] + choices[place + 1 :]
        assert table.macs.taken_out(choices) == (choices[place], others)
        assert table.macs.put_in(choices[place], others) == choices
        assert table.cost(choices) == costs[choices[place]].cost(others)
        assert table.macs.total(choices) == table.cost(choices).macs
        assert table.params.total(choices) == table.cost(choices).params
    for quantity in (table.macs, table.params):
        totals = [quantity.total(choices) for choices in every]
        assert quantity.cheapest() == quantity.total(quantity.cheapest_choices()) == min(totals)
        most = quantity.most_expensive_choices()
        assert quantity.most_expensive() == quantity.total(most) == max(totals)


def test_candidates_are_its_paths() -> None:
    candidates = Candidates(space())
    path = candidates.random_path(random.Random(1))
    assert candidates.path(candidates.genes(path)) == path
    assert candidates.cardinalities == space().cardinalities


def latency() -> ElasticLatency:
    found, tables = space("head"), []
    for factor, channels in enumerate(CHANNELS, start=1):
        rows = tuple(tuple(factor * (op + 1.5) for op in range(3)) for _ in range(2))
        own = found.at(channels)
        tables.append(
            LatencyTable(
                float(factor),
                rows,
                own.name,
                (64, 64),
                1,
                "cpu",
                space_digest(own),
                {"runtime": "PyTorch"},
            )
        )
    return ElasticLatency(
        tables=tuple(tables), gene=0, neck_channels=CHANNELS, space=found.name, check=None
    )


def test_latency_is_one_file() -> None:
    found, table = space("head"), latency()
    assert latency_from_json(table.to_json(), found) == table
    assert isinstance(table, ConditionalTable) and table.input_size == (64, 64)
    assert table.total((1, 0, 2)) == pytest.approx(2 + 2 * 1.5 + 2 * 3.5)
    assert "whole detectors in PyTorch" in table.about and "not checked" in table.about
    check = {"detectors": [1] * 30, "tau": 0.9, "median_error": 0.05}
    told = dataclasses.replace(table, check=check).about
    assert "30 detectors rank as it says with tau 0.90" in told
    assert told.endswith("a table for each of [12, 20, 32] channels of the neck")
    with pytest.raises(ValueError, match=r"of \[12, 20, 32\] channels .* each of \[20, 32\]"):
        latency_from_json(table.to_json(), ElasticHitSpace(found.widest, (20, 32)))
    with pytest.raises(ValueError, match="of no channels of the neck"):
        latency_from_json(table.tables[0].to_json(), found)
    with pytest.raises(ValueError, match="another space"):
        data = json.loads(table.to_json())
        data["tables"].reverse()
        latency_from_json(json.dumps(data), found)
    assert isinstance(latency_from_json(table.tables[-1].to_json(), found.widest), AdditiveTable)
