"""Alike or not: sequences of known identity, the methods against each other, and what is missing said clearly."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.sequences import similarity
from data_pipeline.sequences.cluster import cluster, components
from data_pipeline.sequences.similarity import choose_method, expect_value, find_hits

AMINO = "ACDEFGHIKLMNPQRSTVWY"
INSTALLED = [
    pytest.param("blastp", marks=pytest.mark.skipif(shutil.which("blastp") is None, reason="blastp is not installed")),
    # MMseqs2 takes some ten seconds for its tables, however few the sequences.
    pytest.param(
        "mmseqs",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("mmseqs") is None, reason="mmseqs is not installed"),
        ],
    ),
]
METHODS = ["python", *INSTALLED]


def chain(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(AMINO, k=length))


def mutate(sequence: str, every: int) -> str:
    """Return the sequence with each `every`-th residue replaced by a poor match: one far off in the alphabet."""
    return "".join(
        AMINO[(AMINO.index(residue) + 10) % 20] if (position + 1) % every == 0 else residue
        for position, residue in enumerate(sequence)
    )


A, B, C = chain(120, 1), chain(120, 2), chain(120, 3)


@pytest.mark.parametrize("method", METHODS)
def test_identity_and_coverage_are_those_built_in(method):
    """A sequence with every fourth of 120 residues replaced is 75 % identical over (nearly) all of it."""
    (hit,), _, _ = find_hits({"a": A, "m": mutate(A, 4)}, 0.2, method)
    # A local alignment stops before the last residue, a mismatch: 90 of 119.
    assert (hit.first, hit.second) == ("a", "m")
    assert hit.identity == pytest.approx(90 / 119, abs=1e-3)
    assert hit.coverage == pytest.approx(119 / 120, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_identity_is_a_threshold(method):
    """The same pair is alike at 70 % and not at 80 %."""
    pair = {"a": A, "m": mutate(A, 4)}
    assert len(cluster(pair, 0.7, method).clusters) == 1
    assert len(cluster(pair, 0.8, method).clusters) == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shared", "alike"), [(45, False), (75, True)])
def test_half_of_the_shorter_sequence_must_be_aligned(method, shared, alike):
    """A common stretch of 45 of 120 residues is too little, of 75 enough, whatever the length of the other."""
    pair = {"a": A, "b": B[:60] + A[:shared] + C + B[60:]}
    assert (len(cluster(pair, 0.2, method).clusters) == 1) is alike


@pytest.mark.parametrize("method", METHODS)
def test_unrelated_sequences_stay_apart(method):
    """Random sequences share no cluster, though their chance alignments often exceed 20 % identity."""
    sequences = {f"s{n}": chain(100, 100 + n) for n in range(30)}
    assert len(cluster(sequences, 0.2, method).clusters) == 30


@pytest.mark.parametrize("method", METHODS)
def test_alike_is_passed_on(method):
    """Two sequences that share nothing are in one cluster when a third is like both; the fourth stays alone."""
    found = cluster({"d": C, "c": B, "b": A[:100] + B[:100], "a": A}, 0.2, method)
    assert found.clusters == {"a": ["a", "b", "c"], "d": ["d"]}
    assert [(hit.first, hit.second) for hit in found.pairs] == [("a", "b"), ("b", "c")]
    assert found.method == method
    assert any(character.isdigit() for character in found.version)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_input_does_not_matter(method):
    """Shuffled input gives the same clusters, names and order."""
    sequences = {"x": A, "k": mutate(A, 3), "c": B, "z": mutate(B, 5), "m": C}
    turned = dict(reversed(sequences.items()))
    first, second = cluster(sequences, 0.2, method), cluster(turned, 0.2, method)
    assert (
        list(first.clusters.items())
        == list(second.clusters.items())
        == [("c", ["c", "z"]), ("k", ["k", "x"]), ("m", ["m"])]
    )
    assert first.pairs == second.pairs


@pytest.mark.parametrize("method", METHODS)
def test_a_peptide_and_its_copy_are_alike(method):
    """Seven equal residues have no small expect value, and are the same protein all the same."""
    assert len(cluster({"a": "LVEALYL", "b": "LVEALYL", "c": "GGLVEALYLGG", "d": "KKKDDDE"}, 0.2, method).clusters) == 2


@pytest.mark.parametrize("method", INSTALLED)
def test_python_finds_what_the_programs_find(method):
    """On families at 25 to 80 % identity the aligner in Python gives the clusters that the program gives."""
    sequences = {}
    for family in range(8):
        parent = chain(90 + 10 * family, family)
        generator = random.Random(family)
        for member, kept in enumerate((1.0, 0.8, 0.6, 0.45, 0.25)):
            sequences[f"f{family}m{member}"] = "".join(
                residue if generator.random() < kept else generator.choice(AMINO) for residue in parent
            )
    program, python = (cluster(sequences, 0.2, name) for name in (method, "python"))
    close = {hit.first[:2] + hit.second[:2] for hit in program.pairs}
    assert close == {f"f{n}f{n}" for n in range(8)}
    assert program.clusters.keys() >= {f"f{n}m0" for n in range(8)}
    # Members that kept a quarter lie at the limit of what any search sees; those that kept more must agree.
    sure = [name for name in sequences if not name.endswith("m4")]
    for found in (program, python):
        home = {name: key for key, members in found.clusters.items() for name in members}
        assert all(home[name] == f"{name[:2]}m0" for name in sure)


@pytest.mark.skipif(shutil.which("blastp") is None, reason="blastp is not installed")
def test_expect_value_near_the_threshold_is_blasts(tmp_path):
    """For scores near the threshold the expect value equals BLASTP's within a factor of ten."""
    targets = {}
    for number in range(60):
        generator, parent = random.Random(number), chain(100 + 2 * number, number)
        kept = 0.3 + 0.005 * number
        targets[number] = "".join(r if generator.random() < kept else generator.choice(AMINO) for r in parent)
        with (tmp_path / "query").open("a") as file:
            file.write(f">{number}\n{parent}\n")
    (tmp_path / "target").write_text("".join(f">{n}\n{s}\n" for n, s in targets.items()))
    subprocess.run(["makeblastdb", "-in", "target", "-dbtype", "prot"], cwd=tmp_path, check=True, capture_output=True)
    command = "blastp -query query -db target -dbsize 200000 -comp_based_stats 0 -outfmt".split()
    done = subprocess.run(
        [*command, "6 qlen slen score evalue"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    ratios = [
        expect_value(float(score), min(int(m), int(n)), 200_000) / float(expect)
        for m, n, score, expect in (line.split() for line in done.stdout.splitlines())
        if 1e-5 < float(expect) < 1
    ]
    assert len(ratios) >= 10
    assert 0.3 < min(ratios) and max(ratios) < 10


def test_auto_takes_what_is_installed(monkeypatch):
    """BLASTP comes first, then MMseqs2, then Python, which is always there."""
    have: set[str] = set()
    monkeypatch.setattr(similarity.shutil, "which", lambda name: name if name in have else None)
    assert choose_method("auto") == "python"
    have.add("mmseqs")
    assert choose_method("auto") == "mmseqs"
    have.add("blastp")
    assert choose_method("auto") == "mmseqs", "blastp cannot work without makeblastdb"
    have.add("makeblastdb")
    assert choose_method("auto") == "blastp"


def test_a_missing_program_and_too_many_sequences_name_the_install_command(monkeypatch):
    """Whoever lacks BLASTP is told what to type."""
    monkeypatch.setattr(similarity.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="apt-get install ncbi-blast"):
        cluster({"a": A}, 0.2, "blastp")
    with pytest.raises(ConfigError, match=r"201 sequences.*200 at most.*apt-get install ncbi-blast"):
        cluster({str(n): chain(30, n) for n in range(201)}, 0.2, "auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "blast"}, "Allowed: auto, blastp, mmseqs, python"),
        ({"identity": 20.0}, "fraction within 0 and 1"),
        ({"sequences": {"a": A, "b": ""}}, "no sequence for b"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    """An unknown method, a percentage for a fraction and an empty sequence say what is allowed."""
    with pytest.raises(ConfigError, match=message):
        cluster(**({"sequences": {"a": A}, "identity": 0.2, "method": "python"} | arguments))


def test_components_of_a_graph():
    """Chains, a ring and lone nodes fall apart as they should, named after their first."""
    pairs = [("e", "b"), ("b", "c"), ("g", "f"), ("f", "d"), ("d", "g")]
    assert components(list("gfedcba"), pairs) == {"a": ["a"], "b": ["b", "c", "e"], "d": ["d", "f", "g"]}


def test_one_or_no_sequence_is_no_trouble():
    """There is nothing to compare, and that is fine."""
    assert cluster({}, 0.2, "python").clusters == {}
    assert cluster({"a": A}).clusters == {"a": ["a"]}
