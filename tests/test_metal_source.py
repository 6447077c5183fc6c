"""metal/: what is read, and what of it a kernel carries."""

import re

import pytest

from mlx_glu import metal_source
from mlx_glu.metal_source import METAL, read, trim
from mlx_glu.variants import VARIANTS

ROOTS = sorted(p.name for p in METAL.glob("*.metal"))


def test_read_inlines_each_file_once_and_refuses_what_metal_would(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(metal_source, "METAL", tmp_path)
    (tmp_path / "inner_x.h").write_text("int inner;\n")
    (tmp_path / "outer_x.h").write_text(
        '#include <metal_math>\n#include "inner_x.h"\n#include "inner_x.h"\n'
    )
    assert read("outer_x.h") == "#include <metal_math>\nint inner;\n"
    (tmp_path / "mu_x.h").write_text("// \N{MICRO SIGN}s", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\[metal\].*mu_x.h has byte 0xc2 at 3"):
        read("mu_x.h")
    with pytest.raises(ValueError, match=r"\[metal\].*inner_x.h.*got 'none_x.h'"):
        read("none_x.h")


def test_trim_keeps_what_is_used_and_nothing_else():
    text = trim("glu_mul.metal", "glu_mul<mlx_glu::Reglu>(separate<4>(a, b), h, i);")
    for kept in ("struct Relu{", "struct Separate{", "void glu_mul(", "read_floats"):
        assert kept in text
    for gone in ("Silu", "normal_cdf", "Interleaved", "d_gate", "grad", "//", "write("):
        assert gone not in text
    assert text.startswith("namespace mlx_glu {\n")
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("root", ROOTS)
def test_trim_loses_nothing_where_all_is_used(root):
    """With every name in use, what is left are the sources but for white space."""
    source = read(root)
    everything = " ".join(re.findall(r"[A-Za-z_]\w*", source))
    comments = re.compile(r"//[^\n]*|^#(?:ifndef|define|endif)[^\n]*", re.MULTILINE)
    plain = comments.sub("", source).replace("typename", "class")
    plain = plain.replace("namespace mlx_glu {", "")
    squeezed = re.sub(r"\s", "", trim(root, everything).replace("typename", "class"))
    squeezed = squeezed.removeprefix("namespacemlx_glu{").removesuffix("}")
    # What is left of the namespaces of each file are their closing brackets.
    files = source.count("namespace mlx_glu {")
    whole = re.sub(r"\s", "", plain)
    assert len(whole) - len(squeezed) == files
    assert sorted(whole.replace("}", "")) == sorted(squeezed.replace("}", ""))


def test_a_name_in_part_of_a_word_keeps_nothing():
    assert "Glu" not in trim("act.h", "SwigluX GluX xGlu")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_functors_bring_what_they_call(variant):
    if not variant.pointwise:
        pytest.skip("no functor exists")
    text = trim("act.h", f"{variant.msl}::fwd")
    called = set(re.findall(r"(?<![\w:.])([a-z]\w+)\(", text))
    own = set(re.findall(r"(?:float|bool) ([a-z]\w+)\(", text))
    language = {"return", "if", "for", "float"}
    assert called - own <= language, called - own
