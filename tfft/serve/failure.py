"""What is wrong with a request, under TF Serving's codes."""

# TensorFlow's code -> HTTP's, as TF Serving maps them (http_status_code.cc); of others 500.
HTTP = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 412,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
    "DEADLINE_EXCEEDED": 504,
}


class Failure(Exception):
    """A request that is not answered.

    Args:
        code: the name of gRPC's status code.
        message: one line.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http(self) -> int:
        """HTTP's status code."""
        return HTTP.get(self.code, 500)


def invalid(message: str) -> Failure:
    """A request that is wrong in itself."""
    return Failure("INVALID_ARGUMENT", message)
