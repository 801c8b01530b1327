"""The synthetic tasks: same seed same problems, right answers pass, wrong ones fail with a reason."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.tasks import Problem
from statepool.tasks.synthetic import CALLS, CHAINS, ECHO, FACTS, FAMILIES, SUMS, sums


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_seed_yields_the_same_problems(name: str) -> None:
    task = FAMILIES[name]
    first, again, other = (list(itertools.islice(task.problems(seed), 5)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [128, 512, 1024])
def test_every_turn_of_an_episode_is_a_problem_its_own_answer_solves(name: str, size: int) -> None:
    task = FAMILIES[name]
    for seed in range(20):
        episode = task.draw(Random(seed), size, seed % 2)
        for turn in range(len(episode.values)):
            problem = episode.problem(turn)
            assert task.prompt(problem)[-1]["role"] in {"user", "tool"}
            assert list(task.tools(problem)) == list(episode.tools)
            verdict = task.verify(problem, problem.answer)
            assert (verdict.score, verdict.reason) == (1.0, "right")


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25)
@given(text=st.text(max_size=80))
def test_any_text_gets_a_verdict(name: str, text: str) -> None:
    problem = next(FAMILIES[name].problems(0))
    verdict = FAMILIES[name].verify(problem, text)
    assert verdict.score < 1 or text.strip() == problem.answer.strip()


def test_a_wrong_value_is_named() -> None:
    problem = Problem("facts", (), "The code of fox is 12.", ("12",))
    assert FACTS.verify(problem, "The code of fox is 13.").reason == "expected 12; found 13"
    assert FACTS.verify(problem, "The code of fox is 12. The code of owl is 3.").score == 0
    chain = Problem("chains", (), "The chain is ann = bob = 7.", ("7",))
    assert CHAINS.verify(chain, "The chain is ann = bob = 8.").score == 0


def test_half_of_several_values_scores_half() -> None:
    problem = Problem("facts", (), "", ("12", "34"))
    assert FACTS.verify(problem, "The code of fox is 12. The code of owl is 35.").score == 0.5


def test_reasoning_is_not_the_answer() -> None:
    problem = Problem("sums", (), "", ("9",))
    assert SUMS.verify(problem, "<think>\n4 + 5 = 9\n</think>\n\n4 + 5 = 8").score == 0
    assert SUMS.verify(problem, "<think>\n4 + 5 = 8\n</think>\n\n4 + 5 = 9").score == 1
    assert ECHO.verify(Problem("echo", (), "a b", ("a b",)), "a b<|im_end|>").score == 1


@settings(max_examples=50)
@given(a=st.integers(0, 10**9), b=st.integers(0, 10**9))
def test_worked_steps_end_in_the_sum_and_grow_with_the_digits(a: int, b: int) -> None:
    lines = sums.steps(a, b).split("\n")
    assert int(lines[-1].split()[-1]) == a + b
    assert len(lines) == len(str(a + b))


def test_calls_are_compared_as_json() -> None:
    problem = CALLS.draw(Random(0), CALLS.size, 1).problem(0)
    call = json.loads(problem.answer.split("\n")[1])
    spaced = f"<tool_call>{json.dumps(call, indent=2)}</tool_call>"
    assert CALLS.verify(problem, spaced).score == 1
    call["arguments"] = {}
    assert CALLS.verify(problem, f"<tool_call>{json.dumps(call)}</tool_call>").score == 0
    assert CALLS.verify(problem, "<tool_call>{broken</tool_call>").score == 0


def test_tasks_need_no_torch() -> None:
    code = "import sys, statepool.tasks.synthetic; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
