"""Constitutive laws in UFL: plasticity and viscoplasticity of von Mises with hardening, and Neo-Hooke's elasticity.

Stresses and moduli in Pa, temperatures in K, times in s. Every parameter is a number or a UFL expression, so that it
may depend on the temperature; numbers become constants of the mesh, and other values need no new compilation.
"""

import dataclasses
from typing import Any

import dolfinx
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem.internal_variables import InternalVariables, quadrature_function
from pdeopt.fem.kinematics import Kinematics, strain, symmetric_entries, symmetric_tensor
from pdeopt.report import InputError

type Parameter = float | Expr

# Parts of the stress scale: the tolerance of yielding, and what is added to a norm, in quadrature, so that it has a
# derivative at zero; at yield the latter changes the norm by less than one rounding.
_YIELD_TOLERANCE = 1e-8
_NORM_FLOOR = 1e-8


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHardening:
    """R(p) = H p with the modulus H [Pa]."""

    modulus: Parameter

    def __call__(self, plastic_strain: Expr) -> Expr:
        """Return the growth of the yield stress [Pa]."""
        return self.modulus * plastic_strain


@dataclasses.dataclass(frozen=True, eq=False)
class VoceHardening:
    """R(p) = Q (1 - exp(-b p)) with the saturation Q [Pa] and the rate b [1]."""

    saturation: Parameter
    rate: Parameter

    def __call__(self, plastic_strain: Expr) -> Expr:
        """Return the growth of the yield stress [Pa]."""
        return self.saturation * (1.0 - ufl.exp(-self.rate * plastic_strain))


@dataclasses.dataclass(frozen=True, eq=False)
class KinematicHardening:
    """Back stress X = 2/3 C a with da = d(plastic strain) - recall a dp: Prager's law, Armstrong and Frederick's.

    Parameters
    ----------
    modulus
        C [Pa], >= 0.
    recall
        The dynamic recovery [1], > 0; None for Prager's law.
    """

    modulus: Parameter
    recall: Parameter | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class NortonViscosity:
    """Overstress K (dp/dt)^(1/n), that is dp/dt = (overstress / K)^n.

    Parameters
    ----------
    resistance
        K [Pa s^(1/n)], > 0.
    exponent
        n [1], >= 1.
    """

    resistance: Parameter
    exponent: Parameter


@dataclasses.dataclass(frozen=True, eq=False)
class VonMisesMaterial:
    """Isotropic elasticity and plastic flow along the deviator of the effective stress, integrated by implicit Euler.

    With the deviator s of the stress, the back stress X and p = cumulated plastic strain, flow begins where
    sqrt(3/2) |s - X| > yield stress + R(p). Without viscosity the two are equal while it flows; with it, the left is
    larger by the overstress. The return is radial: one scalar equation for the increment q of p, with

        xi = s_trial - 2/3 C a / (1 + recall q),
        g(q) = sqrt(3/2) |xi| - (3 mu + C / (1 + recall q)) q - yield stress - R(p + q) - K (q / dt)^(1/n).

    Parameters
    ----------
    young, poisson
        Young's modulus [Pa] and Poisson's ratio [1].
    yield_stress
        Initial yield stress [Pa], >= 0; zero is Norton's law of creep.
    stress_scale
        A number [Pa] of the size of the stresses at yielding, > 0: tolerances are small parts of it.
    hardening, kinematic, viscosity
        What is added to perfect plasticity.

    References
    ----------
    J. C. Simo, T. J. R. Hughes, Computational Inelasticity, Springer 1998, sections 3.3 and 3.5;
    J. Lemaitre, J.-L. Chaboche, Mechanics of Solid Materials, Cambridge 1990, chapters 5 and 6.
    """

    young: Parameter
    poisson: Parameter
    yield_stress: Parameter
    stress_scale: float
    hardening: LinearHardening | VoceHardening | None = None
    kinematic: KinematicHardening | None = None
    viscosity: NortonViscosity | None = None

    def at_points(
        self,
        displacement: fem.Function[Any],
        kinematics: Kinematics,
        degree: int,
        *,
        thermal_strain: Parameter = 0.0,
        time_step: fem.Constant[Any] | None = None,
    ) -> tuple[Expr, InternalVariables]:
        """Return the stress [Pa], shape (3, 3), and the internal variables of a body at its quadrature points.

        The history consists of "plastic strain", "cumulated plastic strain" and, with kinematic hardening, "back
        strain". Integrate the stress with the same quadrature degree.

        Parameters
        ----------
        displacement
            The unknown [m].
        kinematics
            How it makes strains.
        degree
            Quadrature degree.
        thermal_strain
            Free expansion [1].
        time_step
            Length of the present step [s]; needed with viscosity.

        Raises
        ------
        InputError
            If a viscous law gets no time step, or the stress scale is not positive.

        Collective: yes.
        """
        mesh = displacement.function_space.mesh
        if self.viscosity is not None and time_step is None:
            raise InputError("viscosity needs the length of the time step: give a constant as time_step")
        if not self.stress_scale > 0.0:
            raise InputError(f"the stress scale is {self.stress_scale}: give a positive number of Pa")
        law: VonMisesMaterial = _with_constants(self, mesh)
        count = len(kinematics.components)
        plastic = quadrature_function(mesh, degree, "plastic strain", count)
        cumulated = quadrature_function(mesh, degree, "cumulated plastic strain")
        increment = quadrature_function(mesh, degree, "increment of the cumulated plastic strain")
        lame, shear = lame_parameters(law.young, law.poisson)
        elastic = (
            strain(kinematics, displacement)
            - _constant(thermal_strain, mesh) * ufl.Identity(3)
            - symmetric_tensor(kinematics, plastic)
        )
        pressure_part = (lame + 2.0 / 3.0 * shear) * ufl.tr(elastic) * ufl.Identity(3)
        trial_deviator = 2.0 * shear * ufl.dev(elastic)
        effective, stiffness = trial_deviator, 3.0 * shear
        recall: Parameter = 1.0
        if law.kinematic is not None:
            back = quadrature_function(mesh, degree, "back strain", count)
            if law.kinematic.recall is not None:
                recall = 1.0 + law.kinematic.recall * increment
            effective -= 2.0 / 3.0 * law.kinematic.modulus / recall * symmetric_tensor(kinematics, back)
            stiffness += law.kinematic.modulus / recall
        floor = fem.Constant(mesh, _NORM_FLOOR * self.stress_scale)
        norm = ufl.sqrt(1.5 * ufl.inner(effective, effective) + floor**2)
        flow = 1.5 * effective / norm
        equation = norm - stiffness * increment - law.yield_stress
        slope = stiffness
        if law.hardening is not None:
            equation -= law.hardening(cumulated + increment)
            before = ufl.variable(cumulated)
            slope += ufl.diff(law.hardening(before), before)
        # Exact where the law is linear; else on the left of the root, from where Newton's method is monotone.
        start = ufl.replace(equation / slope, {increment: ufl.as_ufl(0.0)})
        if law.viscosity is not None:
            resistance, exponent = law.viscosity.resistance, law.viscosity.exponent
            assert time_step is not None
            # The least of the increments that elasticity alone and viscosity alone would allow.
            overstress = ufl.replace(equation, {increment: ufl.as_ufl(0.0)})
            creep = time_step * ufl.max_value(overstress / resistance, 0.0) ** exponent
            start = ufl.min_value(start, creep)
            equation -= resistance * (increment / time_step) ** (1.0 / exponent)
        stress = pressure_part + trial_deviator - 2.0 * shear * increment * flow
        history = {
            cumulated: cumulated + increment,
            plastic: plastic + increment * symmetric_entries(kinematics, flow),
        }
        if law.kinematic is not None:
            history[back] = (back + increment * symmetric_entries(kinematics, flow)) / recall
        tolerance = _YIELD_TOLERANCE * self.stress_scale
        internal = InternalVariables(displacement, increment, equation, start, history, tolerance, "von Mises material")
        return stress, internal


def lame_parameters(young: Parameter, poisson: Parameter) -> tuple[Any, Any]:
    """Return Lame's parameters (lambda, mu) [Pa] of Young's modulus [Pa] and Poisson's ratio."""
    return young * poisson / ((1.0 + poisson) * (1.0 - 2.0 * poisson)), young / (2.0 * (1.0 + poisson))


def neo_hooke_stress(gradient: Expr, lame: Parameter, shear: Parameter) -> Expr:
    """Return the first Piola-Kirchhoff stress [Pa], shape (3, 3), of a compressible Neo-Hooke material.

    P = dW/dF for W = mu/2 (tr F'F - 3 - 2 ln J) + lambda/2 (ln J)^2, that is mu (F - F^-T) + lambda ln(J) F^-T.

    Parameters
    ----------
    gradient
        Displacement gradient [1], shape (3, 3); F = I + gradient, J = det F > 0.
    lame, shear
        lambda and mu [Pa].

    References
    ----------
    J. Bonet, R. D. Wood, Nonlinear Continuum Mechanics for Finite Element Analysis, Cambridge 2008, section 6.4.3.
    """
    deformation = ufl.Identity(3) + gradient
    inverse = ufl.inv(deformation).T
    return shear * (deformation - inverse) + lame * ufl.ln(ufl.det(deformation)) * inverse


def _constant(value: Parameter, mesh: dolfinx.mesh.Mesh[Any]) -> Expr:
    return fem.Constant(mesh, float(value)) if isinstance(value, int | float) else value


def _with_constants(law: Any, mesh: dolfinx.mesh.Mesh[Any]) -> Any:
    """Return a law with constants of a mesh in the place of its numbers, also in the laws that it holds."""
    changed = {}
    for field in dataclasses.fields(law):
        value = getattr(law, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _with_constants(value, mesh)
        elif isinstance(value, int | float) and field.name != "stress_scale":
            changed[field.name] = _constant(value, mesh)
    return dataclasses.replace(law, **changed)
