"""The learner and DQN against a twin written out by hand, golden values, and every schedule that counts updates."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf, softmax
from test_replay import random_history

from agents.dqn import DQN
from agents.experiment import Experiment
from agents.learner import Learner, make_update
from agents.reporting.diagnosis import make_diagnose
from agents.step import _total, make_step
from agents.trainer import Trainer, learn
from benchmarks import updates as benchmark
from networks.q_network import QNetwork
from networks.torsos import MLP
from networks.value_heads import C51, HLGauss, Scalar
from replay.ring import Replay, ReplayState, Transition

NUM_ACTIONS, DISCOUNT = 3, 0.9
KEY = jax.random.key(0)
HEADS = {"mse": Scalar("mse"), "hl_gauss": HLGauss(-2.0, 2.0, 7)}
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())


def transitions(size, seed=0):
    """Random transitions of states [1, 4], a quarter of them terminal."""
    rng = np.random.default_rng(seed)
    state = lambda: jnp.asarray(rng.normal(size=(size, 1, 4)), jnp.float32)
    action = lambda: jnp.asarray(rng.integers(NUM_ACTIONS, size=size), jnp.int32)
    return Transition(
        s_tm1=state(),
        a_tm1=action(),
        r_t=jnp.asarray(rng.normal(size=size), jnp.float32),
        discount_t=jnp.asarray(DISCOUNT * (rng.random(size) < 0.75), jnp.float32),
        s_t=state(),
        a_t=action(),
        weight=jnp.ones(size, jnp.float32),
    )


def build(head, agent=None, learner=None, replay_ratio=0.25):
    """A network of two small layers with its `update`, and the initial state."""
    learner = learner or Learner(optax.adam(1e-2, eps=1.5e-4), target_period_steps=8)
    network = QNetwork(NUM_ACTIONS, head.num_logits, torso=MLP(features=(8,)))
    update = make_update(learner, agent or DQN(), network, head, replay_ratio)
    return update, learner.init(network, jax.random.key(1), jnp.zeros((1, 1, 4)))


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def params_of(state):
    return jax.device_get(state.params["params"])


# One update against loops, jax.grad and Adam by hand


def naive_logits(params, s):
    """Logits [A, m] of one state [1, 4]."""
    torso, last = params["torso"]["Dense_0"], params["head"]
    hidden = jnp.maximum(s[0] @ torso["kernel"] + torso["bias"], 0.0)
    return (hidden @ last["kernel"] + last["bias"]).reshape(NUM_ACTIONS, -1)


def naive_values(params, s, head):
    """Values [A] of one state, as numbers."""
    logits = np.asarray(naive_logits(params, s), np.float64)
    if isinstance(head, Scalar):
        return logits[:, 0]
    width = (head.v_max - head.v_min) / head.num_bins
    centres = head.v_min + width * (np.arange(head.num_bins) + 0.5)
    return softmax(logits, axis=-1) @ centres


def naive_targets(params, target_params, batch, head, double):
    """What the losses compare with: y [B], or the distributions [B, m] that encode it."""
    targets = []
    for r_t, discount_t, s_t in zip(batch.r_t, batch.discount_t, batch.s_t, strict=True):
        action = np.argmax(naive_values(params if double else target_params, s_t, head))
        y = r_t + discount_t * naive_values(target_params, s_t, head)[action]
        if isinstance(head, HLGauss):
            edges = np.linspace(head.v_min, head.v_max, head.num_bins + 1)
            sigma = head.sigma_ratio * (edges[1] - edges[0])
            cdf = erf((edges - np.clip(y, head.v_min, head.v_max)) / (np.sqrt(2) * sigma))
            y = np.diff(cdf) / (cdf[-1] - cdf[0])
        targets.append(jnp.asarray(y, jnp.float32))
    return targets


def naive_loss(params, batch, targets, head):
    total = 0.0
    for s_tm1, a_tm1, target in zip(batch.s_tm1, batch.a_tm1, targets, strict=True):
        logits = naive_logits(params, s_tm1)[a_tm1]
        squared = lambda logits=logits, target=target: (target - logits[0]) ** 2
        cross_entropy = lambda logits=logits, target=target: target @ (jax.nn.logsumexp(logits)[None] - logits)
        total += squared() if isinstance(head, Scalar) else cross_entropy()
    return total / len(targets)


def naive_adam(params, grads, m, v, count, learning_rate=1e-2, b1=0.9, b2=0.999, eps=1.5e-4):
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, v, grads)
    step = lambda p, m, v: p - learning_rate * (m / (1 - b1**count)) / (np.sqrt(v / (1 - b2**count)) + eps)
    return jax.tree.map(step, params, m, v), m, v


@each_head
def test_a_batch_without_a_transition_changes_nothing(head):
    """Uniform gives an item weight 0 where it found no transition; of one alone all metrics are finite."""
    update, state = build(head, learner=Learner(optax.sgd(1.0)))
    batch = transitions(1)._replace(weight=jnp.zeros(1, jnp.float32))
    after, _, metrics = jax.jit(update)(state, batch)
    assert_close(after.params, state.params)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["weight"] == 0


def test_a_batch_that_was_not_finite_is_taken_from_where_it_lay():
    replay, random = Replay(40), np.random.default_rng(0)
    state = replay.init(4, (2,), np.int32)
    for one in random_history(random, 10, 4):
        state = replay.add(state, one)
    index, ones = np.array([33, 2, 17]), np.ones(3, np.float32)
    sums = {"not_finite": {"found": True, "index": index, "weight": ones, "update": 3}}
    trainer = SimpleNamespace(
        _sums=sums, experiment=SimpleNamespace(num_envs=4), _gather=replay.gather, replay_state=state
    )
    assert Trainer.not_finite(trainer)["s_tm1"][:, -1, 0].tolist() == [34, 3, 18]  # a frame holds its place + 1


@each_head
@pytest.mark.parametrize("double", [False, True], ids=["dqn", "double"])
def test_update_is_the_naive_one(head, double):
    """Three updates, with a copy to the target network after the second."""
    update, state = build(head, DQN(double=double))
    update = jax.jit(update)
    params = target_params = params_of(state)
    m = v = jax.tree.map(np.zeros_like, params)
    for count in (1, 2, 3):
        batch = transitions(4, seed=count)
        twin = jax.device_get(batch)
        targets = naive_targets(params, target_params, twin, head, double)
        loss, grads = jax.device_get(jax.value_and_grad(naive_loss)(params, twin, targets, head))
        state, items, metrics = update(state, batch)
        np.testing.assert_allclose([metrics["loss"], np.mean(items["loss"])], loss, rtol=1e-4)
        np.testing.assert_allclose(metrics["grad_norm"], norm(grads), rtol=1e-4)
        params, m, v = naive_adam(params, grads, m, v, count)
        assert_close(params_of(state), params, atol=1e-5)
        target_params = params if count == 2 else target_params
    assert not np.allclose(params["head"]["kernel"], target_params["head"]["kernel"], atol=1e-3)


def test_target_network_is_copied_every_period_and_not_in_between():
    """10 agent steps at 0.5 updates each are 5 updates; the copy is exact."""
    learner = Learner(optax.sgd(0.1), target_period_steps=10)
    update, state = build(Scalar("mse"), learner=learner, replay_ratio=0.5)
    update, copied = jax.jit(update), params_of(state)
    for count in range(1, 12):
        state, _, _ = update(state, transitions(4, seed=count))
        assert int(state.updates) == count
        copied = params_of(state) if count in (5, 10) else copied
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.target_params["params"]), copied)
        assert count in (5, 10) or not np.array_equal(params_of(state)["head"]["kernel"], copied["head"]["kernel"])


@pytest.mark.parametrize("max_grad_norm, expected", [(0.01, 0.01), (1e6, None), (None, None)])
def test_max_grad_norm(max_grad_norm, expected):
    """The step is clipped; the logged norm is that of the raw gradient. Plain SGD shows the step."""
    update, state = build(Scalar("mse"), learner=Learner(optax.sgd(1.0), max_grad_norm=max_grad_norm))
    after, _, metrics = jax.jit(update)(state, transitions(4))
    step = norm(jax.tree.map(np.subtract, params_of(after), params_of(state)))
    assert metrics["grad_norm"] > 0.1
    np.testing.assert_allclose(step, expected or metrics["grad_norm"], rtol=1e-4)


def test_weight_zero_leaves_an_item_out():
    """Padding must not train; weights scale the gradient of their item."""
    update, state = build(HEADS["hl_gauss"], learner=Learner(optax.sgd(1.0)))
    update, batch, other = jax.jit(update), transitions(4, seed=1), transitions(4, seed=2)
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:2], b[2:]]), batch, other)
    masked, _, _ = update(state, batch._replace(weight=jnp.float32([1, 1, 0, 0])))
    same, _, _ = update(state, mixed._replace(weight=jnp.float32([1, 1, 0, 0])))
    doubled, _, _ = update(state, batch._replace(weight=jnp.float32([2, 2, 0, 0])))
    assert_close(params_of(masked), params_of(same), rtol=0)
    _, items, metrics = update(state, batch._replace(weight=jnp.float32([1, 3, 0, 0])))
    assert float(metrics["loss"]) == pytest.approx(float(items["loss"][0] + 3 * items["loss"][1]) / 4, rel=1e-5)
    change = lambda new: jax.tree.map(np.subtract, params_of(new), params_of(state))
    assert_close(jax.tree.map(lambda x: 2 * x, change(masked)), change(doubled), atol=1e-6)
    assert norm(change(masked)) > 1e-3


# The step


class Sampler:
    """Draws 4 of 32 transitions, with where they lie, and counts how often it is traced."""

    def __init__(self):
        self.traces = 0
        self.replay = ReplayState(transitions(32), jnp.int32(0), jnp.int32(32), jnp.zeros(32))

    def __call__(self, replay, key):
        self.traces += 1
        index = jax.random.randint(key, (4,), 0, 32)
        return jax.tree.map(lambda x: x[index], replay.steps), index


def note_losses(priorities, index, items):
    """Keeps the latest loss of each transition as its priority."""
    return priorities.at[index].set(items["loss"])


def run_step(num_updates, calls, seeds=(0,)):
    """The state, the priorities, the sums of each seed after some calls of `step`."""
    update, state = build(Scalar("mse"))
    sampler = Sampler()
    step = make_step(update, sampler, note_losses, num_updates)
    fresh = lambda tree: jax.tree.map(jnp.copy, tree)  # what is donated belongs to one seed
    states = [fresh(state)._replace(key=jax.random.key(seed)) for seed in seeds]
    replays, sums = [fresh(sampler.replay) for _ in seeds], [{} for _ in seeds]
    for _ in range(calls):
        states, replays, sums = step(states, replays, sums)
    return [(state, replay.priorities, sums) for state, replay, sums in zip(states, replays, sums, strict=True)]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_k_updates_in_one_call_are_k_calls(backend, monkeypatch):
    """How many updates share a call is a matter of speed only; accelerators scan, CPUs loop."""
    [(one, one_priorities, one_sums)] = run_step(1, 6)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    [(many, many_priorities, many_sums)] = run_step(3, 2)
    monkeypatch.undo()
    assert_close(params_of(one), params_of(many), atol=1e-6)
    assert_close(one.opt_state, many.opt_state, atol=1e-6)
    assert_close(one.target_params, many.target_params, atol=1e-6)
    assert_close(one_priorities, many_priorities, rtol=1e-5)
    assert 4 < np.count_nonzero(one_priorities) <= 24  # those of all six batches
    assert int(one.updates) == int(many.updates) == 6
    assert jnp.array_equal(jax.random.key_data(one.key), jax.random.key_data(many.key))
    assert one_sums.keys() == many_sums.keys() and one_sums["updates"] == many_sums["updates"] == 6
    assert_close(one_sums, many_sums, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_seeds_in_one_call_learn_as_alone(backend, monkeypatch):
    """Each draws the transitions that it draws alone, ten times; the priorities show which."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    together = run_step(2, 5, seeds=(3, 4, 5))
    for seed, (state, priorities, sums) in zip((3, 4, 5), together, strict=True):
        [(alone, alone_priorities, alone_sums)] = run_step(2, 5, seeds=(seed,))
        assert jnp.array_equal(priorities > 0, alone_priorities > 0)
        assert jnp.array_equal(jax.random.key_data(state.key), jax.random.key_data(alone.key))
        assert int(state.updates) == 10
        assert_close(params_of(state), params_of(alone), atol=1e-5)
        assert_close(priorities, alone_priorities, atol=1e-5)
        assert_close(sums, alone_sums, rtol=1e-4)


@pytest.mark.parametrize("agent, seeds", [("dqn", 1), ("rainbow", 2)])
def test_what_a_gpu_is_given(agent, seeds, monkeypatch):
    """One loop, over the updates, and no branch: a GPU asks the host which way to go. No convolution of several seeds,
    whose groups would be slow."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    trainers = benchmark.build(agent, "hl_gauss", "NatureCNN, SAME", "Experiment.num_envs = 8").with_seeds(range(seeds))
    for trainer in trainers:
        trainer.allocate_replay()
    step = jax.jit(lambda states, replays: trainers[0]._step(states, replays, [{}] * seeds))
    traced = step.trace([trainer.state for trainer in trainers], [trainer.replay_state for trainer in trainers])
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    operations = re.findall(r"stablehlo\.(while|case|if|convolution|dot_general)\b", lowered)
    assert operations.count("while") == 1 and not {"case", "if"} & set(operations)
    assert ("convolution" in operations) == (seeds == 1) and "dot_general" in operations


def test_sums_add_up_the_metrics_of_all_updates():
    """The trainer divides by "updates" to log means."""
    update, state = build(Scalar("mse"))
    state = state._replace(key=jax.random.key(0))
    update, sampler, losses = jax.jit(update), Sampler(), []
    for _ in range(3):
        key, sample_key = jax.random.split(state.key)
        state, _, metrics = update(state._replace(key=key), sampler(sampler.replay, sample_key)[0])
        losses.append(float(metrics["loss"]))
    [(_, _, sums)] = run_step(1, 3)
    assert float(sums["loss"]) == pytest.approx(sum(losses), rel=1e-4) and len(set(losses)) == 3
    trainer = SimpleNamespace(_sums=sums)
    means = Trainer.metrics(trainer)
    assert means["loss"] == pytest.approx(np.mean(losses), rel=1e-4) and "updates" not in means
    assert Trainer.metrics(trainer) == {}


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_step_is_traced_once(backend, monkeypatch):
    """Each trace of the real network compiles it again, for many seconds; new sums start at every log point, and
    `learn` passes tuples."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    update, state = build(Scalar("mse"))
    sampler = Sampler()
    step, replay = make_step(update, sampler, note_losses, 2), sampler.replay
    monkeypatch.undo()
    states, replays = (state,), (replay,)
    for _ in range(2):
        sums = ({},)
        for _ in range(3):
            states, replays, sums = map(tuple, step(states, replays, sums))
    assert sampler.traces == 1


@pytest.mark.parametrize("seeds", [None, 2])
def test_of_the_updates_in_one_call_the_first_that_is_not_finite_is_kept(seeds):
    """The second of three; of a second seed the third."""
    found, number = jnp.array([False, True, True]), jnp.arange(3)
    metrics = {"loss": jnp.ones(3), "not_finite": {"found": found, "index": number[:, None] + 10, "update": number}}
    expected = [(11, 1), (12, 2)]
    if seeds:
        second = {**metrics["not_finite"], "found": jnp.array([False, False, True])}
        both = metrics, {**metrics, "not_finite": second}
        metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *both)  # [K, seeds, ...]
    total = jax.vmap(_total, in_axes=1)(metrics) if seeds else _total(metrics)
    first = total["not_finite"]
    kept = np.stack([first["index"].ravel(), first["update"].ravel()], 1)
    np.testing.assert_array_equal(kept, expected[: seeds or 1])
    assert first["found"].all() and (total["loss"] == 3).all()


# The agent


class Table:
    """A network that looks logits [S, A, m] and features [S, d] of states [B] up in its parameters."""

    @staticmethod
    def apply(params, state, rngs=None, mutable=None):
        out = params["logits"][state], params["features"][state]
        return (out, {}) if mutable else out


def table(logits, features=((0.0,),)):
    return {"logits": jnp.asarray(logits, jnp.float32), "features": jnp.asarray(features, jnp.float32)}


def one_transition(r_t, discount_t):
    """From state 0 by action 1 to state 1, as a batch of one."""
    zero, one = jnp.int32([0]), jnp.int32([1])
    return Transition(zero, one, jnp.float32([r_t]), jnp.float32([discount_t]), one, zero, jnp.float32([1.0]))


@pytest.mark.parametrize("double, y", [(False, 1 + 0.5 * 30), (True, 1 + 0.5 * 20)], ids=["dqn", "double"])
def test_bootstrap_golden(double, y):
    """DQN takes the target network's maximum; double DQN its value of the online network's choice."""
    online = table([[[4.0], [6.0], [8.0]], [[1.0], [5.0], [2.0]]], [[0.0]] * 2)
    target = table([[[0.0]] * 3, [[10.0], [20.0], [30.0]]], [[0.0]] * 2)
    loss, diagnostics = DQN(double=double).loss(Table, Scalar("mse"), online, target, one_transition(1.0, 0.5), KEY)
    assert loss.tolist() == [(y - 6.0) ** 2]
    expected = {"q_mean": 6.0, "q_max": 8.0, "td_error": y - 6.0, "target": y}
    assert {name: float(diagnostics[name][0]) for name in expected} == expected
    loss, _ = DQN(double=double).loss(Table, Scalar("mse"), online, target, one_transition(1.0, 0.0), KEY)
    assert loss.tolist() == [25.0]  # terminal: the reward alone


def test_c51_bootstraps_from_the_distribution_of_the_greedy_action():
    """Atoms -1, 0, 1; the greedy one of two next actions has half its mass on 0 and half on 1."""
    online = table([np.log([[0.4, 0.4, 0.2], [0.2, 0.3, 0.5]])] * 2, [[0.0]] * 2)
    target = table([np.zeros((2, 3)), [[50.0, -50.0, -50.0], [-50.0, 50.0, 50.0]]], [[0.0]] * 2)
    loss, _ = DQN().loss(Table, C51(-1.0, 1.0, 3), online, target, one_transition(0.5, 1.0), KEY)
    # Atoms 0 and 1 move to 0.5 and 1.5, which is clipped to 1: masses 0, 1/4, 3/4. The mean alone would give 0, 0, 1.
    np.testing.assert_allclose(loss, [-(np.log(0.3) + 3 * np.log(0.5)) / 4], rtol=1e-6)


def test_no_gradient_through_the_target():
    """A semi-gradient method: only Q(s_tm1, a_tm1) is trained, by 2 (Q - y), even if both networks are one."""
    params = table([[[4.0], [6.0], [8.0]], [[1.0], [5.0], [2.0]]], [[0.0]] * 2)
    for double in (False, True):
        loss = partial(DQN(double=double).loss, Table, Scalar("mse"), batch=one_transition(1.0, 0.5), key=KEY)
        grads = jax.grad(lambda p, loss=loss: loss(p, p)[0][0])(params)
        assert grads["logits"][..., 0].tolist() == [[0.0, 2 * (6.0 - 3.5), 0.0], [0.0] * 3]


def test_act():
    """Epsilon is the probability of an action drawn from all, the greedy one included."""
    states = jnp.zeros(3000, jnp.int32)
    params = table([[[0.0], [1.0], [0.0]]])
    act = jax.jit(lambda epsilon: DQN().act(Table, Scalar("mse"), params, states, jax.random.key(0), epsilon))
    for epsilon, expected in ((0.0, [0, 1, 0]), (1.0, [1 / 3] * 3), (0.3, [0.1, 0.8, 0.1])):
        actions = act(epsilon)
        assert actions.dtype == jnp.int32
        frequencies = np.bincount(actions, minlength=3) / 3000
        assert np.abs(frequencies - expected).max() <= 4 * np.sqrt(epsilon / 3000)
    assert np.bincount(act(0.0), minlength=3).tolist() == [0, 3000, 0]


def dopamines_epsilon(decay_period, step, warmup_steps, epsilon):
    """dopamine/jax/agents/dqn/dqn_agent.py: linearly_decaying_epsilon."""
    steps_left = decay_period + warmup_steps - step
    return epsilon + np.clip((1 - epsilon) * steps_left / decay_period, 0.0, 1 - epsilon)


def test_epsilon_is_dopamines():
    """1 during the warm-up, then linear, then constant."""
    agent = DQN(epsilon_train=0.01, epsilon_decay_steps=250_000)
    for step in (0, 19_999, 20_000, 20_001, 145_000, 269_999, 270_000, 10**8):
        assert agent.epsilon(step, 20_000) == pytest.approx(dopamines_epsilon(250_000, step, 20_000, 0.01))
        assert DQN(epsilon_initial=0.0, epsilon_train=0.0).epsilon(step, 20_000) == 0
    assert DQN(epsilon_initial=0.5, epsilon_train=0.1, epsilon_decay_steps=100).epsilon(75, 50) == pytest.approx(0.4)
    golden = {0: 1.0, 20_000: 1.0, 145_000: 0.505, 270_000: 0.01, 10**8: 0.01}
    assert {step: agent.epsilon(step, 20_000) for step in golden} == pytest.approx(golden)


def test_epsilon_without_decay():
    """Random during the warm-up, as `epsilon` promises, and final at once after it."""
    agent = DQN(epsilon_train=0.1, epsilon_decay_steps=0)
    assert agent.epsilon(101, 100) == agent.epsilon(10**6, 100) == 0.1
    assert agent.epsilon(0, 100) == 1.0 and agent.epsilon(99, 100) == 1.0


# Measurements


def diagnose(features):
    """`dormant_units` and `effective_rank` of features [B, d], and the targets."""
    size = len(features)
    state = SimpleNamespace(params=table(np.ones((size, 2, 1)), features), target_params=table(np.ones((size, 2, 1))))
    state.target_params["features"] = state.params["features"]
    index = jnp.arange(size)
    batch = Transition(index, index * 0, index * 1.0, jnp.full(size, 0.5), index, index * 0, jnp.ones(size))
    with jax.disable_jit():
        return make_diagnose(DQN(), Table, Scalar("mse"), lambda replay, key: (batch, index), 1)(state, None, KEY)


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_effective_rank_of_equal_singular_values(rank):
    """Each of k equal ones is needed for 99 %."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 8)))[0][:, :rank] for n in (40, 8))
    metrics, targets = diagnose(u @ v.T)
    assert int(metrics["effective_rank"]) == rank
    np.testing.assert_allclose(targets, np.arange(40) + 0.5)


def test_effective_rank_is_numpys():
    """A spectrum that falls off, of which the smallest values are not needed."""
    features = np.random.default_rng(0).normal(size=(50, 12)) * 0.5 ** np.arange(12)
    values = np.linalg.svd(features, compute_uv=False)
    expected = next(k for k in range(1, 13) if values[:k].sum() >= 0.99 * values.sum())
    assert 1 < expected < 12
    assert int(diagnose(features)[0]["effective_rank"]) == expected


def test_dead_features_have_rank_0():
    metrics, _ = diagnose(np.zeros((6, 4)))
    assert int(metrics["effective_rank"]) == 0 and float(metrics["dormant_units"]) == 1


def test_dormant_units():
    """Below 0.025 of the layer's mean activity: here two silent units and one nearly so; a fourth is just alive."""
    activity = np.array([0.0, 0.0, 0.0245, 0.0257, 1.0, 1.0, 1.0, 5.0])  # mean 1.006, median 1
    features = activity * np.random.default_rng(0).choice([-1.0, 1.0], size=(30, 8))
    assert float(diagnose(features)[0]["dormant_units"]) == 3 / 8


class Sowing(Table):
    """A table whose network sows a number and a vector, both the mean of the states it saw."""

    @staticmethod
    def apply(params, state, rngs=None, mutable=None):
        out = Table.apply(params, state)
        mean = jnp.mean(state.astype(jnp.float32))
        return (out, {"diagnostics": {"torso": {"single": mean, "each": jnp.stack([mean, -mean])}}}) if mutable else out


def test_diagnosis_of_several_batches():
    """Features and targets of all of them together; what the network sows is averaged and named."""
    features = np.eye(6)
    params = table(np.ones((6, 2, 1)), features)
    state = SimpleNamespace(params=params, target_params=params)
    batches, keys = iter(np.split(np.arange(6), 3)), []

    def sample(replay, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        index = jnp.asarray(next(batches))
        return Transition(index, index * 0, index * 1.0, jnp.zeros(2), index, index * 0, jnp.ones(2)), index

    with jax.disable_jit():
        metrics, targets = make_diagnose(DQN(), Sowing, Scalar("mse"), sample, 3)(state, None, KEY)
    assert int(metrics.pop("effective_rank")) == 6 and float(metrics.pop("dormant_units")) == 0
    assert {name: float(value) for name, value in metrics.items()} == {"single": 2.5, "each_0": 2.5, "each_1": -2.5}
    assert targets.tolist() == list(range(6)) and len(set(keys)) == 3


# What priorities are made of


@pytest.mark.parametrize(
    "head", [HLGauss(-2.0, 2.0, 7), C51(-2.0, 2.0, 7), Scalar("mse")], ids=lambda h: type(h).__name__
)
def test_items_of_an_update(head):
    """The loss of each transition, what of it can be reduced, and its TD error: each against its definition."""
    update, state = build(head)
    batch = transitions(16)
    _, items, metrics = jax.jit(update)(state, batch)
    network = QNetwork(NUM_ACTIONS, head.num_logits, torso=MLP(features=(8,)))
    logits_tm1 = network.apply(state.params, batch.s_tm1)[0][jnp.arange(16), batch.a_tm1]
    logits_t = network.apply(state.target_params, batch.s_t)[0]
    greedy = logits_t[jnp.arange(16), jnp.argmax(head.decode(logits_t), axis=-1)]
    y = batch.r_t + batch.discount_t * head.decode(greedy)
    np.testing.assert_allclose(items["td_error"], np.abs(y - head.decode(logits_tm1)), atol=1e-5)
    if isinstance(head, Scalar):
        np.testing.assert_allclose(items["excess_loss"], items["td_error"] ** 2, rtol=1e-4)
    else:
        target = np.asarray(jax.vmap(head.bootstrap)(batch.r_t, batch.discount_t, greedy), np.float64)
        log_p = np.log(softmax(np.asarray(logits_tm1, np.float64), axis=-1))
        kl = np.sum(target * (np.log(np.maximum(target, 1e-300)) - log_p), axis=-1)
        np.testing.assert_allclose(items["excess_loss"], kl, atol=1e-5)
        entropy = -np.sum(target * np.log(np.maximum(target, 1e-300)), axis=-1)
        np.testing.assert_allclose(items["loss"] - items["excess_loss"], entropy, atol=1e-5)
    assert metrics["weight"] == 1 and metrics["loss"] == pytest.approx(float(jnp.mean(items["loss"])), rel=1e-6)


# Noise


def test_noise_moves_training_and_acting_but_not_evaluation():
    """Three networks, three noises: also the loss of one batch differs from key to key."""
    head = Scalar("mse")
    network = QNetwork(NUM_ACTIONS, 1, torso=MLP(features=(8,)), noise=5.0)
    params = network.init(KEY, jnp.zeros((1, 1, 4)))
    batch, keys = transitions(8), jax.random.split(KEY, 50)
    loss = jax.jit(lambda key: DQN(double=True).loss(network, head, params, params, batch, key)[1])
    # With the same parameters twice, the value that is bootstrapped is a maximum only under its own noise.
    assert len({float(loss(key)["td_error"][0]) for key in keys[:5]}) == 5
    single = jax.jit(lambda batch, key: DQN(double=False).loss(network, head, params, params, batch, key)[1])
    less = np.stack([single(batch, key)["target"] - loss(key)["target"] for key in keys[:5]])
    assert less.min() >= 0 and less.max() > 0.1
    act = jax.jit(partial(DQN().act, network, head), static_argnames="noise")
    observation = jnp.tile(batch.s_tm1[:1], (4, 1, 1))
    noisy = np.stack([act(params, observation, key, 0.0) for key in keys])
    still = np.stack([act(params, observation, key, 0.0, noise=False) for key in keys])
    assert len(np.unique(noisy)) > 1 and len(np.unique(still)) == 1
    assert np.all(noisy == noisy[:, :1])  # one noise for all games of a step
    alike = batch._replace(s_t=batch.s_tm1, r_t=jnp.zeros(8), discount_t=jnp.ones(8))
    items = single(alike, KEY)
    assert np.all(items["target"] != items["q_max"])  # of the same states and parameters: two noises


# Schedules


def schedule(num_envs, replay_ratio, warmup_steps=64):
    environment, replay = SimpleNamespace(stack=4), Replay(1000)
    parts = {"agent": DQN(), "environment": environment, "head": None, "network": None, "learner": Learner(None)}
    return Experiment(
        **parts,
        replay=replay,
        total_steps=10_000,
        num_envs=num_envs,
        replay_ratio=replay_ratio,
        warmup_steps=warmup_steps,
    )


@pytest.mark.parametrize("replay_ratio", [0.25, 1, 2])
@pytest.mark.parametrize("num_envs", [1, 2, 4, 8])
def test_updates_keep_the_replay_ratio(num_envs, replay_ratio):
    """Counted by the trainer itself after every step of all games, against a count per agent step."""
    experiment = schedule(num_envs, replay_ratio)
    assert experiment.updates_per_call == max(1, num_envs * replay_ratio)
    step = lambda states, replays, sums: ([state + experiment.updates_per_call for state in states], replays, sums)
    trainer = SimpleNamespace(experiment=experiment, agent_steps=0, updates=0, state=0, replay_state=None, _sums={})
    trainer._step, trainer._num_seeds = step, 1
    for _ in range(40):
        trainer.agent_steps += num_envs
        learn([trainer])
        expected = max(0, int((trainer.agent_steps - 64) * replay_ratio))
        assert trainer.state == trainer.updates == experiment.updates_due(trainer.agent_steps) == expected


def test_updates_due_golden():
    """The paper's: the first update comes 4 agent steps after the warm-up, then one every 4."""
    experiment = schedule(1, 0.25, warmup_steps=100)
    assert [experiment.updates_due(step) for step in (0, 99, 100, 103, 104, 107, 108, 500)] == [
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        100,
    ]


@pytest.mark.parametrize("num_envs, replay_ratio", [(6, 0.25), (3, 0.25), (2, 0.75), (1, 1.5)])
def test_games_that_do_not_fit_the_replay_ratio_are_refused(num_envs, replay_ratio):
    """Rather than changing the ratio silently."""
    with pytest.raises(ValueError, match="neither a whole number nor one every whole number"):
        schedule(num_envs, replay_ratio)


def test_zero_games_are_chosen_by_the_machine():
    """A power of two, so that it fits the usual ratios."""
    num_envs = schedule(0, 0.25, warmup_steps=1000).num_envs
    assert 8 <= num_envs <= 64 and num_envs & (num_envs - 1) == 0
