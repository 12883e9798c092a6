"""Failures of requests, under TF Serving's codes."""

# TensorFlow's code -> HTTP's, as TF Serving maps them (http_server.cc); 500 for others.
HTTP = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Failure(Exception):
    """A request that cannot be answered.

    Args:
        code: the name of gRPC's status code.
        message: TF Serving's text.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http(self) -> int:
        """Return HTTP's status code."""
        return HTTP.get(self.code, 500)


class TooLarge(Failure):
    """A request that takes too much memory. TF Serving has no such limit."""

    http = 413

    def __init__(self, message: str):
        super().__init__("RESOURCE_EXHAUSTED", message)


def invalid(message: str) -> Failure:
    """Return the failure of a malformed request."""
    return Failure("INVALID_ARGUMENT", message)
