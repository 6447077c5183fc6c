import json
import shutil
import subprocess
import sys

import pytest
from shared_data import SHARED, TOKENIZERS, expected_encodings, requires_shared
from tiny_tokenizers import CHATML, byte_level_metadata, llama_metadata

from mlx_glu.tokenizer import load_tokenizer
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

CHAT = [{"role": "user", "content": "Hello"}]
LLAMA_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
}
# "<|im_start|>user ...": the ids of smollm2 and qwen2 are of the plain characters.
IM_START = 48


def write(folder, **files):
    for name, value in files.items():
        (folder / name.replace("_json", ".json")).write_text(json.dumps(value))


@pytest.fixture
def byte_level(tmp_path):
    write_tokenizer(byte_level_metadata(), tmp_path)
    return tmp_path


@pytest.fixture
def llama(tmp_path):
    """tokenizer.model alone, as LLaMA-2 was published."""
    write_tokenizer(llama_metadata(), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    write(tmp_path, tokenizer_config_json=LLAMA_CONFIG)
    return tmp_path


def pieces(tokenizer, text, **options):
    return [tokenizer.decode([1, i])[3:] for i in tokenizer.encode(text, **options)]


def test_llama_adds_bos_and_one_space(llama):
    tokenizer = load_tokenizer(llama)
    assert (tokenizer.bos_token_id, tokenizer.bos_token) == (1, "<s>")
    assert pieces(tokenizer, "Hello world") == ["<s>", " Hello", " world"]
    assert pieces(tokenizer, " Hello") == ["<s>", " ", " Hello"]
    assert tokenizer.encode("") == [1]
    assert (
        tokenizer.decode(tokenizer.encode("Hello"), skip_special_tokens=True) == "Hello"
    )


@pytest.mark.parametrize(
    ("config", "first", "second"),
    [
        ({}, " Hello", "Hello"),
        ({"legacy": True}, " Hello", " Hello"),
        ({"add_prefix_space": False}, "Hello", "Hello"),
    ],
)
def test_the_space_before_text_and_after_a_special_token(llama, config, first, second):
    write(llama, tokenizer_config_json={**LLAMA_CONFIG, **config})
    tokenizer = load_tokenizer(llama)
    ids = tokenizer.encode("Hello</s>Hello")
    # BOS in front keeps the first space in the decoded text.
    assert tokenizer.decode(ids) == f"<s>{first}</s>{second}"
    assert tokenizer.decode(ids[1:]) == f"Hello</s>{second}"


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, True), (None, None)])
def test_add_bos_token_and_add_eos_token(llama, bos, eos):
    config = {**LLAMA_CONFIG, "add_bos_token": bos, "add_eos_token": eos}
    write(llama, tokenizer_config_json=config)
    ids = load_tokenizer(llama).encode("Hello")
    assert (ids[0] == 1, ids[-1] == 2) == (bos is not False, bool(eos))


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_add_bos_token_beside_a_tokenizer_json(byte_level, name):
    """The file's own rule stands unless the class builds its rule from the config."""
    path = byte_level / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": name}
    path.write_text(json.dumps({**config, "add_bos_token": True}))
    ids = load_tokenizer(byte_level).encode("Hello")
    assert (ids[0] == 1) == (name == "LlamaTokenizerFast")


def test_control_and_user_defined_pieces_are_split_out(llama):
    tokenizer = load_tokenizer(llama)
    tool, end = tokenizer.token_to_id("<tool>"), tokenizer.token_to_id("<|end|>")
    ids = tokenizer.encode("Hello<tool>Hello<|end|><unk>")
    assert [i for i in ids if i in (0, 1, 2, tool, end)] == [1, tool, end, 0]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == "Hello<tool>Hello"  # a user-defined token is text


def test_added_tokens_with_their_flags(llama):
    size = load_tokenizer(llama).vocab_size
    token = {"content": "<|user|>", "rstrip": True, "special": True, "lstrip": False}
    config = {**LLAMA_CONFIG, "added_tokens_decoder": {str(size): token}}
    write(llama, tokenizer_config_json=config)
    tokenizer = load_tokenizer(llama)
    assert tokenizer.vocab_size == size + 1
    assert tokenizer.token_to_id("<|user|>") == size
    # rstrip: the token takes the newline with it.
    assert tokenizer.encode("<|user|>\nHe") == tokenizer.encode("<|user|>He")
    assert tokenizer.encode("<|user|>\nHe")[:2] == [1, size]
    assert tokenizer.decode([size]) == "<|user|>"


def test_added_tokens_json(llama):
    size = load_tokenizer(llama).vocab_size
    write(llama, added_tokens_json={"<pad>": size, "<x>": size + 1})
    write(llama, special_tokens_map_json={"pad_token": {"content": "<pad>"}})
    tokenizer = load_tokenizer(llama)
    assert tokenizer.encode("<x><pad>") == [1, size + 1, size]
    assert tokenizer.decode([size + 1, size], skip_special_tokens=True) == "<x>"


def test_a_folder_that_names_nothing_uses_the_models_own_tokens(llama):
    (llama / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(llama)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.eos_token_ids == {2}
    assert not tokenizer.has_chat_template


def test_a_named_token_is_special_even_if_the_file_forgets(byte_level):
    path = byte_level / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] != 2]
    path.write_text(json.dumps(content))
    write(byte_level, tokenizer_config_json={"eos_token": "<|im_end|>"})
    tokenizer = load_tokenizer(byte_level)
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.decode([2], skip_special_tokens=True) == ""


def test_null_bos_stays_null(byte_level):
    write(
        byte_level, tokenizer_config_json={"bos_token": None, "eos_token": "<|im_end|>"}
    )
    write(byte_level, config_json={"bos_token_id": 1})
    tokenizer = load_tokenizer(byte_level)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == (None, None)
    assert tokenizer.eos_token_ids == {2}


EOS_CASES = [
    ({}, "", {0}),
    ({"config_json": {"eos_token_id": 7}}, "", {7}),
    ({"config_json": {"text_config": {"eos_token_id": [7, 8]}}}, "", {7, 8}),
    (
        {
            "config_json": {"eos_token_id": 7},
            "generation_config_json": {"eos_token_id": [5, 6]},
        },
        "",
        {5, 6},
    ),
    (
        {
            "config_json": {"eos_token_id": 7},
            "generation_config_json": {"eos_token_id": None},
        },
        "",
        {7},
    ),
    # The end of a turn counts where the template writes it.
    ({"config_json": {"eos_token_id": 7}}, CHATML, {7, 2}),
    ({"generation_config_json": {"eos_token_id": 5}}, "<|im_start|>", {5}),
]


@pytest.mark.parametrize(("files", "template", "want"), EOS_CASES)
def test_eos_token_ids(byte_level, files, template, want):
    config = {"eos_token": "<|endoftext|>", "chat_template": template}
    write(byte_level, tokenizer_config_json=config, **files)
    assert load_tokenizer(byte_level).eos_token_ids == want


@pytest.mark.parametrize("token", ["<|end|>", "<end_of_turn>", "<|eot_id|>"])
def test_end_of_turn_is_an_added_token(token, tmp_path):
    metadata = llama_metadata(chat_template="{{ messages[0].content }}<|end|>" + token)
    write_tokenizer(metadata, tmp_path)
    end = load_tokenizer(tmp_path).token_to_id("<|end|>")
    assert load_tokenizer(tmp_path).eos_token_ids == {2, end}


def test_harmony_goes_on_after_end(tmp_path):
    metadata = llama_metadata(chat_template="{{ messages[0].content }}<|end|>")
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.tokens"] = [
        "<|channel|>" if token == "<tool>" else token for token in tokens
    ]
    write_tokenizer(metadata, tmp_path)
    assert load_tokenizer(tmp_path).eos_token_ids == {2}


def test_chat_gives_special_tokens_once(llama):
    template = (
        "{{ bos_token }}H{{ messages[0].content }}{{ eos_token }}{{ date_string }}"
    )
    config = {**LLAMA_CONFIG, "chat_template": template}
    write(llama, tokenizer_config_json=config)
    tokenizer = load_tokenizer(llama)
    ids = tokenizer.apply_chat_template(CHAT, date_string="")
    assert (ids[0], ids[-1], ids.count(1)) == (1, 2, 1)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, date_string="d")
    assert text == "<s>HHello</s>d"
    assert ids == tokenizer.encode("<s>HHello</s>", add_special_tokens=False)
    own = tokenizer.apply_chat_template(CHAT, chat_template="x", tokenize=False)
    assert own == "x"


def test_template_files_come_before_the_config(byte_level):
    assert load_tokenizer(byte_level).chat_templates == {"default": CHATML}
    write(byte_level, chat_template_json={"chat_template": "json"})
    assert load_tokenizer(byte_level).chat_templates == {"default": "json"}
    (byte_level / "chat_template.jinja").write_text("jinja")
    (byte_level / "additional_chat_templates").mkdir()
    (byte_level / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    tokenizer = load_tokenizer(byte_level)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "jinja"
    text = tokenizer.apply_chat_template(CHAT, tools=[{"name": "f"}], tokenize=False)
    assert text == "tools"


def test_no_chat_template_is_an_error(llama):
    with pytest.raises(ValueError, match="no default chat template"):
        load_tokenizer(llama).apply_chat_template(CHAT)


def test_byte_fallback_keeps_what_is_valid(llama):
    tokenizer = load_tokenizer(llama)
    euro = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in "€".encode()]
    bad = tokenizer.token_to_id("<0xFF>")
    assert tokenizer.decode([*euro, bad, *euro, *euro[:2]]) == "€\ufffd€\ufffd"
    assert tokenizer.decode([tokenizer.vocab_size, -1]) == ""


def test_byte_level_decode_is_the_librarys(byte_level):
    from tokenizers import Tokenizer

    ours = load_tokenizer(byte_level)
    theirs = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    for start in range(ours.vocab_size):
        ids = [(start + step * step) % ours.vocab_size for step in range(8)]
        for skip in (True, False):
            want = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == want


def test_lone_surrogates_are_refused(llama):
    with pytest.raises(ValueError, match=r"^\[encode\] .* surrogate at character 2;"):
        load_tokenizer(llama).encode("ab\udc80")


def test_a_missing_folder_or_vocabulary(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_tokenizer(tmp_path / "x")
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer\.json or tokenizer\.model"
    ):
        load_tokenizer(tmp_path)
    (tmp_path / "qwen.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(FileNotFoundError, match=r"found qwen\.tiktoken, which"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json holds a JSON object"),
        ("config.json", '{"eos_token_id": "x"}', "config.json: eos_token_id is an id"),
        ("config.json", '{"eos_token_id": [-1]}', "config.json: eos_token_id is an id"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"a": {}}}',
            "added tokens",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}', "added tokens"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"5": {"content": "<|im_end|>"}}}',
            "'<|im_end|>' has id 2 in tokenizer.json but 5",
        ),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is a string"),
    ],
)
def test_broken_files_are_named(byte_level, file, content, error):
    (byte_level / file).write_text(content)
    with pytest.raises(ValueError, match=r"^\[") as caught:
        load_tokenizer(byte_level)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"\x0a\x05abc", "download complete"),
        (b"", "download complete"),
    ],
)
def test_broken_models_are_named(llama, content, hint):
    (llama / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=rf"tokenizer\.model is not a .*{hint}"):
        load_tokenizer(llama)


def test_an_unknown_decoder_is_refused(byte_level):
    path = byte_level / "tokenizer.json"
    content = json.loads(path.read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has the decoder .*WordPiece"):
        load_tokenizer(byte_level)


def test_importing_costs_nothing():
    code = (
        "import sys, mlx_glu.tokenizer as t; "
        "print([m for m in ('tokenizers', 'sentencepiece', 'jinja2', 'transformers') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout.decode().strip() == "[]"


def check_expected(tokenizer, name, special=None):
    expected = expected_encodings()
    pairs = zip(expected["texts"], expected[name]["ids"], strict=True)
    for i, (text, ids) in enumerate(pairs):
        assert tokenizer.decode(ids) == text
        want = special if special and i == IM_START else ids
        assert tokenizer.encode(text, add_special_tokens=False) == want, text


PHI3_ADDED = {
    str(32000 + i): {"content": token, "rstrip": i > 0, "special": True}
    for i, token in enumerate(["<|endoftext|>", "<|assistant|>", "<|placeholder1|>"])
}


@requires_shared
@pytest.mark.parametrize(
    ("name", "file", "config"),
    [
        ("llama2", "llama2/tokenizer.model", LLAMA_CONFIG),
        ("llama2", "llama2/tokenizer.model", {**LLAMA_CONFIG, "legacy": True}),
        (
            "phi3",
            "llama2/tokenizer.model",
            {**LLAMA_CONFIG, "added_tokens_decoder": PHI3_ADDED},
        ),
        ("gemma3", "gemma/gemma3.tokenizer.model", {"bos_token": "<bos>"}),
        ("mistral_v1", "mistral/tokenizer.model.v1", LLAMA_CONFIG),
        (
            "mistral_v3",
            "mistral/mistral_instruct_tokenizer_240323.model.v3",
            LLAMA_CONFIG,
        ),
        ("stories_tok512", "../stories260K/tokenizer.model", LLAMA_CONFIG),
    ],
)
def test_expected_encodings_of_sentencepiece_models(name, file, config, tmp_path):
    shutil.copyfile(TOKENIZERS / file, tmp_path / "tokenizer.model")
    write(tmp_path, tokenizer_config_json=config)
    tokenizer = load_tokenizer(tmp_path)
    check_expected(tokenizer, name)
    bos = tokenizer.token_to_id(config["bos_token"])
    assert tokenizer.encode("Hello")[0] == bos


@requires_shared
def test_stories260k_folder():
    tokenizer = load_tokenizer(SHARED / "stories260K")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, {2})
    check_expected(tokenizer, "stories_tok512")


@requires_shared
def test_gemma_stops_at_end_of_turn(tmp_path):
    file = TOKENIZERS / "gemma" / "gemma3.tokenizer.model"
    shutil.copyfile(file, tmp_path / "tokenizer.model")
    template = "{{ bos_token }}<start_of_turn>user\n{{ messages[0].content }}"
    template += "<end_of_turn>{{ '\n' }}"
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template}
    write(tmp_path, tokenizer_config_json=config)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token_ids == {1, 106}
    ids = tokenizer.apply_chat_template(CHAT)
    assert ids == [2, 105, 2364, 107, 9259, 106, 107]
