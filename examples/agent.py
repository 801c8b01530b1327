"""An agent whose tool is Python in a sandbox that remembers: `python examples/agent.py`."""

from statepool.sandbox import Sandbox

STEPS = ["import math", "radius = 3", "round(math.pi * radius ** 2, 2)"]
"""What a model would write, one call of the tool each; the cells share their variables."""

with Sandbox() as sandbox:
    for code in STEPS:
        done = sandbox.run_code(code)
        print(f">>> {code}\n{done.text or ''}".rstrip())
    tries = sandbox.fork(2)
    for number, branch in enumerate(tries):
        print(f"branch {number}: radius {branch.run_code(f'radius += {number + 1}; radius').text}")
        branch.close()
