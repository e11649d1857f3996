"""One engine, one network, one process: prints what training.py reads.

    training_engine.py ENGINE NET DATA.npz THREADS SECONDS

ENGINE is `tensorflow`, `tensorflow-xla` or `jax`. The networks are those of tests/examples/training.rs, whose names of
weights the file has. They are written once, over the few functions that the two libraries name differently.
"""

import json
import math
import os
import statistics
import sys
import time

import numpy as np

ENGINE, NET, DATA, THREADS, SECONDS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
if THREADS == 1:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
EPSILON = {"batch": 1e-3, "layer": 1e-5}

if ENGINE == "jax":
    import jax
    import jax.numpy as jnp

    def conv(x, w, stride, padding):
        pads = [(padding, padding)] * 2
        return jax.lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def max_pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    relu, gelu = jax.nn.relu, lambda x: jax.nn.gelu(x, approximate=False)
    sigmoid, tanh, softmax, rsqrt = jax.nn.sigmoid, jnp.tanh, jax.nn.softmax, jax.lax.rsqrt
    mean, square, transpose, reshape = jnp.mean, jnp.square, jnp.transpose, jnp.reshape
    gather = lambda table, ids: table[ids]
    split, zeros, sqrt = jnp.split, jnp.zeros, jnp.sqrt

    def cross_entropy(logits, y):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))

    def scan(step, state, xs):
        return jax.lax.scan(lambda state, x: (step(state, x), None), state, jnp.swapaxes(xs, 0, 1))[0]
else:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)

    def conv(x, w, stride, padding):
        pads = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        return tf.nn.conv2d(x, w, stride, pads if padding else "VALID")

    def max_pool(x):
        return tf.nn.max_pool2d(x, 2, 2, "VALID")

    relu, gelu = tf.nn.relu, tf.nn.gelu
    sigmoid, tanh, softmax, rsqrt = tf.sigmoid, tf.tanh, tf.nn.softmax, tf.math.rsqrt
    mean, square, transpose, reshape = tf.reduce_mean, tf.square, tf.transpose, tf.reshape
    gather = tf.gather
    split, zeros, sqrt = (lambda x, n, axis: tf.split(x, n, axis=axis)), tf.zeros, tf.sqrt

    def cross_entropy(logits, y):
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))

    def scan(step, state, xs):
        for x in tf.unstack(xs, axis=1):
            state = step(state, x)
        return state


def dense(p, name, x):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def mlp(p, x, new):
    x = relu(dense(p, "dense1", x))
    x = relu(dense(p, "dense2", x))
    return dense(p, "dense3", x)


def cnn(p, x, new):
    for name in ["conv1", "conv2"]:
        x = max_pool(relu(conv(x, p[f"{name}.kernel"], 1, 0) + p[f"{name}.bias"]))
    x = reshape(x, (x.shape[0], -1))
    return dense(p, "dense2", relu(dense(p, "dense1", x)))


def resnet(p, x, new):
    def block(name, x, stride, size):
        x = conv(x, p[f"{name}.conv.kernel"], stride, size // 2)
        average = mean(x, (0, 1, 2))
        variance = mean(square(x - average), (0, 1, 2))
        for part, value in [("mean", average), ("var", variance)]:
            key = f"{name}.bn.{part}"
            new[key] = 0.99 * p[key] + 0.01 * value
        scale = p[f"{name}.bn.gamma"] * rsqrt(variance + EPSILON["batch"])
        return (x - average) * scale + p[f"{name}.bn.beta"]

    x = relu(block("stem", x, 1, 3))
    for stage in range(3):
        for number in range(2):
            name, stride = f"s{stage}b{number}", 2 if stage > 0 and number == 0 else 1
            y = relu(block(f"{name}.1", x, stride, 3))
            y = block(f"{name}.2", y, 1, 3)
            if stride > 1:
                x = block(f"{name}.proj", x, stride, 1)
            x = relu(x + y)
    return dense(p, "head", mean(x, (1, 2)))


def lstm(p, x, new):
    def step(state, x):
        h, c = state
        i, f, g, o = split(x + h @ p["rnn.recurrent"], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    # The products of all steps' inputs at once, as good programs do.
    x = x @ p["rnn.kernel"] + p["rnn.bias"]
    start = zeros((x.shape[0], x.shape[2] // 4))
    return dense(p, "head", scan(step, (start, start), x)[0])


def transformer(p, ids, new):
    def norm(name, x):
        average = mean(x, -1, keepdims=True)
        variance = mean(square(x - average), -1, keepdims=True)
        return (x - average) * rsqrt(variance + EPSILON["layer"]) * p[f"{name}.gamma"] + p[f"{name}.beta"]

    n, length, d, heads = ids.shape[0], ids.shape[1], 128, 4
    x = gather(p["emb.table"], ids) + p["pos.table"]
    for layer in ["l1", "l2"]:
        y = norm(f"{layer}.ln1", x)
        q, k, v = (
            transpose(reshape(dense(p, f"{layer}.{part}", y), (n, length, heads, d // heads)), (0, 2, 1, 3))
            for part in "qkv"
        )
        weights = softmax(q @ transpose(k, (0, 1, 3, 2)) * (1 / math.sqrt(d / heads)), -1)
        y = reshape(transpose(weights @ v, (0, 2, 1, 3)), (n, length, d))
        x = x + dense(p, f"{layer}.o", y)
        y = gelu(dense(p, f"{layer}.ff1", norm(f"{layer}.ln2", x)))
        x = x + dense(p, f"{layer}.ff2", y)
    return dense(p, "head", mean(norm("lnf", x), 1))


def adam(p, g, m, v, count):
    """Keras's: epsilon is added before the correction."""
    m = m + (g - m) * 0.1
    v = v + (square(g) - v) * 0.001
    rate = 1e-3 * sqrt(1 - 0.999**count) / (1 - 0.9**count)
    return p - rate * m / (sqrt(v) + 1e-7), m, v


def main():
    arrays = dict(np.load(DATA))
    x, y = arrays.pop("x"), arrays.pop("y")
    trained = [key for key in arrays if not key.endswith((".mean", ".var"))]
    net = globals()[NET]

    def loss_of(p, x, y):
        new = {}
        return cross_entropy(net(p, x, new), y), new

    if ENGINE == "jax":

        def step(p, m, v, count, x, y):
            def of_trained(own):
                return loss_of({**p, **own}, x, y)

            (loss, new), grads = jax.value_and_grad(of_trained, has_aux=True)({key: p[key] for key in trained})
            p, m, v = {**p, **new}, dict(m), dict(v)
            for key in trained:
                p[key], m[key], v[key] = adam(p[key], grads[key], m[key], v[key], count)
            return p, m, v, count + 1, loss

        state = [
            {key: jnp.asarray(value) for key, value in arrays.items()},
            {key: jnp.zeros_like(arrays[key]) for key in trained},
            {key: jnp.zeros_like(arrays[key]) for key in trained},
            jnp.float32(1),
        ]
        x, y = jnp.asarray(x), jnp.asarray(y)
        compiled = jax.jit(step, donate_argnums=(0, 1, 2, 3))

        def run():
            *state[:], loss = compiled(*state, x, y)
            return float(loss)
    else:
        p = {key: tf.Variable(value) for key, value in arrays.items()}
        m = {key: tf.Variable(tf.zeros_like(p[key])) for key in trained}
        v = {key: tf.Variable(tf.zeros_like(p[key])) for key in trained}
        count = tf.Variable(1.0)
        x, y = tf.constant(x), tf.constant(y)

        @tf.function(jit_compile=ENGINE == "tensorflow-xla")
        def step(x, y):
            with tf.GradientTape() as tape:
                loss, new = loss_of(p, x, y)
            grads = tape.gradient(loss, [p[key] for key in trained])
            for key, value in new.items():
                p[key].assign(value)
            for key, g in zip(trained, grads):
                g = tf.convert_to_tensor(g)
                next_p, next_m, next_v = adam(p[key], g, m[key], v[key], count)
                p[key].assign(next_p), m[key].assign(next_m), v[key].assign(next_v)
            count.assign_add(1.0)
            return loss

        def run():
            return float(step(x, y))

    begin = time.perf_counter()
    losses = [run()]
    first = time.perf_counter() - begin
    times = []
    while len(times) < 19 or time.perf_counter() - begin - first < SECONDS:
        at = time.perf_counter()
        losses.append(run())
        times.append(time.perf_counter() - at)
    print(json.dumps({"first": first * 1e3, "step": statistics.median(times) * 1e3, "losses": losses[:20]}))


main()
