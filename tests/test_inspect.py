"""``mlx-glu inspect``: what a checkpoint is, whole or broken, by its headers."""

import json
import struct
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from gguf_writer import write_gguf
from sim_programs import needs_simulator
from test_gguf import as_llama_cpp, gguf_config
from tiny_checkpoint import FAMILIES, config_of, weights_of, write_checkpoint

from mlx_glu import convert, load_model, simulate
from mlx_glu.checkpoints.checkpoint import INDEX
from mlx_glu.cli import main
from mlx_glu.hub import default_folder
from mlx_glu.inspection import inspect

KEYS = {
    *("path", "format", "files", "architecture", "gate_up", "parameters"),
    *("active_parameters", "dtypes", "groups", "left_out_bytes", "memory"),
    *("feed_forwards", "notes", "faults", "provenance", "verified"),
    "tensors",
}
SETTINGS = {
    *("model_type", "inside", "config_generation", "num_hidden_layers"),
    *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "max_position_embeddings", "sliding_window"),
    *("intermediate_size", "moe_intermediate_size", "layer_types", "rope"),
    *("variants", "num_experts", "num_experts_per_tok", "tie_word_embeddings"),
}
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
CONFIG = config_of("llama", num_hidden_layers=2)
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def run(capsys):
    """Run in this process; exit code, stdout and stderr."""

    def run(*argv):
        code = 0
        try:
            main(["inspect", *map(str, argv)])
        except SystemExit as leaving:
            code = leaving.code
        return (code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def as_json(run):
    """What ``--json`` says, whose keys never change."""

    def as_json(*argv, code=0):
        said = run(*argv, "--json")
        assert (said[0], said[2]) == (code, "")
        found = json.loads(said[1])
        assert set(found) == KEYS
        assert set(found["architecture"]) == SETTINGS
        return found

    return as_json


@pytest.fixture
def hf(tmp_path):
    return write_checkpoint(tmp_path / "hf", CONFIG)


@pytest.fixture
def sharded(hf):
    """The same in two files with an index."""
    arrays = mx.load(str(hf / "model.safetensors"))
    mx.eval(arrays)
    (hf / "model.safetensors").unlink()
    weight_map = {}
    for part in (1, 2):
        file = f"model-0000{part}-of-00002.safetensors"
        own = {name: arrays[name] for name in list(arrays)[part - 1 :: 2]}
        mx.save_safetensors(str(hf / file), own)
        weight_map |= dict.fromkeys(own, file)
    (hf / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return hf


def sizes_of(found):
    return {g["part"]: (g["modules"], g["parameters"]) for g in found["groups"]}


# What can be loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, as_json, tmp_path):
    config = config_of(family)
    folder = write_checkpoint(tmp_path / "hf", config, dtype="bfloat16")
    found = as_json(folder)
    said = found["architecture"]
    assert said["model_type"] == family
    assert {key: said[key] for key in SIZES} == {key: config[key] for key in SIZES}
    assert said["config_generation"] == "4"
    assert sum(said["layer_types"].values()) == config["num_hidden_layers"]
    assert said["rope"][0]["theta"] > 0
    model = load_model(folder)
    arrays = weights_of(config)
    assert found["parameters"] == sum(array.size for array in arrays.values())
    assert sum(g["bytes"] for g in found["groups"]) == 2 * found["parameters"]
    assert found["left_out_bytes"] == 0
    assert found["dtypes"] == {"bfloat16": len(arrays)}
    assert found["memory"]["form"].split(",")[0] == model.representation.split(",")[0]
    if not family.startswith(("gemma3n", "gemma4")):  # with layers of their own kind
        assert "other" not in sizes_of(found)
    assert sizes_of(found)["embeddings"][1] >= config["vocab_size"]
    assert found["feed_forwards"]
    for row in found["feed_forwards"]:
        assert row["variant"]
        assert [run["impl"] for run in row["runs"]] == ["stock"]
    if said["num_experts"] is None:
        assert found["active_parameters"] == found["parameters"]
    else:
        assert found["active_parameters"] < found["parameters"]


def test_text(hf, run):
    code, out, err = run(hf)
    assert (code, err) == (0, "")
    rows = {line[:14].strip(): line[14:] for line in out.split("\n\n")[0].splitlines()}
    assert rows["model type"] == "llama"
    assert rows["sizes"] == (
        "layers 2, hidden size 96, heads 6, key-value heads 2, head size 24, "
        "vocabulary 131"
    )
    assert rows["feed-forward"] == (
        "swiglu, silu(gate) * up; N 128; gate and up separate"
    )
    assert rows["head"] == "its own"
    assert "no Apple GPU here" in out


def test_mixed_formats_are_counted_apart(hf, tmp_path, as_json):
    mx.random.seed(0)
    convert(hf, tmp_path / "q", quantize=True, q_group_size=32, q_bits=4)
    found = as_json(tmp_path / "q", "--tensors")
    whole = as_json(hf)
    formats = {(g["part"], g["format"]): g for g in found["groups"]}
    ffn = formats["FFN", "a4g32"]
    # 4 bits, and a scale and a bias of 32 bits for 32 weights; biases are float32.
    weights, biases = 2 * 3 * 96 * 128, 2 * (128 + 128 + 96)
    assert ffn["modules"] == 6
    assert ffn["parameters"] == weights + biases
    assert ffn["bytes"] == weights * 4 // 8 + 2 * weights // 32 * 4 + biases * 4
    assert ("norms", "float32") in formats
    assert found["parameters"] == whole["parameters"]
    assert sum(t["bytes"] for t in found["tensors"]) == sum(
        g["bytes"] for g in found["groups"]
    )
    arrays = mx.load(str(tmp_path / "q" / "model.safetensors"))
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == {
        name: array.shape for name, array in arrays.items()
    }
    assert found["provenance"]["source"]["name"] == "hf"


def test_memory_is_what_the_model_takes(hf, tmp_path, as_json):
    from mlx.utils import tree_flatten

    convert(hf, tmp_path / "q", quantize=True, q_group_size=32)
    model = load_model(tmp_path / "q")
    taken = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert as_json(tmp_path / "q")["memory"]["bytes"] == taken


def test_shards(sharded, as_json):
    found = as_json(sharded)
    assert [file["name"][:11] for file in found["files"]] == [
        "model-00001",
        "model-00002",
    ]
    assert not found["faults"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_gguf(family, as_json, tmp_path):
    config = gguf_config(family)
    metadata, tensors = as_llama_cpp(config, "Q4_1")
    file = write_gguf(tmp_path / "a.gguf", metadata, tensors)
    found = as_json(file, "--tensors")
    assert found == as_json(tmp_path, "--tensors")  # the folder it is alone in
    assert found["format"] == "GGUF"
    assert found["architecture"]["model_type"] == family
    assert found["architecture"]["hidden_size"] == config["hidden_size"]
    assert found["architecture"]["config_generation"] is None
    assert sum(found["dtypes"].values()) == len(tensors) == len(found["tensors"])
    assert found["dtypes"]["Q4_1"] > 10
    formats = {(g["part"], g["format"]) for g in found["groups"]}
    assert {("FFN", "a4g32"), ("norms", "float32")} <= formats
    assert "as they are read" in found["notes"][-1]


def test_text_part_of_a_multimodal_model(as_json, tmp_path):
    config = config_of("gemma3_text")
    text = weights_of(config)
    tower = {"vision_tower.layers.0.attn.weight": np.zeros((4, 6), np.float32)}
    arrays = {f"language_model.{name}": array for name, array in text.items()}
    whole = {"model_type": "gemma3", "text_config": config, "vision_config": {}}
    folder = write_checkpoint(tmp_path / "hf", whole, arrays | tower)
    found = as_json(folder)
    said = found["architecture"]
    assert (said["model_type"], said["inside"]) == ("gemma3_text", "gemma3")
    assert found["left_out_bytes"] == 4 * 6 * 4
    assert found["parameters"] == sum(array.size for array in text.values())
    assert "left out" in found["notes"][0]


@needs_simulator
def test_where_kernels_run_it_says_which(hf):
    with simulate():
        row = inspect(hf).runs[0]
    assert row.runs[0][:2] == ("1-5", "fused")
    assert row.runs[1][1] != "fused"
    assert not row.calls


def test_the_default_model(as_json):
    folder = default_folder()
    if not (folder / "config.json").exists():
        pytest.skip("the default model is not in the cache")
    found = as_json(folder)
    assert found["parameters"] == found["active_parameters"] == 134_515_008
    assert found["architecture"]["tie_word_embeddings"] is True


# Verification


def test_verify(hf, tmp_path, run):
    convert(hf, tmp_path / "mlx")
    code, out, _ = run(tmp_path / "mlx", "--verify")
    assert code == 0
    assert "\nmade from " in out
    assert out.endswith("verified: every file is the one that was written\n")
    with (tmp_path / "mlx" / "config.json").open("a") as file:
        file.write("\n")
    code, out, _ = run(tmp_path / "mlx", "--verify")
    assert code == 1
    assert "broken: [provenance] config.json" in out
    code, out, _ = run(hf, "--verify")
    assert code == 1
    assert f"broken: [provenance] {hf} has no provenance.json to verify it by" in out


def test_verify_says_so_in_json(hf, tmp_path, as_json):
    convert(hf, tmp_path / "mlx")
    assert as_json(tmp_path / "mlx")["verified"] is None
    assert as_json(tmp_path / "mlx", "--verify")["verified"] is True
    (tmp_path / "mlx" / "provenance.json").write_text("[]")
    found = as_json(tmp_path / "mlx", "--verify", code=1)
    assert found["verified"] is False
    assert len(found["faults"]) == 1
    found = as_json(tmp_path / "mlx")  # it can be loaded all the same
    assert found["faults"] == []
    assert "provenance.json" in found["notes"][-1]


# What cannot be loaded is shown as far as it can be read


def test_a_missing_shard(sharded, as_json, run):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    found = as_json(sharded, code=1)
    (fault,) = found["faults"]
    assert "model-00002-of-00002.safetensors is missing" in fault
    assert found["architecture"]["hidden_size"] == 96
    assert found["architecture"]["variants"] == ["swiglu"]
    assert 0 < sizes_of(found)["FFN"][0] < 6
    assert found["memory"] == {"bytes": None, "form": None}
    code, out, _ = run(sharded)
    assert code == 1
    assert "model.layers.*." in out
    assert "\nbroken: " in out


def test_a_wrong_shape(hf, as_json):
    arrays = weights_of(CONFIG)
    write_checkpoint(hf, CONFIG, arrays | {GATE: arrays[GATE][:7]})
    found = as_json(hf, code=1)
    (fault,) = found["faults"]
    assert f"{GATE} must have shape [128, 96], got [7, 96]" in fault
    assert sizes_of(found)["attention"][0] == 8


def test_an_unknown_model_type(tmp_path, as_json, run):
    config = {
        **CONFIG,
        "model_type": "deepseek_v3",
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5},
    }
    arrays = weights_of(CONFIG) | {
        f"model.layers.1.mlp.experts.{i}.up_proj.weight": np.zeros((5, 7), np.float32)
        for i in range(3)
    }
    folder = write_checkpoint(tmp_path / "hf", config, arrays)
    found = as_json(folder, code=1)
    said = found["architecture"]
    assert said["model_type"] == "deepseek_v3"
    assert (said["num_experts"], said["num_experts_per_tok"]) == (3, 2)
    assert said["rope"] == [{"layers": None, "rope_type": "yarn", "theta": 5e5}]
    assert sizes_of(found)["experts"] == (3, 3 * 5 * 7)
    assert found["parameters"] - found["active_parameters"] == 5 * 7
    assert "'deepseek_v3' is not supported" in found["faults"][0]
    assert "model.layers.*.mlp.experts.*.up_proj.weight" in run(folder)[1]


def test_a_truncated_file(hf, as_json):
    file = hf / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    found = as_json(hf, code=1)
    assert "the download is incomplete" in found["faults"][0]
    assert found["parameters"] == sum(a.size for a in weights_of(CONFIG).values())


def test_eight_bit_floats(hf, as_json):
    header = json.dumps(
        {
            "a.q_proj.weight": {
                "dtype": "F8_E4M3",
                "shape": [2, 3],
                "data_offsets": [0, 6],
            },
            "a.norm.weight": {"dtype": "BF16", "shape": [3], "data_offsets": [6, 12]},
            "a.lie": {"dtype": "BF16", "shape": [-3], "data_offsets": [12, 12]},
        }
    ).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(12)
    (hf / "model.safetensors").write_bytes(data)
    found = as_json(hf, code=1)
    assert found["dtypes"] == {"F8_E4M3": 1, "bfloat16": 1}
    assert "F8_E4M3" in found["faults"][0]


def test_no_config(hf, as_json):
    (hf / "config.json").unlink()
    found = as_json(hf, code=1)
    assert "config.json does not exist" in found["faults"][0]
    assert found["architecture"]["hidden_size"] is None
    assert sizes_of(found)["FFN"][0] == 6


def test_a_gguf_architecture_that_we_do_not_have(tmp_path, as_json):
    metadata = {"general.architecture": "mamba", "mamba.block_count": 3}
    tensors = {"blk.0.ssm_in.weight": (np.ones((4, 32), np.float32), "Q8_0")}
    found = as_json(write_gguf(tmp_path / "a.gguf", metadata, tensors), code=1)
    assert found["architecture"]["model_type"] == "mamba"
    assert found["architecture"]["num_hidden_layers"] == 3
    assert found["dtypes"] == {"Q8_0": 1}
    assert "'mamba' is not supported" in found["faults"][0]


def test_an_index_that_leads_away(sharded, tmp_path, as_json):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][GATE] = "../model.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    write_checkpoint(tmp_path, CONFIG)  # what it would lead to
    found = as_json(sharded, "--tensors", code=1)
    assert "../model.safetensors" in found["faults"][0]
    assert {t["file"][:8] for t in found["tensors"]} == {"model-00"}


@pytest.mark.parametrize(
    "files",
    [["y" * 10**6 + ".safetensors"], [f"{i}.safetensors" for i in range(20_000)]],
    ids=["long name", "many files"],
)
def test_an_index_without_end(files, hf, as_json):
    index = {"weight_map": {f"t{i}": file for i, file in enumerate(files)}}
    (hf / INDEX).write_text(json.dumps(index))
    found = as_json(hf, code=1)
    assert found["faults"] == [found["faults"][0]]
    assert len(found["faults"][0]) < 1000


def test_words_of_strangers_do_not_reach_the_terminal(hf, run):
    arrays = {"a.\x1b[2J.weight": np.zeros((2, 3), np.float32)}
    write_checkpoint(hf, {**CONFIG, "model_type": "\x1b]0;x\x07"}, arrays)
    code, out, err = run(hf, "--tensors")
    assert (code, err) == (1, "")
    assert all(line.isprintable() for line in out.splitlines())
    assert "[2J" in out


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 10**30},
        {"num_attention_heads": "many", "num_hidden_layers": 10**12},
        {"layer_types": [{}, 1, None]},
        {"rope_parameters": {"rope_theta": [1]}, "rope_theta": "x"},
        {"rope_scaling": [], "text_config": 3},
        {"hidden_act": {"a": 1}, "num_local_experts": -1},
    ],
)
def test_a_config_of_nonsense(values, hf, as_json, run):
    (hf / "config.json").write_text(json.dumps(CONFIG | values))
    found = as_json(hf, code=1)
    assert found["architecture"]["model_type"] == "llama"
    assert sizes_of(found)["FFN"][0] == 6
    assert run(hf)[0] == 1


# Nothing to show: one line


def assert_refused(result, words):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("mlx-glu: error: ")
    assert err.count("\n") == 1, err
    assert words in err


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "config.json does not exist"),
        ({"config.json": b"[" * 99_999}, "config.json is not JSON"),
        ({"config.json": b"{", "model.safetensors": b"\xff" * 64}, "is not JSON"),
        ({"a.gguf": b"GGUF" + b"\xff" * 60}, "a.gguf"),
    ],
)
def test_nothing_to_show(files, words, run, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert_refused(run(tmp_path), words)


def test_no_checkpoint(run, tmp_path):
    assert_refused(run(tmp_path / "missing"), "missing does not exist")
    (tmp_path / "a.txt").touch()
    assert_refused(run(tmp_path / "a.txt"), "give the folder")


# Size


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_hundred_thousand_tensors(tmp_path):
    """Headers alone are read: seconds of one core, and 0.5 GB at most."""
    rows = [
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"
        for layer in range(66)
        for expert in range(506)
        for name in ("gate_proj", "up_proj", "down_proj")
    ]
    assert len(rows) > 100_000
    weight_map = {}
    for shard in range(50):
        file = f"model-{shard + 1:05}-of-00050.safetensors"
        header = {
            name: {
                "dtype": "BF16",
                "shape": [64, 128],
                "data_offsets": [i << 14, (i + 1) << 14],
            }
            for i, name in enumerate(rows[shard::50])
        }
        text = json.dumps(header).encode()
        with (tmp_path / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + (len(header) << 14))
        weight_map |= dict.fromkeys(header, file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    code = (
        "import sys, time\nfrom mlx_glu.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n"
        "    status = open('/proc/self/status').read()\n"
        "    peak = status.split('VmHWM:')[1].split()[0]\n"
        "    print(time.process_time(), peak, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "100,188" in done.stdout
    seconds, peak = map(float, done.stderr.split())
    assert seconds < 5
    assert peak * 1024 < 500e6
