"""Fields written for ParaView: VTX (``.bp``) where DOLFINx was built with ADIOS2, XDMF elsewhere, VTKHDF on demand."""

import pathlib

from pdeopt.fem._output_parts import is_cellwise_constant, is_nodal, lagrange_interpolant, plain_fields
from pdeopt.fem._output_series import Fields, FieldSeries
from pdeopt.fem._staging import staging_folder

__all__ = [
    "FieldSeries",
    "is_cellwise_constant",
    "is_nodal",
    "lagrange_interpolant",
    "plain_fields",
    "staging_folder",
    "write_fields",
]


def write_fields(
    path: str | pathlib.Path,
    functions: Fields,
    *,
    time: float = 0.0,
) -> list[pathlib.Path]:
    """Write fields so that ParaView shows them.

    All fields of one mesh go into one file. VTX holds cellwise constants as cell data and everything else as
    nodal data in the smallest Lagrange space that contains all the nodal fields, so that nothing is lost (but for
    vector-valued elements on curved cells, which are interpolated). XDMF knows only nodal fields of the mesh's own
    degree and cellwise constants: continuous fields are interpolated to the first, discontinuous ones to the second. So
    does VTKHDF, with a file of its own for every field if there are several. Mixed fields are split into ``name_0``,
    ``name_1``, ...

    The files are written in a hidden folder beside the target and renamed when complete. A result of an earlier run
    is replaced.

    Parameters
    ----------
    path
        ``"results/heat.bp"``, ``"results/heat.xdmf"`` or ``"results/heat.vtkhdf"``; without a suffix ``.bp`` where this
        DOLFINx can write it, and ``.xdmf`` elsewhere; an existing folder takes a file named ``fields``. Missing folders
        are made.
    functions
        Fields by the name under which ParaView lists them, or fields that carry their names (``function.name``).
        They may live on several meshes (a control on a boundary mesh): each further mesh gets a file of its own,
        named ``heat-2.bp``, ``heat-3.bp``, ... in the order of first appearance.
    time
        Time stamp, in the units of the problem.

    Returns
    -------
    list of pathlib.Path
        The files to open.

    Raises
    ------
    InputError
        If the folder cannot be written, a name cannot be stored or occurs twice, or a field has no nodal values.
    MissingPackageError
        If a ``.bp`` file is asked for and DOLFINx has no ADIOS2.

    Collective: yes. Ghost values of the fields are updated.
    """
    with FieldSeries(path, functions) as series:
        series.write(time)
    return series.paths
