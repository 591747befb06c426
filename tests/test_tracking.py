"A training that is stopped and resumed is one run, with one curve, in each tracker."

import json
import struct

import pytest
from conftest import TASK, TRAINING
from transformers import TrainerCallback

from r1nb import grpo
from r1nb.recipes import configure
from r1nb.runs import Preempted, open_run
from r1nb.settings import settings
from r1nb.tracking import run_id

pytest.importorskip("trackio", reason="needs trackio (extra tracking)")
wandb = pytest.importorskip("wandb", reason="needs wandb (extra tracking)")
pytest.importorskip("tensorboard", reason="needs tensorboard (extra tracking)")

STEPS = 4


class StopAfter(TrainerCallback):
    "Asks `run` to stop at `step`, as a batch script does before its time limit."

    def __init__(self, run, step):
        self.run, self.step = run, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            (self.run / "stop").touch()


def train(folder, model, stop_after=None, **more):
    "GRPO in `folder`, which all trackers follow; returns the run."
    keys = {**TASK, "split": "train", "num_problems": 8, "model_name_or_path": str(model)}
    keys |= {**TRAINING, "max_steps": STEPS, "num_generations": 2, "max_completion_length": 4}
    keys |= {"per_device_train_batch_size": 2, "report_to": ["trackio", "wandb", "tensorboard"]}
    keys |= {"log_completions": True, "disable_tqdm": True, **more}
    config, written = configure(grpo.stage, keys)
    run = open_run(folder, "grpo", written)
    grpo.run_grpo(run, *config, callbacks=[StopAfter(run, stop_after)] if stop_after else [])
    return run


def tensorboard_steps(folder):
    "The steps at which the reward was logged in the TensorBoard files of `folder`."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars("train/reward")]


def wandb_records(file):
    "The records in `file` of W&B: LevelDB's log format, after seven bytes."
    data, place, record = file.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768  # in this block
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_rows(file):
    "The rows of history in the offline `file` of W&B."
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = record.history.item
        rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return [row for row in rows if row]


def trackio_rows(name):
    "The rows of the run `name` in Trackio, and how many runs of that name there are."
    project = settings().project
    from trackio.sqlite_storage import SQLiteStorage

    records = [r for r in SQLiteStorage.get_run_records(project) if r["name"] == name]
    return SQLiteStorage.get_logs(project, name, run_id=records[-1]["id"]), len(records)


def test_a_resumed_training_is_one_run_in_every_tracker(tiny_model, here, capsys):
    folder = here / "runs" / "grpo" / "a"
    with pytest.raises(Preempted):
        train(folder, tiny_model, stop_after=2)
    run = train(folder, tiny_model)
    steps = list(range(1, STEPS + 1))
    assert tensorboard_steps(run / "tensorboard") == steps
    rows, runs = trackio_rows("grpo/a")
    assert runs == 1
    assert [r["train/global_step"] for r in rows if "train/reward" in r] == steps
    assert any("completions" in row for row in rows)
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [f.stem for f in files] == [f"run-{run_id(run)}"] * 2
    logged = [row for file in files for row in wandb_rows(file)]
    assert [r["train/global_step"] for r in logged if "train/reward" in r] == steps
    assert any(key.split("/")[0] == "completions" for row in logged for key in row)
    assert "`wandb sync " in capsys.readouterr().out and wandb.run is None
    assert not (here / "wandb").exists()


def test_a_run_that_is_started_again_from_the_beginning_is_another(tiny_model, here):
    folder, keys = here / "runs" / "grpo" / "b", {"report_to": ["trackio"], "max_steps": 1}
    for _ in range(2):
        open_run(folder, "grpo", {}, force=True)
        (folder / "manifest.json").unlink()
        train(folder, tiny_model, **keys)
    rows, runs = trackio_rows("grpo/b")
    assert runs == 2 and [r["train/global_step"] for r in rows if "train/reward" in r] == [1]
