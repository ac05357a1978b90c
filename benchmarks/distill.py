"""How long a round takes: from the call of /tiekd/distill to depth of the new student.

A real companion_node and depth_node run on a state folder with 64 labelled training frames of
the synthetic world, 640x480, and some held out. A client sends images, calls the service and
waits for the first depth image: there is no student before, so what comes is the new one's.
Each arm starts from the same folder and does 200 iterations:

  as it is       the package's defaults
  decoder first  train.decoder_first: the backbone rests for the first half at most, and less
                 where that does not pay. Quicker, but look at its scores: so it is not the default

The table of steps splits one step of training in this process, in turn with the same step done
plainly: each layer as it is written down, the loss of straightforward_loss.py, an optimiser
that goes parameter by parameter. What a worker's memory settings spare is not in it.

Seconds are this machine's; the ratios are what to compare. --quick shortens the table of steps
only: the rounds are whole ones (2 to 3 minutes on 2 cores).

A round that is refused, or breaks, is a row as well: medians are of what there is.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from math import isfinite, nan
from pathlib import Path

from distill_rounds import ITERATIONS, STAGES, RoundTimes, prepare, time_round
from distill_steps import STRAIGHTFORWARD, time_steps
from measuring import Goal, Spread, arguments, finish, print_table, spread
from node_stage import own_domain

from tiekd_ros.core.errors import TiekdError

BROKE = "broke"
ARMS: dict[str, dict[str, object]] = {
    "as it is": {},
    "decoder first": {"train.decoder_first": 0.5},
}


def main(arguments_: list[str] | None = None) -> int:
    """Measure, print the tables and write `distill.json`; 1 where a round broke."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=0, help="of each arm [1 if quick, else 3]")
    options = parser.parse_args(arguments_)
    steps = time_steps(repeats=5 if options.quick else 25)
    rounds = options.rounds or (1 if options.quick else 3)
    folder = Path(tempfile.mkdtemp(prefix="tiekd_distill_"))
    try:
        labelled = prepare(folder / "labelled")
        times = _time_arms(folder, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _print_steps(steps)
    title = f"Trigger to live, s: {labelled} labelled frames, {ITERATIONS} iterations"
    _print_rounds(title, times)
    tables = {"steps_ms": steps, "rounds_s": times, "iterations": ITERATIONS}
    finish("distill", options, tables, _goals(steps, times))
    return 1 if any(r.verdict.startswith(BROKE) for rows in times.values() for r in rows) else 0


def _time_arms(folder: Path, rounds: int) -> dict[str, list[RoundTimes]]:
    """Run the arms in turn, so that the machine's noise hits all alike."""
    times: dict[str, list[RoundTimes]] = {name: [] for name in ARMS}
    for number in range(rounds):
        for name, parameters in ARMS.items():
            print(f"round {number + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
            state = folder / f"{name}_{number}".replace(" ", "_")
            shutil.copytree(folder / "labelled", state)
            try:
                with own_domain():
                    times[name].append(time_round(state, parameters))
            except TiekdError as error:
                times[name].append(RoundTimes.broken(f"{BROKE}: {error}"))
            print(times[name][-1].verdict, file=sys.stderr, flush=True)
            shutil.rmtree(state)
    return times


def _print_steps(steps: dict[str, dict[str, Spread]]) -> None:
    kinds = list(next(iter(steps.values())))
    plain = steps[STRAIGHTFORWARD]["step"].median
    rows = [
        [name, *(str(parts[kind]) for kind in kinds), plain / parts["step"].median]
        for name, parts in steps.items()
    ]
    print_table(
        "One training step, ms (10th-90th percentile); the last column: times faster than plain",
        ["step", *kinds, "faster"],
        rows,
    )


def _print_rounds(title: str, times: dict[str, list[RoundTimes]]) -> None:
    rows = []
    for name, rounds in times.items():
        medians = [_spread([r.stages[stage] for r in rounds]).median for stage in STAGES]
        whole = _spread([r.trigger_to_live for r in rounds])
        step = _spread([r.step_ms for r in rounds]).median
        scores = [_spread([getattr(r, key) for r in rounds]).median for key in ("abs_rel", "rmse")]
        rows.append(
            [name, *medians, str(whole), step, *map(_digits, scores),
             _verdicts(rounds)],
        )  # fmt: skip
    print_table(
        title,
        ["arm", *STAGES, "trigger to live", "ms/iteration", "held-out AbsRel", "RMSE [m]",
         "rounds"],
        rows,
    )  # fmt: skip


def _spread(values: list[float]) -> Spread:
    """Return the spread of those that are numbers; NaN where none is."""
    return spread([value for value in values if isfinite(value)] or [nan])


def _digits(score: float) -> str:
    return f"{score:.4f}" if isfinite(score) else "-"


def _verdicts(rounds: list[RoundTimes]) -> str:
    counts = Counter(r.verdict.partition(":")[0] for r in rounds)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def _goals(steps: dict[str, dict[str, Spread]], times: dict[str, list[RoundTimes]]) -> list[Goal]:
    rounds = times["as it is"]
    live = _spread([r.trigger_to_live for r in rounds]).median
    plain = steps[STRAIGHTFORWARD]["step"].median
    faster = plain / steps["as it is"]["step"].median
    note = f"{_verdicts(rounds)}; a step is {faster:.1f} x faster than the same done plainly"
    name = f"trigger to live, 64 frames, {ITERATIONS} iterations"
    measured = f"{live:.0f} s" if isfinite(live) else "-"
    return [Goal(name, "as low as possible", measured, None, note)]


if __name__ == "__main__":
    sys.exit(main())
