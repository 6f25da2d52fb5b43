"""Calls that come again and again, replayed from graphs (CUDA's) of all that they launch.

What is captured, kept, dropped and left alone is decided here; :class:`GraphBackend` captures.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from detnas_d2.evaluation.graph_buffers import Buffers, Results, layout, same_bits
from detnas_d2.ops.autotune import AutotuneCache, Trial, device_text, size_class
from detnas_d2.ops.self_check import Verdict
from detnas_d2.utils.compat import is_any_autocast_enabled

MOST = 256
"""Graphs at a time: those of the candidates of a chunk at ten sizes of images."""
AFTER = 2
"""Calls as they are before one is captured: sizes of images that are rare never are, and what is
made once has been."""
WORTH = 4
"""Replays for each capture, which takes about as long as so many calls."""

logger = logging.getLogger("detnas_d2.search")

Result = tuple[list[Tensor], object]
"""What a call gives: tensors, and what is the same of each of its calls."""


class GraphBackend(Protocol):
    """What makes graphs of calls."""

    def refuses(self, x: Tensor) -> str | None:
        """Why calls with such an input are not captured; None: they can be."""

    def capture(self, function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """A function that does again, to the same tensors, what ``function`` does on the device.

        Raises:
            RuntimeError: it cannot be captured.
        """


@dataclass(frozen=True)
class Call:
    """A function of a tensor that may be replayed.

    Attributes:
        key: tells it from others.
        work: names its class, whose calls take equally long for inputs of one size.
        run: the function; without side effects, with results of the same layouts for inputs of one.
        state: tensors that its results depend on besides the input.
        kept: what has to live as long as a graph of it, besides them.
    """

    key: Hashable
    work: str
    run: Callable[[Tensor], Result]
    state: Callable[[], list[Tensor]]
    kept: Callable[[], object]


class _Graph:
    """A call that was captured for inputs of one layout."""

    def __init__(
        self,
        call: Call,
        x: Tensor,
        state: list[Tensor],
        expected: Sequence[Tensor],
        backend: GraphBackend,
        buffers: Buffers,
    ) -> None:
        self._state = [(t, t._version) for t in state]
        self._source = buffers.like(x, "input").copy_(x)
        self._results = Results(expected, buffers)
        self._replay = backend.capture(
            lambda: self._results.write(call.run(self._source)[0]), x.device
        )
        self._kept = call.kept()

    def holds(self, state: list[Tensor]) -> bool:
        """Whether the call still depends on the same tensors, none of which was written."""
        if len(state) != len(self._state):
            return False
        pairs = zip(state, self._state, strict=True)
        return all(t is known and t._version == version for t, (known, version) in pairs)

    def first_replay(self, x: Tensor) -> list[Tensor]:
        """To be compared: none of it is left from the call that was captured."""
        self._results.spoil()
        return self.replay(x)

    def replay(self, x: Tensor) -> list[Tensor]:
        self._source.copy_(x)
        self._replay()
        return self._results.read()


class GraphedCalls:
    """Calls by graphs where these give the same bits and are faster, as they are elsewhere.

    A call is captured when it comes again with an input of the same layout, and compared with
    itself, bit by bit. Whether graphs of a class of work are faster is measured once per device and
    kept with the choices of operators. A graph holds for the tensors that it was captured with:
    after one was written or replaced it is dropped. Writes through ``.data`` are not seen, as
    nothing counts them: :meth:`clear` then.

    Args:
        autotune: what was tried out.
        most: graphs at a time; those that were replayed last stay.
        after: calls as they are before one is captured.

    Attributes:
        captures, replays: so far.
    """

    def __init__(
        self,
        backend: GraphBackend,
        autotune: AutotuneCache,
        *,
        most: int = MOST,
        after: int = AFTER,
    ) -> None:
        if most < 1 or after < 1:
            raise ValueError(f"most and after must be positive, got {most} and {after}")
        self.captures = self.replays = 0
        self._backend, self._autotune = backend, autotune
        self._most, self._after = most, after
        self._buffers = Buffers()
        self._graphs: OrderedDict[Hashable, tuple[_Graph, object]] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()
        self._as_they_are: set[Hashable] = set()
        self._told: set[str] = set()
        self._stopped = self._full = False
        self._begun = (0, 0, 0)  # captures and replays when graphs were last cleared; evicted since

    def run(self, call: Call, x: Tensor) -> Result:
        """``call.run(x)``, in tensors of its own."""
        if self._stopped or self._refused(x):
            return call.run(x)
        key: Hashable = (call.key, layout(x))
        if key in self._as_they_are:
            return call.run(x)
        state = call.state()
        try:
            found = self._graphs.get(key)
            if found is not None and not found[0].holds(state):
                del self._graphs[key]
                self._seen[key], found = 0, None
            if found is not None:
                self._graphs.move_to_end(key)
                self.replays += 1
                return found[0].replay(x), found[1]
            self._seen[key] += 1
            if self._full or self._seen[key] <= self._after:
                return call.run(x)
            return self._captured(key, call, x, state)
        except torch.cuda.OutOfMemoryError:
            if self._graphs:  # what they hold may be what memory was short of
                self.stop("not enough memory beside them")
            raise

    def clear(self) -> None:
        """Drops all graphs, and what is known of calls but for their classes."""
        self._graphs.clear()
        self._buffers.clear()
        self._seen.clear()
        self._as_they_are.clear()
        self._full = False
        self._begun = (self.captures, self.replays, 0)

    def stop(self, why: str) -> None:
        """Drops all graphs; from now on calls run as they are."""
        self._stopped = True
        self.clear()
        self.tell(why)

    def tell(self, why: str) -> None:
        """Logs, once, why calls are not replayed."""
        if why not in self._told:
            self._told.add(why)
            logger.info("SEARCH.CUDA_GRAPHS: calls are not replayed from graphs: %s", why)

    def _refused(self, x: Tensor) -> bool:
        why = self._backend.refuses(x)
        if torch.is_grad_enabled():
            why = "gradients are recorded"
        elif is_any_autocast_enabled():
            why = "autocast keeps casts that a graph would not make again"
        if why is not None:
            self.tell(why)
        return why is not None

    def _captured(self, key: Hashable, call: Call, x: Tensor, state: list[Tensor]) -> Result:
        """The call as it is; it is replayed from now on if that does the same, and faster."""
        expected, note = call.run(x)
        if any(t.is_inference() for t in state):
            self.tell("weights were made under inference_mode, which counts no writes")
            self._as_they_are.add(key)
            return expected, note
        made: list[_Graph] = []

        def checked() -> Verdict:
            if not made:
                made.append(_Graph(call, x, state, expected, self._backend, self._buffers))
            return _compared(made[0].first_replay(x), expected)

        def trial() -> Trial:
            return Trial(
                operators=lambda: made[0].replay(x),
                modules=partial(call.run, x),
                check=checked,
                device=str(x.device),
            )

        pixels = size_class(x.numel() // x.shape[1])
        work = f"{call.work}, {pixels} pixels, {x.dtype}, {device_text(x.device)}"
        if not self._autotune.use_graph(work, trial):
            self._as_they_are.add(key)
            return expected, note
        if not made:  # only the class was tried
            try:
                verdict = checked()
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.stop(f"a capture failed: {str(error).splitlines()[0]}")
                return expected, note
            if not verdict.agrees:
                self.stop(f"a replay has other bits than the call in {verdict.tensor}")
                return expected, note
        self._keep(key, made[0], note)
        return expected, note

    def _keep(self, key: Hashable, graph: _Graph, note: object) -> None:
        self._graphs[key] = (graph, note)
        self.captures += 1
        if len(self._graphs) <= self._most:
            return
        self._graphs.popitem(last=False)
        captures, replays, evicted = self._begun
        self._begun = (captures, replays, evicted + 1)
        captures, replays = self.captures - captures, self.replays - replays
        if evicted + 1 >= self._most and replays < WORTH * captures:
            self._full = True
            self.tell(f"{captures} captures were replayed {replays} times, as inputs vary too much")


def _compared(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Verdict:
    """Agrees only where all bits are the same."""
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if not same_bits(ours, theirs):
            return Verdict(f"result {i}", math.inf, 0.0)
    return Verdict("all results", 0.0, 0.0)
