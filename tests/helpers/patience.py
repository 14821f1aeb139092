"""How long a test waits for another process before it takes it for dead."""

# Seconds. Only what hangs waits so long: a busy machine must not make a test fail that would pass on a quiet one.
PATIENCE = 3600
