"""The object store as its readers feel it: so many requests a second on each prefix, so many bytes a second in all.

Who asks for more than a prefix allows is refused, and tries again later, as the clients of S3 do: after a random share
of 1, 2, 4 … 20 seconds. It holds no objects.
"""

from __future__ import annotations

import random

from infra.simulate_assumptions import Assumptions

BURST_SECONDS = 1.0  # requests that a prefix takes at once, having been idle
LONGEST_BACK_OFF = 20.0  # botocore's, in its mode "standard"
OBJECT_READ_AT_ONCE = 50 << 20  # s3fs reads ahead in blocks of so many bytes


class Bucket:
    """Asked at the time of each request, in order."""

    def __init__(self, given: Assumptions) -> None:
        self._given = given
        self._full = given.requests_per_second * BURST_SECONDS
        self._allowed = [self._full] * given.prefixes
        self._asked_at = [0.0] * given.prefixes
        self._random = random.Random(given.seed)
        self._wire_free_at = 0.0
        self.requests = 0
        self.refused = 0

    def requests_of(self, size: int) -> int:
        """To read an object of so many bytes."""
        return self._given.requests_per_file * (1 + size // OBJECT_READ_AT_ONCE)

    def refuses(self, now: float, file: int, requests: int) -> bool:
        """Whether a prefix has had enough; else the requests are counted.

        More requests than a full second allows go through together once a full second is there.
        """
        prefix = file % self._given.prefixes
        elapsed, self._asked_at[prefix] = now - self._asked_at[prefix], now
        refilled = self._allowed[prefix] + elapsed * self._given.requests_per_second
        self._allowed[prefix] = min(self._full, refilled)
        if self._allowed[prefix] < min(requests, self._full):
            self.refused += 1
            return True
        self._allowed[prefix] -= requests
        self.requests += requests
        return False

    def back_off(self, refusals: int) -> float:
        """Seconds until the next attempt, after so many that were refused."""
        return self._random.random() * min(LONGEST_BACK_OFF, 2.0 ** (refusals - 1))

    def transfer(self, now: float, size: int) -> float:
        """Seconds until so many bytes are there: at the reader's own pace, or when all before it are through."""
        self._wire_free_at = max(now, self._wire_free_at) + size / self._given.bandwidth
        own = self._given.request_seconds + size / self._given.reader_bandwidth
        return max(own, self._wire_free_at - now)
