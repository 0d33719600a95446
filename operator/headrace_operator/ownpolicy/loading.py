"""From `package.module:function` to the function. Importing runs the module: in the operator only `child.py` does that,
in a process of its own; the simulator and `replay` do it where they are."""

import importlib
import inspect
from collections.abc import Callable
from typing import Final

from headrace_operator.plan.scaling import Answer, Ask, decide

BUILTIN: Final = "builtin"
Function = Callable[[Ask], Answer]


class NotLoadedError(ValueError):
    """There is no such policy. The text is a clause that follows its name."""


def load(name: str) -> Function:
    """The policy of this name. NotLoadedError where it cannot be imported, or is no ordinary function."""
    if name == BUILTIN:
        return decide
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise NotLoadedError("is not of the form package.module:function")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:
        raise NotLoadedError(f"cannot be imported: {type(error).__name__}: {error}") from error
    if found is None:
        raise NotLoadedError(f"cannot be imported: {module} has no {attribute}")
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise NotLoadedError("is not an ordinary function from Ask to Answer")
    policy: Function = found
    return policy
