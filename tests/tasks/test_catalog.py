"""Tasks by name, problems kept apart, and other people's tasks behind the same face."""

import itertools
import random
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.tasks.adapters import EnvironmentTask, ReasoningGym
from statepool.tasks.arithmetic import ColumnAddition
from statepool.tasks.catalog import draw, find, is_held_out, names
from statepool.tasks.retrieval import Retrieval
from statepool.tasks.tools import PythonSteps
from statepool.tasks.verifiers import VerifiersTask

OWN = [ColumnAddition(3, 7), PythonSteps(3, 2), PythonSteps(2, 2, tool=False), Retrieval(256)]


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
@given(seed=st.integers(0, 2**40))
def test_a_seed_is_a_stream_of_problems_whose_own_answers_are_right(task, seed):
    problems = list(itertools.islice(task.problems(seed), 5))
    assert problems == list(itertools.islice(task.problems(seed), 5))
    for problem in problems:
        assert task.verify(problem, problem.rest[-1]["content"]).score == 1.0
        assert task.verify(problem, "I do not know").score == 0.0
        assert problem.messages == tuple(task.prompt(problem))
    assert problems != list(itertools.islice(task.problems(seed + 1), 5))


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 4), digits=st.integers(1, 4))
def test_the_steps_compute_what_the_question_asks(seed, steps, digits):
    problem = next(PythonSteps(steps, digits).problems(seed))
    first, *then = problem.messages[0]["content"].removeprefix("Use Python to compute ").rstrip(".").split(". ")
    value = eval(first)
    for step in then:
        words = step.split()
        value = {"add": value.__add__, "subtract": value.__sub__, "multiply": value.__mul__}[words[1]](int(words[-1]))
    assert problem.values == (str(value),)
    assert [m["role"] for m in problem.rest] == ["assistant", "tool"] * steps + ["assistant"]


def test_the_length_of_an_addition_follows_from_its_prompt():
    def work(digits):
        return len(next(ColumnAddition(digits, digits).problems(1)).answer)

    assert work(2) < work(4) < work(8)


def test_held_out_problems_are_never_drawn_for_training():
    task = PythonSteps(1, 1)  # few problems, so that draws meet
    trained = {p.messages[0]["content"] for seed in range(20) for p in draw(task, seed, 30)}
    kept = {p.messages[0]["content"] for p in draw(task, 99, 30, held_out=True)}
    assert trained
    assert kept
    assert not trained & kept
    share = sum(map(is_held_out, itertools.islice(PythonSteps(1, 3).problems(0), 2000))) / 2000
    assert 0.09 < share < 0.16


def test_names_lead_to_tasks():
    assert {"python-steps", "column-addition", "retrieval", "sequences", "facts"} <= set(names())
    assert find("python-steps", {"digits": 3}) == PythonSteps(digits=3)
    assert find("statepool.tasks.retrieval:Retrieval", {"size": 99}) == Retrieval(99)
    assert next(find("sums").problems(0)).task == "sums"
    verdict = (task := find("sequences")).verify(problem := next(task.problems(3)), problem.answer)
    assert verdict.score == 1.0


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("nothing", {}, "unknown task 'nothing'"),
        ("no.such.module:Task", {}, "missing"),
        ("statepool.tasks.tools:Nothing", {}, "has no Nothing"),
        ("python-steps", {"step": 1}, "no setting 'step'"),
        ("sums", {"size": 1}, "takes no settings"),
        ("environment", {}, "make"),
        ("environment", {"make": "nowhere:Maze"}, "cannot be found"),
        ("environment", {"make": "random:Random", "best": 0}, "best must be above 0"),
        ("environment", {"make": "random:Random", "action": "nowhere:Move"}, "cannot be found"),
        ("environment", {"make": "random:Random", "action": "random:Random"}, "action needs field"),
        ("verifiers", {"make": "random:Random"}, "has no dataset"),
        ("verifiers", {"make": "random:Random", "best": 0}, "best must be above 0"),
    ],
)
def test_what_cannot_be_found_is_named(name, settings, said):
    with pytest.raises(InvalidConfig, match=said):
        find(name, settings)


@pytest.mark.parametrize(
    "wrong", [(PythonSteps, {"steps": 0}), (ColumnAddition, {"low": 3, "high": 2}), (Retrieval, {"size": 1})]
)
def test_impossible_settings_are_refused(wrong):
    kind, settings = wrong
    with pytest.raises(InvalidRequest):
        kind(**settings)


class Guess:
    """Find a number between 0 and 9, with Gymnasium's tuples."""

    def reset(self, seed=None):
        self.number = random.Random(seed).randrange(10)
        return "Guess a number from 0 to 9.", {}

    def step(self, action):
        if action == str(self.number):
            return "right", 1.0, True, False, {}
        return "higher" if action < str(self.number) else "lower", 0.0, False, False, {}


class OpenGuess(Guess):
    """The same with OpenEnv's objects and no seed."""

    def reset(self):
        return SimpleNamespace(observation=SimpleNamespace(text=super().reset(7)[0]), done=False)

    def step(self, action):
        said, reward, done, *_ = super().step(action)
        return SimpleNamespace(observation=said, reward=reward, done=done)


class Said(BaseModel):
    """What OpenEnv's environments return: the observation itself says what it was worth."""

    text: str
    done: bool = False
    reward: float | None = None
    metadata: dict[str, int] = {}


class Number(BaseModel):
    """What they want to be given."""

    value: str


class TypedGuess(Guess):
    """The same as an environment of OpenEnv's, with typed actions and observations."""

    def reset(self, seed=None):
        return Said(text=super().reset(seed)[0])

    def step(self, action):
        said, reward, done, *_ = super().step(action.value)
        return Said(text=said, reward=reward, done=done)


class DictGuess(Guess):
    """The same behind OpenEnv's client that knows no classes."""

    def reset(self, seed=None):
        return SimpleNamespace(observation={"said": super().reset(seed)[0]}, reward=None, done=False)

    def step(self, action):
        said, reward, done, *_ = super().step(action["value"])
        return SimpleNamespace(observation={"said": said}, reward=reward, done=done)


@pytest.mark.parametrize(
    ("make", "action"),
    [
        (Guess, {}),
        (OpenGuess, {}),
        (TypedGuess, {"action": Number, "field": "value"}),
        (TypedGuess, {"action": f"{__name__}:Number", "field": "value"}),
        (DictGuess, {"field": "value"}),
    ],
)
def test_an_environment_is_a_conversation(make, action):
    task = EnvironmentTask(make, instructions="Play.", **action)
    problem = next(task.problems(1))
    assert problem == next(task.problems(1))
    assert [m["role"] for m in problem.messages] == ["system", "user"]
    assert problem.messages[1]["content"] == "Guess a number from 0 to 9."
    world = task.open(problem)
    for guess in "0123456789":
        turn = world.reply(f"<think>hm</think>{guess}")
        if turn.verdict:
            break
        assert (turn.content, turn.role) == ("higher", "user")
    assert turn.verdict.score == 1.0
    world.close()


def test_environments_that_begin_alike_are_told_apart_by_their_seed():
    task = EnvironmentTask(Guess)
    ours, kept = draw(task, 0, 20), draw(task, 0, 5, held_out=True)
    assert not {p.facts["seed"] for p in ours} & {p.facts["seed"] for p in kept}


def test_what_an_environment_says_is_its_text_or_all_it_holds():
    class Wall(BaseModel):
        side: str
        done: bool = False

    class Maze(Wall):
        row: int

    class Room(Wall):
        text: str

    class Once:
        def __init__(self, said):
            self.said = said

        def reset(self, seed=None):
            return self.said

    for said, wanted in (
        (Wall(side="left"), "left"),
        (Maze(row=3, side="left"), '{"side": "left", "row": 3}'),
        (Room(side="left", text="A room."), "A room."),
        (({"row": 3, "column": 4}, {}), '{"row": 3, "column": 4}'),
        ((17, {}), "17"),
    ):
        task = EnvironmentTask(Once, {"said": said})
        assert next(task.problems(0)).messages[0]["content"] == wanted


class Rows:
    """A rubric and an environment in the form of verifiers: say the word, then say it again."""

    dataset: ClassVar = [{"question": f"Say {word}.", "answer": word, "info": {"n": len(word)}} for word in "abcdefgh"]
    system_prompt = "Repeat."
    max_turns = 3

    def __init__(self):
        self.rubric = self

    async def setup_state(self, state):
        return {**state, "right": 0}

    async def env_response(self, messages, state):
        assert messages[0]["role"] == "system"
        assert messages[-1]["role"] == "assistant"
        return [{"role": "user", "content": "Again."}]

    async def is_completed(self, state):
        return state["turn"] == 2

    async def score_rollout(self, state):
        said = [m["content"] for m in state["completion"] if m["role"] == "assistant"]
        assert len(state["trajectory"]) == state["turn"]
        state["reward"] = 2.0 * sum(word == state["answer"] for word in said) / len(said)


class PlainRows(Rows):
    """The same without coroutines, with a state that is changed in place."""

    def setup_state(self, state):
        state["right"] = 0

    def env_response(self, messages, state):
        return [{"role": "user", "content": "Again."}]

    def is_completed(self, state):
        return len(state["completion"]) >= 3

    def score_rollout(self, state):
        state["reward"] = 2.0 * (state["completion"][-1]["content"] == state["answer"]) + state["right"]


class OneTurn(Rows):
    env_response = None
    setup_state = None


@pytest.mark.parametrize("make", [Rows, PlainRows])
def test_an_environment_of_verifiers_is_a_conversation_its_rubric_judges(make):
    task = VerifiersTask(make, best=2.0)
    problem = next(task.problems(1))
    assert problem == next(task.problems(1))
    assert [m["role"] for m in problem.messages] == ["system", "user"]
    for second, score in ((problem.answer, 1.0), ("?", 0.5 if make is Rows else 0.0)):
        world = task.open(problem)
        turn = world.reply(f"<think>hm</think>{problem.answer}")
        assert (turn.content, turn.role, turn.verdict) == ("Again.", "user", None)
        assert world.reply(second).verdict.score == score
        world.close()


def test_one_turn_and_turns_used_up_are_judged_too(monkeypatch):
    task = VerifiersTask(OneTurn, best=2.0)
    problem = next(task.problems(2))
    assert task.verify(problem, problem.answer).score == 1.0
    assert task.verify(problem, "?").score == 0.0

    async def never(self, state):
        return False

    monkeypatch.setattr(Rows, "is_completed", never)
    world = VerifiersTask(Rows).open(problem)
    assert [world.reply("?").verdict for _ in range(2)] == [None, None]
    assert world.reply("?").verdict.score == 0.0

    async def nothing(self, state):
        state["reward"] = float("nan")

    monkeypatch.setattr(Rows, "score_rollout", nothing)
    turn = VerifiersTask(OneTurn).open(problem).reply("?")
    assert (turn.verdict, turn.faults) == (None, ("verifier_error",))


def test_too_few_different_problems_are_an_error_not_an_endless_search(monkeypatch):
    monkeypatch.setattr(Rows, "dataset", Rows.dataset[:1])
    task = VerifiersTask(Rows)
    kept = is_held_out(next(task.problems(0)))
    assert len(draw(task, 0, 3, held_out=kept)) == 3
    with pytest.raises(InvalidConfig, match=f"only 0 are {'for training' if kept else 'held out'}"):
        draw(task, 0, 3, held_out=not kept)


def test_an_environment_ends_after_its_turns_and_refuses_rewards_that_are_none():
    task = EnvironmentTask(Guess, turns=2)
    world = task.open(next(task.problems(1)))
    assert world.reply("x").content is not None
    assert world.reply("x").verdict.score == 0.0

    class Broken(Guess):
        def step(self, action):
            return "?", float("nan"), True, False, {}

    task = EnvironmentTask(Broken)
    turn = task.open(next(task.problems(1))).reply("1")
    assert (turn.verdict, turn.faults) == (None, ("verifier_error",))


def test_reasoning_gym_scores_its_own_answers():
    pytest.importorskip("reasoning_gym")
    task = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 3})
    problem = next(task.problems(5))
    assert problem == next(task.problems(5))
    assert task.verify(problem, problem.answer).score == 1.0
    assert task.verify(problem, f"<think>x</think> so <answer>{problem.answer}</answer>").score == 1.0
    assert task.verify(problem, "no").score < 1.0
    with pytest.raises(InvalidConfig, match="no such dataset"):
        ReasoningGym("nothing_of_that_name")
    with pytest.raises(InvalidConfig, match="no such dataset or setting"):
        ReasoningGym("chain_sum", {"colour": 1})
