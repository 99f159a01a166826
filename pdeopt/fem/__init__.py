"""What DOLFINx and PETSc assemble."""

from pdeopt.fem.mesh import MeshData, read_mesh, tag_boundary

__all__ = ["MeshData", "read_mesh", "tag_boundary"]
