"""A sandbox for programs that a model wrote: they may be wrong, endless or hostile.

``supervisor`` runs inside, ``bubblewrap`` builds the walls, ``pool`` runs many at once.
"""

from kldistill.sandbox.bubblewrap import unavailable
from kldistill.sandbox.limits import Limits, Outcome, SandboxError, Verdict
from kldistill.sandbox.pool import Sandbox

__all__ = ["Limits", "Outcome", "Sandbox", "SandboxError", "Verdict", "unavailable"]
