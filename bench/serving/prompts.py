"""Prompts of a wanted length that have nothing in common.

A server that keeps what it computed for earlier prompts must not be able to use it here, so every
prompt differs from its first word on. Each word is one token in the vocabularies of common models;
how many tokens came of a prompt is what the server states. Knows nothing of chat templates.
"""

import random

WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"),
    *("school", "state", "family", "student", "group", "country", "problem", "hand", "part"),
    *("place", "case", "week", "company", "system", "program", "question", "work", "number"),
    *("night", "point", "home", "water", "room", "mother", "area", "money", "story", "month"),
    *("study", "book", "eye", "job", "word", "business", "side", "head", "house", "service"),
    *("friend", "father", "power", "hour", "game", "line", "law", "car", "city", "name", "team"),
    *("minute", "idea", "body", "parent", "face", "level", "office", "door", "health", "person"),
    *("art", "war", "history", "party", "result", "change", "morning", "reason", "research"),
    *("moment", "air", "teacher", "force", "river", "stone", "bridge", "garden", "winter"),
    *("summer", "forest", "island", "mountain", "engine", "paper", "letter", "music", "window"),
)
TASK = "Write a very long story with all of these words."
SHORT = 8
"""Words of a prompt whose length does not matter."""


def prompt(number: int, *, words: int = SHORT, seed: int = 0) -> str:
    """The prompt of that number: so many words by chance, and a task that asks for a long text.

    Args:
        number: Which prompt; each number has another.
        words: How many words stand before the task.
        seed: Another seed gives other prompts.
    """
    chosen = random.Random(f"{seed}/{number}").choices(WORDS, k=words)  # noqa: S311 - no secret
    return f"{' '.join(chosen)}. {TASK}"
