"""Preprocessed Metal source made into C++ that clang accepts, line by line.

MSL is C++ with a few constructs that clang has no spelling for. Each is rewritten in
place, so what a compiler says points at the author's lines:

===============================================  =================================
``[[kernel]]``, ``[[buffer(0)]]``, ...           recorded, removed
``constant bool f [[function_constant(0)]];``    a constant with the host's value
``threadgroup float x[32];`` in a function       a reference to memory of the runtime
``float4(a, b, c, d)``, ``vec<T, 4>(x)``         ``metal::__msl_make<..>(..)``
``static_cast<bfloat>(half)``                    ``metal::__msl_static_cast``
members overloaded on the space of ``this``      the first is kept
===============================================  =================================
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .address_spaces import AddressSpaces
from .attributes import Attributes, extract_attributes
from .entry_points import (
    Kernel,
    Param,
    instantiation,
    read_kernel,
    set_function_constant,
)
from .scopes import Declaration, declarations
from .threadgroup_variables import ThreadgroupVariables
from .tokens import MslError, Tokens
from .vectors import rewrite_vectors

__all__ = ["Desugared", "Kernel", "MslError", "Param", "desugar"]


@dataclass
class Desugared:
    """C++ text, and what its Metal attributes said.

    Attributes:
        text: C++ for clang, after ``msl/shim.h``.
        kernels: signatures by name, in order.
        function_constants: type and name by index.
        host_names: the expression that each ``host_name`` stands for.
        warnings: what was rewritten with a loss.
        members: as :class:`AddressSpaces` found them.
    """

    text: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    function_constants: dict[int, tuple[str, str]] = field(default_factory=dict)
    host_names: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    members: set[tuple[str, int]] = field(default_factory=set)

    def instance(
        self, kernel: str | None = None, template: str = ""
    ) -> tuple[Kernel, str]:
        """Find a kernel and the C++ expression that names its instance.

        Args:
            kernel: name or ``host_name``; the first kernel of the text if None.
            template: arguments for a template kernel without instantiation.

        Raises:
            ValueError: there is no such kernel.
        """
        if kernel is None:
            kernel = next(iter(self.kernels), "")
        function = kernel + (f"<{template}>" if template else "")
        if kernel in self.host_names:
            function = self.host_names[kernel]
            kernel = function.split("<")[0].split("::")[-1].strip()
        if kernel.split("::")[-1] not in self.kernels:
            have = ", ".join([*self.kernels, *self.host_names][:12]) or "none"
            raise ValueError(
                f"[metal_sim] the source has no kernel {kernel!r}; it has {have}"
            )
        return self.kernels[kernel.split("::")[-1]], function


def desugar(
    source: str, *, constants: Mapping[int, object] | None = None, lint: bool = False
) -> Desugared:
    """Rewrite preprocessed MSL as C++.

    Args:
        source: what the preprocessor printed, line markers included.
        constants: function constants by index; those left out are 0.
        lint: keep address spaces apart, for a check that does not run.

    Raises:
        MslError: brackets without partner, ``double``, attributes that make no sense.
    """
    tokens = Tokens(source)
    _refuse_double(tokens)
    return _Desugarer(tokens, constants or {}, lint).run()


def _refuse_double(tokens: Tokens) -> None:
    for token in tokens.all:
        if token.kind == "name" and token.text == "double":
            raise MslError(f"{token.where}: Metal has no 'double'; use float")


class _Desugarer:
    def __init__(
        self, tokens: Tokens, constants: Mapping[int, object], lint: bool
    ) -> None:
        self.tokens, self.constants = tokens, constants
        self.result = Desugared()
        self.attributes: Attributes = extract_attributes(tokens)
        self.spaces = AddressSpaces(tokens, lint)
        self.variables = ThreadgroupVariables(tokens, lint)
        self.bodies = bytearray(len(tokens))

    def run(self) -> Desugared:
        for found in declarations(self.tokens):
            if found.kind != "namespace":
                self._rewrite(found)
        rewrite_vectors(self.tokens, self.bodies)
        for token in self.tokens.all:
            if token.kind == "name" and token.text == "static_cast":
                token.text = "::metal::__msl_static_cast"
        self.result.text = str(self.tokens)
        self.result.warnings = self.variables.warnings
        self.result.members = self.spaces.members
        return self.result

    def _rewrite(self, found: Declaration) -> None:
        if found.kind in ("function", "signature", "other"):
            if self._is_instantiation(found):
                return
            if found.kind == "other" and self._is_function_constant(found):
                return
        if self.attributes.kernel_in(found.start, found.head):
            self._note_kernel(found)
        if self.spaces.rewrite(found) and found.kind == "function":
            self.bodies[found.body : found.end] = b"\1" * (found.end - found.body)
            self.variables.rewrite(found)

    def _is_instantiation(self, found: Declaration) -> bool:
        if found.has_body:
            return False
        host_name = self.attributes.host_name_in(found.start, found.end)
        is_kernel = self.attributes.kernel_in(found.start, found.end)
        if host_name is None and not is_kernel:
            return False
        if host_name is not None:
            self.result.host_names[host_name] = instantiation(self.tokens, found)
        # The launcher refers to the instance it needs.
        self.tokens.blank(found.start, found.end)
        return True

    def _is_function_constant(self, found: Declaration) -> bool:
        constant = set_function_constant(
            self.tokens, found, self.attributes, self.constants
        )
        if constant:
            self.result.function_constants[constant[0]] = constant[1:]
        return constant is not None

    def _note_kernel(self, found: Declaration) -> None:
        kernel = read_kernel(self.tokens, found, self.attributes)
        self.result.kernels[kernel.name] = kernel
        host_name = self.attributes.host_name_in(found.start, found.head)
        if host_name is not None:
            self.result.host_names[host_name] = kernel.name
