"""`map_over`: one function over many items, here or on the workers of an executor, with what is done written down."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, TypeVar

import torch

from weightspace.errors import ExecutorError, WeightspaceError
from weightspace.journal import Journal

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING = 256  # items that are handed out at a time, so that millions do not lie in the queues of an executor


def map_over(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    executor: Executor | None = None,
    journal: Journal | None = None,
    key: Callable[[Item], str] = str,
    encode: Callable[[Result], Any] = lambda result: result,
    decode: Callable[[Any], Result] = lambda value: value,
    describe: Callable[[Item], str] = str,
    keep_errors: bool = False,
    one_thread: bool = True,
    progress: str | None = None,
) -> list[Any]:
    """Return [function(item) for item in items], the work done by an executor, what a journal knows not done again.

    Every item is computed with one thread of torch and BLAS, with an executor or without. So results are equal bit by
    bit, and workers do not take each other's cores. `concurrent.futures` has the interface of an executor, and so has
    a Dask client, whose cluster does the work again that a lost worker leaves::

        from distributed import Client

        with Client("scheduler:8786", set_as_default=False) as client:
            weightspace.inspect_many(paths, executor=client.get_executor(), journal="inspected.jsonl")

    Args:
        function: of a module, or a `partial` of one, so that other processes can be told what to do.
        executor: runs the items; None does one after the other here. Its threads share memory with the caller; to
            anything else function, items and results are pickled.
        journal: whose results are taken instead of computed, and which gets all others as they arrive.
        key: from an item to what tells it apart in the journal: which it is, and the content of what it names.
        encode, decode: from a result to a JSON value and back.
        describe: from an item to the name that errors give it.
        keep_errors: put an error made for the user in the place of the result, and go on.
        one_thread: False leaves the threads of the caller alone where there is no executor.
        progress: the title of a progress bar on a terminal; None shows none.
    Raises:
        what the function raises, at the first failure; the message names the item. Items that have not begun are
            cancelled then, and after Ctrl-C.
        ExecutorError: the workers were lost.
    """
    from tqdm import tqdm

    results: list[Any] = [None] * len(items)
    left = list(range(len(items)))
    keys: dict[int, str] = {}
    if journal is not None:
        keys = {place: key(items[place]) for place in left}
        for place in left:
            if keys[place] in journal.results:
                results[place] = decode(journal.results[keys[place]])
        left = [place for place in left if keys[place] not in journal.results]
    shared = executor is None or isinstance(executor, ThreadPoolExecutor)
    limits = single_threaded() if one_thread and shared else nullcontext()
    bar = tqdm(total=len(items), desc=progress, leave=False, disable=None if progress else True)
    with bar, limits:
        bar.update(len(items) - len(left))
        if executor is None:
            outcomes = ((place, partial(function, items[place])) for place in left)
        else:
            outcomes = _elsewhere(function, items, left, executor)
        done = len(items) - len(left)
        try:
            for place, take in outcomes:
                try:
                    results[place] = take()
                except BrokenExecutor:
                    raise
                except Exception as error:
                    if not (keep_errors and isinstance(error, WeightspaceError)):
                        raise _named(error, describe(items[place])) from error
                    results[place] = _named(error, describe(items[place]))
                else:
                    if journal is not None:
                        journal.add(keys[place], encode(results[place]))
                done += 1
                bar.update()
        except BrokenExecutor as error:
            kept = (
                "none is kept; give a journal= to keep them"
                if journal is None
                else f"they are kept in {str(journal.path)!r}, and the same call with a new executor does the rest"
            )
            raise ExecutorError(
                f"the executor lost its workers ({' '.join(str(error).split()) or type(error).__name__}) when "
                f"{done} of {len(items)} items were done; {kept}"
            ) from error
        finally:
            outcomes.close()
    return results


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Yield an executor of new processes, which end with this one even when it is killed.

    Args:
        workers: their number. They start Python anew (`spawn`), since a fork does not survive the threads of torch.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_serve)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Compute with one thread of torch and BLAS in the block; several threads of a process may be in it at once."""
    global _inside, _before
    # Torch and OpenMP count for every thread on its own, BLAS for the process.
    threads, own = torch.get_num_threads(), _libraries().select(user_api="openmp").limit(limits=1)
    with _guard:
        _inside += 1
        if _inside == 1:
            _before = (threads, _libraries().select(user_api="blas").limit(limits=1))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _guard:
            own.restore_original_limits()
            torch.set_num_threads(threads)
            _inside -= 1
            first, limits = _before
            if _inside == 0:
                limits.restore_original_limits()
            common = 1 if _inside else first
            if common != threads:
                # MKL and new threads take the count that any thread set last; this thread keeps its own.
                setter = threading.Thread(target=torch.set_num_threads, args=(common,))
                setter.start()
                setter.join()


_guard = threading.Lock()
_inside = 0
_before: tuple[int, Any] = (1, None)  # the threads of who came first, and what ends the limit of BLAS


@cache
def _libraries() -> Any:
    import scipy.linalg  # noqa: F401 - its BLAS must be there to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _elsewhere(
    function: Callable[[Any], Any], items: Sequence[Any], places: Sequence[int], executor: Executor
) -> Generator[tuple[int, Callable[[], Any]]]:
    """Hand out the items and yield (place, function that gives its result or raises) as they are done."""
    shared = isinstance(executor, ThreadPoolExecutor)
    # Pickled here: torch would send tensors to processes through open files, of which there are few.
    packed = None if shared else pickle.dumps(function, pickle.HIGHEST_PROTOCOL)
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    running: dict[Future, int] = {}
    waiting = iter(places)

    def hand_out(count: int) -> None:
        for _, place in zip(range(count), waiting):  # noqa: B905 - in this order, or one is lost
            if packed is None:
                future = executor.submit(_limited, function, items[place])
            else:
                item = pickle.dumps(items[place], pickle.HIGHEST_PROTOCOL)
                future = executor.submit(_remote, packed, item)
            running[future] = place
            future.add_done_callback(done.put)

    try:
        hand_out(WAITING)
        while running:
            future = done.get()
            place = running.pop(future)
            yield place, lambda future=future: future.result() if shared else pickle.loads(future.result())
            hand_out(1)
    finally:
        for future in running:
            future.cancel()


def _limited(function: Callable[[Any], Any], item: Any) -> Any:
    with single_threaded():
        return function(item)


def _remote(function: bytes, item: bytes) -> bytes:
    return pickle.dumps(_limited(pickle.loads(function), pickle.loads(item)), pickle.HIGHEST_PROTOCOL)


def _named(error: Exception, name: str) -> Exception:
    """The error with the name of the item, where its message lacks it."""
    if name in str(error):
        return error
    if isinstance(error, WeightspaceError):
        return type(error)(f"{name}: {error}")
    error.add_note(f"while working on {name}")
    return error


def _serve() -> None:
    """Prepare a worker: Ctrl-C is for the process that started it, with which it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
