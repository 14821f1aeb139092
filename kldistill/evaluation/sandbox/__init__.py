"""A sandbox for programs that a model wrote: they may be wrong, endless or hostile.

``supervisor`` runs inside, ``bubblewrap`` builds the walls, ``pool`` runs many at once.
"""

from kldistill.evaluation.sandbox.limits import Limits, Outcome, SandboxError, Verdict
from kldistill.evaluation.sandbox.pool import Sandbox, cores, unavailable

__all__ = ["Limits", "Outcome", "Sandbox", "SandboxError", "Verdict", "cores", "unavailable"]
