"""What the client of the Hugging Face hub raises where the hub refuses, or does not answer."""

from huggingface_hub.errors import HfHubHTTPError

# The base of all errors of the library by which the client speaks HTTP: httpx, and since version 2 httpx2, whose errors
# httpx does not know.
HTTP_ERROR: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
HUB_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError, HTTP_ERROR, OSError)
