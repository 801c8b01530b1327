"""Wrong checkpoints: one clear error each, before anything is served."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from statepool.core.errors import InvalidCheckpoint
from statepool.engine.hub import resolve
from statepool.engine.loader import Checkpoint, widen
from statepool.engine.models import parse_config


def load(path):
    checkpoint = Checkpoint(path)
    parse_config(checkpoint.config).validate(checkpoint)
    return checkpoint


def rewrite(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def edit_config(**fields):
    def change(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def drop_field(path):
    config = json.loads((path / "config.json").read_text())
    del config["hidden_size"]
    (path / "config.json").write_text(json.dumps(config))


BAD = {
    "no config": (lambda p: (p / "config.json").unlink(), "config.json is missing"),
    "config not JSON": (lambda p: (p / "config.json").write_text("{"), "config.json cannot be read"),
    "config a list": (lambda p: (p / "config.json").write_text("[]"), "JSON object"),
    "field missing": (drop_field, "hidden_size"),
    "unknown family": (edit_config(model_type="mamba"), "model_type 'mamba'"),
    "heads do not divide": (edit_config(num_key_value_heads=3), "cannot share"),
    "odd head_dim": (edit_config(head_dim=20), "multiple of 16"),
    "wrong type": (edit_config(hidden_size="wide"), "wrong type"),
    "sliding window": (edit_config(use_sliding_window=True), "use_sliding_window"),
    "other activation": (edit_config(hidden_act="gelu"), "hidden_act"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "neither model.safetensors"),
    "truncated": (truncate, "truncated"),
    "empty": (lambda p: (p / "model.safetensors").write_bytes(b""), "truncated"),
    "not safetensors": (lambda p: (p / "model.safetensors").write_bytes(b"PK\3\4" + b"x" * 500), "safetensors"),
    "header not JSON": (
        lambda p: (p / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"nope" + b"\0" * 64),
        "not a safetensors",
    ),
    "tensor missing": (lambda p: rewrite(p, lambda t: t.pop("model.norm.weight")), "model.norm.weight is missing"),
    "tensor extra": (lambda p: rewrite(p, lambda t: t.update(x=np.zeros(3, np.float32))), "x has no place"),
    "tensor mis-shaped": (
        lambda p: rewrite(p, lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)})),
        "has shape",
    ),
    "odd dtype": (
        lambda p: rewrite(p, lambda t: t.update({"model.norm.weight": np.zeros(64, np.int64)})),
        "dtype I64",
    ),
    "shard missing": (
        lambda p: (p / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}})),
        "shard b.safetensors",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_say_what_is_wrong(case, make_checkpoint):
    spoil, message = BAD[case]
    path = make_checkpoint()
    load(path)
    spoil(path)
    with pytest.raises(InvalidCheckpoint, match=message.replace("[", r"\[")):
        load(path)


def test_missing_models_are_named():
    with pytest.raises(InvalidCheckpoint, match="does not exist"):
        Checkpoint(resolve("/no/such/model"))


def test_tensors_equal_the_safetensors_library(make_checkpoint):
    path = make_checkpoint()
    ours = load(path)
    with safe_open(path / "model.safetensors", "np") as theirs:
        assert set(theirs.keys()) == ours.names
        for name in theirs.keys():  # noqa: SIM118
            assert np.array_equal(ours.tensor(name), theirs.get_tensor(name))


def test_shards_and_half_precision_load(make_checkpoint):
    path = make_checkpoint()
    tensors = {k: v.astype(np.float16) for k, v in load_file(path / "model.safetensors").items()}
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:7], "model-2.safetensors": names[7:]}
    for shard, members in shards.items():
        save_file({n: tensors[n] for n in members}, path / shard)
    (path / "model.safetensors").unlink()
    weight_map = {n: shard for shard, members in shards.items() for n in members}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ours = load(path)
    for name, value in tensors.items():
        assert ours.tensor(name).dtype == np.float32
        assert np.array_equal(ours.tensor(name), value.astype(np.float32))


def test_bf16_widens_exactly():
    values = np.array([0.0, -1.5, 3.0e38, 1e-40, np.inf], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert np.array_equal(widen(bits).view(np.uint32), values.view(np.uint32) & 0xFFFF0000)


def test_fingerprints_tell_models_apart(make_checkpoint):
    a, b = load(make_checkpoint("a", seed=1)), load(make_checkpoint("b", seed=2))
    assert a.fingerprint() != b.fingerprint()
    assert a.fingerprint() == load(a.path).fingerprint()
