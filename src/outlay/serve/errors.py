"""What is refused, in the form that OpenAI's clients read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from outlay.errors import FailureError, QueueFull, ScorerError, UsageError, one_line

INTERNAL, SCORER_FAILED = "internal_error", "scorer_failed"
UNTOLD = (INTERNAL, SCORER_FAILED)  # codes of errors whose own words are for the log alone
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused or failed.

    Args:
        status: the HTTP status.
        message: one line for the caller.
        param: the field that is at fault.
        code: a word for programs.
        retry_after: seconds after which it may be worth another try; without, clients are told not to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer, or of an error event."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that tell the official client whether to try again."""
        if self.retry_after is not None:
            return {"retry-after": str(math.ceil(self.retry_after)), "x-should-retry": "true"}
        return {"x-should-retry": "false"}


def as_api_error(error: BaseException) -> ApiError:
    """Returns what the caller is told of an error. One that we did not foresee is kept from them."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, one_line(error), code="invalid_value")
    if isinstance(error, QueueFull):
        return ApiError(503, one_line(error), code="queue_full", retry_after=1.0)
    if isinstance(error, ScorerError):
        return ApiError(500, "the scorer failed at this request; the server's log says where", code=SCORER_FAILED)
    if isinstance(error, FailureError):
        return ApiError(500, one_line(error), code="run_failed")
    return ApiError(500, "the server failed at this request; its log says where", code=INTERNAL)
