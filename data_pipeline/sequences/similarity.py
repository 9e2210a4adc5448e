"""Which sequences are alike: BLASTP (the paper's), MMseqs2, or Biopython's aligner where neither is installed.

A pair counts as alike when a local alignment has at least the asked identity, over aligned residues that make up
at least half of the shorter sequence, and is no chance match (expect value). Without the last condition chance
alignments at 20 % identity chain most proteins together: over the 940 entries of our mirror BLASTP's default of
10 leaves one cluster of 567, and 0.001 leaves 207 clusters, which are the families.
"""

from __future__ import annotations

import csv
import importlib.metadata
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from data_pipeline.errors import ConfigError

COVERAGE = 0.5
"""Smallest part of the shorter sequence that the aligned residues make up."""

MAX_EXPECT = 1e-3
"""Largest expect value of a hit."""

MIN_DATABASE = 200_000
"""Residues. Expect values are those of a database of at least this size, about a thousand proteins, so that a pair
is judged alike or not regardless of how few other sequences it comes with."""

MAX_PYTHON = 200
"""Most sequences that the aligner in Python compares: some 20,000 alignments, a minute or two."""

INSTALL = "install BLASTP with `apt-get install ncbi-blast+` (or MMseqs2 with `apt-get install mmseqs2`)"

# Gapped Karlin-Altschul parameters of BLOSUM62 with gap costs 11 + 1 per residue (NCBI BLAST's blast_stat.c).
_LAMBDA, _K, _ALPHA, _BETA = 0.267, 0.041, 1.9, -30.0
_GAP_OPEN, _GAP_EXTEND = 11.0, 1.0


@dataclass(frozen=True, order=True)
class Hit:
    """Two sequences that are alike.

    Parameters
    ----------
    first, second
        Their ids, in order of the alphabet.
    identity
        Identical residues over alignment columns, 0 to 1.
    coverage
        Aligned residues over the length of the shorter sequence, 0 to 1.
    expect
        Expect value; 0 for a sequence that contains the other.
    """

    first: str
    second: str
    identity: float
    coverage: float
    expect: float


def find_hits(sequences: dict[str, str], identity: float = 0.2, method: str = "auto") -> tuple[list[Hit], str, str]:
    """Compare all sequences with all.

    Parameters
    ----------
    sequences
        Id -> one-letter sequence.
    identity
        Smallest identity of a hit, 0 to 1.
    method
        ``blastp``, ``mmseqs``, ``python``, or ``auto`` for the first of them that is installed.

    Returns
    -------
    hits
        One for each pair that is alike, sorted; of several alignments of a pair the best covering one.
    method
        The method used.
    version
        Its version.

    Raises
    ------
    ConfigError
        If the method is unknown or not installed, there are too many sequences for it, the identity is not within
        0 to 1, or a sequence is empty.
    """
    method = choose_method(method)
    if not 0 <= identity <= 1:
        raise ConfigError(f"identity is {identity}; give a fraction within 0 and 1, the paper's is 0.2.")
    empty = sorted(name for name, sequence in sequences.items() if not sequence)
    if empty:
        raise ConfigError(f"no sequence for {', '.join(empty[:5])}; leave out entries without a protein chain.")
    ordered = dict(sorted(sequences.items()))
    search, version = _METHODS[method]
    best: dict[tuple[str, str], Hit] = {}
    for hit in [*_contained(ordered), *(search(ordered) if len(ordered) > 1 else ())]:
        if hit.identity >= identity and hit.coverage >= COVERAGE and hit.expect <= MAX_EXPECT:
            pair = (hit.first, hit.second)
            best[pair] = max(best.get(pair, hit), hit, key=lambda h: (h.coverage, h.identity, -h.expect))
    return [best[pair] for pair in sorted(best)], method, version()


def can_compare(n_sequences: int) -> bool:
    """Tell whether so many sequences can be compared with what is installed."""
    return choose_method("auto") != "python" or n_sequences <= MAX_PYTHON


def choose_method(method: str) -> str:
    """Return the method to use, having made sure that it is installed.

    Parameters
    ----------
    method
        As for `find_hits`; ``rcsb``, whose clusters were made elsewhere, compares as ``auto`` does.

    Raises
    ------
    ConfigError
        If the method is unknown or not installed.
    """
    programs = {"blastp": ("blastp", "makeblastdb"), "mmseqs": ("mmseqs",), "python": ()}
    if method in ("auto", "rcsb"):
        return next(name for name, needed in programs.items() if all(map(shutil.which, needed)))
    if method not in programs:
        raise ConfigError(f"no method {method!r} to compare sequences. Allowed: auto, {', '.join(programs)}.")
    missing = [program for program in programs[method] if shutil.which(program) is None]
    if missing:
        raise ConfigError(
            f"method {method} needs the program {' and '.join(missing)}, which is not installed: {INSTALL}, "
            f"or choose method python for up to {MAX_PYTHON} sequences."
        )
    return method


def _contained(sequences: dict[str, str]) -> Iterator[Hit]:
    """Yield pairs of which one contains the other: for a few residues no expect value can be small."""
    for (a, s), (b, t) in combinations(sequences.items(), 2):
        if s in t or t in s:
            yield Hit(a, b, 1.0, 1.0, 0.0)


def _database_size(sequences: dict[str, str]) -> int:
    return max(MIN_DATABASE, sum(map(len, sequences.values())))


def _hit(a: str, b: str, sequences: dict[str, str], identical: int, aligned: int, columns: int, expect: float) -> Hit:
    first, second = sorted((a, b))
    return Hit(first, second, identical / columns, aligned / min(len(sequences[a]), len(sequences[b])), expect)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise ConfigError(f"{command[0]} failed with status {done.returncode}: {said}. Try another method.")
    return done.stdout


def _write_fasta(path: Path, sequences: dict[str, str]) -> list[str]:
    """Write the sequences under plain numbers, which no program takes apart, and return their ids."""
    path.write_text("".join(f">{n}\n{sequence}\n" for n, sequence in enumerate(sequences.values())), encoding="ascii")
    return list(sequences)


def _parse(table: str, names: list[str], sequences: dict[str, str], expect_factor: float = 1.0) -> Iterator[Hit]:
    """Yield the hits of a table of query, target, identical, mismatches, columns, expect."""
    for query, target, identical, mismatches, columns, expect in csv.reader(table.splitlines(), delimiter="\t"):
        if query != target:
            a, b = names[int(query)], names[int(target)]
            aligned = int(identical) + int(mismatches)
            yield _hit(a, b, sequences, int(identical), aligned, int(columns), float(expect) * expect_factor)


def _blastp(sequences: dict[str, str]) -> list[Hit]:
    with tempfile.TemporaryDirectory() as folder:
        fasta, database = Path(folder, "sequences.fasta"), Path(folder, "database")
        names = _write_fasta(fasta, sequences)
        _run(["makeblastdb", "-in", str(fasta), "-dbtype", "prot", "-out", str(database)])
        columns = "6 qseqid sseqid nident mismatch length evalue"
        limits = ["-evalue", str(MAX_EXPECT), "-dbsize", str(_database_size(sequences))]
        # BLASTP keeps 500 targets if nothing is said, and drops the others silently.
        limits += ["-max_target_seqs", str(max(500, 2 * len(names)))]
        table = _run(["blastp", "-query", str(fasta), "-db", str(database), "-outfmt", columns, *limits])
    return list(_parse(table, names, sequences))


def _mmseqs(sequences: dict[str, str]) -> list[Hit]:
    # MMseqs2 takes the database's real size; expect values are proportional to it.
    factor = _database_size(sequences) / sum(map(len, sequences.values()))
    with tempfile.TemporaryDirectory() as folder:
        fasta, table = Path(folder, "sequences.fasta"), Path(folder, "hits.tsv")
        names = _write_fasta(fasta, sequences)
        paths = [str(fasta), str(fasta), str(table), str(Path(folder, "work"))]
        columns = "query,target,nident,mismatch,alnlen,evalue"
        limits = ["-e", str(MAX_EXPECT / factor), "--max-seqs", str(max(500, 2 * len(names)))]
        options = ["-s", "7.5", "--alignment-mode", "3", "-a", "1", "--threads", "1", "-v", "1"]
        _run(["mmseqs", "easy-search", *paths, "--format-output", columns, *limits, *options])
        text = table.read_text(encoding="ascii")
    return list(_parse(text, names, sequences, factor))


def expect_value(score: float, length: int, database: int) -> float:
    """Return the number of chance alignments of at least this score, by the formula of BLAST's first gapped release.

    ``E = K (m - l) n exp(-lambda S)``, where the length adjustment l, the part of the query in which no alignment
    can start, solves ``l = alpha / lambda ln(K (m - l) n) + beta``. BLAST has since refined the correction for short
    sequences: near `MAX_EXPECT` its values are a half to a sixth of these, far below it still smaller.

    Parameters
    ----------
    score
        Raw score S of a local alignment with BLOSUM62 and gap costs 11 + 1 per residue.
    length
        Residues m of the query.
    database
        Residues n of the database.

    References
    ----------
    Altschul et al., Nucleic Acids Research 29, 351 (2001).
    """
    low, high = 0.0, length - 1.0 / _K if length > 1.0 / _K else 0.0
    for _ in range(40):
        middle = (low + high) / 2
        wanted = _ALPHA / _LAMBDA * math.log(_K * (length - middle) * database) + _BETA
        low, high = (middle, high) if wanted > middle else (low, middle)
    return _K * (length - low) * database * math.exp(-_LAMBDA * score)


def _python(sequences: dict[str, str]) -> Iterator[Hit]:
    if len(sequences) > MAX_PYTHON:
        raise ConfigError(
            f"{len(sequences)} sequences are too many for method python, which takes {MAX_PYTHON} at most: {INSTALL}."
        )
    from Bio.Align import PairwiseAligner, substitution_matrices

    matrix = substitution_matrices.load("BLOSUM62")
    known = {a: "".join(c if c in matrix.alphabet else "X" for c in s) for a, s in sequences.items()}
    aligner = PairwiseAligner(mode="local", substitution_matrix=matrix)
    # Biopython's opening score is that of a gap's first residue.
    aligner.open_gap_score, aligner.extend_gap_score = -_GAP_OPEN - _GAP_EXTEND, -_GAP_EXTEND
    database = _database_size(sequences)
    for a, b in combinations(known, 2):
        score = aligner.score(known[a], known[b])
        expect = expect_value(score, min(len(known[a]), len(known[b])), database)
        if expect <= MAX_EXPECT:
            counts = aligner.align(known[a], known[b])[0].counts()
            aligned = counts.identities + counts.mismatches
            yield _hit(a, b, sequences, counts.identities, aligned, aligned + counts.internal_gaps, expect)


_METHODS: dict[str, tuple[Callable[[dict[str, str]], Iterator[Hit] | list[Hit]], Callable[[], str]]] = {
    "blastp": (_blastp, lambda: _run(["blastp", "-version"]).split("\n")[0].removeprefix("blastp: ")),
    "mmseqs": (_mmseqs, lambda: _run(["mmseqs", "version"]).strip()),
    "python": (_python, lambda: f"biopython {importlib.metadata.version('biopython')}"),
}
