"""The store room alone: what a program wrote is there for the next one: `python examples/store_alone.py [FOLDER]`."""

import sys

import statepool.store

with statepool.store.open(sys.argv[1] if len(sys.argv) > 1 else "runs/store_alone") as store:
    visits = store.dict("visits", keys="str", values="msgpack")
    visits["me"] = visits.get("me", 0) + 1
    print(f"visit {visits['me']}")
