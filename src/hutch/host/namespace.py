"""The router's network namespace as a file: is it there?"""

from __future__ import annotations

import os

from hutch.spec.names import Places


def has_namespace(places: Places) -> bool:
    """Whether the namespace's file is a mounted namespace: a plain file there is what a crash left."""
    try:
        return os.stat(places.namespace_path).st_dev != os.stat(places.namespace_path.parent).st_dev
    except FileNotFoundError:
        return False
