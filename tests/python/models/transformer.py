"""Transformers as PyTorch's exporter writes them.

The encoders (operator sets 11 and 14) show what an exporter leaves behind: shapes computed in the graph with Shape,
Gather, Unsqueeze and Concat, LayerNorm and GELU taken apart, linear layers as MatMul and Add with transposed
weights, every literal a Constant node. The decoder step and the attention block (operator set 17) keep
LayerNormalization whole.
"""

from dataclasses import dataclass

import numpy as np

from . import model

LOWEST = np.finfo(np.float32).min


# What the exporter does with single PyTorch calls


def unsqueeze(g, x, axis):
    if g.opset < 13:
        return g.node("Unsqueeze", x, axes=[axis])
    return g.node("Unsqueeze", x, g.ints(axis))


def size(g, x, axis):
    """`x.size(axis)`, a scalar."""
    return g.node("Gather", g.node("Shape", x), g.constant(axis, np.int64), axis=0)


def view(g, x, *dims):
    """`x.view(...)`: a dim is a number or a value from `size`."""
    parts = [g.ints(dim) if isinstance(dim, int) else unsqueeze(g, dim, 0) for dim in dims]
    return g.node("Reshape", x, g.node("Concat", *parts, axis=0))


def linear(g, x, units, gain=1.0):
    """`nn.Linear` on more than two dims: its weight is stored transposed, under a made-up name."""
    fan_in = g.width[x]
    weight = g.weight("MatMul_weight", (fan_in, units), fan_in, gain)
    return g.node("Add", g.vector("bias", units), g.node("MatMul", x, weight, width=units), width=units)


def norm_parameters(g, width):
    return g.vector("weight", width, 1.0), g.vector("bias", width)


def decomposed_layer_norm(g, x, epsilon):
    weight, bias = norm_parameters(g, g.width[x])
    centred = g.node("Sub", x, g.node("ReduceMean", x, axes=[-1]))
    variance = g.node("ReduceMean", g.node("Pow", centred, g.constant(2.0)), axes=[-1])
    deviation = g.node("Sqrt", g.node("Add", variance, g.constant(epsilon)))
    return g.node("Add", g.node("Mul", g.node("Div", centred, deviation), weight), bias)


def layer_norm(g, x, epsilon=1e-5):
    return g.node("LayerNormalization", x, *norm_parameters(g, g.width[x]), axis=-1, epsilon=epsilon)


def gelu_erf(g, x):
    erf = g.node("Erf", g.node("Div", x, g.constant(np.sqrt(2.0))))
    return g.node("Mul", g.node("Mul", x, g.node("Add", erf, g.constant(1.0))), g.constant(0.5))


def gelu_tanh(g, x):
    cubic = g.node("Mul", g.node("Pow", x, g.constant(3.0)), g.constant(0.044715))
    inner = g.node("Mul", g.node("Add", x, cubic), g.constant(np.sqrt(2.0 / np.pi)))
    return g.node("Mul", g.node("Mul", x, g.constant(0.5)), g.node("Add", g.node("Tanh", inner), g.constant(1.0)))


# Encoders


@dataclass(frozen=True)
class Encoder:
    layers: int
    hidden: int
    heads: int
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12


def self_attention_layer(g, x, mask, config):
    head = config.hidden // config.heads

    def heads(value, perm):
        split = view(g, value, size(g, value, 0), size(g, value, 1), config.heads, head)
        return g.node("Transpose", split, perm=perm)

    with g.scope("attention.self.query"):
        query = linear(g, x, config.hidden)
    with g.scope("attention.self.key"):
        key = linear(g, x, config.hidden)
    with g.scope("attention.self.value"):
        value = linear(g, x, config.hidden)
    with g.scope("attention.self"):
        # The exporter merges the transposes of heads and of key.transpose(-1, -2).
        key = heads(key, [0, 2, 3, 1])
        value = heads(value, [0, 2, 1, 3])
        query = heads(query, [0, 2, 1, 3])
        scores = g.node("Div", g.node("MatMul", query, key), g.constant(np.sqrt(head)))
        weights = g.node("Softmax", g.node("Add", scores, mask), axis=-1 if g.opset >= 13 else 3)
        context = g.node("Transpose", g.node("MatMul", weights, value), perm=[0, 2, 1, 3])
        context = view(g, context, size(g, context, 0), size(g, context, 1), config.hidden)
    g.width[context] = config.hidden
    with g.scope("attention.output.dense"):
        y = linear(g, context, config.hidden)
    with g.scope("attention.output.LayerNorm"):
        return decomposed_layer_norm(g, g.node("Add", y, x), config.epsilon)


def encoder(g, config):
    """BERT's embeddings and layers; returns the last hidden state."""

    def tokens(rng, shape):
        return rng.integers(1000, config.vocabulary, shape)

    def lengths_as_mask(rng, shape):
        """The first row full, the others padded at the end."""
        lengths = np.where(np.arange(shape[0]) == 0, shape[1], rng.integers(shape[1] // 2, shape[1], shape[0]))
        return np.arange(shape[1]) < lengths[:, None]

    def second_half(rng, shape):
        return np.broadcast_to(np.arange(shape[1]) >= shape[1] // 2, shape)

    dims = ("batch", "sequence")
    ids = g.input("input_ids", dims, np.int64, tokens)
    attention_mask = g.input("attention_mask", dims, np.int64, lengths_as_mask)
    type_ids = g.input("token_type_ids", dims, np.int64, second_half)

    mask = unsqueeze(g, unsqueeze(g, attention_mask, 1), 2)
    mask = g.node("Cast", mask, to=1)
    mask = g.node("Mul", g.node("Sub", g.constant(1.0), mask), g.constant(LOWEST))

    with g.scope("embeddings"):
        position_ids = g.parameter("position_ids", np.arange(config.positions, dtype=np.int64)[None])
        length = unsqueeze(g, size(g, ids, 1), 0)
        position_ids = g.node("Slice", position_ids, g.ints(0), length, g.ints(1), g.ints(1))

        def table(name, rows, indices):
            weight = g.weight(f"{name}_embeddings.weight", (rows, config.hidden), 1, 1.0)
            return g.node("Gather", weight, indices, width=config.hidden)

        x = g.node("Add", table("word", config.vocabulary, ids), table("token_type", config.types, type_ids))
        x = g.node("Add", x, table("position", config.positions, position_ids))
        with g.scope("LayerNorm"):
            x = decomposed_layer_norm(g, x, config.epsilon)

    for layer in range(config.layers):
        with g.scope("encoder"), g.scope(f"layer.{layer}"):
            x = self_attention_layer(g, x, mask, config)
            with g.scope("intermediate.dense"):
                y = gelu_erf(g, linear(g, x, 4 * config.hidden))
            with g.scope("output.dense"):
                y = linear(g, y, config.hidden, gain=2.0)
            with g.scope("output.LayerNorm"):
                x = decomposed_layer_norm(g, g.node("Add", y, x), config.epsilon)
    return x


TEXTS = ({"batch": 1, "sequence": 128}, {"batch": 3, "sequence": 17})


@model("bert_base", opset=14, data_sets=TEXTS)
def bert_base(g):
    x = encoder(g, Encoder(layers=12, hidden=768, heads=12))
    with g.scope("pooler.dense"):
        first = g.node("Gather", x, g.constant(0, np.int64), axis=1)
        pooled = g.node("Tanh", g.gemm(first, 768, gain=1.0))
    g.output(x, "last_hidden_state", ("batch", "sequence", 768))
    g.output(pooled, "pooler_output", ("batch", 768))


@model("minilm", opset=11, data_sets=TEXTS)
def minilm(g):
    x = encoder(g, Encoder(layers=6, hidden=384, heads=12))
    g.output(x, "last_hidden_state", ("batch", "sequence", 384))


@model("vit", opset=17)
def vit(g, side=224, patch=16, hidden=384, heads=6, layers=12):
    """ViT-S/16 over one image: patches as tokens, blocks that normalise before they attend."""
    head, patches = hidden // heads, (side // patch) ** 2
    x = g.input("input", (1, 3, side, side), width=3)
    with g.scope("conv_proj"):
        x = g.conv(x, hidden, patch, patch, gain=1.0)
    x = g.node("Transpose", g.node("Reshape", x, g.ints(1, hidden, patches)), perm=[0, 2, 1])
    x = g.node("Concat", g.weight("class_token", (1, 1, hidden), 1), x, axis=1, width=hidden)
    x = g.node("Add", x, g.weight("encoder.pos_embedding", (1, patches + 1, hidden), 50))
    for layer in range(layers):
        with g.scope(f"encoder.layers.{layer}"):
            with g.scope("ln_1"):
                y = layer_norm(g, x, 1e-6)
            with g.scope("self_attention"):
                qkv = g.node("Reshape", linear(g, y, 3 * hidden), g.ints(1, patches + 1, 3, heads, head))
                qkv = g.node("Transpose", qkv, perm=[2, 0, 3, 1, 4])
                query, key, value = (g.node("Gather", qkv, g.constant(part, np.int64), axis=0) for part in range(3))
                scores = g.node("MatMul", query, g.node("Transpose", key, perm=[0, 1, 3, 2]))
                weights = g.node("Softmax", g.node("Div", scores, g.constant(np.sqrt(head))), axis=-1)
                y = g.node("Transpose", g.node("MatMul", weights, value), perm=[0, 2, 1, 3])
                y = g.node("Reshape", y, g.ints(1, patches + 1, hidden), width=hidden)
                x = g.node("Add", x, linear(g, y, hidden), width=hidden)
            with g.scope("ln_2"):
                y = layer_norm(g, x, 1e-6)
            with g.scope("mlp.0"):
                y = gelu_erf(g, linear(g, y, 4 * hidden))
            with g.scope("mlp.3"):
                x = g.node("Add", x, linear(g, y, hidden), width=hidden)
    with g.scope("encoder.ln"):
        x = layer_norm(g, x, 1e-6)
    x = g.node("Gather", x, g.constant(0, np.int64), axis=1, width=hidden)
    with g.scope("heads.head"):
        g.output(g.gemm(x, 1000, gain=1.0), "output", (1, 1000))


# Single blocks


@model("self_attention", opset=17)
def self_attention(g, length=64, hidden=256, heads=8):
    """A pre-norm attention block of fixed size: x + out(attention(norm(x)))."""
    head = hidden // heads
    x = g.input("input", (1, length, hidden), width=hidden)
    with g.scope("norm"):
        y = layer_norm(g, x)

    def project(name, perm):
        with g.scope(name):
            split = g.node("Reshape", linear(g, y, hidden), g.ints(1, length, heads, head))
            return g.node("Transpose", split, perm=perm)

    query, key, value = project("q", [0, 2, 1, 3]), project("k", [0, 2, 3, 1]), project("v", [0, 2, 1, 3])
    scores = g.node("Mul", g.node("MatMul", query, key), g.constant(1 / np.sqrt(head)))
    context = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
    context = g.node("Transpose", context, perm=[0, 2, 1, 3])
    context = g.node("Reshape", context, g.ints(1, length, hidden), width=hidden)
    with g.scope("out"):
        y = linear(g, context, hidden)
    g.output(g.node("Add", x, y), "output", (1, length, hidden))


@model("gpt2_step", opset=17, data_sets=({"batch": 1, "past": 256}, {"batch": 2, "past": 7}))
def gpt2_step(g, hidden=768, heads=12, positions=1024):
    """One GPT-2 block decoding one token: keys and values of the past come in, and go out one longer."""
    head = hidden // heads
    x = g.input("hidden_states", ("batch", 1, hidden), width=hidden)
    past_key = g.input("past_key", ("batch", heads, "past", head))
    past_value = g.input("past_value", ("batch", heads, "past", head))

    def conv1d(name, x, units):
        """GPT-2's linear layer: flattened to two dims for a Gemm, and back."""
        with g.scope(name):
            fan_in = g.width[x]
            flat = g.node("Reshape", x, g.ints(-1, fan_in))
            y = g.node("Gemm", flat, g.weight("weight", (fan_in, units), fan_in, 1.0), g.vector("bias", units))
            y = view(g, y, size(g, x, 0), size(g, x, 1), units)
            g.width[y] = units
            return y

    def split_heads(value):
        split = view(g, value, size(g, value, 0), size(g, value, 1), heads, head)
        return g.node("Transpose", split, perm=[0, 2, 1, 3])

    with g.scope("ln_1"):
        y = layer_norm(g, x)
    with g.scope("attn"):
        qkv = conv1d("c_attn", y, 3 * hidden)
        parts = g.node("Split", qkv, g.ints(hidden, hidden, hidden), outputs=3, axis=2)
        query, key, value = (split_heads(part) for part in parts)
        key = g.node("Concat", past_key, key, axis=-2)
        value = g.node("Concat", past_value, value, axis=-2)
        scores = g.node("MatMul", query, g.node("Transpose", key, perm=[0, 1, 3, 2]))
        scores = g.node("Div", scores, g.constant(np.sqrt(head)))

        # Row past..past+1, columns 0..past+1 of the lower triangle that PyTorch keeps as a buffer.
        triangle = g.parameter("bias", np.tril(np.ones((1, 1, positions, positions), bool)))
        total = size(g, key, 2)
        start = unsqueeze(g, g.node("Sub", total, size(g, query, 2)), 0)
        total = unsqueeze(g, total, 0)
        rows = g.node("Slice", triangle, start, total, g.ints(2), g.ints(1))
        causal = g.node("Slice", rows, g.ints(0), total, g.ints(3), g.ints(1))
        weights = g.node("Softmax", g.node("Where", causal, scores, g.constant(LOWEST)), axis=-1)

        context = g.node("Transpose", g.node("MatMul", weights, value), perm=[0, 2, 1, 3])
        context = view(g, context, size(g, context, 0), size(g, context, 1), hidden)
        g.width[context] = hidden
        y = conv1d("c_proj", context, hidden)
    x = g.node("Add", y, x)
    with g.scope("ln_2"):
        y = layer_norm(g, x)
    with g.scope("mlp"):
        y = conv1d("c_proj", gelu_tanh(g, conv1d("c_fc", y, 4 * hidden)), hidden)
    g.output(g.node("Add", x, y), "output", ("batch", 1, hidden))
    g.output(key, "present_key", ("batch", heads, "past + 1", head))
    g.output(value, "present_value", ("batch", heads, "past + 1", head))


LLAMA_SIZES = ({"batch": 1, "sequence": 128, "past": 0}, {"batch": 1, "sequence": 1, "past": 255})


@model("llama", opset=17, data_sets=LLAMA_SIZES)
def llama(g, layers=2, hidden=1024, heads=16, groups=4, inner=2816, vocabulary=8000, positions=2048):
    """Layers of a Llama-like decoder: root-mean-square norms, rotated positions, keys and values shared by four heads
    each, and a gated feed-forward; the first data set reads a prompt, the second decodes one token."""
    head = hidden // heads

    def tokens(rng, shape):
        return rng.integers(0, vocabulary, shape)

    def from_past(rng, shape):
        """Position ids: those after the past, whose length a data set's number of tokens tells."""
        return np.broadcast_to(np.arange(shape[1]) + (255 if shape[1] == 1 else 0), shape)

    ids = g.input("input_ids", ("batch", "sequence"), np.int64, tokens)
    position_ids = g.input("position_ids", ("batch", "sequence"), np.int64, from_past)
    pasts = [
        [g.input(f"past_key_values.{layer}.{kind}", ("batch", groups, "past", head)) for kind in ("key", "value")]
        for layer in range(layers)
    ]

    def project(name, x, units, gain=1.0):
        """A linear layer without a bias."""
        weight = g.weight(f"{name}.weight", (g.width[x], units), g.width[x], gain)
        return g.node("MatMul", x, weight, width=units)

    def rms_norm(x):
        mean = g.node("ReduceMean", g.node("Pow", x, g.constant(2.0)), axes=[-1])
        deviation = g.node("Sqrt", g.node("Add", mean, g.constant(1e-5)))
        scaled = g.node("Mul", x, g.node("Div", g.constant(1.0), deviation))
        return g.node("Mul", g.vector("weight", g.width[x], 1.0), scaled, width=g.width[x])

    def rotated(x):
        """`x * cos + rotate_half(x) * sin`."""
        half, end = g.ints(head // 2), g.ints(np.iinfo(np.int64).max)
        low, high = g.node("Slice", x, g.ints(0), half, g.ints(3)), g.node("Slice", x, half, end, g.ints(3))
        turned = g.node("Concat", g.node("Neg", high), low, axis=-1)
        return g.node("Add", g.node("Mul", x, cosine), g.node("Mul", turned, sine))

    def split_heads(x, count):
        split = view(g, x, size(g, x, 0), size(g, x, 1), count, head)
        return g.node("Transpose", split, perm=[0, 2, 1, 3])

    def repeated(x):
        """`repeat_kv`: each key and value for the heads that share it."""
        batch, length = size(g, x, 0), size(g, x, 2)
        each = heads // groups
        dims = [unsqueeze(g, batch, 0), g.ints(groups), g.ints(each), unsqueeze(g, length, 0), g.ints(head)]
        wide = g.node("Expand", g.node("Unsqueeze", x, g.ints(2)), g.node("Concat", *dims, axis=0))
        return view(g, wide, batch, heads, length, head)

    with g.scope("model.rotary_emb"):
        frequencies = 10000.0 ** (-np.arange(0, head, 2, dtype=np.float32) / head)
        places = g.node("Cast", g.node("Unsqueeze", position_ids, g.ints(2)), to=1)
        angles = g.node("Mul", places, g.constant(frequencies[None, None]))
        angles = g.node("Unsqueeze", g.node("Concat", angles, angles, axis=-1), g.ints(1))
        cosine, sine = g.node("Cos", angles), g.node("Sin", angles)
    # The rows of queries against all columns: a key may not be later than its query.
    columns = g.parameter("columns", np.arange(positions, dtype=np.int64)[None, None, None])
    total = g.node("Add", size(g, pasts[0][0], 2), size(g, ids, 1))
    columns = g.node("Slice", columns, g.ints(0), unsqueeze(g, total, 0), g.ints(3))
    rows = g.node("Unsqueeze", position_ids, g.ints(1, 3))
    mask = g.node("Where", g.node("Greater", columns, rows), g.constant(LOWEST), g.constant(0.0))

    embeddings = g.weight("model.embed_tokens.weight", (vocabulary, hidden), 1, 1.0)
    x = g.node("Gather", embeddings, ids, width=hidden)
    presents = []
    for layer in range(layers):
        with g.scope(f"model.layers.{layer}"):
            with g.scope("input_layernorm"):
                y = rms_norm(x)
            with g.scope("self_attn"):
                query = rotated(split_heads(project("q_proj", y, hidden), heads))
                key = rotated(split_heads(project("k_proj", y, groups * head), groups))
                value = split_heads(project("v_proj", y, groups * head), groups)
                key = g.node("Concat", pasts[layer][0], key, axis=2)
                value = g.node("Concat", pasts[layer][1], value, axis=2)
                presents += [(f"present.{layer}.key", key), (f"present.{layer}.value", value)]
                scores = g.node("MatMul", query, g.node("Transpose", repeated(key), perm=[0, 1, 3, 2]))
                scores = g.node("Add", g.node("Mul", scores, g.constant(head**-0.5)), mask)
                y = g.node("MatMul", g.node("Softmax", scores, axis=-1), repeated(value))
                y = g.node("Transpose", y, perm=[0, 2, 1, 3])
                y = view(g, y, size(g, ids, 0), size(g, ids, 1), hidden)
                g.width[y] = hidden
                x = g.node("Add", x, project("o_proj", y, hidden), width=hidden)
            with g.scope("post_attention_layernorm"):
                y = rms_norm(x)
            with g.scope("mlp"):
                gate = project("gate_proj", y, inner)
                gate = g.node("Mul", gate, g.node("Sigmoid", gate))
                y = g.node("Mul", gate, project("up_proj", y, inner), width=inner)
                x = g.node("Add", x, project("down_proj", y, hidden), width=hidden)
    with g.scope("model.norm"):
        x = rms_norm(x)
    last = g.node("Gather", x, g.constant(-1, np.int64), axis=1, width=hidden)
    g.output(project("lm_head", last, vocabulary), "logits", ("batch", vocabulary))
    for name, value in presents:
        g.output(value, name, ("batch", groups, "past + sequence", head))
