"""The answers of an Incus server as values of the shape that hutch expects.

A server's strings are not trusted: one of another shape is an error that names the question, a name is matched before
it becomes part of a path, and what a person reads is printable and short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hutch.engines.incus.failures import Refused, printable
from hutch.errors import HutchError

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
SHOWN = 80  # characters of a server's text within a sentence
NOT_FOUND = 404


def mapping(answer: object, question: str) -> dict[str, Any]:
    """An answer that is an object."""
    if not isinstance(answer, dict):
        raise _strange(question)
    return answer


def listing(answer: object, question: str) -> list[dict[str, Any]]:
    """An answer that is a list of objects."""
    if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
        raise _strange(question)
    return answer


def words(value: object) -> tuple[str, ...]:
    """The strings of a list; none where it is no list."""
    return tuple(word for word in value if isinstance(word, str)) if isinstance(value, list) else ()


def texts(value: object) -> dict[str, str]:
    """The strings of an object, such as a configuration; none where it is no object."""
    return {str(key): text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def text(value: Mapping[str, Any], key: str) -> str:
    """A string of an object; "" where it has none."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def is_name(name: str) -> bool:
    """Whether a server's name of something may be part of a path and of a sentence."""
    return NAME.fullmatch(name) is not None


def shown(words: str) -> str:
    """A server's text within a sentence: printable, and cut."""
    return printable(words, SHOWN)


def found(client: Client, path: str) -> dict[str, Any] | None:
    """The object at a path that says its project itself; None where the server has none."""
    try:
        return mapping(client.get(path, project=False), path)
    except Refused as error:
        if error.code == NOT_FOUND:
            return None
        raise


def _strange(question: str) -> HutchError:
    return HutchError(
        f"the Incus server gave an answer to {question} that hutch does not understand",
        resolution="`incus query` shows it; hutch needs Incus 6.0 or newer",
    )
