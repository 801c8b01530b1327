"""Who judges a conversation with tools: the answer alone, or all that was said where the task wants it."""

import json

from statepool.tasks import ConversationJudge, Problem, Verdict
from statepool.tasks.sequences.task import SequenceTask
from statepool.tasks.tools import PYTHON, PythonSteps
from statepool.train.dialogue import Limits, ToolBroken, ToolDialogue


class Echo:
    """A tool that prints what it is given."""

    def call(self, arguments):
        if arguments["code"] == "break":
            raise ToolBroken("gone")
        return arguments["code"]

    def close(self):
        pass


class Whole:
    """A task whose verdict is everything that was said."""

    name = "whole"

    def problems(self, seed):
        yield Problem(self.name, (), "", ())

    def prompt(self, problem):
        return ()

    def tools(self, problem):
        return (PYTHON,)

    def verify(self, problem, answer):
        raise AssertionError("the conversation is judged, not its end")

    def verify_conversation(self, problem, said):
        return Verdict(1.0, json.dumps([(m["role"], m["content"]) for m in said]))


def call(code):
    return f"<tool_call>\n{json.dumps({'name': 'python', 'arguments': {'code': code}})}\n</tool_call>"


def dialogue(task, problem, output=512):
    from statepool.engine.text.tools import PARSERS

    return ToolDialogue(task, problem, {"python": Echo()}, PARSERS["hermes"], Limits(output))


def test_a_task_that_asks_for_it_sees_every_turn_and_every_reply_as_the_model_did():
    task = Whole()
    talk = dialogue(task, next(task.problems(0)), output=4)
    assert talk.reply(call("one") + call("longer")).content == "one\nlong…"
    assert talk.reply(call("two")).content == "two"
    turn = talk.reply("end")
    assert json.loads(turn.verdict.reason) == [
        ["assistant", call("one") + call("longer")], ["tool", "one"], ["tool", "long…"],
        ["assistant", call("two")], ["tool", "two"], ["assistant", "end"],
    ]  # fmt: skip


def test_other_tasks_are_judged_by_their_answer():
    task = PythonSteps(steps=1)
    assert not isinstance(task, ConversationJudge)
    problem = next(task.problems(0))
    talk = dialogue(task, problem)
    talk.reply(call(problem.values[0]))
    assert talk.reply("I do not know").verdict.score == 0.0


def test_a_broken_tool_gives_no_verdict_on_what_was_said_before():
    task = Whole()
    talk = dialogue(task, next(task.problems(0)))
    talk.reply(call("one"))
    turn = talk.reply(call("break"))
    assert (turn.verdict, turn.faults) == (None, ("tool_broken",))


def test_the_best_code_that_a_program_printed_counts_and_one_in_a_program_does_not():
    task = SequenceTask(tool=True)
    problem = next(task.problems(6))
    best, worst = problem.answer, "+" * problem.facts["n"]
    fair = task.verify(problem, best).score
    assert fair > 0

    def said(*turns):
        talk = dialogue(task, problem)
        return [talk.reply(turn) for turn in turns][-1].verdict.score

    assert said(call(best), "done") == fair
    assert said(call(worst), call(best), call(worst), worst) == fair
    assert said(call("nothing") + f"<think>{best}</think>", "done") == 0.0
    assert said(call("nothing") + best, "done") == 0.0
    assert said(call(best + "+"), "done") == 0.0
    assert said(best) == fair
