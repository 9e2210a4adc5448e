"""A damaged file is refused with a class, or taken only if it still holds what the sound one held.

A file is taken when `inspect` reads it and `judge` keeps it. It must then have, compared with the sound file:

- the same chains, the same residues with coordinates, the same gaps, the same number of models;
- the same sequence. Where a residue has no coordinates a PDB file tells its name once, so that a flipped bit can
  turn it into another one there: at most as many residues as flipped bytes;
- the same atoms at the same places. A flipped bit can turn a digit into another one, and the new place may be as
  likely as the old one: at most as many atoms as flipped bytes, each moved by at most `MOVED`.

Nothing is asked of what a file tells once and nothing depends on but the choice of entries: resolution, method, date,
ligands, bonds in the header, occupancies, alternative locations. A flipped bit in ``1.70`` cannot be seen.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from damage import DAMAGES, Damaged, Sound, damage, read_sound, residues

from data_pipeline.engine import Limits, Local, Task
from data_pipeline.entries.curate import CRITERIA, judge
from data_pipeline.entries.facts import EntryFacts, inspect
from data_pipeline.errors import EntryError
from data_pipeline.ledger import OK, REJECTED, Ledger
from data_pipeline.stages import prepare_entry
from data_pipeline.systems.prepare import prepare

KINDS = {"empty", "html", "truncated", "unreadable", "too_large", "coordinates", "duplicate", "altered", "sequence"}
"""Classes of failure of a file."""

LONGEST = 10.0
"""Seconds that one file may take."""

CERTAIN = (
    "packed file cut", "text cut", "empty", "web page", "one point", "blown up", "shrunk", "places mixed up",
    "one atom away", "columns", "other sequence", "absurd numbers",
)  # fmt: skip
"""Kinds of damage that are always found."""

MOVED = 8.1
"""Å that an atom may be moved by one flipped bit unseen: the digits of whole Å differ by at most 8."""

ENTRIES = ("1crn.cif", "1crn.pdb", "1shg.pdb", "1a8o.cif", "4gwt.pdb", "1fas.cif", "1ajj.pdb", "1ubq.cif")


@pytest.fixture(scope="module")
def sound(mirror: Path) -> list[Sound]:
    return [read_sound(mirror / f"{name}.gz") for name in ENTRIES]


def write(folder: Path, made: Damaged) -> Path:
    path = folder / f"1bad{made.suffix}"
    path.write_bytes(made.data)
    return path


def told(path: Path) -> tuple[str, EntryFacts | None]:
    """Return the class of rejection of a file, or the facts of one that is taken."""
    try:
        facts = inspect(path)
    except EntryError as error:
        assert error.kind in KINDS, error.kind
        assert path.name in str(error) and len(str(error)) < 600
        return error.kind, None
    verdict = judge(facts)
    assert verdict.keep or verdict.criterion in CRITERIA
    return verdict.criterion, facts if verdict.keep else None


STRUCTURE = (
    "n_protein_chains n_nucleic_chains n_other_chains n_residues n_observed n_internal_missing longest_gap n_models"
)


def assert_same(made: Damaged, path: Path, facts: EntryFacts) -> None:
    """Assert what the head of this file says of an entry that is taken."""
    before = inspect(made.sound.path)
    for name in STRUCTURE.split():
        assert getattr(facts, name) == getattr(before, name), name
    observed, atoms = residues(made.sound.packed, made.sound.is_cif)
    observed_now, atoms_now = residues(path.read_bytes(), made.sound.is_cif)
    assert observed_now == observed
    letters = [k for k, (a, b) in enumerate(zip(before.sequence, facts.sequence, strict=True), start=1) if a != b]
    assert len(letters) <= made.n_bytes and not set(letters) & set(observed)
    assert len(atoms_now) == len(atoms)
    moved = [a.pos.dist(b.pos) for a, b in zip(atoms, atoms_now, strict=True) if a.pos.dist(b.pos) > 1e-6]
    assert all(map(math.isfinite, moved)) and len(moved) <= made.n_bytes
    assert max(moved, default=0.0) <= MOVED


def feed(
    sound: list[Sound], n_files: int, folder: Path, first: int = 0
) -> tuple[Counter[str], list[tuple[Damaged, Path]]]:
    """Feed damaged files and return the number by kind of damage and class, and those that were taken."""
    counts: Counter[str] = Counter()
    taken = []
    kinds = list(DAMAGES)
    for number in range(first, first + n_files):
        made = damage(kinds[number % len(kinds)], sound[number // len(kinds) % len(sound)], number)
        inner = folder / str(number)
        inner.mkdir()
        path = write(inner, made)
        started = time.monotonic()
        kind, facts = told(path)
        assert time.monotonic() - started < LONGEST, f"{made.kind} of {made.sound.path.name}"
        if facts is not None:
            try:
                assert_same(made, path, facts)
            except AssertionError as error:
                raise AssertionError(f"{path}: {made.kind} of {made.sound.path.name} is taken: {error}") from error
            taken.append((made, path))
        counts[f"{made.kind}: {kind or 'taken'}"] += 1
    return counts, taken


def test_sound_files_are_taken(sound: list[Sound], tmp_path: Path) -> None:
    """The control: undamaged, packed or not and under any name, every one of them passes."""
    for number, one in enumerate(sound):
        made = Damaged("none", one, one.text if number % 2 else one.packed, 0, ".ent")
        path = write(tmp_path, made)
        kind, facts = told(path)
        assert facts is not None, kind
        assert_same(made, path, facts)


def test_comparison_finds_what_it_is_there_for(sound: list[Sound], tmp_path: Path) -> None:
    """The negative control: another sequence, a lost atom, a moved one are seen when no class has stopped them."""
    crambin = next(one for one in sound if one.path.name == "1crn.pdb.gz")
    facts = inspect(crambin.path)
    text = crambin.text
    for changed in (
        text.replace(b"ILE A   7 ", b"LEU A   7 "),
        b"\n".join(line for line in text.split(b"\n") if not line.startswith(b"ATOM     50 ")),
        text.replace(b"17.047  14.099   3.625", b"17.047  14.099   3.725"),
    ):
        assert changed != text
        path = write(tmp_path, Damaged("x", crambin, changed, 0, ".pdb"))
        with pytest.raises(AssertionError):
            assert_same(Damaged("x", crambin, changed, 0, ".pdb"), path, facts)


def test_a_thousand_damaged_files_are_refused_or_the_same(sound: list[Sound], tmp_path: Path) -> None:
    """Each kind of damage, forty files each: a class or the same content, in time. Some that pass are prepared."""
    counts, taken = feed(sound, 1000, tmp_path)
    print("\n".join(f"{n:4d} {name}" for name, n in sorted(counts.items())))
    assert len(taken) < 0.2 * counts.total()
    for kind in CERTAIN:
        assert counts[f"{kind}: taken"] == 0, kind
    small = {made.kind: (made, path) for made, path in taken if "1crn" in made.sound.path.name}
    assert len(small) > 5
    for made, path in small.values():
        prepare_or_refuse(made, path)


@pytest.mark.slow
def test_many_damaged_files(sound: list[Sound], tmp_path: Path) -> None:
    """Ten thousand others, and a hundred of those that pass go through preparation."""
    _, taken = feed(sound, 10_000, tmp_path, first=1000)
    prepared = sum(prepare_or_refuse(made, path) for made, path in taken[:100])
    assert prepared > 50


def prepare_or_refuse(made: Damaged, path: Path) -> bool:
    """Assert that preparation gives a system, of a size as it should be, or an `EntryError`; return which."""
    out = path.parent / "out.cif"
    try:
        prepared = prepare(path, out, padding=0.2, box_shape="dodecahedron", seed=1)
    except EntryError as error:
        assert error.kind and not out.exists(), made.kind
        return False
    assert 1000 < len(prepared.positions) < 30_000, made.kind
    return True


HUGE = {
    "bomb": "import gzip; gzip.open(path, 'wb', 1).write(b'ATOM  ' + bytes(4 << 20)) and None\n"
    "data = open(path, 'rb').read(); open(path, 'wb').write(data * 500)",
    "line": "open(path, 'w').write('HEADER' + 'A' * (60 << 20) + chr(10) + 'END' + chr(10))",
    "spaces": "open(path, 'w').write(' ' * (60 << 20) + 'data_x')",
    "value": "open(path, 'w').write('data_x' + chr(10) + '#' + chr(10) + '_entry.id ' + 'A' * (60 << 20))",
    "numbers": "open(path, 'w').write('data_x' + chr(10) + 'loop_' + chr(10) + '_a.b' + chr(10) + '1 ' * (30 << 20))",
    "million": "line = 'ATOM  %5d  CA  ALA A%4d    %8.3f%8.3f%8.3f  1.00 10.00           C\\n'\n"
    "open(path, 'w').writelines(line % (k % 99999, k // 100 % 9999, k % 97, k % 89, k % 83) for k in range(1000000))",
    "million_cif": "head = ''.join(f'_atom_site.{name}\\n' for name in 'group_PDB id type_symbol label_atom_id '\n"
    "    'label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id Cartn_x Cartn_y Cartn_z'.split())\n"
    "open(path, 'w').write('data_x\\nloop_\\n' + head + ''.join(\n"
    "    f'ATOM {k} C C{k % 999} . ALA A 1 {k // 30} {k % 97}.5 {k % 89}.5 {k % 83}.5\\n' for k in range(1000000)))",
}
"""Programs that write files which are harmless to store and expensive to read."""

MORE = ("spaces", "value", "numbers")
"""Those that only the slow tests try."""


@pytest.mark.parametrize("name", [pytest.param(k, marks=pytest.mark.slow) if k in MORE else k for k in HUGE])
def test_huge_files_are_refused_in_little_time_and_memory(name: str, tmp_path: Path) -> None:
    """Within 1.5 GB of memory and half a minute each is refused, in a process that has no more."""
    path = tmp_path / "1big.pdb"
    exec(HUGE[name], {"path": str(path)})
    program = (
        "import resource, sys, time\n"
        "from data_pipeline.errors import EntryError\n"
        "from data_pipeline.entries.facts import inspect\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "started = time.process_time()\n"
        "try:\n"
        "    inspect(sys.argv[1])\n"
        "except EntryError as error:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print(error.kind, time.process_time() - started, used // 1024)\n"
    )
    limit = 4 << 30  # of address space, more than of memory; the program tells what it really used
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0 and done.stdout, done.stderr[-500:]
    kind, seconds, megabytes = done.stdout.split()
    print(name, kind, seconds, megabytes)
    assert kind in KINDS
    assert float(seconds) < 30
    assert int(megabytes) < 1500


def test_engine_records_each_damaged_file(sound: list[Sound], tmp_path: Path) -> None:
    """Through the engine and into the ledger: a class for every damaged file, and the sound one among them is done."""
    crambin = sound[0]
    kinds = ("packed file cut", "web page", "blown up", "one point", "empty", "text cut", "absurd numbers")
    tasks = []
    for number, kind in enumerate(kinds):
        (tmp_path / str(number)).mkdir()
        path = write(tmp_path / str(number), damage(kind, crambin, 12))
        tasks.append((f"{number}bad", path))
    tasks.insert(3, ("1crn", crambin.path))
    settings = {"padding": 0.2, "box_shape": "dodecahedron"}
    run = tmp_path / "run"
    todo = [
        Task(entry, "prepare", "key", f"{entry}.cif", str(run), {"path": str(path), "settings": settings, "seed": 1})
        for entry, path in tasks
    ]
    ledger = Ledger(run / "ledger.jsonl")
    with Local(1, Limits(timeout=60)) as engine:
        for record in engine.map(prepare_entry, todo):
            ledger.add(record)
    ledger.close()
    records = {record.entry: record for record in Ledger(run / "ledger.jsonl")}
    assert len(records) == len(kinds) + 1
    assert records.pop("1crn").status == OK
    for record in records.values():
        assert record.status == REJECTED and record.error_class in KINDS and record.reason, record
