"""R10, R12: the bundled model on two engine processes, a core each; the baselines are policies of the same engines."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Iterator, Sequence

from bench.machine import LoadWatch
from bench.rollout.data import Load, load
from bench.row import Row
from statepool.kv import block_keys
from statepool.kv.layout import BLOCK_SIZE
from statepool.rollout.costs import StepTimes
from statepool.rollout.des import Simulation, Wanted
from statepool.rollout.fleet import Fleet
from statepool.rollout.live import Rollout, rollout
from statepool.rollout.policies import make
from statepool.rollout.profile import Profile, measure
from statepool.rollout.report import summary

CHUNK = 64


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    for names, rows in ((("R10",), _sharing), (("R12",), _live)):
        if not only or any(name in only for name in names):
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench rollout --only {names[0]}", watch.stop()
                yield row


def _live(quick: bool) -> Iterator[Row]:
    wanted = load()
    profile = measure(wanted.engine)
    arms = {"auto": "group", "verl_group": "off", "verl_request": "self"}
    runs: dict[str, list[Rollout]] = {name: [] for name in arms}
    fleets = {drafts: Fleet(wanted.engine, 2, drafts=drafts, pin=True, cost=profile.cost) for drafts in arms.values()}
    try:
        for _ in range(2 if quick else 7):  # in turn
            for policy, drafts in arms.items():
                runs[policy].append(rollout(fleets[drafts], wanted.groups, policy=policy, chunk=CHUNK))
    finally:
        for fleet in fleets.values():
            fleet.close()
    texts = {tuple(r.tokens for r in done.responses) for each in runs.values() for done in each}
    assert len(texts) == 1, "every arm gives the same tokens"
    speed = {name: statistics.median(done.tokens / done.seconds for done in each) for name, each in runs.items()}
    figures = {name: summary(each[-1], wanted.problems, wanted.tasks) for name, each in runs.items()}
    about = figures["auto"]
    honest = (
        f"accuracy {about.accuracy or 0:.0%}, correlation of lengths {about.correlation or 0:.2f}, distinct 4-grams "
        f"{about.distinct:.2f}, {about.accepted} of {about.drafted} drafts held; preemptions "
        + ", ".join(f"{name} {each.preemptions}" for name, each in figures.items())
    )
    for letter, other, aim in (("a", "verl_group", 1.8), ("b", "verl_request", 1.4)):
        row = Row(f"R12{letter}", f"live on two cores: tokens per second over {other}", "x", "higher", aim)
        pairs = [b.seconds / a.seconds for a, b in zip(runs["auto"], runs[other], strict=True)]
        row.value, row.own = statistics.median(pairs), f"{speed['auto']:.0f} tokens/s"
        row.peer = "verl_group, no drafts" if letter == "a" else "verl_request with own drafts"
        row.peer_value, row.peer_unit = speed[other], "tokens/s"
        row.note = f"{len(pairs)} pairs in turn, {min(pairs):.2f} to {max(pairs):.2f}; {honest}"
        yield row
    yield _prediction(wanted, runs["verl_group"], profile)


def _prediction(wanted: Load, runs: list[Rollout], profile: Profile) -> Row:
    """The simulator with the measured step times against the live baseline."""
    places = {group.id: place for place, group in enumerate(wanted.groups)}
    sizes = {group.id: (len(group.prompt), group.params.max_tokens) for group in wanted.groups}
    prompts = {group.id: group.prompt for group in wanted.groups}
    want = [
        Wanted(places[r.group], r.index, *sizes[r.group], len(r.tokens), _keys(prompts[r.group], r.tokens))
        for r in runs[0].responses
    ]
    blocks = wanted.engine.kv_bytes // (16 * 1024)
    cost = profile.cost
    table = tuple((batch, seconds) for batch, drafts, seconds in profile.points if drafts == 0)
    times = StepTimes(cost.base, cost.row + cost.sequence, profile.context, table, prefill=cost.row)
    out = Simulation(
        want, make("verl_group", CHUNK), times, instances=2, capacity=blocks * 16, seats=32,
        batched=wanted.engine.max_batched_tokens,
    ).run()  # fmt: skip
    live = min(done.seconds for done in runs)
    row = Row(
        "R12c", "simulated run time of the live baseline, off by", "share", "lower", 0.1, abs(out.seconds / live - 1)
    )
    row.own, row.peer, row.peer_value, row.peer_unit = f"{out.seconds:.2f} s", "live, fastest", live, "s"
    row.note = (
        f"preemptions {out.preemptions} simulated, {runs[0].preemptions} live; step times measured in the same run"
    )
    return row


def _keys(prompt: Sequence[int], tokens: Sequence[int]) -> tuple[bytes, ...]:
    return tuple(block_keys([*prompt, *tokens], BLOCK_SIZE, b""))


def _sharing(quick: bool) -> Iterator[Row]:
    wanted = load(problems=8)
    rounds = 1 if quick else 3
    held: dict[str, float] = {}
    for name, count in (("one process", 1), ("two engines", 2)):
        with Fleet(wanted.engine, count, drafts="group") as fleet:
            done = [rollout(fleet, wanted.groups, policy="auto", chunk=CHUNK) for _ in range(rounds)]
            held[name] = statistics.median(_per_step(fleet, each) for each in done)
    row = Row(
        "R10", "tokens a step yields with siblings on another engine, against all in one process", "x", "higher", 0.97
    )
    row.value, row.own = held["two engines"] / held["one process"], f"{held['two engines']:.2f} tokens per step"
    row.peer, row.peer_value, row.peer_unit = "all in one process", held["one process"], "tokens per step"
    row.note = "fetched every 8 steps"
    yield row
    ratios = []
    with Fleet(wanted.engine, 2, drafts="group") as fleet:
        for _ in range(rounds + 2):
            whole = rollout(fleet, wanted.groups, policy="auto", chunk=CHUNK)
            server = fleet.draft_server
            assert server is not None
            killed = []

            def kill(progress: object, server: object = server, killed: list[int] = killed) -> None:
                if not killed:
                    killed.append(server.pid)  # type: ignore[attr-defined]
                    os.kill(server.pid, signal.SIGKILL)  # type: ignore[attr-defined]

            broken = rollout(fleet, wanted.groups, policy="auto", chunk=CHUNK, on_progress=kill)
            assert [r.tokens for r in broken.responses] == [r.tokens for r in whole.responses]
            ratios.append(whole.seconds / broken.seconds)
    row = Row("R10b", "throughput left when the draft server is killed within an iteration", "x", "higher", 0.9)
    row.value, row.own = statistics.median(ratios), f"{len(ratios)} kills"
    row.note = f"{min(ratios):.2f} to {max(ratios):.2f}; no error, the same tokens, a new server within a poll"
    yield row


def _per_step(fleet: Fleet, done: Rollout) -> float:
    """Tokens per sequence and step: each has one, and what of its drafts held."""
    accepted = sum(response.accepted for response in done.responses)
    del fleet
    return done.tokens / (done.tokens - accepted)
