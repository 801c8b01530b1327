"""What every test runs under: one thread, no network, hypothesis without deadlines."""

import os
from pathlib import Path

# The environment must be set before numpy or torch load their thread pools.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A busy machine needs more than Ray's half minute to start a node; Ray reads this once, when it is imported.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")
_KEPT = {"STATEPOOL_ISA", "STATEPOOL_NATIVE", "STATEPOOL_TRACES"}
for _name in [name for name in os.environ if name.startswith("STATEPOOL_") and name not in _KEPT]:
    del os.environ[_name]  # a user's settings must not change what is tested

# Processes that tests start see this tree, whatever is installed.
_paths = [str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))

from hypothesis import HealthCheck, settings

settings.register_profile("statepool", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A commit that passed CI once must pass it again: there the drawn cases are the same every time.
settings.register_profile("ci", settings.get_profile("statepool"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "statepool")
