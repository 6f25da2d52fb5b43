"""Trains the networks of a truth set, several at a time, each pair of network and seed once."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from detnas_d2.pipeline.truth_log import TRAININGS, Trained, TruthLog
from detnas_d2.pipeline.truth_plan import Network, TruthPlan
from detnas_d2.pipeline.truth_training import Job, Outcome, TruthWorker
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import digest
from detnas_d2.utils.screen import duration
from detnas_d2.utils.workers import WorkerPool

PILOT_NETWORKS, PILOT_SEEDS = 12, 2

Pair = tuple[Network, int]


def pilot_pairs(networks: Sequence[Network], seeds: int) -> list[Pair]:
    """The trainings that tell whether the others are worth it: the first networks, two seeds."""
    first = [network for network in networks if not network.band][:PILOT_NETWORKS]
    return [(network, seed) for seed in range(min(PILOT_SEEDS, seeds)) for network in first]


def all_pairs(networks: Sequence[Network], seeds: int) -> list[Pair]:
    """Every training in order: the pilot's, then seed by seed, so that a part is balanced."""
    pairs = [(network, seed) for seed in range(seeds) for network in networks]
    return list(dict.fromkeys([*pilot_pairs(networks, seeds), *pairs]))


@dataclass(frozen=True)
class Runner:
    """Runs trainings of a plan in worker processes, and logs them.

    Attributes:
        tell: takes a line for people.
        max_failures: of one call of :meth:`run`; more end it.
    """

    plan: TruthPlan
    log: TruthLog
    folder: str
    processes: int
    tell: Callable[[str], None]
    max_failures: int

    def missing(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those that were not trained, or failed."""
        metric = self.plan.metric
        return [(n, s) for n, s in pairs if self.log.score(n.name, s, metric) is None]

    def seconds(self) -> float | None:
        """Of a training, the mean of those that are finished; None before the first one."""
        found = [record.seconds for record in self.log.trained.values() if not record.error]
        return fmean(found) if found else None

    def measured_seconds(self) -> float:
        """Estimate for a training, from a few steps of the network of middle cost."""
        by_cost = sorted(self.plan.networks, key=lambda network: network.macs)
        folder = os.path.join(self.folder, TRAININGS, "measurement")
        job = Job(self.plan.configs(by_cost[len(by_cost) // 2], 0, folder), measure=True)
        with self._workers(1) as (worker,):
            seconds = _result(worker.submit("the measurement", job)).seconds
        shutil.rmtree(folder, ignore_errors=True)
        return seconds

    def run(self, pairs: Sequence[Pair]) -> None:
        """Trains what is missing of ``pairs``.

        Raises:
            InputError: too many failed.
            WorkerError: a worker cannot work, whatever the network.
        """
        waiting, failures = deque(self.missing(pairs)), 0
        for pair in set(pairs).difference(waiting):  # ended before it was removed
            shutil.rmtree(self._folder_of(pair), ignore_errors=True)
        total = len(waiting)
        if not waiting:
            return
        with self._workers(min(self.processes, total)) as workers:
            idle = list(workers)
            running: dict[Future[Outcome], tuple[WorkerPool, Pair]] = {}
            while waiting or running:
                while waiting and idle:
                    pair, worker = waiting.popleft(), idle.pop(0)
                    running[self._start(worker, pair)] = worker, pair
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in [future for future in running if future in finished]:
                    worker, pair = running.pop(future)
                    idle.append(worker)
                    record = self._finish(pair, future)
                    failures += bool(record.error)
                    left = len(waiting) + len(running)
                    self.tell(self._line(record, total - left, total, left))
                if failures > self.max_failures:
                    raise InputError(
                        f"{failures} trainings failed, more than SEARCH.MAX_FAILURES; their logs: "
                        f"{os.path.join(self.folder, TRAININGS)}"
                    )

    @contextmanager
    def _workers(self, count: int) -> Iterator[list[WorkerPool]]:
        log = os.path.join(self.folder, "worker_{}.log")
        workers = [WorkerPool(TruthWorker(i, log.format(i)), 1) for i in range(count)]
        try:
            yield workers
        finally:
            for worker in workers:
                worker.close(wait=False)

    def _folder_of(self, pair: Pair) -> str:
        network, seed = pair
        return os.path.join(self.folder, TRAININGS, f"{digest(network.name)}_seed{seed}")

    def _start(self, worker: WorkerPool, pair: Pair) -> Future[Outcome]:
        configs = self.plan.configs(*pair, self._folder_of(pair))
        return worker.submit(f"{pair[0].name}, seed {pair[1]}", Job(configs))

    def _finish(self, pair: Pair, future: Future[Outcome]) -> Trained:
        network, seed = pair
        try:
            outcome, error = future.result(), ""
            if self.plan.metric not in outcome.metrics:
                error = f"no finite {self.plan.metric} in {outcome.metrics}"
        except RuntimeError as failure:
            outcome, error = Outcome({}, 0.0), str(failure)
        metrics = {} if error else {k: round(v, 4) for k, v in outcome.metrics.items()}
        record = Trained(
            network.name,
            network.path.choices,
            network.macs,
            network.params,
            seed,
            metrics,
            round(outcome.seconds, 1),
            error,
        )
        self.log.append(record)
        if not error:
            shutil.rmtree(self._folder_of(pair), ignore_errors=True)
        return record

    def _line(self, record: Trained, done: int, total: int, left: int) -> str:
        score = record.error or f"{self.plan.metric} {record.metrics[self.plan.metric]:.2f}"
        text = (
            f"[{done}/{total}] seed {record.seed}: {score}, {record.macs / 1e6:.1f}M multiply-adds"
        )
        seconds = self.seconds()
        rest = f"; {duration(seconds * left / self.processes)} left" if left and seconds else ""
        return f"{text}, {record.seconds:.0f} s{rest}  {record.path}"


def _result(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except RuntimeError as error:
        raise InputError(f"a training cannot run: {error}") from error
