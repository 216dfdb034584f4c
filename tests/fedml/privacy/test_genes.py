"""Genes from annotation files, variants by gene, and the network that has weights of its own a gene."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedml.cohort.scores.genes import group
from fedml.cohort.variants.keys import Variant
from fedml.errors import InputError
from fedml.models.fusion import digest, learned
from fedml.networks.variants import GeneLayer, build_variant_network
from fedml.privacy.persongrad import clipped_gradient_sum
from fedml.seeds import torch_seed
from fedml.study.genes import BETWEEN, Interval, read_genes
from tests.fedml.privacy.test_dpsgd import assert_exact

GFF3 = """##gff-version 3
##sequence-region 21 1 46709983
21\tensembl\tchromosome\t1\t46709983\t.\t.\t.\tID=chromosome:21
21\thavana\tgene\t200\t300\t.\t-\t.\tID=gene:ENSG2;Name=TWO%2C2;biotype=protein_coding
###
21\thavana\tmRNA\t200\t300\t.\t-\t.\tID=transcript:T;Parent=gene:ENSG2
21\thavana\tncRNA_gene\t100\t250\t.\t+\t.\tID=gene:ENSG1;biotype=lncRNA

NC_000023.11\tRefSeq\tgene\t5\t9\t.\t+\t.\tID=gene-XG;Name=XG;gene_biotype=protein_coding
##FASTA
>21
ACGT
"""
GTF = """#!genome-build GRCh38
chr21\tHAVANA\tgene\t200\t300\t.\t-\t.\tgene_id "ENSG2"; gene_type "protein_coding"; gene_name "TWO; the second"; level 2;
chr21\tHAVANA\ttranscript\t200\t900\t.\t-\t.\tgene_id "ENSG2"; transcript_id "T"; gene_name "TWO; the second";
chrM\tHAVANA\tgene\t100\t250\t.\t+\t.\tgene_id "ENSG1"; gene_type "Mt_rRNA";
"""
UCSC = """chr1\trefGene\texon\t50\t60\t.\t+\t.\tgene_id "A"; transcript_id "A.1"; gene_name "A";
chr1\trefGene\texon\t10\t20\t.\t+\t.\tgene_id "A"; transcript_id "A.2"; gene_name "A";
chr2\trefGene\texon\t7\t8\t.\t+\t.\tgene_id "A"; transcript_id "A.1"; gene_name "A";
"""
BED = "browser position chr1:1-2\ntrack name=x\n#chrom\nchr1\t0\t10\tA\t0\t+\nchr1\t99\t100\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.gff3", GFF3, [("21", 100, 250, "ENSG1"), ("21", 200, 300, "TWO,2"), ("X", 5, 9, "XG")]),
        ("a.gtf", GTF, [("21", 200, 300, "TWO; the second"), ("MT", 100, 250, "ENSG1")]),
        ("a.gtf", UCSC, [("1", 10, 60, "A"), ("2", 7, 8, "A")]),
        ("a.bed", BED, [("1", 1, 10, "A"), ("1", 100, 100, "chr1:99-100")]),
    ],
    ids=["gff3", "gtf", "ucsc", "bed"],
)
def test_genes_by_canonical_contig_counted_from_one(
    tmp_path: Path, name: str, text: str, expected: list[tuple[str, int, int, str]]
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    assert read_genes(tmp_path / name) == read_genes(tmp_path / f"{name}.gz") == tuple(Interval(*e) for e in expected)


def test_genes_of_one_biotype(tmp_path: Path) -> None:
    (tmp_path / "a.gff3").write_text(GFF3)
    (tmp_path / "a.gtf").write_text(GTF)
    assert [g.name for g in read_genes(tmp_path / "a.gff3", "protein_coding")] == ["TWO,2", "XG"]
    assert [g.name for g in read_genes(tmp_path / "a.gtf", "Mt_rRNA")] == ["ENSG1"]
    with pytest.raises(InputError, match="has no gene of the biotype protein"):
        read_genes(tmp_path / "a.gtf", "protein")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "rename or convert the file"),
        ("a.bed", b"", "has no gene; give a gene annotation"),
        ("a.gff3", b"##gff-version 3\n", "has no gene"),
        ("a.bed", b"chr1\t5\n", "line 1: has 2 columns, a BED line has at least three"),
        ("a.bed", b"chr1\t5\t10\tA\nchr1\t10\t10\tB\n", r'line 2: "chr1 10 10 B" is not a valid interval'),
        ("a.bed", b"chr1\t-1\t10\tA\n", "line 1: .* is not a valid interval"),
        ("a.gtf", b"chr1 x gene 1 2 . + . .\n", "line 1: has 1 columns, GFF3 and GTF have nine"),
        ("a.gff3", b"1\tx\tgene\t9\t2\t.\t+\t.\tID=g\n", "line 1: .* is not a valid interval"),
        ("a.gff3", b"1\tx\tgene\t1\t2\t.\t+\t.\tNote=g\n", "line 1: .* is not a valid interval with a name"),
        ("a.gtf.gz", gzip.compress(GTF.encode())[:-9], "is damaged or truncated"),
        ("a.bed.gz", b"\x1f\x8bnothing", "is damaged or truncated"),
        ("a.bed", b"chr1\t5\t10\t\xff\n", "is not UTF-8 text"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence) as reported:
        read_genes(tmp_path / name)
    assert str(tmp_path / name) in str(reported.value)
    with pytest.raises(InputError, match=r"none\.bed: cannot be read"):
        read_genes(tmp_path / "none.bed")


places = st.tuples(st.sampled_from(["1", "chr2", "X"]), st.integers(1, 40))
spans = st.tuples(st.sampled_from(["1", "2", "X", "7"]), st.integers(1, 40), st.integers(0, 25), st.sampled_from("ABCDEFGH"))


@given(st.lists(places, max_size=30), st.lists(spans, max_size=12))
def test_a_variant_is_in_the_first_gene_that_holds_it(at: list[tuple[str, int]], spans: list[tuple[str, int, int, str]]) -> None:
    genes = [Interval(contig, start, start + length, name) for contig, start, length, name in spans]
    keys = [Variant(contig, position, ".", "A", "C") for contig, position in at]
    names, index = group(keys, genes)
    assert index.shape == (len(keys),)
    for key, found in zip(keys, index, strict=True):
        holding = sorted(g for g in genes if g.contig == key.contig.removeprefix("chr") and g.start <= key.position <= g.end)
        assert names[found] == (holding[0].name if holding else BETWEEN)
    assert len(set(names)) == len(names)
    assert set(index) == set(range(len(names)))
    assert BETWEEN not in names[:-1]
    order = [g.name for g in sorted(genes)]
    assert [n for n in names if n != BETWEEN] == sorted((n for n in names if n != BETWEEN), key=order.index)


# --- the network


@dataclass(frozen=True)
class Spec:
    """``[model] variants``."""

    net: str = "genes"
    hidden: tuple[int, ...] = (5,)
    dropout: float = 0.0
    width: int = 3


GROUPS = (0, 1, 1, 4, 0, 3, 4, 4, 2, 1)  # genes interleaved, one with a single variant


def network(spec: Spec = Spec(), groups: Sequence[int] = GROUPS, outputs: int = 2) -> nn.Module:
    with torch_seed(7):
        return build_variant_network(spec, len(groups), outputs, groups)


def dense(layer: GeneLayer, groups: Sequence[int]) -> torch.Tensor:
    """The layer as a linear layer's weight, (genes x width, variants), mostly zeros."""
    out = torch.zeros(max(groups) + 1, layer.width, len(groups), dtype=layer.weight.dtype)
    for variant, gene in enumerate(groups):
        out[gene, :, variant] = layer.weight[variant]
    return out.flatten(0, 1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_the_layer_and_its_gradients_are_those_of_a_masked_dense_layer(groups: list[int], width: int, persons: int, seed: int) -> None:
    with torch_seed(seed):
        layer = GeneLayer(groups, width).double()
        x = torch.randn(persons, len(groups), dtype=torch.float64, requires_grad=True)
        weights = torch.randn(persons, (max(groups) + 1) * width, dtype=torch.float64)
    expected = functional.linear(x, dense(layer, groups), layer.bias.flatten())
    torch.testing.assert_close(layer(x), expected)
    wanted = [layer.weight, layer.bias, x]
    theirs = torch.autograd.grad((expected * weights).sum(), wanted, materialize_grads=True)
    ours = torch.autograd.grad((layer(x) * weights).sum(), wanted, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_names_and_sizes_of_the_weights_that_are_sent() -> None:
    shapes = {k: tuple(v.shape) for k, v in learned(network()).items()}
    genes = {"genes.weight": (10, 3), "genes.bias": (5, 3)}
    assert shapes == {**genes, "over.0.weight": (5, 15), "over.0.bias": (5,), "over.2.weight": (2, 5), "over.2.bias": (2,)}
    assert set(learned(network(Spec(hidden=())))) == {*genes, "over.weight", "over.bias"}
    assert network().state_dict().keys() == shapes.keys()  # what follows from the panel is not saved
    assert digest(learned(network())) == digest(learned(network()))


def test_first_weights_are_as_large_as_those_of_a_linear_layer_on_the_genes_variants() -> None:
    groups = [0] * 400 + [1] * 25 + [2]
    with torch_seed(1):
        layer = GeneLayer(groups, 500)
    for gene, size in enumerate((400, 25, 1)):
        part = layer.weight.detach()[torch.tensor(groups) == gene].abs()
        assert 0.99 / size**0.5 < float(part.max()) <= 1 / size**0.5
        assert abs(float(part.mean()) * 2 * size**0.5 - 1) < 0.2


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, 5000).tolist()
    x, results = torch.from_numpy(rng.normal(size=(40, 5000)).astype(np.float32)), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            model = network(groups=groups)
            model[0](x).square().sum().backward()
            results.append((model[0](x).detach(), model[0].weight.grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_tensor_of_genes_times_variants_nor_of_persons_times_variants_times_width() -> None:
    persons, variants, genes, width = 32, 4000, 400, 8
    layer, x = GeneLayer(np.arange(variants) % genes, width), torch.randn(persons, variants)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        layer(x).square().sum().backward()
    largest = max(e.self_cpu_memory_usage for e in seen.events())
    assert 4 * persons * variants <= largest < 2 * 4 * persons * variants


def test_a_network_on_genes_needs_the_gene_of_each_variant() -> None:
    with pytest.raises(InputError, match="genes are known for 0 of the 10 variants; give all genes"):
        build_variant_network(Spec(), 10, 2)
    with pytest.raises(InputError, match=r'net "gene" is not known \(did you mean "genes"\?\); one of: linear, mlp, genes'):
        build_variant_network(Spec(net="gene"), 10, 2, GROUPS)
    with pytest.raises(ValueError, match="every variant must be in a group"):
        GeneLayer([0, -1], 2)


def test_dense_networks_are_what_they_were() -> None:
    shapes = [tuple(p.shape) for p in build_variant_network(Spec(net="mlp", hidden=(4, 3)), 10, 2).parameters()]
    assert shapes == [(4, 10), (4,), (3, 4), (3,), (2, 3), (2,)]
    assert isinstance(build_variant_network(Spec(net="linear", hidden=()), 10, 2), nn.Linear)


# --- privacy of a person


def losses_on(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    label = torch.arange(len(x)) % 2
    return lambda: functional.cross_entropy(model(x), label, reduction="none")


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_each_persons_own_gradient_is_clipped_exactly(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    model = network(Spec(hidden=hidden))
    for scale in (1, 100):
        assert_exact(model, losses_on(model, torch.randn(9, 10) * scale))


def test_several_rows_of_a_person_are_summed_before_the_norm() -> None:
    torch.manual_seed(4)
    model = nn.ModuleDict({"rows": network()})
    person, x = torch.tensor([2, 0, 0, 1, 2, 2]), torch.randn(6, 10)

    def losses() -> torch.Tensor:
        return functional.cross_entropy(torch.zeros(3, 2).index_add(0, person, model["rows"](x)), torch.tensor([0, 1, 0]), reduction="none")

    assert_exact(model, losses, {"rows": person})


def test_no_persons_gradients_are_kept_and_none_is_made_by_itself() -> None:
    persons, variants = 40, 3000
    model, x = network(groups=(np.arange(variants) % 30).tolist()), torch.randn(40, variants)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        clipped_gradient_sum(model, losses_on(model, x), clipping_norm=1.0)
    largest = max(e.self_cpu_memory_usage for e in seen.events())
    assert largest <= 8 * persons * variants  # the squares in float64; their gradients would be 3 x 4 bytes
    assert sum(e.name == "aten::_embedding_bag_per_sample_weights_backward" for e in seen.events()) == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_a_person_with_a_gradient_that_is_not_finite_adds_nothing(value: float) -> None:
    torch.manual_seed(5)
    model, x = network(), torch.randn(6, 10)
    x[2, 4] = value
    found = clipped_gradient_sum(model, losses_on(model, x), clipping_norm=0.5)
    assert all(bool(torch.isfinite(total).all()) for total in found.total.values())
    assert sum(float(total.double().square().sum()) for total in found.total.values()) ** 0.5 <= 0.5 * 6 * (1 + 1e-5)
