"""Who plans how long the stages of a pipeline are: asked before, while and after they run."""

from __future__ import annotations

from collections.abc import Mapping

from detnas_d2.engine.keeping_time import Allowance, Late


class Planner:
    """Changes nothing, as for a pipeline whose lengths are its configs'."""

    def estimates(self) -> Mapping[str, float]:
        """Name of a stage -> seconds that it may take, of all stages if somebody has measured
        steps of them: by these what is left is told. Asked before every stage.
        """
        return {}

    def allowance(self, stage: str) -> Allowance | None:
        """Seconds that a stage is allowed from now on; None: as long as it needs."""
        return None

    def alone(self, stage: str) -> bool:
        """Whether no other stage runs next to this one, nor before it of those after it."""
        return False

    def ends_others(self, stage: str) -> bool:
        """Whether those that run next to a stage have to end too, before it is :meth:`late`."""
        return False

    def late(self, stage: str, late: Late) -> None:
        """Plans anew: a stage was ended because it would have taken longer than it is allowed."""
        raise NotImplementedError(f"{stage} has an allowance")

    def done(self, stage: str) -> bool:
        """Whether configs of stages that have not begun were written anew, now that this one has
        ended well.
        """
        return False
