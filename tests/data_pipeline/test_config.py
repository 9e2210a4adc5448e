from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.config import dump_config, entry_seed, load_config, stage_key
from data_pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = "name: x\nsource: {path: entries}\n"


def _load(tmp_path: Path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "sample: {n_frame: 3}", "sample.n_frame: no such key. Did you mean 'n_frames'"),
        (MINIMAL + "sampel: {}", "sampel: no such key. Did you mean 'sample'"),
        (MINIMAL + "sample: {timestep: 0.006}", "sample.timestep: .*0.004, got 0.006"),
        (MINIMAL + "sample: {protocol: hot}", "'thermal' or 'minimized', got 'hot'"),
        (MINIMAL + "split: {train: 0.9}", "add up to 1"),
        ("name: x", "source: Field required"),
        ("- 1", "holds list"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_configuration_names_the_key(tmp_path: Path, text: str, words: str) -> None:
    """Each mistake names the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=words):
        _load(tmp_path, text)


def test_missing_file_is_a_config_error(tmp_path: Path) -> None:
    """A path that is not there is said, not raised as OSError."""
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "none.yaml")


def test_resolved_copy_reads_back_equal(tmp_path: Path) -> None:
    """The copy in the run folder is the same configuration from anywhere: paths are absolute."""
    config = _load(tmp_path, MINIMAL)
    assert config.source.path == str(tmp_path / "entries")
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    assert _load(elsewhere, dump_config(config)) == config


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/**/*data*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    """Every example configuration loads."""
    load_config(path)


def test_seed_and_key_depend_on_what_they_should() -> None:
    """An entry's seed depends on seed and entry, a key on stage, settings and inputs, not on order of keys."""
    assert entry_seed(1, "1abc") == entry_seed(1, "1abc")
    assert len({entry_seed(s, e) for s in (1, 2) for e in ("1abc", "2abc")}) == 4
    assert stage_key("label", {"a": 1, "b": 2}, "x") == stage_key("label", {"b": 2, "a": 1}, "x")
    assert (
        len({stage_key("label", {"a": 1}, "x"), stage_key("label", {"a": 2}, "x"), stage_key("label", {"a": 1}, "y")})
        == 3
    )
