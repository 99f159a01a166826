"""What launchers of MPI tell the processes they start, through the environment. Imports nothing that takes time."""

from collections.abc import Mapping

# Number of ranks that each launcher announces to the processes it starts. SLURM_NTASKS is left out
# on purpose: it is set in an allocation's shell, where nothing has been launched yet.
LAUNCHER_SIZES = {
    "PMI_SIZE": "MPICH's mpiexec",
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "MV2_COMM_WORLD_SIZE": "MVAPICH's mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}
# A job launched from inside another must not inherit these: its ranks would answer to the outer launcher, and hang.
# HYDRA_* stays: those are the user's settings.
_LAUNCHER_PREFIXES = (
    "PMI_", "PMIX_", "HYDI_", "MPI_LOCAL", "MV2_COMM_WORLD_",
    "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "OMPI_MCA_ess", "OMPI_MCA_orte", "PRTE_", "SLURM_STEP_NUM_TASKS",
)  # fmt: skip


def announced_sizes(environment: Mapping[str, str]) -> dict[str, int]:
    """Return variable -> number of ranks, for each launcher that says so. Collective: no."""
    return {name: int(value) for name in LAUNCHER_SIZES if (value := environment.get(name, "")).isdigit()}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what a launcher put there for its own ranks. Collective: no."""
    return {name: value for name, value in environment.items() if not name.startswith(_LAUNCHER_PREFIXES)}
