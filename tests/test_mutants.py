"""The proof notices each broken kernel, and each barrier that is removed.

A mutant meets cases that CI runs unbroken, here or in test_kernels.py, until one of
them fails: by a wrong number, a finding of the checker, or traffic.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from mutants import MUTANTS, Mutant, applied
from sim_programs import needs_simulator

from mlx_glu import metal_sim, metal_source, simulate
from mlx_glu.ops import QuantizedWeight, down_linear
from mlx_glu.proof import plans
from mlx_glu.proof import run as proof_run
from mlx_glu.proof.cases import FORMATS, Case
from mlx_glu.proof.oracle import dense64

pytestmark = needs_simulator

# How many cases may try to notice a mutant.
_TRIES = 3
_BARRIER = re.compile(r"(?:threadgroup|simdgroup)_barrier\s*\([^;]*\);")
_SOURCES = [p for p in metal_source.METAL.iterdir() if p.suffix in (".h", ".metal")]
_FILES = sorted(p.name for p in _SOURCES)
# A mutant that needs this meets every_byte() in place of cases.
_EVERY_BYTE = "every_byte"


class Verdict(NamedTuple):
    """How the proof took a mutant.

    Attributes:
        evidence: what told, as "number" or "race"; empty if nothing did.
        cases: the one that noticed, else those that did not.
        faults: what it said.
        seconds: it took.
    """

    evidence: tuple[str, ...]
    cases: str
    faults: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        evidence = ", ".join(self.evidence) or "SURVIVES"
        return f"{self.seconds:5.1f} s  {evidence:24} by {self.cases}"


def barriers() -> list[Mutant]:
    """Every barrier of every kernel, removed."""
    found = []
    for name in _FILES:
        text = metal_source._text(name)
        for i, match in enumerate(_BARRIER.finditer(text), 1):
            # All the text before a barrier tells it from its twins.
            old, new = text[: match.end()], text[: match.start()]
            found.append(Mutant(name, f"without barrier {i}", old, new))
    return found


BARRIERS = barriers()


@pytest.fixture(scope="module")
def verdicts(request):
    """The verdicts that this session asks for, from several processes."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked = {call.params.get("mutant") for call in calls if call}
    mutants = [m for m in (*MUTANTS, *BARRIERS) if m in asked]
    workers = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        found = {mutant: pool.submit(judge, mutant) for mutant in mutants}
        yield found
        pool.shutdown(cancel_futures=True)
    for mutant, future in found.items():
        if not future.cancelled() and not future.exception():
            print(f"{mutant.id:52} {future.result()}")


def _parameter(mutant):
    return pytest.param(mutant, id=mutant.id)


@pytest.mark.parametrize("mutant", [_parameter(m) for m in MUTANTS])
def test_mutant_is_noticed(mutant, verdicts):
    verdict = verdicts[mutant].result()
    assert "error" not in verdict.evidence, verdict.faults
    assert verdict.evidence, f"the mutant survives {verdict.cases}"


@pytest.mark.parametrize("mutant", BARRIERS, ids=lambda m: m.id)
def test_removing_a_barrier_is_noticed(mutant, verdicts):
    assert "race" in verdicts[mutant].result().evidence


def test_no_barrier_escapes_the_search():
    code = "".join(map(_code, _FILES))
    assert BARRIERS
    assert "barrier" not in _BARRIER.sub("", code)


def test_each_kind_of_evidence_is_needed(verdicts):
    """Numbers alone would let some mutants pass, and so would the checker alone."""
    if not verdicts.keys() >= set(MUTANTS):
        pytest.skip("only some mutants were asked for")
    found = {verdict.result().evidence for verdict in verdicts.values()}
    alone = {kinds[0] for kinds in found if len(kinds) == 1}
    wanted = {"number", "traffic", "out-of-bounds", "unwritten", "uninitialised"}
    assert alone >= wanted | {"misaligned", "same-value-race"}


def test_mutants_are_of_every_file():
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS) >= 25
    includes_alone = {name for name in _FILES if "{" not in _code(name)}
    assert {m.file for m in MUTANTS} == set(_FILES) - includes_alone


def _code(name):
    """A file of metal/ without its comments."""
    return re.sub(r"//[^\n]*", "", metal_source._text(name))


def test_a_mutant_that_is_out_of_date_says_so():
    gone = Mutant("norm.h", "gone", "a  b", "")
    for text, count in ("ab", 0), ("a\nb; a b", 2):
        with pytest.raises(ValueError, match=f"out of date: norm.h has {count} and"):
            gone.apply(text)
    assert gone.apply("(a\n  b)") == "()"


def test_every_byte():
    assert not list(every_byte())


def every_byte() -> Iterator[str]:
    """Faults in scales and codes that weights of a usual size do not have."""
    one_hot = mx.array(np.eye(1, 64, dtype=np.float32))
    for name in ("mxfp4", "mxfp8", "nvfp4"):
        for weight in _first_codes(name):
            with simulate():
                y = np.array(down_linear(one_hot, weight))[0]
            right = dense64(weight)[:, 0].astype(np.float32)
            wrong = [n for n in range(256) if not np.array_equal(y[n], right[n], True)]
            if wrong:
                yield f"number: {name} is wrong in rows {wrong}"


def _first_codes(name: str) -> Iterator[QuantizedWeight]:
    """Weights that are 0 but for a code a row: each scale, then each code."""
    q, n = FORMATS[name], np.arange(256)
    # The code of 4, so that no result is denormal. Scales of 2**114 and more
    # overflow together with what codes are short of.
    four = 0x48 if q.bits == 8 else 6
    scales, unit = (n % 128, 0x38) if name == "nvfp4" else (np.minimum(n, 240), 127)
    for first, scale in (four, scales), (n % 2**q.bits, unit):
        words = np.zeros((256, 64 * q.bits // 32), np.uint32)
        words[:, 0] = first
        all_scales = np.full((256, 64 // q.group_size), unit, np.uint8)
        all_scales[:, 0] = scale
        arrays = mx.array(words), mx.array(all_scales), None
        yield QuantizedWeight(*arrays, q.group_size, q.bits, q.mode)


def judge(mutant: Mutant) -> Verdict:
    """Run what should notice a mutant until something does."""
    started = time.perf_counter()
    if _EVERY_BYTE in mutant.needs:
        with applied(mutant):
            faults, tried = tuple(every_byte()), [_EVERY_BYTE]
        return _verdict(faults, tried, started)
    cases = candidates(mutant)
    assert cases, f"no case has {', '.join(mutant.needs)}"
    # Lint is about the language; it takes half of the time.
    with applied(mutant), mock.patch.object(metal_sim.Run, "lint", return_value=()):
        for case in cases:
            faults = proof_run.run(case).faults
            if faults:
                return _verdict(faults, [case.id], started)
    return _verdict((), [case.id for case in cases], started)


def _verdict(faults: tuple[str, ...], tried: Sequence[str], started: float) -> Verdict:
    evidence = tuple(sorted(set(kinds(faults))))
    return Verdict(evidence, ", ".join(tried), faults, time.perf_counter() - started)


def candidates(mutant: Mutant) -> list[Case]:
    """A few cases that should notice, the quickest first."""
    cases = [c for c in plans.quick() if not c.option and mutant.sees(c)]
    text = lambda kernel: metal_source.read(f"{kernel}.metal")
    plain = {kernel: text(kernel) for kernel in {c.kernel for c in cases}}
    with applied(mutant):
        changed = {kernel for kernel, was in plain.items() if text(kernel) != was}
    cases = sorted((c for c in cases if c.kernel in changed), key=_cost)
    if mutant in BARRIERS:
        # Which cases pass the barrier is not known.
        return sorted(cases, key=lambda c: not c.norm)
    return cases[:_TRIES]


def _cost(case: Case) -> tuple[bool, int]:
    """Few products, but many elements where there is no sum."""
    size = case.M * case.N
    return case.M > 1 and case.K > 0, size * case.K if case.K else -size


def kinds(faults: Sequence[str]) -> Iterator[str]:
    """What faults are: findings of the checker, "number", "traffic", or "error"."""
    for fault in faults:
        kind, _, text = fault.partition(": ")
        if kind == "KernelError":
            yield from re.findall(r"^\[([\w-]+)\]", text, re.MULTILINE)
        elif kind in ("traffic", "number"):
            yield kind
        else:
            yield "number" if "worse than stock" in fault else "error"
