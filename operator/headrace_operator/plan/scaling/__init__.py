"""How many engines each role shall have: a policy is a function from an `Ask` to an `Answer`. Pure; called once per
pass where `scaling.mode` is SLO, and by the simulator.

`inputs.py` the values, `policy.py` the built-in policy, `model.py` what engines can do, `forecast.py` what will come,
`bounds.py` what no policy may pass. Nothing is remembered here: what must outlast a pass is in the status.
"""

from headrace_operator.plan.scaling.inputs import (
    Aim,
    Answer,
    Ask,
    Changed,
    Decision,
    Model,
    Role,
    Target,
    Window,
)
from headrace_operator.plan.scaling.policy import decide

__all__ = ["Aim", "Answer", "Ask", "Changed", "Decision", "Model", "Role", "Target", "Window", "decide"]
