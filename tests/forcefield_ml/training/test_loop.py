"""The training loop: it learns, keeps to its budget, and goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dataset_files import TINY_MODELS, write_dataset
from tensorboardX.proto.event_pb2 import Event

from forcefield_ml import models
from forcefield_ml.config import parse_config
from forcefield_ml.data import BatchSource, ForceDataset
from forcefield_ml.errors import ConfigError, DatasetError, UnstableError
from forcefield_ml.nn.atom_types import CODE_STEP, AtomTypes
from forcefield_ml.nn.embedding import types_of
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.average import WeightAverage
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.training.log import read_log
from forcefield_ml.training.loop import train


@pytest.fixture
def settings(dataset_path, tmp_path) -> dict[str, Any]:
    return {
        "dataset": dataset_path,
        "output": tmp_path / "run",
        "model": TINY_MODELS["tfn1"],
        "learning_rate": 0.02,
        "max_batches": 12,
        "validate_every": 4,
        "targets_per_batch": 20,
        "log_every": 2,
    }


def run(settings: dict[str, Any], **changes: Any):
    return train(parse_config(TrainingConfig, settings | changes), quiet=True)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return files.load(path).state_dict


@pytest.mark.parametrize(("name", "optimiser"), [("fast", "adam"), ("tfn1", "adam"), ("fast", "soap")])
def test_training_learns_analytic_forces(settings, name, optimiser):
    """On forces that follow from the neighbourhood a few batches beat the naive predictor by far on unseen frames."""
    settings |= {"max_batches": 60, "validate_every": 30, "targets_per_batch": None, "optimiser": optimiser}
    result = run(settings, model=TINY_MODELS[name])
    assert result.finished and result.n_batches == 60
    assert result.metrics["tensor"] < 0.5 * result.metrics["naive"]["tensor"]
    assert result.metrics["angle"] < 30


def test_order_0_trains_on_magnitudes(settings):
    """Order 0 learns the norm with the scalar loss, and reports nothing else."""
    result = run(settings, model=TINY_MODELS["tfn0"])
    assert result.metrics["tensor"] is None and result.metrics["magnitude"] > 0
    row = read_log(settings["output"] / "log.csv")[-1]
    assert "validation_tensor" not in row and row["validation_magnitude"] == pytest.approx(result.metrics["magnitude"])


@pytest.mark.parametrize("optimiser", ["adam", "soap"])
def test_resumed_run_is_the_run_that_never_stopped(settings, tmp_path, optimiser):
    """Stopping after 5 of 12 batches and going on gives the same weights, averages and log, bit for bit."""
    torch.set_num_threads(1)
    settings |= {"schedule": "constant", "ema": 0.9, "optimiser": optimiser}
    whole = run(settings, output=tmp_path / "whole")
    assert run(settings, max_batches=5).n_batches == 5
    assert run(settings).n_batches == 12
    for name in ("last.pt", "best.pt"):
        expected, found = weights(tmp_path / "whole" / name), weights(settings["output"] / name)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    first, second = (files.load(folder / "last.pt").resume for folder in (tmp_path / "whole", settings["output"]))
    assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])
    losses = [
        {row["batch"]: row["validation_loss"] for row in read_log(folder / "log.csv") if row["batch"] in (4, 8, 12)}
        for folder in (tmp_path / "whole", settings["output"])
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert whole.metrics["loss"] == pytest.approx(min(losses[0].values()), rel=1e-6)


def test_budget_of_pairs_goes_on_where_it_stopped(settings, tmp_path):
    """With batches by a budget of pairs, too, a run in two parts is the run that never stopped, bit for bit."""
    torch.set_num_threads(1)
    settings |= {"schedule": "constant", "targets_per_batch": None, "pairs_per_batch": 4000, "max_batches": 6}
    run(settings, output=tmp_path / "whole")
    run(settings, max_batches=3)
    run(settings)
    expected, found = weights(tmp_path / "whole" / "last.pt"), weights(settings["output"] / "last.pt")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_bfloat16_trains_weights_of_float32(settings, tmp_path):
    """The losses are near those of float32 but not the same (it is used); weights, averages, statistics: float32."""
    run(settings, log_every=1)
    run(settings, log_every=1, precision="bf16", output=tmp_path / "bf16")
    exact, coarse = (
        [row["loss"] for row in read_log(folder / "log.csv")] for folder in (settings["output"], tmp_path / "bf16")
    )
    assert exact == pytest.approx(coarse, rel=0.03) and exact != pytest.approx(coarse, rel=1e-5)
    kept = files.load(tmp_path / "bf16" / "last.pt")
    for values in (kept.state_dict, kept.resume["state_dict"]):
        assert {value.dtype for value in values.values()} == {torch.float32, torch.int64}


def test_waiting_for_batches_is_told(settings, monkeypatch):
    """The log and the result say what share of the time was spent waiting; slow batches make it nearly all."""
    assert 0 <= run(settings, log_every=1).waiting < 1
    quick = BatchSource.batch
    monkeypatch.setattr(BatchSource, "batch", lambda source, number: time.sleep(0.4) or quick(source, number))
    alone = {"loader_threads": 1, "ahead": 1, "max_batches": 4, "log_every": 1}
    starving = run(settings, output=settings["output"].with_name("slow"), **alone)
    rows = read_log(settings["output"].with_name("slow") / "log.csv")
    assert all(0.5 < row["waiting"] <= 1 for row in rows[1:])
    assert starving.waiting > 0.5 and "waited for batches" in starving.summary()


def test_run_of_an_older_version_goes_on(settings):
    """Settings that the program did not have when a run began count as their defaults."""
    run(settings, max_batches=2)
    path = settings["output"] / "last.pt"
    former = files.load(path)
    for key in ("precision", "pairs_per_batch"):
        del former.training["recipe"][key]
    del former.training["processes"], former.training["seconds_waited"]
    files.save(path, former)
    assert run(settings).n_batches == 12
    with pytest.raises(ConfigError, match="precision"):
        run(settings, precision="bf16")


def test_finished_run_is_not_repeated(settings):
    """The same command again returns at once and touches nothing; a larger budget goes on."""
    run(settings)
    before = (settings["output"] / "last.pt").stat().st_mtime_ns
    assert run(settings).finished and (settings["output"] / "last.pt").stat().st_mtime_ns == before
    assert run(settings, max_batches=14).n_batches == 14


def test_other_settings_or_data_do_not_mix_with_a_run(settings, tmp_path):
    """A folder with a run of another recipe or dataset is refused, and what differs is named."""
    run(settings, max_batches=2)
    with pytest.raises(ConfigError, match="learning_rate, targets_per_batch"):
        run(settings, learning_rate=0.5, targets_per_batch=10)
    other = write_dataset(tmp_path / "other.h5", {"1aaa": "train"}, seed=9)
    with pytest.raises(ConfigError, match="dataset"):
        run(settings, dataset=other)


def test_time_budget(settings):
    """A run of a tenth of a minute ends about then, last validation included, and its learning rate has decayed."""
    result = run(settings, max_batches=None, max_minutes=0.05, validate_every=1000, schedule="linear")
    assert result.finished and 1.5 < result.seconds < 6
    rows = read_log(settings["output"] / "log.csv")
    assert rows[-1]["learning_rate"] < 0.15 * 0.02 and "validation_loss" in rows[-1]


def test_without_validation_split_the_last_weights_are_the_best(settings, tmp_path):
    """A dataset of training entries alone still gives a checkpoint."""
    path = write_dataset(tmp_path / "train.h5", {"1aaa": "train"})
    result = run(settings, dataset=path)
    assert result.metrics == {} and result.checkpoint.name == "best.pt"
    assert files.load(result.checkpoint).training["n_batches"] == 12


def test_checkpoint_tells_what_it_was_trained_on(settings, dataset_path):
    """The card names entries, sequences, data hash, batches and recipe; no path of this machine is in it."""
    training = files.load(run(settings).checkpoint).training
    assert training["entries"] == ["1aaa", "2bbb", "3ccc"] and set(training["sequences"]) == set(training["entries"])
    assert training["residues"] == ["ALA"]
    assert training["dataset_sha256"] == f"{0:064d}" and training["protocol"] == "thermal"
    assert training["recipe"]["learning_rate"] == 0.02 and training["recipe"]["dataset"] == "dataset.h5"
    assert str(dataset_path.parent) not in str(training)


@pytest.fixture
def two_stages(settings, tmp_path) -> dict[str, Any]:
    """Settings of a second run: other frames besides, and the weights of a first run."""
    data = write_dataset(tmp_path / "one.h5", {"1aaa": "train", "2bbb": "train", "3ccc": "validation"})
    extra = write_dataset(tmp_path / "visited.h5", {"1aaa": "train"}, seed=5)
    other = write_dataset(tmp_path / "before.h5", {"0old": "train"}, seed=6)
    first = run(settings, dataset=other, output=tmp_path / "first", max_batches=3)
    return settings | {"dataset": data, "extra_datasets": [extra], "start_from": first.checkpoint}


def test_a_run_begins_with_the_weights_of_another(two_stages, tmp_path):
    """With a learning rate of next to nothing the weights and the scale stay those of the former run."""
    result = run(two_stages, learning_rate=1e-12, schedule="constant", ema=0.0, max_batches=1)
    before, after = weights(two_stages["start_from"]), weights(result.checkpoint)
    learnt = [name for name, _ in models.build(TINY_MODELS["tfn1"]).named_parameters()]  # the norms' averages move on
    assert all(torch.allclose(before[key], after[key], rtol=1e-5, atol=1e-9) for key in (*learnt, "head.scale"))
    fresh = run(two_stages, start_from=None, output=tmp_path / "fresh", learning_rate=1e-12, ema=0.0, max_batches=1)
    other = weights(fresh.checkpoint)
    assert not any(torch.allclose(before[key], other[key], rtol=0.01) for key in ("head.scale", "head.weights"))


def test_card_tells_of_all_that_was_learnt(two_stages, tmp_path):
    """Sequences of the former run are among those trained on, also after the run went on; paths are not."""
    run(two_stages, max_batches=4)
    two_stages["start_from"].unlink()  # a run that goes on does not need it any more
    training = files.load(run(two_stages, max_batches=6).checkpoint).training
    assert training["entries"] == ["0old", "1aaa", "2bbb"] and training["n_frames"] == 2 * 2 + 2
    assert training["started_from"]["dataset_sha256"] == f"{6:064d}" and training["started_from"]["n_batches"] == 3
    assert training["recipe"]["extra_datasets"] == ["visited.h5"] and training["recipe"]["start_from"] == "best.pt"
    assert str(tmp_path) not in str(training)


def test_stages_are_told_oldest_first(two_stages, tmp_path):
    """A third run tells of all three, each with its data, seed, batches and seconds; also after it went on."""
    run(two_stages, max_batches=4, seed=1)
    third = {"start_from": two_stages["output"] / "best.pt", "output": tmp_path / "third", "seed": 2}
    third |= {"extra_datasets": (), "learning_rate": 0.01, "optimiser": "soap"}
    run(two_stages, **third, max_batches=2)
    training = files.load(run(two_stages, **third, max_batches=5).checkpoint).training
    first, second, last = training["stages"]
    assert [stage["n_batches"] for stage in (first, second, last)] == [3, 4, 5]
    assert [stage["seed"] for stage in (first, second, last)] == [0, 1, 2]
    assert [stage["optimiser"] for stage in (first, second, last)] == ["adam", "adam", "soap"]
    assert [stage["learning_rate"] for stage in (first, second, last)] == [0.02, 0.02, 0.01]
    assert first["started_from"] is None and first["dataset_sha256"] == f"{6:064d}"
    digests = [(data["name"], data["content_sha256"], data["n_frames"]) for data in second["datasets"]]
    assert digests == [("one.h5", f"{0:064d}", 4), ("visited.h5", f"{5:064d}", 2)]
    for stage, path in ((second, two_stages["start_from"]), (last, third["start_from"])):
        assert stage["started_from"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [stage["fresh"] for stage in (first, second, last)] == [None, [], []]
    assert last["seconds"] == training["seconds"] > 0 and last["dataset_sha256"] == training["dataset_sha256"]


def test_a_checkpoint_without_stages_serves(two_stages, tmp_path):
    """One that a former version wrote is a stage with what it tells."""
    old = files.load(two_stages["start_from"])
    del old.training["stages"]
    files.save(tmp_path / "old.pt", old)
    first, last = files.load(run(two_stages, start_from=tmp_path / "old.pt", max_batches=2).checkpoint).training[
        "stages"
    ]
    assert first["n_batches"] == 3 and first["datasets"][0]["content_sha256"] == f"{6:064d}"
    assert first["optimiser"] == "adam" and last["n_batches"] == 2


def test_another_dataset_judges(two_stages, tmp_path):
    """Its validation frames choose the best checkpoint; those of the dataset itself are not read."""
    judges = write_dataset(
        tmp_path / "judges.h5", {"1aaa": "train", "2bbb": "train", "3ccc": "train", "4ddd": "validation"}, seed=7
    )
    own = run(two_stages, max_batches=2)
    other = run(two_stages, validation_dataset=judges, output=tmp_path / "judged", max_batches=2)
    assert own.metrics["naive"]["tensor"] != other.metrics["naive"]["tensor"]
    assert files.load(other.checkpoint).training["recipe"]["validation_dataset"] == "judges.h5"


def test_a_judge_that_was_trained_on_is_refused(two_stages, tmp_path):
    """By sequence, whatever its name is."""
    judges = write_dataset(tmp_path / "judges.h5", {"2bbb": "validation"}, seed=7)
    with pytest.raises(DatasetError, match=r"judges\.h5 has 2bbb \(1 in all\) for validation"):
        run(two_stages, validation_dataset=judges)


def test_weights_of_another_network_are_refused(two_stages):
    """The settings that differ are named."""
    with pytest.raises(ConfigError, match=r"another network \(architecture was 'tfn', is 'fast'"):
        run(two_stages, model=TINY_MODELS["fast"])


def test_diverging_run_stops_with_advice(settings):
    """An absurd learning rate ends with an error that says what to change, and leaves the last good weights."""
    with pytest.raises(UnstableError, match="Lower learning_rate"):
        run(settings, learning_rate=1e30, clip=None, warmup_batches=0, max_batches=50)


def test_empty_training_split_is_refused(settings, tmp_path):
    """There is nothing to train on: said before anything is made."""
    path = write_dataset(tmp_path / "test.h5", {"1aaa": "test"})
    with pytest.raises(DatasetError, match="'train'; it has some in test"):
        run(settings, dataset=path)
    assert not settings["output"].exists()


def test_weight_average_by_hand():
    """Decay 0.5 halves the way to each new weight; in a with block the model has the average, then its own again."""
    model = models.build(TINY_MODELS["tfn1"])
    average = WeightAverage(model, 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update(model, 1000)
    name, parameter = next(iter(model.named_parameters()))
    with average.applied(model):
        assert not model.training
        torch.testing.assert_close(model.state_dict()[name], before[name] + 0.5)
    assert model.training
    torch.testing.assert_close(parameter.data, before[name] + 1.0)


def start(settings: dict[str, Any], folder: Path, **changes: Any) -> subprocess.Popen[str]:
    config = {
        **settings,
        **changes,
        "model": {k: list(v) if isinstance(v, tuple) else v for k, v in settings["model"].items()},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({k: str(v) if isinstance(v, Path) else v for k, v in config.items()}))
    command = [sys.executable, "-c", "from forcefield_ml.cli import main; main()", "train", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for_batch(process: subprocess.Popen[str], log: Path, batch: int) -> None:
    """Wait until the log of a running command has come to a batch."""
    ends = time.monotonic() + 180
    while time.monotonic() < ends and process.poll() is None:
        if log.exists() and any(row["batch"] >= batch for row in read_log(log)):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the command never came to batch {batch}: {process.communicate()[0]}")


def test_killed_run_goes_on(settings, tmp_path):
    """Kill -9 in the middle, then the same command: it ends at its budget, with every batch in the log once."""
    log = settings["output"] / "log.csv"
    budget = {"max_batches": 150, "save_every_seconds": 0.3, "validate_every": 60}
    process = start(settings, tmp_path, **budget)
    wait_for_batch(process, log, 70)
    process.kill()
    process.communicate()
    reached = files.load(settings["output"] / "last.pt").training["n_batches"]
    assert 0 < reached < 150
    process = start(settings, tmp_path, **budget)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0 and "finished after 150 batches" in output
    batches = [row["batch"] for row in read_log(log)]
    assert batches == sorted(set(batches)) and batches[-1] == 150 and set(range(2, 151, 2)) <= set(batches)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_the_batch_in_hand(settings, tmp_path, number):
    """Ctrl-C and SIGTERM end after the batch in hand with code 130; all that was done is in the checkpoint."""
    process = start(settings, tmp_path, max_batches=100_000, save_every_seconds=1000, validate_every=90_000)
    wait_for_batch(process, settings["output"] / "log.csv", 10)
    process.send_signal(number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130 and "the same command goes on" in output
    rows = read_log(settings["output"] / "log.csv")
    assert files.load(settings["output"] / "last.pt").training["n_batches"] == rows[-1]["batch"] >= 10


def test_no_thread_is_left_behind(settings):
    """The background thread ends with the run."""
    run(settings)
    ends = time.monotonic() + 5
    while any(thread.name.startswith("batches") for thread in threading.enumerate()) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_cuda_device_trains_alike(settings, tmp_path, precision):
    """Batches from pinned memory give the losses of the CPU, to what the precision allows."""
    run(settings, log_every=1, device="cpu")
    run(settings, log_every=1, device="cuda", precision=precision, output=tmp_path / "cuda")
    expected, found = (
        [row["loss"] for row in read_log(folder / "log.csv")] for folder in (settings["output"], tmp_path / "cuda")
    )
    assert found == pytest.approx(expected, rel=1e-3 if precision == "32" else 0.03)


def test_atom_types_are_learnt_and_kept(settings, tmp_path):
    """A typed model learns on, resumes with and is judged by the types of its data; the next one keeps them."""
    torch.set_num_threads(1)
    settings |= {"model": {**TINY_MODELS["fast"], "type_depth": 2}, "schedule": "constant"}
    whole = run(settings, output=tmp_path / "whole")
    run(settings, max_batches=5)
    run(settings)
    expected, found = (weights(folder / "best.pt") for folder in (tmp_path / "whole", settings["output"]))
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    model, _ = files.load_model(tmp_path / "whole" / "best.pt")
    types = types_of(model)
    with closing(ForceDataset(settings["dataset"], "train")) as training:
        known = AtomTypes.of(training.molecules(), 2, 512)
        training.encode(types)
        codes = BatchSource(training, model.search(), 2).whole_frame(0).atoms.species
    assert types is not None and len(types.hashes) and all(map(np.array_equal, types, known))
    assert (codes >= CODE_STEP).any()
    assert evaluate(tmp_path / "whole" / "best.pt", settings["dataset"], "validation")["tensor"] == pytest.approx(
        whole.metrics["tensor"], rel=1e-5
    )
    further = run(settings, output=tmp_path / "further", start_from=tmp_path / "whole" / "best.pt")
    kept = types_of(files.load_model(further.checkpoint)[0])
    assert kept is not None and np.array_equal(kept.hashes, types.hashes)


def events(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, tag, value) of every TensorBoard event file in a folder, oldest file first, as they lie there."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:  # a length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "purge", 0.0))
    return found


def test_tensorboard_has_what_the_log_has(settings):
    """Every number of log.csv is an event of its batch; a run that goes on tells TensorBoard what comes again."""
    run(settings, max_batches=6)
    run(settings)
    rows = read_log(settings["output"] / "log.csv")
    told = {(step, tag): value for step, tag, value in events(settings["output"])}
    for row in rows:
        for key, value in row.items():
            if key != "batch":
                tag = key.replace("validation_", "validation/")
                assert told[(int(row["batch"]), tag)] == pytest.approx(value, rel=1e-6)
    assert {(1, "purge"), (7, "purge")} <= set(told)


def test_patience_ends_a_run_that_no_longer_learns(settings):
    """With a learning rate of nothing the loss stays; two validations later the run is finished, and stays so."""
    settings |= {"learning_rate": 1e-12, "max_batches": 400, "warmup_batches": 0}
    result = run(settings, patience=2)
    assert result.finished and result.n_batches <= 5 * settings["validate_every"]
    assert run(settings, patience=2).n_batches == result.n_batches, "finished is finished"
    again = run(settings, patience=4)
    assert again.finished and again.n_batches > result.n_batches, "more patience goes on"
    assert (
        run(
            settings | {"learning_rate": 0.02, "output": settings["output"].with_name("other")},
            patience=5,
            max_batches=40,
        ).n_batches
        == 40
    ), "control: while it learns it goes on"
