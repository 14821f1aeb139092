"""What the client of the Hugging Face hub raises where the hub refuses, or does not answer, and what to do then."""

import logging
import os

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

log = logging.getLogger(__name__)

# The base of all errors of the library by which the client speaks HTTP: httpx, and since version 2 httpx2, whose errors
# httpx does not know.
HTTP_ERROR: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
HUB_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError, HTTP_ERROR, OSError)


def take_the_cache(path: str, error: Exception) -> None:
    """Let this process, and those that it starts, ask the hub no more: what it does not answer is in the cache.

    The client asks six times for each file of a model that it looks for, half a minute in all, and every stage reads
    the model again.

    Args:
        path: the model's id on the hub.
        error: what the client raised.
    """
    if isinstance(error, HfHubHTTPError) or constants.HF_HUB_OFFLINE:
        return  # it has answered, or is not asked
    log.warning(
        "The hub does not answer (%s): %s is taken from the local cache, as HF_HUB_OFFLINE=1 would.", error, path
    )
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
