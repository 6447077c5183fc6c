"""Which module is packed how: mlx-lm's choices, bit for bit, and the user's."""

import json

import mlx.core as mx
import numpy as np
import pytest
from shared_data import SHARED, requires_shared
from test_convert import EVEN, IDS, assert_same_tensors, logits_of, tensors_of
from tiny_checkpoint import config_of, write_checkpoint

from mlx_glu import convert
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.cli import main
from mlx_glu.conversion.recipes import RECIPES, Request
from mlx_glu.quantization import Quantization, parse
from mlx_glu.weights import examine

#: Enough layers that their first and last eighths are some.
DEEP = {**EVEN, "num_hidden_layers": 17, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("deep"), config_of("llama", **DEEP))


def formats(folder, request):
    found, kept_float = request.formats(examine(open_checkpoint(folder)))
    return {k: v.name if v else "float" for k, v in found.items()}, kept_float


def quantized_by_mlx_lm(source, folder, recipe=None, **options):
    """What mlx_lm.convert does between loading and saving."""
    utils = pytest.importorskip("mlx_lm.utils")
    from mlx_lm.convert import mixed_quant_predicate_builder

    model, config = utils.load_model(source, lazy=True)
    size = options.pop("group_size", None)
    if isinstance(recipe, str):
        recipe = mixed_quant_predicate_builder(recipe, model, size)
    bits, mode = options.pop("bits", None), options.pop("mode", "affine")
    model, config = utils.quantize_model(
        model, config, size, bits, mode, quant_predicate=recipe
    )
    utils.save_model(folder, model)
    utils.save_config(config, folder / "config.json")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [None, 32, 128])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_mlx_lms(recipe, size, deep, tmp_path):
    expected = quantized_by_mlx_lm(deep, tmp_path / "theirs", recipe, group_size=size)
    options = {"q_group_size": size, "quant_predicate": recipe}
    convert(deep, tmp_path / "ours", quantize=True, **options)
    assert_same_tensors(tmp_path / "ours", expected)


#: Where mlx-lm's model speaks up, or its experts are three-dimensional.
SPEAKERS = {
    "mixtral": {},
    # Neither dense layers nor biases that differ are mlx-lm's.
    "qwen2_moe": {"mlp_only_layers": [], "qkv_bias": True},
    "qwen3_moe": {"attention_bias": False},
    "gpt_oss": {},
    "granite": {"tie_word_embeddings": False},
    "gemma4_text": {
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
@pytest.mark.parametrize("family", SPEAKERS)
def test_what_the_model_prescribes_is_mlx_lms(family, mode, tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    source = write_checkpoint(
        tmp_path / "hf", config_of(family, **sizes, **SPEAKERS[family])
    )
    expected = quantized_by_mlx_lm(source, tmp_path / "theirs", mode=mode)
    convert(source, tmp_path / "ours", quantize=True, q_mode=mode)
    assert_same_tensors(tmp_path / "ours", expected)


@requires_shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES)
def test_mlx_lm_convert_writes_the_same(recipe, tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm")
    options = {"q_group_size": 32, "dtype": "float32", "quant_predicate": recipe}
    paths = str(SHARED / "stories260K"), str(tmp_path / "theirs")
    mlx_lm.convert(*paths, quantize=True, **options)
    convert(SHARED / "stories260K", tmp_path / "ours", quantize=True, **options)
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.filterwarnings("ignore")
def test_mlx_lms_callable_is_taken(deep, tmp_path):
    def predicate(path, module):
        if not hasattr(module, "to_quantized") or "o_proj" in path:
            return False
        if path.endswith("down_proj"):
            return {"bits": 8, "group_size": 32, "mode": "mxfp8"}
        return {"bits": 6} if module.weight.shape[0] == 131 else True

    options = {"quant_predicate": predicate, "q_bits": 3}
    expected = quantized_by_mlx_lm(deep, tmp_path / "theirs", predicate, bits=3)
    convert(deep, tmp_path / "ours", quantize=True, **options)
    assert_same_tensors(tmp_path / "ours", expected)


#: What is asked for -> format of the attention, gate and down of layer 0, embeddings
#: and head: later words outrank earlier ones.
A4 = "a4g64"
LAST_WORD = {
    "base": ({}, (A4, A4, A4, A4, A4)),
    "recipe": (
        {"predicate": "mixed_4_6"},
        (A4, A4, "a6g64", A4, "a6g64"),
    ),
    "ffn over recipe": (
        {"predicate": "mixed_4_6", "ffn_bits": 3},
        (A4, "a3g64", "a3g64", A4, "a6g64"),
    ),
    "override over ffn": (
        {"ffn_bits": 3, "overrides": {"*.down_proj": "8:32"}},
        (A4, "a3g64", "a8g32", A4, A4),
    ),
    "the last override": (
        {"overrides": {"*.0.*": "8", "ffn": "nvfp4", "*.down_proj": "float"}},
        ("a8g64", "nvfp4", "float", A4, A4),
    ),
    "skip over override": (
        {"overrides": {"lm_head": "8"}, "skip": ["*head", "embeddings"], "ffn_bits": 8},
        (A4, "a8g64", "a8g64", "float", "float"),
    ),
    "parts": (
        {"overrides": {"attention": "6", "embeddings": "mxfp8", "head": "affine:5:32"}},
        ("a6g64", A4, A4, "mxfp8", "a5g32"),
    ),
    "affine beside floats": (
        {"mode": "nvfp4", "ffn_bits": 3},
        ("nvfp4", "a3g64", "a3g64", "nvfp4", "nvfp4"),
    ),
    "group size goes with bits": (
        {"group_size": 32, "ffn_bits": 3, "overrides": {"lm_head": "8"}},
        ("a4g32", "a3g32", "a3g32", "a4g32", "a8g32"),
    ),
}


@pytest.mark.parametrize("case", LAST_WORD)
def test_who_has_the_last_word(case, deep):
    asked, expected = LAST_WORD[case]
    found, kept_float = formats(deep, Request.of(**asked))
    layer = "model.layers.0."
    names = [f"{layer}self_attn.o_proj", f"{layer}mlp.gate_proj"]
    names += [f"{layer}mlp.down_proj", "model.embed_tokens", "lm_head"]
    assert tuple(map(found.get, names)) == expected
    assert not kept_float


def test_the_model_outranks_a_recipe_and_the_user_the_model(tmp_path):
    """Else a router would get 2 bits, and nobody could give one 4."""
    config = config_of("qwen3_moe", hidden_size=128, decoder_sparse_step=1)
    source = write_checkpoint(tmp_path / "hf", config)
    gate = "model.layers.1.mlp.gate"
    recipe = Request.of(predicate="mixed_2_6")
    assert formats(source, recipe)[0][gate] == "a8g64"
    user = Request.of(ffn_bits=3, overrides={"*.mlp.gate": "4"})
    found, _ = formats(source, user)
    assert found[gate] == "a4g64"
    assert found["model.layers.1.mlp.switch_mlp.up_proj"] == "a3g64"
    only = formats(source, Request.of(overrides={"experts": "2"}))[0]
    assert only["model.layers.1.mlp.switch_mlp.up_proj"] == "a2g64"
    assert only["model.layers.1.self_attn.q_proj"] == "a4g64"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"overrides": {"model.layers.3.mlp.downproj": "4"}},
            r"layers\.\*\.mlp\.down_",
        ),
        ({"overrides": {"zzz": "4"}}, r"there are model\.embed_tokens, model"),
        ({"skip": ["experts"]}, "'experts' matches no module"),
        ({"overrides": {"lm_head": "7"}}, "bits 2, 3, 4, 5, 6, 8; got 7"),
        ({"overrides": {"lm_head": "int4"}}, "'int4' is no format; give BITS"),
        ({"overrides": {"lm_head": "4:64:2"}}, "'4:64:2' is no format"),
        ({"ffn_bits": 7}, "got 7"),
        ({"predicate": "mixed_9_9"}, "mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6"),
        ({"predicate": "mixed_2_6", "bits": 4}, "mixed_2_6 sets the bits"),
        (
            {"predicate": "mixed_2_6", "mode": "mxfp4"},
            "leave out --q-bits and --q-mode",
        ),
        ({"predicate": lambda path, module: 4}, "of model.embed_tokens it said 4"),
        ({"predicate": lambda *_: {"global_scale": True}}, "said {'global_scale'"),
    ],
)
def test_mistakes_are_named(asked, words, deep):
    with pytest.raises(ValueError, match=words):
        formats(deep, Request.of(**asked))


def test_a_tied_head_is_said_to_be_tied(tmp_path):
    config = config_of("llama", tie_word_embeddings=True)
    source = write_checkpoint(tmp_path / "hf", config)
    with pytest.raises(ValueError, match=r"head is tied to model\.embed_tokens"):
        formats(source, Request.of(overrides={"lm_head": "8"}))


def test_nothing_left_to_pack_is_refused(deep, tmp_path):
    with pytest.raises(ValueError, match="leave out -q"):
        convert(deep, tmp_path / "mlx", quantize=True, q_skip=["*"])
    assert not (tmp_path / "mlx").exists()


def test_a_group_size_that_does_not_fit_keeps_float(tmp_path):
    """96 inputs: 64 does not divide them, 32 does."""
    source = write_checkpoint(tmp_path / "hf", config_of("llama"))
    asked = {"group_size": 32, "overrides": {"attention": "4:64", "*.q_proj": "4"}}
    found, kept_float = formats(source, Request.of(**asked))
    assert found["model.layers.0.self_attn.q_proj"] == "a4g32"
    assert found["model.layers.0.self_attn.k_proj"] == "float"
    reason = kept_float["model.layers.0.self_attn.k_proj"]
    assert reason == "96 inputs are not a multiple of group size 64"
    assert "model.layers.0.self_attn.q_proj" not in kept_float


@pytest.mark.filterwarnings("ignore")
def test_mlx_lm_loads_what_every_flag_made(deep, tmp_path):
    """Formats of all kinds in one folder; its config says each in full."""
    utils = pytest.importorskip("mlx_lm.utils")
    report = convert(
        deep,
        tmp_path / "mlx",
        quantize=True,
        quant_predicate="mixed_3_4",
        q_ffn_bits=5,
        q_overrides={"*.1.mlp.*": "mxfp8", "head": "8:32", "*.2.mlp.up_proj": "nvfp4"},
        q_skip=["*.o_proj"],
    )
    model, config = utils.load_model(tmp_path / "mlx")
    ours = logits_of(tmp_path / "mlx")
    assert np.abs(np.array(model(IDS)) - ours).max() <= 1e-4 * np.abs(ours).max()
    block = config["quantization"]
    assert block == config["quantization_config"]
    assert block["lm_head"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert block["model.layers.1.mlp.up_proj"]["mode"] == "mxfp8"
    assert block["model.layers.0.self_attn.o_proj"] is False
    for value in block.values():
        assert value is not None
        if isinstance(value, dict):
            assert value.keys() == {"group_size", "bits", "mode"}
            assert None not in value.values()
    nbytes = sum(a.nbytes for a in tensors_of(tmp_path / "mlx").values())
    assert sum(group.nbytes for group in report.groups) == nbytes
    said = {(group.part, group.format): group.modules for group in report.groups}
    assert said["FFN", "a5g64"] == 17 * 3 - 4
    assert said["FFN", "mxfp8"] == 3
    assert said["attention", "float32"] == 17


def test_experts_are_packed_by_the_flags_of_the_ffn(tmp_path):
    """Three-dimensional weights, in the folder and in its logits."""
    source = write_checkpoint(tmp_path / "hf", config_of("mixtral", **EVEN))
    options = {"q_bits": 8, "q_ffn_bits": 4, "q_overrides": {"*.1.*.up_proj": "mxfp4"}}
    report = convert(source, tmp_path / "q", quantize=True, **options)
    convert(tmp_path / "q", tmp_path / "d", dequantize=True, dtype="float32")
    packed, dense = logits_of(tmp_path / "q"), logits_of(tmp_path / "d")
    assert np.abs(packed - dense).max() <= 1e-5 * np.abs(dense).max()
    said = {(group.part, group.format): group.modules for group in report.groups}
    assert said["experts", "a4g64"] == 8
    assert said["experts", "mxfp4"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", Quantization(64, 4)),
        ("3:32", Quantization(32, 3)),
        ("affine", Quantization(64, 4)),
        ("affine:6:128", Quantization(128, 6)),
        ("mxfp4", Quantization(32, 4, "mxfp4")),
        ("nvfp4:4:16", Quantization(16, 4, "nvfp4")),
        ("float", None),
    ],
)
def test_formats_are_read(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":", "4:", "four", "mxfp4:8", "²", "-4", "4:64:1"]
)
def test_words_that_are_no_format(text):
    with pytest.raises(ValueError, match=r"is no format|mxfp4 has bits 4"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4:32", Request.of("affine", 32, 4)),
        ("mixed_3_6", Request.of("affine", 64, predicate="mixed_3_6")),
        ("mixed_3_6:32", Request.of("affine", 32, predicate="mixed_3_6")),
        ("mxfp4,ffn=3", Request.of("mxfp4", 32, 4, ffn_bits=3)),
        (
            "5,*.down_proj=6:32,head=float",
            Request.of(bits=5, overrides={"*.down_proj": "6:32"}, skip=["head"]),
        ),
    ],
)
def test_settings_say_what_the_flags_say(text, expected):
    assert Request.parse(text) == expected


def run(capsys, *argv):
    code = 0
    try:
        main([str(arg) for arg in argv])
    except SystemExit as leaving:
        code = leaving.code
    return (code or 0, *capsys.readouterr())


@pytest.mark.parametrize(
    "flag",
    [
        "--quant-predicate mixed_2_6",
        "--q-ffn-bits 3",
        "--q-override head=8",
        "--q-skip head",
    ],
)
def test_flags_without_q_are_refused(flag, capsys, tmp_path):
    code, _, err = run(capsys, "convert", "--hf-path", tmp_path, *flag.split())
    assert code == 2
    assert f"{flag.split()[0]} has no effect without -q; add -q" in err


def test_the_command_takes_every_flag(deep, tmp_path, capsys):
    folder = tmp_path / "mlx"
    words = "-q --quant-predicate mixed_4_6 --q-group-size 32 --q-ffn-bits 3"
    words += " --q-override head=8 *.0.mlp.*=6 --q-override head=5 --q-skip *.k_proj"
    paths = ["--hf-path", deep, "--mlx-path", folder]
    code, out, err = run(capsys, "convert", *paths, *words.split())
    assert (code, out) == (0, f"{folder}\n")
    block = json.loads((folder / "config.json").read_text())["quantization"]
    assert block["lm_head"]["bits"] == 5
    assert block["model.layers.0.self_attn.k_proj"] is False
    rows = [line.split() for line in err.splitlines()]
    assert ["part", "format", "modules", "MB", "share"] in rows
    cells = {tuple(row[:3]) for row in rows if len(row) == 5}
    assert ("FFN", "a3g32", "48") in cells
    assert ("FFN", "a6g32", "3") in cells
    assert ("head", "a5g32", "1") in cells
    shares = [float(row[4][:-1]) for row in rows if row[4:] and row[4].endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    code, _, err = run(capsys, "convert", *paths, "-q", "--q-override", "head")
    assert code == 2
    assert "'head' must be PATTERN=FORMAT" in err


def test_packed_weights_of_one_setting_are_kept(deep, tmp_path):
    """What has the format that is asked for keeps its bits; the rest is packed anew."""
    convert(deep, tmp_path / "a", quantize=True, dtype="bfloat16")
    options = {"quantize": True, "q_overrides": {"ffn": "3"}}
    report = convert(tmp_path / "a", tmp_path / "b", **options)
    a, b = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    name = "model.layers.4.self_attn.v_proj.weight"
    assert mx.array_equal(a[name], b[name])
    name = "model.layers.4.mlp.up_proj.weight"
    assert a[name].shape[1] * 3 == b[name].shape[1] * 4
    assert "packing it again loses more" in report.notes[0]
