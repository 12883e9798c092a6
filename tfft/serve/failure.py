"""Errors of requests, with TF Serving's status codes."""

# gRPC status code -> HTTP status code, as TF Serving maps them (http_server.cc); others are 500.
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
        code: name of the gRPC status code.
        message: the message for the client.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http(self) -> int:
        """HTTP status code of the failure."""
        return HTTP.get(self.code, 500)


class TooLarge(Failure):
    """A request that would take too much memory. TF Serving has no such limit."""

    http = 413

    def __init__(self, message: str):
        super().__init__("RESOURCE_EXHAUSTED", message)


def invalid(message: str) -> Failure:
    """Return the failure of an invalid request."""
    return Failure("INVALID_ARGUMENT", message)
