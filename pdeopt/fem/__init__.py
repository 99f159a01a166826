"""What DOLFINx and PETSc assemble."""

from pdeopt.fem._traversers import forget_traversers
from pdeopt.fem.mesh import MeshData, read_mesh, tag_boundary

forget_traversers()

__all__ = ["MeshData", "read_mesh", "tag_boundary"]
