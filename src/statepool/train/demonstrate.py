"""Demonstrations as the tokens a rollout of the perfect model would have left: imitation and play look alike."""

from __future__ import annotations

from statepool.tasks import Problem
from statepool.train.agent import Agent
from statepool.train.prefix_tree import Sample


def demonstration(agent: Agent, problem: Problem) -> Sample:
    """A problem's own solution: the model's turns are learned, the world's are not."""
    tokens = agent.encode(problem)
    prompt, learn = len(tokens), [False] * len(tokens)
    ended = True
    for message in problem.rest:
        if message["role"] == "assistant":
            said, ended = agent.spoken(message["content"])
            tokens += said
            learn += [True] * len(said)
        else:
            told = agent.speech.said(message["content"], message["role"], ended)
            tokens += told
            learn += [False] * len(told)
    return Sample(tokens, learn, prompt)
