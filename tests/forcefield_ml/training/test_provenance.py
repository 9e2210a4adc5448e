"""The stages a model has gone through: told of new trainings, read off old ones as far as they tell."""

from __future__ import annotations

from forcefield_ml.training.provenance import STAGE_KEYS, stages_of, with_progress

FORMER = {
    "n_frames": 873,
    "dataset_sha256": "5aae",
    "protocol": "thermal",
    "recipe": {"dataset": "dataset.h5", "extra_datasets": ["v1a.h5"], "optimiser": "soap", "learning_rate": 0.003},
    "seed": 2,
    "n_batches": 7165,
    "seconds": 840.1,
}
"""What files without ``stages`` tell of a training."""


def test_models_of_former_versions_tell_their_stages() -> None:
    """Files without `stages` give what they know: the last training whole, of those before it batches and data."""
    before = {"sha256": "2bfb", "dataset_sha256": "568e", "n_batches": 31_673}
    first, last = stages_of({**FORMER, "started_from": before})
    assert set(first) == set(last) == set(STAGE_KEYS)
    assert first["n_batches"] == 31_673 and first["dataset_sha256"] == "568e" and first["seconds"] is None
    assert last["n_batches"] == 7_165 and last["optimiser"] == "soap" and last["seed"] == 2
    assert last["started_from"] == "2bfb" and last["seconds"] == 840.1
    assert [data["name"] for data in last["datasets"]] == ["dataset.h5", "v1a.h5"]
    assert all(data["content_sha256"] is None for data in last["datasets"])  # it holds the hash over both alone
    (only,) = stages_of({**FORMER, "recipe": {"dataset": "dataset.h5"}})
    assert only["datasets"] == [{"name": "dataset.h5", "content_sha256": "5aae", "n_frames": 873}]
    assert only["started_from"] is None


def test_nothing_told_is_no_stage() -> None:
    """A card without training has no stages; one that has them is taken at its word."""
    assert stages_of({}) == []
    assert stages_of({"stages": [{"seed": 1}], "seed": 2}) == [{"seed": 1}]


def test_progress_is_the_last_stage_s_alone() -> None:
    """Batches and seconds go into the run and its own stage; nothing else is changed."""
    training = {"stages": [{"n_batches": 5, "seconds": 1.0}, {"n_batches": 0, "seconds": 0.0}]}
    found = with_progress(training, 7, 2.5)
    assert found == {
        "stages": [{"n_batches": 5, "seconds": 1.0}, {"n_batches": 7, "seconds": 2.5}],
        "n_batches": 7,
        "seconds": 2.5,
    }
    assert training["stages"][1] == {"n_batches": 0, "seconds": 0.0}
