"""Activations of a trained model: statistics, rules, and what they leave unread."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from shared_data import SHARED, requires_shared
from test_convert import EVEN
from test_evaluation import write_model
from test_recipes import run
from tiny_checkpoint import CASES, config_of, token_ids, write_checkpoint
from tiny_tokenizers import byte_level_metadata

from mlx_glu import hub, load_model
from mlx_glu.evaluation.windows import SAMPLE
from mlx_glu.layers import GatedMLP
from mlx_glu.science import activations
from mlx_glu.science.hooks import Hooked, Site, Unit, hooked
from mlx_glu.science.thresholding import RULES, Filter, Read, thresholded, thresholds
from mlx_glu.variants import VARIANTS

IDS = mx.array(token_ids())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = config_of("llama")
    return load_model(write_checkpoint(tmp_path_factory.mktemp("m") / "hf", config))


def logits(model):
    return np.array(model(IDS))


@pytest.mark.parametrize("rule", RULES)
def test_a_threshold_of_0_changes_no_bit(rule, model):
    expected, before = logits(model), dict(model.named_modules())
    with thresholded(model, RULES[rule], {}) as filters:
        assert np.array_equal(logits(model), expected)
        assert any(type(module) is Hooked for _, module in model.named_modules())
    assert Read.skipped(filters) == (0, 0)
    assert dict(model.named_modules()) == before


def test_the_model_is_given_back_after_an_error(model):
    expected, before = logits(model), dict(model.named_modules())

    def make(site):
        def fail(x):
            raise KeyError(site.path)

        return fail

    with pytest.raises(KeyError), hooked(model, make):
        model(IDS)
    assert dict(model.named_modules()) == before
    assert np.array_equal(logits(model), expected)


def hand_made():
    """A block of 3 inputs and 4 units, and what its gate and up gave two tokens."""
    mlp = GatedMLP(3, 4)
    weight = np.array([[3.0, 0, 1, 0], [4, 0, 0, 2], [0, 0, 0, 0]], np.float32)
    mlp.down_proj.weight = mx.array(weight)
    unit = Unit(VARIANTS["reglu"])
    unit.gate = mx.array([[-5.0, 0.5, 1, 2], [3, 0.25, -1, 0.5]])
    unit.up = mx.array([[9.0, -4, 0.5, 1], [-0.5, 2, 3, 1]])
    x = mx.array([[0.0, -2, 1, 2], [-1.5, 0.5, 0, 0.5]])
    return Site("model.layers.0.mlp.down_proj", mlp.down_proj, unit), x


#: What scores at most 1 by hand: x, relu(gate), up, x times the norms 5, 0, 1, 2.
LEFT_OUT = {
    "down": [[1, 0, 1, 0], [0, 1, 1, 1]],
    "cats": [[1, 1, 1, 0], [0, 1, 1, 1]],
    "m_countdown": [[0, 0, 1, 1], [1, 0, 0, 1]],
    "d_countdown": [[1, 0, 1, 0], [0, 1, 1, 1]],
    "teal": [[1, 0, 1, 0], [0, 1, 1, 1]],
    "wina": [[1, 1, 1, 0], [0, 1, 1, 1]],
}


@pytest.mark.parametrize("rule", RULES)
def test_exactly_the_entries_up_to_the_threshold_are_zeroed(rule):
    """And each stands for a row or column of 3 weights in every matrix it spares."""
    site, x = hand_made()
    own = Filter(RULES[rule], site, 1.0)
    left_out = np.array(LEFT_OUT[rule], bool)
    assert np.array_equal(np.array(own(x)), np.where(left_out, 0, np.array(x)))
    matrices = {"cats": 2, "m_countdown": 2, "d_countdown": 3}.get(rule, 1)
    assert own.skipped == 3 * matrices * left_out.sum()
    own(x)
    assert own.skipped == 2 * 3 * matrices * left_out.sum()
    below = Filter(RULES[rule], site, np.nextafter(np.float32(1), np.float32(0)))
    ones = np.array(RULES[rule].score(site, x)) == 1
    assert ones.any()
    assert np.array_equal(np.array(below(x) == x), ~left_out | ones | np.array(x == 0))


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_leave_out_the_share_they_were_made_for(rule, model):
    """On the text of the thresholds, at the places that no other one comes before."""
    shares = (0.25, 0.5)
    found = thresholds(model, RULES[rule], IDS, shares)
    everywhere = RULES[rule].everywhere
    assert len(found) == 3 * (7 if everywhere else 1)
    names = (
        ["self_attn.q_proj", "self_attn.v_proj"] if everywhere else ["mlp.down_proj"]
    )
    for column, share in enumerate(shares):
        levels = {path: float(found[path][column]) for path in found}
        with thresholded(model, RULES[rule], levels) as filters:
            model(IDS, last_only=True)
        for own in filters:
            if own.site.path in {f"model.layers.0.{name}" for name in names}:
                N, K = own.site.layer.weight.shape
                entries = own.skipped / (N * RULES[rule].matrices)
                # Equal scores fall together: the embedding of a repeated token.
                assert entries == pytest.approx(share * K * IDS.size, rel=1e-3)


def test_a_filtered_model_is_the_one_with_those_weights_left_out(model):
    """Everything left out of the down projections: blocks of attention and biases."""
    path = "model.layers.{}.mlp.down_proj"
    with thresholded(
        model, RULES["cats"], {path.format(i): 1e9 for i in range(3)}
    ) as f:
        found = logits(model)
    N, K = 128, 96
    assert Read.skipped(f).ffn == Read.skipped(f).model == 3 * 2 * N * K * IDS.size
    weights = [layer.mlp.down_proj.weight for layer in model.model.layers]
    try:
        for layer in model.model.layers:
            layer.mlp.down_proj.weight = mx.zeros((K, N))
        assert np.array_equal(found, logits(model))
    finally:
        for layer, weight in zip(model.model.layers, weights, strict=True):
            layer.mlp.down_proj.weight = weight


@pytest.mark.parametrize("case", ["llama", "qwen3"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_weights_that_a_token_reads_are_counted(case, packed, tmp_path):
    """One case has a head of its own, one reads its embeddings as one."""
    config = config_of(case, **EVEN)
    model = load_model(write_checkpoint(tmp_path / "hf", config))
    shapes = [(name, a.shape) for name, a in tree_flatten(model.parameters())]
    if packed:
        nn.quantize(model, group_size=32)
    sizes = {name: np.prod(shape) for name, shape in shapes if len(shape) == 2}
    tied = case == "qwen3"
    expected = sum(n for name, n in sizes.items() if tied or "embed" not in name)
    assert Read.of(model) == (3 * 3 * 128 * 256, expected)


def test_norms_are_those_of_columns():
    layer = nn.Linear(64, 5)
    unit = Unit(VARIANTS["swiglu"])
    expected = np.linalg.norm(np.array(layer.weight, np.float64), axis=0)
    assert np.array(Site("a", layer, unit).norms) == pytest.approx(expected, rel=1e-6)
    packed = nn.QuantizedLinear.from_linear(layer, 32, 8)
    dense = mx.dequantize(packed.weight, packed.scales, packed.biases, 32, 8)
    expected = np.linalg.norm(np.array(dense, np.float64), axis=0)
    assert np.array(Site("a", packed, unit).norms) == pytest.approx(expected, rel=1e-6)


def test_hooks_see_what_numpy_computes(model):
    """Gate, phi and the product of one layer, from the input of its projections."""
    inputs, seen = {}, {}

    def keep(site):
        def see(x):
            inputs[site.path] = np.array(x, np.float64)
            return x

        return see

    def look(site):
        def see(x):
            arrays = site.unit.gate, site.unit.phi, site.unit.up, x
            seen[site.path] = [np.array(a, np.float64) for a in arrays]
            return x

        return see

    with hooked(model, keep, everywhere=True):
        model(IDS)
    with hooked(model, look):
        model(IDS)
    assert (len(inputs), len(seen)) == (21, 3)
    for i, layer in enumerate(model.model.layers):
        gate, phi, up, h = seen[f"model.layers.{i}.mlp.down_proj"]
        x = inputs[f"model.layers.{i}.mlp.gate_proj"]
        for found, own in ((gate, layer.mlp.gate_proj), (up, layer.mlp.up_proj)):
            weight, bias = (np.array(a, np.float64) for a in (own.weight, own.bias))
            # float32 sums of 96 terms.
            assert found == pytest.approx(x @ weight.T + bias, abs=1e-5)
        assert phi == pytest.approx(gate / (1 + np.exp(-gate)), abs=1e-6)
        assert h == pytest.approx(phi * up, rel=1e-6)
        assert np.array_equal(inputs[f"model.layers.{i}.mlp.down_proj"], h)


def test_statistics_are_numpys():
    random = np.random.default_rng(0)
    gate = random.normal(size=(2, 5, 8)).astype(np.float32) * 2
    phi = gate / (1 + np.exp(-gate))
    h = phi * random.normal(size=gate.shape).astype(np.float32)
    h[1, 3, 6], h[0, 0, 2] = -90, 60
    found = activations.describe(gate, phi, h)
    assert (found["window"], found["position"], found["channel"]) == (1, 3, 6)
    assert (found["h_max"], found["h_max_later"]) == (90, 90)
    assert found["gate_below_0"] == sum(g < 0 for g in gate.ravel()) / gate.size
    shares = [found[f"phi_{name}"] for name in ("below_0", "inside", "above_1")]
    assert shares == [
        sum(low <= p < high for p in phi.ravel()) / phi.size
        for low, high in ((-1, 0), (0, 1), (1, 99))
    ]
    assert found["h_small"] == sum(abs(x) < 0.01 for x in h.ravel()) / h.size
    squares = [float(x) ** 2 for x in h.ravel()]
    assert found["h_rms"] == pytest.approx((sum(squares) / h.size) ** 0.5)
    first = sum(float(x) ** 2 for x in h[:, 0].ravel())
    assert found["first_energy"] == pytest.approx(first / sum(squares))
    assert (found["gate"][0], found["gate"][-1]) == (gate.min(), gate.max())
    assert found["phi"][4] == pytest.approx(np.median(phi))
    h[1, 3, 6] = 0
    found = activations.describe(gate, phi, h)
    assert (found["position"], found["h_max"]) == (0, 60)
    assert found["h_max_later"] == np.abs(h[:, 1:]).max() < 60


def test_halves_of_a_text_do_not_overlap(tmp_path):
    folder = write_model(tmp_path / "m", byte_level_metadata())
    text = tmp_path / "a.txt"
    text.write_text("".join(chr(33 + i % 90) for i in range(1000)))
    settings = activations.Settings(folder, text, tokens=100, length=40)
    data = activations._data(settings)
    ids = data.tokenizer.encode(text.read_text())
    assert [len(w) for w in data.calibration + data.evaluation] == [33] * 6
    assert np.concatenate(data.calibration).tolist() == ids[:99]
    assert np.concatenate(data.evaluation).tolist() == ids[100:199]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Rows and figures of --quick on a model of random weights."""
    folder = tmp_path_factory.mktemp("quick")
    model = write_model(folder / "tiny", byte_level_metadata())
    words = ["science", "run", "activations", "--model", model, "--out", folder]
    return folder, words


def test_quick(quick, capsys):
    pytest.importorskip("matplotlib")
    folder, words = quick
    code, out, err = run(capsys, *words)
    assert code == 0, err
    head, layers, *rows = map(
        json.loads, (folder / "activations-quick.jsonl").read_text().splitlines()
    )
    assert head["settings"]["model"] == {"name": "tiny"}
    assert head["settings"]["text"]["name"] == SAMPLE.name
    assert len(layers["h_max"]) == len(layers["token"]) == 3
    assert layers["bits_per_weight"] == 32
    assert [row["rule"] for row in rows] == ["none", *RULES]
    dense, *sparse = rows
    assert dense["loss_change"] == dense["model_skipped"] == 0
    by_rule = {row["rule"]: row for row in sparse}
    for row in sparse:
        assert row["tokens"] == dense["tokens"] == 2 * 31
        change = row["loss"] - dense["loss"]
        assert row["loss_change"] == pytest.approx(change, abs=1e-4)
        matrices = RULES[row["rule"]].matrices
        if not RULES[row["rule"]].everywhere:
            matrices /= 3
        assert row["ffn_skipped"] == pytest.approx(0.5 * matrices, abs=0.06)
    assert by_rule["down"]["loss"] == by_rule["d_countdown"]["loss"]
    assert "WINA, uniform, 50% left out" in out
    for name in ("activations-quick.svg", "activations-quick-dark.svg"):
        assert (folder / name).read_text().count("<!-- Thresholding rules -->") == 1


def test_the_default_model_is_asked_for_by_name(tmp_path, monkeypatch, capsys):
    """No model, no text that is a file, and a model of experts."""
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    words = ["science", "run", "activations", "--out", tmp_path / "out"]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert "make it once with `mlx-glu convert`" in err
    (tmp_path / hub.GGUF).touch()
    assert activations.prepare(activations.Settings()).model == tmp_path / hub.GGUF
    code, out, err = run(capsys, *words, "--model", tmp_path, "--text", tmp_path)
    assert (code, out) == (2, "")
    assert "is no file; give one" in err
    experts = write_checkpoint(tmp_path / "experts", CASES["mixtral"])
    with pytest.raises(ValueError, match=r"layer 0 has \w+ of other parts"):
        Read.of(load_model(experts))


@requires_shared
def test_rules_cost_a_trained_model_something():
    """Stories of 260K: less read is worse, and the down projection forgives most."""
    text = SHARED / "corpora" / "tinystories_sample_2M.txt"
    settings = activations.Settings(
        SHARED / "stories260K", text, tokens=256, length=128, shares=(0.5,)
    )
    cells = activations.cells(settings)[1:]
    found = {cell["rule"]: activations.measure(settings, cell) for cell in cells}
    loss = {rule: row["loss_change"] for rule, row in found.items()}
    assert (
        0 < loss["down"] < min(loss[rule] for rule in ("cats", "m_countdown", "teal"))
    )
    assert max(loss.values()) < 3
