"""What ``statepool attention bench`` measures is attention, and what it prints can be read."""

import json

import numpy as np
import pytest

from statepool import cli
from statepool.core.errors import InvalidConfig
from statepool.engine.attention.measure import Layers
from statepool.engine.attention.remote.commands import main
from statepool.engine.attention.wave import WaveConfig
from statepool.native import kernels

pytestmark = pytest.mark.skipif(kernels is None, reason="needs the native module")


def test_all_kinds_agree_where_all_is_read():
    layers = Layers(1536, 32, 4, 2, 2, WaveConfig(retrieve=1.0, estimate=0.0))
    for number in range(3):
        exact = layers.exact(number).ravel()
        np.testing.assert_allclose(layers.wave(number).ravel(), exact, atol=2e-5)
        np.testing.assert_allclose(layers.moba(number).ravel(), exact, atol=2e-5)
    assert layers.byte_ratio() < 1


def test_the_command_prints_costs(capsys, monkeypatch, tmp_path):
    size = ["--tokens", "2048", "--dim", "32", "--heads", "4", "--kv-heads", "2", "--layers", "1", "--json"]
    assert main(["bench", *size]) == 0
    found = {line["kind"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(found) == {"exact", "wave", "moba"}
    assert found["moba"]["byte_ratio"] == pytest.approx(2 * 2048 * 2 / (4 * (2 * 1536 + 3)))
    assert found["wave"]["byte_ratio"] > 2
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "a" / "b" / "cli.py"))
    assert cli.main(["bench", "attention", *size]) == 0


def test_sizes_that_do_not_fit(capsys):
    with pytest.raises(InvalidConfig, match="multiples of 16"):
        Layers(100, 32, 4, 2, 1, None)
    assert main(["bench", "--heads", "3"]) == 2
    assert "heads one of kv_heads" in capsys.readouterr().err
