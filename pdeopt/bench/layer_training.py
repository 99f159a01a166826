"""Line 5: a conductivity law learned through the equation, over seeds."""

import statistics

from pdeopt.bench.harness import say
from pdeopt.bench.layer_law import compare_laws
from pdeopt.bench.study import Study, number

NOISE = 0.01


def measure(study: Study, quick: bool) -> None:
    """Fit the network and its rivals to records of several seeds. Collective: yes."""
    errors: dict[str, list[float]] = {}
    first = study.settings.seed % 1000
    for seed in range(first, first + (1 if quick else 3)):
        say(study.comm, f"  records of seed {seed}")
        rows = compare_laws(study.comm, NOISE, seed, *((2, 3) if quick else (20, 150)))
        for name, row in rows:
            study.row("k(T) from 20 boundary records, noise 1 % of their range", {"seed": seed, "learner": name, **row})
            errors.setdefault(name, []).append(number(row, "error of the law"))
    values = {name: statistics.median(found) for name, found in errors.items()}
    study.target("5", "network's error of the law, median over seeds", values["network, positive"], 0.02)
    for label, prefix in (("5.spline", "spline"), ("5.oracle", "oracle"), ("5.off", "learning off")):
        name = next(one for one in values if one.startswith(prefix) and not one.endswith(" 8 coefficients"))
        study.target(label, f"{name}: the same error", values[name], 0.02)
