"""Benchmarks: each method beside its strongest rivals, with targets that can fail.

`BENCHES` maps the name that ``pdeopt bench NAME`` takes to the module that offers
``run(settings: BenchSettings, comm) -> BenchResult`` (see `pdeopt.bench.harness`). A module is imported only when
it runs.
"""

BENCHES = {
    "control": "pdeopt.bench.control",
    "time": "pdeopt.bench.time",
    "certificates": "pdeopt.bench.certificates",
    "relax": "pdeopt.bench.relax",
    "tune": "pdeopt.bench.tune",
    "layers": "pdeopt.bench.layers",
    "optimise": "pdeopt.bench.optimise",
    "rom": "pdeopt.bench.rom",
    "linear": "pdeopt.bench.linear",
}
