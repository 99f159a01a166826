"""The harness of the benchmarks: order and statistics of timings, targets, records, cases in fresh processes."""

import json
import math
import pathlib
import time

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.bench import case, harness, machine, record, table
from pdeopt.parallel import on_root
from pdeopt.report import InputError

pytestmark = pytest.mark.alone

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMM = MPI.COMM_WORLD

# mpi-pytest finds its parallel tests only at the top level of a module, not in classes.

CASES = """
import numpy as np

def sizes(comm, mebibytes):
    block = np.ones(int(mebibytes * 2**17))
    return {"sum of ranks": comm.allreduce(comm.rank + 1), "block": float(block[-1]), "nothing": np.nan}

def fail_on_last_rank(comm):
    if comm.rank == comm.size - 1:
        raise ValueError("planted failure")
    comm.Barrier()

def sleep(comm, seconds):
    import time
    time.sleep(seconds)
    return {}
"""


@pytest.fixture
def cases(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cases")
    (folder / "tiny_cases.py").write_text(CASES)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "tiny_cases"


def example_record(looks=1, quick=False, value=0.25):
    result = harness.BenchResult(
        "control",
        [
            {"table": "meshes", "n": 64, "iterations": 17, "error": 1.23456e-5},
            {"table": "meshes", "n": 128, "iterations": 18, "error": None},
            {"table": "memory", "method": "a|b", "better": True},
        ],
        [harness.Target("control.1", "share of full solves", value, 1 / 3)],
    )
    return record.make_record(result, harness.BenchSettings(quick=quick), machine.machine_record(), looks)


@pytest.mark.parallel([1, 2])
def test_arms_alternate_after_one_warm_up():
    calls = []
    arms = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    times = harness.paired_times(arms, 3, COMM)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert list(times) == ["a", "b", "c"]
    assert [times[name].result for name in "abc"] == [10, 11, 12]
    assert all(len(timing.samples) == 3 for timing in times.values())


@pytest.mark.parallel(2)
def test_sample_is_the_slowest_rank():
    timing = harness.paired_times({"uneven": lambda: time.sleep(0.05 * COMM.rank)}, 1, COMM)["uneven"]
    assert timing.minimum >= 0.05
    assert COMM.allgather(timing.samples)[0] == timing.samples


class TestPairedTimes:
    def test_statistics(self):
        timing = harness.Timing((4.0, 1.0, 2.0, 3.0, 100.0), None)
        assert (timing.minimum, timing.median, timing.maximum) == (1.0, 3.0, 100.0)
        assert timing.interquartile_range == 2.0
        assert timing.columns("solve [s]") == {"solve [s]": 3.0, "solve [s] spread": 2.0}

    def test_ratio_is_the_median_of_the_pairs(self):
        # The ratio of the medians would be 3/2; two of three rounds say 2.
        slow, fast = harness.Timing((2.0, 3.0, 40.0), None), harness.Timing((1.0, 2.0, 20.0), None)
        assert harness.ratio(slow, fast) == 2.0

    def test_unpaired_arms_have_no_ratio(self):
        with pytest.raises(InputError, match="not paired"):
            harness.ratio(harness.Timing((1.0,), None), harness.Timing((1.0, 2.0), None))

    def test_no_repeats_is_an_error(self):
        with pytest.raises(InputError, match="repeat is 0"):
            harness.paired_times({"a": lambda: None}, 0, COMM)
        with pytest.raises(InputError, match="repeat is 0"):
            harness.BenchSettings(repeat=0)


class TestTarget:
    @pytest.mark.parametrize(
        ("value", "sense", "holds"),
        [(1.0, "<=", True), (1.1, "<=", False), (1.1, ">=", True), (0.9, ">=", False), (np.float64(1.0), ">=", True)],
    )
    def test_holds(self, value, sense, holds):
        assert harness.Target("x.1", "", value, 1.0, sense).holds is holds

    @pytest.mark.parametrize("sense", ["<=", ">="])
    @pytest.mark.parametrize("missing", [None, math.nan])
    def test_what_was_not_measured_never_holds(self, sense, missing):
        assert not harness.Target("x.1", "", missing, 1.0, sense).holds
        assert not harness.Target("x.1", "", 1.0, missing, sense).holds

    def test_unknown_sense_is_an_error(self):
        with pytest.raises(InputError, match=r"x\.1: sense is '<'"):
            harness.Target("x.1", "", 1.0, 1.0, "<")


class TestRecord:
    def test_round_trip_with_numpy_and_not_a_number(self, tmp_path):
        path = tmp_path / "new" / "control.json"
        entry = example_record(value=math.nan)
        entry["rows"].append({"n": np.int64(3), "error": np.float32(0.5), "good": np.True_, "bad": np.inf})
        record.write_record(path, entry)
        assert "NaN" not in path.read_text()
        read = record.read_record(path)
        assert read["rows"][-1] == {"n": 3, "error": 0.5, "good": True, "bad": None}
        target = read["targets"][0]
        assert (target["id"], target["value"], target["holds"]) == ("control.1", None, False)
        assert {"bench", "machine", "rows", "targets", "looks", "seed"} <= set(read)

    def test_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = tmp_path / "control.json"
        record.write_record(path, example_record())
        old = path.read_text()

        def no_space(_):
            raise OSError("no space left")

        monkeypatch.setattr("os.fsync", no_space)
        with pytest.raises(OSError, match="no space"):
            record.write_record(path, example_record(looks=2))
        assert path.read_text() == old
        assert list(tmp_path.iterdir()) == [path]

    def test_looks_of_the_file(self, tmp_path):
        path = tmp_path / "control.json"
        assert record.previous_looks(path) == 0
        record.write_record(path, example_record(looks=4))
        assert record.previous_looks(path) == 4

    @pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("{}", "no bench, looks")])
    def test_damaged_file_is_not_taken_for_no_looks(self, tmp_path, text, message):
        path = tmp_path / "control.json"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            record.previous_looks(path)

    def test_sealed_seed_depends_on_everything_and_is_reproducible(self):
        seeds = [
            record.sealed_seed(*key) for key in [("a", "1", "c"), ("b", "1", "c"), ("a", "2", "c"), ("a", "1", None)]
        ]
        assert len(set(seeds)) == 4
        assert all(0 < seed < 2**32 for seed in seeds)
        assert record.sealed_seed("control", "0.1.0", "abc") == 359457604


class TestMachine:
    def test_record_is_flat_and_complete(self):
        entry = machine.machine_record()
        assert entry["cores"] >= 1
        assert str(entry["dolfinx"]).startswith("0.1")
        assert {"cpu", "memory [GiB]", "python", "petsc", "mpi", "commit", "date"} <= set(entry)
        assert str(ROOT) not in json.dumps(entry)

    def test_commit_outside_a_checkout_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr("pdeopt.__file__", str(tmp_path / "pdeopt" / "__init__.py"))
        assert machine.git_commit() is None
        (tmp_path / ".git").write_text("not a checkout")
        assert machine.git_commit() is None
        monkeypatch.setenv("PATH", "")
        assert machine.git_commit() is None

    def test_module_that_cannot_be_imported_has_no_version(self):
        assert machine.module_version("no_such_module") is None


@pytest.mark.parallel(2)
def test_starts_from_inside_another_mpi_job(cases):
    row = on_root(COMM, lambda: case.run_case(f"{cases}:sizes", {"mebibytes": 1}, ranks=1, timeout=60))
    assert row["ranks"] == 1


class TestRunCase:
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_result_time_and_memory_of_all_ranks(self, cases, ranks):
        ballast = np.ones(2**25)  # 256 MiB here must not show in the child's peak
        row = case.run_case(f"{cases}:sizes", {"mebibytes": 100}, ranks=ranks)
        assert row["ranks"] == ranks
        assert row["sum of ranks"] == ranks * (ranks + 1) // 2
        assert row["nothing"] is None
        assert 0 < row["case seconds"] < row["job seconds"]
        assert ranks * 100 < row["peak memory [MiB]"] < ranks * 350
        assert ballast[-1] == 1

    def test_failure_of_one_rank_ends_the_job_with_its_message(self, cases):
        start = time.perf_counter()
        with pytest.raises(case.CaseError, match=r"(?s)on 2 ranks failed.*planted failure"):
            case.run_case(f"{cases}:fail_on_last_rank", {}, ranks=2)
        assert time.perf_counter() - start < 20

    def test_late_case_is_ended(self, cases):
        with pytest.raises(case.CaseError, match="did not end within 2 s"):
            case.run_case(f"{cases}:sleep", {"seconds": 60}, timeout=2)

    def test_launcher_variables_stay_behind_and_settings_go_along(self):
        environment = {"PMI_RANK": "0", "PMI_FD": "5", "HYDI_CONTROL_FD": "4", "HYDRA_IFACE": "lo", "PATH": "/bin"}
        assert case.clean_environment(environment) == {"HYDRA_IFACE": "lo", "PATH": "/bin"}


@pytest.mark.parallel(2)
def test_peak_memory_is_summed_over_the_ranks():
    total = harness.peak_memory(COMM)
    assert total > harness.peak_memory(MPI.COMM_SELF) > 10
    assert COMM.allgather(total)[0] == total


class TestTables:
    def test_markdown_has_one_table_per_group_and_the_targets(self):
        text = table.markdown(example_record())
        assert "**meshes**\n\n| n | iterations | error |\n| --- | --- | --- |\n| 64 | 17 | 1.235e-05 |\n" in text
        assert "| 128 | 18 | - |" in text
        assert "| a\\|b | yes |" in text
        assert "| control.1 | share of full solves | 0.25 | <= 0.3333 | yes |" in text
        assert "looks 1" in text
        assert "quick run, not a result" in table.markdown(example_record(quick=True))

    def test_terminal_shows_a_missed_target_plainly(self, capsys):
        table.print_tables(example_record(value=0.5), table.make_console())
        shown = capsys.readouterr().out
        assert "control.1" in shown
        assert "NO" in shown

    def test_units_in_brackets_are_not_styles(self, capsys):
        entry = example_record()
        entry["rows"] = [{"table": "case [b]", "solve [s]": 1.0, "peak memory [MiB]": "x [red]"}]
        table.print_tables(entry, table.make_console())
        shown = capsys.readouterr().out
        assert all(text in shown for text in ("case [b]", "solve [s]", "peak memory [MiB]", "x [red]"))

    def test_silent_beyond_rank_0(self, capsys):
        table.print_tables(example_record(), table.make_console(rank=1))
        assert capsys.readouterr().out == ""

    def test_marked_section_is_replaced_and_the_rest_kept(self, tmp_path):
        path = tmp_path / "README.md"
        path.write_text("# Title\n<!-- bench:control -->\nold\n<!-- /bench:control -->\nend\n")
        assert table.update_marked_section(path, "control", "new\n")
        assert path.read_text() == "# Title\n<!-- bench:control -->\nnew\n<!-- /bench:control -->\nend\n"
        assert not table.update_marked_section(path, "control", "new")

    @pytest.mark.parametrize(
        "text",
        [
            "no markers",
            "<!-- bench:a -->",
            "<!-- /bench:a --> <!-- bench:a -->",
            "<!-- bench:a --> <!-- /bench:a --> <!-- bench:a --> <!-- /bench:a -->",
        ],
    )
    def test_broken_markers_are_an_error(self, text):
        with pytest.raises(InputError, match="needs one section"):
            table.replace_marked_section(text, "a", "new")

    def test_stale_document_is_found(self, tmp_path):
        (tmp_path / "README.md").write_text("<!-- bench:control -->\ntyped by hand\n<!-- /bench:control -->\n")
        record.write_record(tmp_path / "docs" / "benchmarks" / "control.json", example_record())
        [(path, name, due)] = table.marked_sections(tmp_path)
        assert table.replace_marked_section(path.read_text(), name, due) != path.read_text()

    def test_committed_tables_are_the_generated_ones(self):
        for path, name, due in table.marked_sections(ROOT):
            text = path.read_text()
            assert "quick run" not in due, f"docs/benchmarks/{name}.json is no result: run pdeopt bench without --quick"
            assert table.replace_marked_section(text, name, due) == text, f"{path}: run python -m pdeopt.bench.table"
