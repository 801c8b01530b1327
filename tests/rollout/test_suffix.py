"""The native tree against its twin that looks at every place, and the exact one against the tree it mirrors."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.rollout.suffix import PlainTree, exact_tree, group_tree

TEXTS = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=12)), max_size=12)


def filled(tree, parts):
    for text, tokens in parts:
        tree.append(text, np.array(tokens, np.int32))
    return tree


@given(TEXTS, st.integers(1, 12), st.integers(1, 4))
def test_a_first_draft_is_that_of_the_twin(parts, budget, paths):
    for text in range(4):
        plain, native = filled(PlainTree(8, 4096), parts), filled(group_tree(8, 4096), parts)
        assert native.draft(text, budget, paths, 0.05)[:2] == plain.draft(text, budget, paths, 0.05)[:2]
        assert native.draft(text, budget, paths, 0.05)[2] == pytest.approx(plain.draft(text, budget, paths, 0.05)[2])


@given(TEXTS, st.integers(1, 3))
def test_every_path_of_a_draft_stands_somewhere_behind_its_match(parts, paths):
    tree, texts = group_tree(8, 16), {}
    for text, tokens in parts:
        for token in tokens:
            tree.append(text, np.array([token], np.int32))
            texts.setdefault(text, []).append(token)
            drafted, parents, chances, match = tree.draft(text, 6, paths, 0.05)
            for i, parent in enumerate(parents):
                assert parent < i and 0.05 <= chances[i] <= (1.0 if parent < 0 else chances[parent]) + 1e-6
                path, at = [], i
                while at >= 0:
                    path.append(drafted[at])
                    at = parents[at]
                needle = texts[text][len(texts[text]) - match :] + path[::-1]
                assert match >= 2
                assert any(other[k : k + len(needle)] == needle for other in texts.values() for k in range(len(other)))


def test_a_cursor_finds_the_same_text_again_token_by_token():
    rng = random.Random(0)
    text = [rng.randrange(50) for _ in range(300)]
    tree = filled(group_tree(), [(0, text)])
    right = 0
    for i, token in enumerate(text):
        drafted = tree.draft(1, 1)[0]
        right += drafted == [token]
        tree.append(1, np.array([token], np.int32))
        assert tree.length(1) == i + 1
    assert right > 280


def test_removed_and_evicted_texts_draft_no_more_and_memory_is_bounded():
    rng = random.Random(1)
    tree = group_tree(24, 32, 40_000)
    for text in range(40):
        tree.append(text, np.array([rng.randrange(1000) for _ in range(200)], np.int32))
        assert tree.bytes <= 40_000 or tree.texts == 1
    assert 1 <= tree.texts < 40 and tree.length(39) == 200 and tree.length(0) == 0
    tree = filled(group_tree(), [(0, [1, 2, 3, 4, 5, 6]), (1, [1, 2, 3, 4])])
    assert tree.draft(1, 2)[0] == [5, 6]
    tree.remove(0)
    assert tree.draft(1, 2)[0] == []
    tree.append(0, np.array([2, 3, 4, 9], np.int32))
    assert tree.draft(1, 2)[0] == [9]
    assert tree.draft(77, 4)[0] == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=40), st.integers(1, 8))
def test_counts_of_the_exact_tree_are_those_of_all_substrings(steps, most):
    tree, texts = exact_tree(6), {}
    for text, token in steps:
        tree.append(text, np.array([token], np.int32))
        texts.setdefault(text, []).append(token)
    for own in texts.values():
        context = np.array(own[-6:], np.int32)
        drafted, parents, chances, match, score = tree.speculate(context, most, 8.0, 0.0, 0.1, False)
        assert score == pytest.approx(sum(chances), rel=1e-5)
        if not drafted:
            continue
        assert parents == list(range(-1, len(drafted) - 1))
        count = {
            n: sum(
                other[k : k + match + n] == [*own[len(own) - match :], *drafted[:n]]
                for other in texts.values()
                for k in range(len(other))
            )
            for n in range(len(drafted) + 1)
        }
        for n, chance in enumerate(chances, 1):
            assert chance == pytest.approx(count[n] / count[0], rel=1e-4)


def test_the_exact_tree_answers_as_the_tree_it_mirrors():
    arctic = pytest.importorskip("arctic_inference.suffix_decoding._C")
    rng = random.Random(2)
    for round_ in range(6):
        ours, theirs, texts = exact_tree(24), arctic.SuffixTree(24), {}
        for _ in range(400):
            text = rng.randrange(4)
            tokens = np.array([rng.randrange(2 + 3 * round_) for _ in range(rng.randint(1, 4))], np.int32)
            ours.append(text, tokens)
            theirs.extend_ndarray(text, tokens)
            texts.setdefault(text, []).extend(tokens.tolist())
            context = np.array(texts[rng.choice(sorted(texts))][-24:], np.int32)
            for tree in (False, True):
                mine = ours.speculate(context, 8, 1.0, 0.0, 0.1, tree)
                draft = theirs.speculate_ndarray(context, 8, 1.0, 0.0, 0.1, tree)
                assert (mine[0], mine[1], mine[3]) == (list(draft.token_ids), list(draft.parents), draft.match_len)
