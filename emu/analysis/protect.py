"""Which sites to keep off the device, so that the accuracy lost stays under a target at the least cost."""

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.analysis.figures import BLUE, GREEN, GREY, RED, curve, grid, in_points
from emu.analysis.ground import (
    ROUNDING,
    Analysis,
    Group,
    Measurement,
    Run,
    RunOptions,
    Section,
    disturbed_groups,
    of_bench,
    points,
    records,
    undisturbed,
)
from emu.analysis.heads import stored_bits
from emu.contract.site import one_of_each_array
from emu.errors import InputError
from emu.evaluation import Bench
from emu.evaluation.bench import seeds_of

Cost = Literal["macs", "parameters", "bits"]

_UNION = " | "


@dataclass(frozen=True, kw_only=True, eq=False)
class Protection(Analysis):
    """What `protect` found; its table are the steps.

    Attributes:
        chosen: selections of the sites to protect, in the order of the model.
        rules: the same as `map` of `emu.rewrite` and `emu evaluate` takes it, such as `component=ffn_up layer=0:ideal`.
        verified: whether the target was met on average by chips that the search had not seen.
        shown: whether it is also shown at 95 %: the interval of the loss ends at the target or below.
        loss: mean loss on those chips, a share; `low` to `high` its 95 % interval for other chips and samples.
        first_seed: seed of the first of those chips.
        cost: of what is protected; `share` of the cost of protecting all sites that are disturbed.
        parts: one row per part of the model that could be protected: `part`, `selection`, `cost`, `share`, `alone`
            (accuracy lost when it alone is disturbed), `regained` (when all but it are), `protected`.
        table: one row per measurement of the search, in order: `step`, `action` (`screen`: nothing is protected; `add`;
            `verify`; `drop`, or `keep` where the target would be lost without the part), `part`, `parts` (number
            protected), `cost`, `share`, `loss`, `std`, `low`, `high`, `holds` (the mean is at most the target), `shown`
            (so is the end of its interval), `chips`, `first_seed`.
    """

    chosen: tuple[str, ...]
    rules: tuple[str, ...]
    verified: bool
    shown: bool
    loss: float
    low: float
    high: float
    first_seed: int
    cost: int
    share: float
    parts: pd.DataFrame


@dataclass(frozen=True)
class _Part:
    """What is protected as a whole: groups of sites, several if they share a physical array."""

    groups: tuple[Group, ...]
    cost: int

    @property
    def name(self) -> str:
        layers = [group.layer for group in self.groups]
        if len(layers) > 2 and len({group.component for group in self.groups}) == 1 and None not in layers:
            return f"{self.groups[0].component} of {len(layers)} layers"
        return ", ".join(group.name for group in self.groups)

    @property
    def selections(self) -> tuple[str, ...]:
        return tuple(group.selection for group in self.groups)


def protect(
    bench: Bench,
    target: float = 0.01,
    cost: Cost = "macs",
    *,
    guard: str = "ideal",
    guarded: Callable[[Sequence[str]], Bench] | None = None,
    **options: Unpack[RunOptions],
) -> Protection:
    """Finds sites to protect so that the mean accuracy lost stays under a target, at the least cost.

    1. Screening: every part (the sites of one component in one layer; parts that share a physical array are one) is
       disturbed alone, and protected alone. Parts are ranked by the mean of what is lost and regained, per cost.
    2. In this order they are added, and the whole is measured each time, until the loss is at most the target.
    3. The set is measured on chips that were not used before. While it loses more than the target there, the next part
       is added, and other fresh chips decide.
    4. Parts whose removal keeps the target are dropped, the costliest first, on the chips of screening and of the last
       verification. What remains is verified on fresh chips again; where that fails, dropped parts come back.

    Greedy: cheaper sets may exist.

    Args:
        bench: a model with a device.
        target: largest mean loss, a share of accuracy: 0.01 for one point.
        cost: what protection costs: multiply-accumulates for one sample, parameters, or stored bits.
        guard: the device of protected sites, for the rules.
        guarded: makes the bench in which sites are on the device `guard`, from rules; None where that is digital, which
            needs none: a site of strength 0 is digital. With it `cost` of `bits` are check bits, 8 for 64.
        options: chips of each measurement, seeds, and where trials are kept, see `emu.analysis.ground.Run`.

    Raises:
        InputError: a model without sites, a cost that is not known or zero everywhere, a target outside 0 to 1.
    """
    if not 0 < target < 1:
        raise InputError(f"The target is a loss of {target:g} and must be a share between 0 and 1, such as 0.01.")
    return _Search(bench, target, cost, guard, guarded, Run(**options)).run()


class _Search:
    """The state of one search: parts in the order of the model, what is protected, what was measured."""

    def __init__(
        self,
        bench: Bench,
        target: float,
        cost: Cost,
        guard: str,
        guarded: Callable[[Sequence[str]], Bench] | None,
        run: Run,
    ) -> None:
        self.clean = undisturbed(bench)
        self.bench, self.target, self.cost, self.chips = bench, target, cost, run.chips
        self.guard, self.guarded, self.options = guard, guarded, run
        self.parts = _parts(bench, cost, check_bits=guarded is not None)
        self.total = sum(part.cost for part in self.parts)
        if not self.total:
            raise InputError(f"No site on the device costs {cost}: choose another cost.")
        self.screening = list(run.seeds)
        self.next_seed = run.first_seed + run.chips
        self.steps: list[dict[str, Any]] = []

    def run(self) -> Protection:
        lost, gained = self.screen()
        alone, regained = lost.mean(axis=1), gained.mean(axis=1)
        costs = np.maximum([part.cost for part in self.parts], 1)
        order = np.lexsort((costs, -(alone + regained) / 2 / costs)).tolist()

        chosen: set[int] = set()
        for index in order:
            if self.holds(self.steps[-1]):
                break
            chosen.add(index)
            self.measure("add", chosen, self.screening, self.parts[index].name)
        final = self.verify_and_add(chosen, [index for index in order if index not in chosen])
        if self.holds(final) and chosen:
            final = self.drop(chosen, final)
        return self.result(chosen, final, alone, regained)

    def screen(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What each part loses alone, and regains, on each chip `[parts, chips]`; the first step of the search."""
        count = len(self.parts)
        every = [selection for part in self.parts for selection in part.selections]
        trials = self.options.trials()
        for part in self.parts:
            rest = [each for each in every if each not in part.selections]
            # One selection is written as in other analyses, so that a store that has the trial is not asked twice.
            alone: dict[str, Any] = (
                {"only": part.selections[0]} if len(part.groups) == 1 else {"exclude": _UNION.join(rest)}
            )
            trials += self.options.trials(**alone)
            trials += self.options.trials(exclude=_UNION.join(part.selections))
        what = f"screening, (all, and {count} parts alone and {count} protected) x {self.chips} chips"
        found = self.options.measure(self.bench, trials, what, "protect").of_chips(self.chips)
        self.note("screen", (), self.screening, self.clean - found[0], "")
        means = np.array([each.means for each in found])
        return self.clean.means - means[1::2], means[2::2] - means[0]

    def verify_and_add(self, chosen: set[int], reserve: list[int]) -> dict[str, Any]:
        """Measures on fresh chips; adds parts of the reserve until the target holds there."""
        while True:
            step = self.measure("verify", chosen, self.fresh(), "")
            if self.holds(step) or not reserve:
                return step
            index = reserve.pop(0)
            chosen.add(index)
            self.options.say(
                f"Not verified: {100 * step['loss']:.2f} points on fresh chips. Adding {self.parts[index].name}."
            )

    def drop(self, chosen: set[int], verified: dict[str, Any]) -> dict[str, Any]:
        """Drops parts that the target does not need, and verifies what remains."""
        seeds = [*self.screening, *range(verified["first_seed"], verified["first_seed"] + self.chips)]
        dropped: list[int] = []
        for index in sorted(chosen, key=lambda index: -self.parts[index].cost):
            left = chosen - {index}
            step = self.measure("drop", left, seeds, self.parts[index].name)
            if self.holds(step):
                chosen.discard(index)
                dropped.append(index)
            else:
                step["action"] = "keep"
        final = verified
        while dropped:
            final = self.measure("verify", chosen, self.fresh(), "")
            if self.holds(final):
                return final
            index = dropped.pop()
            chosen.add(index)
            self.options.say(f"Not verified: {100 * final['loss']:.2f} points. Restoring {self.parts[index].name}.")
            final = verified  # all that was dropped is back, if nothing is left to restore
        return final

    def fresh(self) -> list[int]:
        """Seeds that were not used before."""
        seeds = list(seeds_of(self.chips, self.next_seed))
        self.next_seed += self.chips
        return seeds

    def measure(self, action: str, chosen: Collection[int], seeds: Sequence[int], name: str) -> dict[str, Any]:
        """The loss over chips with these parts protected."""
        said = {"add": "adding ", "drop": "without ", "verify": "fresh chips"}[action]
        what = f"{said}{name}, {len(chosen)} of {len(self.parts)} parts protected, {len(seeds)} chips"
        if self.guarded is None or not chosen:
            selections = [each for index in sorted(chosen) for each in self.parts[index].selections]
            bench, trials = self.bench, self.options.trials(seeds, exclude=_UNION.join(selections) or None)
        else:
            bench, trials = self.guarded(self.rules(chosen)), self.options.trials(seeds)
        values = self.options.measure(bench, trials, what, "protect")
        return self.note(action, chosen, seeds, self.clean - values, name)

    def note(
        self, action: str, chosen: Collection[int], seeds: Sequence[int], losses: Measurement, name: str
    ) -> dict[str, Any]:
        spread = losses.interval()
        cost = sum(self.parts[index].cost for index in chosen)
        step = {
            "step": len(self.steps),
            "action": action,
            "part": name,
            "parts": len(chosen),
            "cost": cost,
            "share": cost / self.total,
            "loss": spread["mean"],
            "std": spread["std"],
            "low": spread["low"],
            "high": spread["high"],
            "holds": self.holds({"loss": spread["mean"]}),
            "shown": bool(spread["high"] <= self.target + ROUNDING),
            "chips": len(seeds),
            "first_seed": seeds[0],
        }
        self.steps.append(step)
        return step

    def holds(self, step: Mapping[str, Any]) -> bool:
        """Whether a measurement loses at most the target; losing just that much holds it."""
        return bool(step["loss"] <= self.target + ROUNDING)

    def rules(self, chosen: Collection[int]) -> list[str]:
        return [f"{each}:{self.guard}" for index in sorted(chosen) for each in self.parts[index].selections]

    def result(
        self, chosen: set[int], final: dict[str, Any], alone: NDArray[np.float64], regained: NDArray[np.float64]
    ) -> Protection:
        cost = sum(self.parts[index].cost for index in chosen)
        parts = pd.DataFrame(
            {
                "part": [part.name for part in self.parts],
                "selection": ["; ".join(part.selections) for part in self.parts],
                "cost": [part.cost for part in self.parts],
                "share": [part.cost / self.total for part in self.parts],
                "alone": alone,
                "regained": regained,
                "protected": [index in chosen for index in range(len(self.parts))],
            }
        )
        steps, metric = pd.DataFrame(self.steps), self.bench.task.primary
        found = {name: final[name] for name in ("shown", "loss", "low", "high", "first_seed")}
        chosen_selections = tuple(each for index in sorted(chosen) for each in self.parts[index].selections)
        rules, verified = self.rules(chosen), self.holds(final)
        protection = Protection(
            name="steps",
            table=steps,
            sentence=f"With {len(rules)} selections protected, {cost / self.total:.1%} of {self.cost}, a loss of at "
            f"most {in_points(self.target)} is {self.outcome(verified, found)}.",
            sections=[self.section(steps, found, rules, verified, cost)],
            more={
                "target": self.target,
                "cost_in": self.cost,
                "map": rules,
                "verified": verified,
                "shown": found["shown"],
                "loss": {
                    "mean": found["loss"],
                    "ci95": None if np.isnan(found["low"]) else [found["low"], found["high"]],
                },
                "first_seed": found["first_seed"],
                "cost": cost,
                "share": cost / self.total,
                "parts": records(parts),
            },
            size=(6.8, 4.6),
            **of_bench(self.bench),
            chosen=chosen_selections,
            rules=tuple(rules),
            verified=verified,
            **found,
            cost=cost,
            share=cost / self.total,
            parts=parts,
        )
        draw = partial(draw_protection, found=protection, target=self.target, cost=self.cost, metric=metric)
        return replace(protection, figures=[draw])

    @staticmethod
    def outcome(verified: bool, found: Mapping[str, Any]) -> str:
        """Whether the target is met, in words."""
        met = "met and shown at 95 %" if found["shown"] else "met on average"
        return f"{met if verified else 'NOT met'} on fresh chips"

    def section(
        self, steps: pd.DataFrame, found: Mapping[str, Any], rules: Sequence[str], verified: bool, cost: int
    ) -> Section:
        """The steps as they are printed, and the arguments that protect."""
        said = {(True, True): "holds, shown at 95 %", (True, False): "holds on average"}
        rows = [
            [
                *(row["action"], row["part"], row["parts"], f"{row['share']:.1%}", row["chips"], *points(row, "loss")),
                said.get((row["holds"], row["shown"]), "fails"),
            ]
            for row in steps.to_dict("records")
        ]
        loss, interval = points(found, "loss")
        last = found["first_seed"] + self.chips - 1
        below = [
            "",
            f"A loss of at most {in_points(self.target)} is {self.outcome(verified, found)}:",
            f"  {loss} points, 95 % interval {interval}, chips of seeds {found['first_seed']} to {last}",
        ]
        if verified and not found["shown"]:
            below.append("  The interval reaches above the target: more --chips would tell more.")
        below.append(f"Protect {len(rules)} selections, {cost / self.total:.1%} of {self.cost} ({cost}):")
        below += [f"  --map {shlex.quote(rule)}" for rule in rules] or ["  nothing"]
        head = ["action", "part", "protected", f"share of {self.cost}", "chips", "points", "95 % interval", "target"]
        return Section("Mean loss in points with 95 % interval:", head, rows, tuple(below))


def draw_protection(axes: Any, found: Protection, target: float, cost: str = "cost", metric: str = "accuracy") -> None:
    """Draws the loss against the protected share of the cost, as parts were added, and the set that was chosen.

    Args:
        axes: matplotlib Axes.
        found: what `protect` gave.
        target: the largest loss, a share.
        cost: what the cost is counted in.
        metric: name of what is measured.
    """
    steps = found.table
    grown = steps[steps["action"].isin(["screen", "add"])]
    chips = int(grown["chips"].iloc[0])
    share, loss, low, high = (100 * grown[name] for name in ("share", "loss", "low", "high"))
    curve(axes, share, loss, low, high, f"as parts are added, {chips} chips, 95 % interval", BLUE)
    for row in grown.itertuples():
        if row.part and len(grown) <= 12:
            axes.annotate(
                f" {row.part}", (100 * row.share, 100 * row.loss), fontsize=7, rotation=35, va="bottom", color="#444444"
            )
    axes.axhline(100 * target, color=GREY, linewidth=0.8, linestyle="--", label=f"target, {in_points(target)}")
    margins = [[100 * (found.loss - found.low)], [100 * (found.high - found.loss)]]
    axes.errorbar(
        [100 * found.share],
        [100 * found.loss],
        yerr=None if np.isnan(found.low) else margins,
        fmt="D",
        color=GREEN if found.verified else RED,
        capsize=4,
        label="chosen, on fresh chips" + ("" if found.verified else ": target missed"),
    )
    axes.set_xlabel(f"protected share of {cost} (%)")
    axes.set_ylabel(f"{metric} lost (points)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    end = max(1.2 * axes.get_xlim()[1], 1.0)  # for the name at the last point, and for a set of no part
    axes.set_xlim(-0.04 * end, end)
    axes.set_title(f"{metric.capitalize()} lost against what is protected")
    grid(axes)
    axes.legend(frameon=False, fontsize=8)


def _parts(bench: Bench, cost: Cost, check_bits: bool) -> list[_Part]:
    """The sites in parts that are protected as a whole, with what each costs."""
    merged: list[list[Group]] = []
    for group in disturbed_groups(bench):
        arrays = {site.array for site in group.sites}
        sharing = [each for each in merged if arrays & {site.array for one in each for site in one.sites}]
        together = [one for each in sharing for one in each] + [group]
        merged = [each for each in merged if each not in sharing] + [together]
    return [_Part(tuple(groups), _cost(bench, groups, cost, check_bits)) for groups in merged]


def _cost(bench: Bench, groups: Sequence[Group], cost: Cost, check_bits: bool) -> int:
    sites = [site for group in groups for site in group.sites]
    arrays = one_of_each_array(sites)
    if cost == "parameters":
        return sum(site.parameters for site in arrays)
    if cost == "bits":
        bits = [(site, stored_bits(bench, site)) for site in arrays if site.parameters]
        unknown = next((site for site, width in bits if width is None), None)
        if unknown is not None:
            raise InputError(
                f"Device '{unknown.device}' stores no bits, so that protecting '{unknown.node}' has no cost in "
                "bits: choose parameters or macs."
            )
        stored = sum(site.parameters * (width or 0) for site, width in bits)
        return stored // 8 if check_bits else stored
    total: int = 0
    for site in sites:
        if site.macs is None:
            raise InputError(
                f"The macs of '{site.node}' depend on a size that the model leaves open: choose parameters or bits."
            )
        total += site.macs
    return total
