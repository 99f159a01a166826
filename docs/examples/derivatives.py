"""The examples of the page on derivatives: a problem's derivatives tested, and an optimiser of the controls alone."""

from mpi4py import MPI

import dolfinx

from pdeopt.control import check_symmetry, minimise, taylor_test
from pdeopt.parallel import print_root
from pdeopt.problems import SemilinearControl

comm = MPI.COMM_WORLD
mesh = dolfinx.mesh.create_unit_square(comm, 16, 16)

# [tests]
problem = SemilinearControl(mesh).problem
print_root(comm, problem.taylor_test())
print_root(comm, f"asymmetry of the Hessian: {problem.check_symmetry():.1e}")
# [end]

# [functional]
functional = problem.reduced_functional()
control, gradient = functional.create_vector(), functional.create_vector()
functional.get_control(control)
value = functional.value(control)  # one state solve
functional.gradient(control, gradient)  # one adjoint solve; the Riesz representative of the derivative
print_root(comm, f"j(0) = {value:.6f}")
# [end]

# [minimise]
report = minimise(functional, "bntr", rtol=1e-8)
print_root(comm, report)
assert taylor_test(functional).passed
assert check_symmetry(functional) < 1e-9
functional.destroy()
# [end]
