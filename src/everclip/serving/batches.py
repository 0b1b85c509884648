"""Collect requests that come within a few milliseconds, and have one thread compute them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from everclip.serving.answering import Ask, Json, Result
from everclip.serving.limits import Refused

SIZE = 32
"""Largest number of requests computed together."""
WAIT = 0.005
"""Seconds that the first request of a batch waits for others; those that come while a batch is computed wait anyway."""


class Batches:
    """Computes requests in batches; one event loop uses it.

    Args:
        run: returns the result of each request of a batch; called in a thread of its own, one batch at a time.
    """

    def __init__(self, run: Callable[[Sequence[Ask]], list[Result]]) -> None:
        self._run = run
        self._queue: asyncio.Queue[tuple[Ask, asyncio.Future[Result]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "everclip-batches")

    async def ask(self, ask: Ask) -> Json:
        """Return the answer to a request. Raises Refused."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((ask, future))
        result = await future
        if isinstance(result, Refused):
            raise result
        return result

    async def work(self) -> None:
        """Compute what is asked for, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = [await self._queue.get()]
                if self._queue.qsize() + 1 < SIZE:
                    await asyncio.sleep(WAIT)
                while len(batch) < SIZE and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                results = await loop.run_in_executor(self._thread, self._results, [ask for ask, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():  # of a request that was cancelled
                        future.set_result(result)
        finally:
            self._thread.shutdown(wait=False)

    def _results(self, asks: Sequence[Ask]) -> list[Result]:
        try:
            return self._run(asks)
        except BaseException as error:  # our own bug, or SystemExit of a plug-in: tell those who wait
            return [Refused(500, f"internal error ({type(error).__name__})")] * len(asks)
