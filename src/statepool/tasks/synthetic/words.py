"""The closed vocabulary of the synthetic tasks: short words, so that each becomes one or two tokens."""

# ruff: noqa: SIM905 - a word list is easier to read and edit than a list of quoted words
from __future__ import annotations

KEYS = tuple(
    """
    apple arrow badge banjo barn basin beach bear bell bench boat bone book boot bowl box brick bridge broom
    bucket cabin cable camel canoe card cart castle cat chair chest clock cloud coat coin comb crab crane crown
    cup dawn deer desk dish dog door drum duck eagle engine fan farm fence ferry field fish flag flute forest
    fork fox frog garden gate ghost glass globe goat grape guitar hammer harbor hat hawk hill horse house igloo
    island jacket jar kettle key kite knife ladder lake lamp leaf lemon lion lock mango map mask meadow melon
    mirror moon motor mouse needle nest oak ocean olive otter owl paddle panda parrot peach pearl pen piano pig
    pillow pine plate pond rabbit radio raven ribbon ring river robot rocket rope rose sail salmon scarf seal
    shell ship shoe sled snail spoon stone stove swan sword table tent tiger tower train tree truck tulip turtle
    valley vase violin wagon wall whale wheel willow window wolf wood yacht zebra
    """.split()
)
"""Things a fact can be about."""

COLORS = tuple("amber black blue brown coral cyan gold gray green ivory lime pink purple red silver white".split())
CITIES = tuple(
    """
    Accra Athens Berlin Bern Cairo Delhi Dublin Hanoi Kyoto Lagos Lima London Milan Oslo Paris Perth Quito Riga Rome
    Seoul Sofia Tokyo Turin Vienna
    """.split()
)
NAMES = tuple(
    """
    ada amy ann bea ben bob cal dan deb eli emma eva fay finn gil gus hal ian ida ivy jack jane jim joe kai ken
    kim lea leo liz lou mae max mia ned nina nora pam pat paul ray rob ron ruth sam sara sue ted tess tim tom
    una val vera walt wes zoe
    """.split()
)
"""Names of variables."""

FILLER = tuple(
    """The sky is clear today.|The wind is calm.|A bird sings in a tree.|People walk along the road.|It may rain later.|
    The shop is open all day.|The sun is warm.|Time goes by.|Nothing else happens here.|The train is late again.|
    Some tea is on the table.|The grass is wet.|We wait for the boat.|The night is long and quiet.""".replace(
        "\n    ", ""
    ).split("|")
)
"""Sentences that state no fact anybody asks for."""
