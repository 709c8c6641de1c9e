"""`"package.module:function"`: a model or a dataset of the user's own, named in the job file.

The function is imported from what is installed at this party; nothing arrives over the network.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from fl_core.errors import JobFileError

_SHAPE = '"package.module:function", installed where the job runs'


def is_reference(name: str) -> bool:
    """Whether a name points to a function instead of into a registry."""
    return ":" in name


def load_function(key: str, name: str) -> Callable[..., Any]:
    """Import the function that the job's `key` names.

    Raises
    ------
    JobFileError : a malformed name, a module that cannot be imported, a missing or uncallable attribute.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute.isidentifier():
        raise JobFileError(key, f"{name!r}", allowed=_SHAPE)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise JobFileError(key, f"{name!r} cannot be imported ({reason})", allowed=_SHAPE) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        problem = "is not there" if found is None else "is not a function"
        raise JobFileError(key, f"{attribute!r} {problem} in {module_name!r}", allowed=_SHAPE)
    return cast(Callable[..., Any], found)
