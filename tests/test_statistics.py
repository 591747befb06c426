"Statistics of an evaluation: exact values, invariants, and coverage of the intervals."

import itertools
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from r1nb.settings import InputError
from r1nb.statistics import (
    against_reported,
    avg_at_n,
    maj_at_n,
    majority,
    minimum_detectable_difference,
    paired_bootstrap,
    paired_difference,
    pass_at_k,
    summarize,
    unseen_share,
    verdict_matrix,
)

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 9))
TABLES = SHAPES.flatmap(lambda shape: arrays(bool, shape))
PAIRS = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda s: st.tuples(arrays(bool, (s[0], s[1])), arrays(bool, (s[0], s[2])))
)
light = settings(max_examples=60, deadline=None)


def parts(e):
    return [e.value, e.low, e.high, e.se]


def long_frame(verdicts, ids=None):
    ids = ids or [f"p{i}" for i in range(len(verdicts))]
    rows = [
        (p, j, bool(x)) for p, row in zip(ids, verdicts, strict=True) for j, x in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=["problem_id", "sample", "correct"])


def simulate(rng, n_problems, n_samples, mean, concentration):
    p = rng.beta(mean * concentration, (1 - mean) * concentration, n_problems)
    return rng.random((n_problems, n_samples)) < p[:, None]


# Scores


@light
@given(TABLES)
def test_pass_at_1_is_avg_at_n(v):
    assert parts(pass_at_k(v, 1)) == pytest.approx(parts(avg_at_n(v)), abs=1e-12, nan_ok=True)


@light
@given(TABLES)
def test_pass_at_k_rises_with_k_to_the_share_of_problems_ever_solved(v):
    values = [pass_at_k(v, k).value for k in range(1, v.shape[1] + 1)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(v.any(1).mean())


@light
@given(arrays(bool, st.tuples(st.just(1), st.integers(1, 7))), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(v, data):
    k = data.draw(st.integers(1, v.shape[1]))
    subsets = list(itertools.combinations(v[0], k))
    assert pass_at_k(v, k).value == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased():
    rng = np.random.default_rng(0)
    p = 0.2
    v = rng.random((20_000, 6)) < p
    e = pass_at_k(v, 4)
    assert e.value == pytest.approx(1 - (1 - p) ** 4, abs=4 * e.se)
    assert abs(1 - (1 - v.mean(1)) ** 4 - e.value).mean() > 0.01  # the plug-in estimator differs


@light
@given(TABLES, st.randoms(use_true_random=False))
def test_order_of_problems_and_samples_does_not_matter(v, random):
    rows, cols = list(range(v.shape[0])), list(range(v.shape[1]))
    random.shuffle(rows)
    random.shuffle(cols)
    w = v[rows][:, cols]
    for k in (1, v.shape[1]):
        assert parts(pass_at_k(w, k)) == pytest.approx(
            parts(pass_at_k(v, k)), abs=1e-12, nan_ok=True
        )
    df = long_frame(v).sample(frac=1, random_state=random.randrange(2**32))
    assert parts(avg_at_n(df)) == pytest.approx(parts(avg_at_n(v)), abs=1e-12, nan_ok=True)


@light
@given(TABLES)
def test_intervals_are_ordered_and_within_0_and_1(v):
    for e in (avg_at_n(v), pass_at_k(v, v.shape[1])):
        assert 0 <= e.low <= e.value <= e.high <= 1
        assert (e.n_problems, e.n_samples) == v.shape


def test_the_interval_is_scipys_t_interval_on_problem_means():
    v = simulate(np.random.default_rng(1), 50, 8, 0.5, 2)
    e, m = avg_at_n(v), v.mean(1)
    want = stats.ttest_1samp(m, 0).confidence_interval(0.95)
    assert (e.low, e.high) == pytest.approx((want.low, want.high))
    assert e.se == pytest.approx(stats.sem(m))
    assert str(e) == f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]"


@pytest.mark.parametrize("n_problems", [1, 2, 30, 128])
def test_none_or_all_correct_has_the_clopper_pearson_interval(n_problems):
    none, every = (avg_at_n(np.full((n_problems, 4), x)) for x in (0, 1))
    bound = stats.binomtest(0, n_problems).proportion_ci(0.95, method="exact").high
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(bound)
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(1 - bound)
    assert unseen_share(n_problems) == pytest.approx(bound)


def test_upper_ends_do_not_fall_when_a_problem_is_solved():
    ends = [avg_at_n((np.arange(128) < solved)[:, None]).high for solved in range(128)]
    assert all(b >= a for a, b in itertools.pairwise(ends))


def test_equal_means_between_0_and_1_do_not_look_exact():
    e = avg_at_n(np.tile([1, 0], (30, 1)))
    assert (e.value, e.se) == (0.5, 0)
    assert e.low < 0.45 and e.high > 0.55
    single = avg_at_n([[1, 0, 0, 0]])
    assert single.value == 0.25 and math.isnan(single.se) and single.high - single.low > 0.9


# Coverage


def coverage(n_problems, n_samples, mean, concentration, repeats=800, seed=0):
    rng, clustered, naive = np.random.default_rng(seed), 0, 0
    for _ in range(repeats):
        v = simulate(rng, n_problems, n_samples, mean, concentration)
        e, p = avg_at_n(v), v.mean()
        clustered += e.low <= mean <= e.high
        naive += abs(p - mean) <= 1.96 * math.sqrt(p * (1 - p) / v.size)
    return clustered / repeats, naive / repeats


@pytest.mark.parametrize(("n_problems", "n_samples"), [(30, 16), (30, 64), (128, 16)])
def test_clustered_interval_covers_95_percent_and_the_naive_one_far_less(n_problems, n_samples):
    clustered, naive = coverage(n_problems, n_samples, mean=0.4, concentration=1.0)
    assert 0.92 < clustered < 0.98
    assert naive < 0.62


def test_with_one_sample_both_intervals_agree():
    clustered, naive = coverage(128, 1, mean=0.4, concentration=1.0)
    assert 0.92 < clustered < 0.98 and naive == pytest.approx(clustered, abs=0.02)


@pytest.mark.parametrize("mean", [0.003, 0.01, 0.03, 0.97, 0.99])
def test_scores_near_0_and_1_are_covered(mean):
    assert coverage(30, 16, mean, concentration=0.5, repeats=300)[0] > 0.93


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_paired_interval_covers_the_true_difference_and_p_values_are_calibrated(gain):
    rng, covered, significant = np.random.default_rng(4), 0, 0
    for _ in range(600):
        p = rng.beta(1, 1, 60) * 0.8
        a, b = (rng.random((60, 4)) < q[:, None] for q in (p + gain, p))
        d = paired_difference(a, b)
        covered += d.low <= gain <= d.high
        significant += d.p_value < 0.05
    assert 0.92 < covered / 600 < 0.98
    assert significant / 600 < 0.08 if gain == 0 else significant / 600 > 0.5


def test_few_differing_problems_do_not_inflate_false_positives():
    rng = np.random.default_rng(5)
    tables = [rng.random((2, 128, 1)) < 0.015 for _ in range(800)]
    assert np.mean([paired_difference(a, b).p_value < 0.05 for a, b in tables]) < 0.06


# Differences


@light
@given(PAIRS)
def test_difference_is_antisymmetric(pair):
    a, b = pair
    d, e = paired_difference(a, b), paired_difference(b, a)
    assert (d.value, d.low, d.high) == pytest.approx((-e.value, -e.high, -e.low), abs=1e-12)
    assert d.p_value == pytest.approx(e.p_value) and 0 <= d.p_value <= 1
    assert -1 <= d.low <= d.value <= d.high <= 1


@light
@given(PAIRS)
def test_difference_is_that_of_the_scores(pair):
    assert paired_difference(*pair).value == pytest.approx(
        avg_at_n(pair[0]).value - avg_at_n(pair[1]).value, abs=1e-12
    )


def test_a_model_compared_with_itself():
    v = simulate(np.random.default_rng(6), 40, 4, 0.5, 1)
    d = paired_difference(v, v)
    assert (d.value, d.p_value) == (0, 1) and d.low < 0 < d.high


@pytest.mark.parametrize(("n_problems", "p"), [(1, 1.0), (3, 0.25), (10, 2**-9)])
def test_equal_differences_have_the_p_value_of_the_sign_test(n_problems, p):
    d = paired_difference(np.ones((n_problems, 1)), np.zeros((n_problems, 1)))
    assert d.p_value == pytest.approx(p)
    assert d.p_value == pytest.approx(stats.binomtest(n_problems, n_problems).pvalue)


def test_frames_are_matched_by_problem_and_arrays_by_row():
    a = long_frame([[1, 1], [0, 0], [1, 0]], ["x", "y", "z"])
    b = long_frame([[0], [1], [0]], ["z", "x", "y"])
    d = paired_difference(a, b)
    assert d.value == pytest.approx((0 + 0 + 0.5) / 3)
    assert paired_difference(verdict_matrix(a), verdict_matrix(b)) == d
    by_row = paired_difference([[1, 1], [0, 0], [1, 0]], [[0], [1], [0]])
    assert by_row.value == pytest.approx((1 - 1 + 0.5) / 3)


def test_different_problems_are_refused():
    a = long_frame([[1], [0]], ["x", "y"])
    with pytest.raises(InputError, match=r"'y' \(1 in all\) is not in the second"):
        paired_difference(a, a[:1])
    with pytest.raises(InputError, match=r"'y' \(1 in all\) is not in the first"):
        paired_difference(a[:1], a)
    with pytest.raises(InputError, match="have 2 and 3"):
        paired_difference(np.ones((2, 1)), np.ones((3, 1)))
    with pytest.raises(InputError, match="'x' occurs twice"):
        twice = pd.DataFrame([[1], [0]], index=["x", "x"])
        paired_difference(twice, twice)


def test_bootstrap_agrees_with_t_and_is_repeatable():
    rng = np.random.default_rng(7)
    a, b = simulate(rng, 200, 8, 0.55, 1), simulate(rng, 200, 8, 0.45, 1)
    t, boot = paired_difference(a, b), paired_bootstrap(a, b, resamples=2000, seed=1)
    assert boot.value == pytest.approx(t.value)
    assert (boot.low, boot.high, boot.se) == pytest.approx((t.low, t.high, t.se), abs=0.01)
    assert boot.p_value == pytest.approx(t.p_value, abs=0.02)
    assert boot == paired_bootstrap(a, b, resamples=2000, seed=1)
    assert paired_bootstrap(a, a) == paired_difference(a, a)


def test_minimum_detectable_difference_has_the_power_it_claims():
    rng, n, sd = np.random.default_rng(8), 30, 0.2
    delta = minimum_detectable_difference(sd, n)
    p = stats.ttest_1samp(rng.normal(delta, sd, (4000, n)), 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    normal = 1.95996 + 0.84162
    assert minimum_detectable_difference(1, 10**6) * 1000 == pytest.approx(normal, abs=1e-4)
    assert minimum_detectable_difference(sd, 120) < delta / 2
    assert minimum_detectable_difference(sd, n, power=0.9) > delta
    for bad in ({"sd": -1}, {"sd": math.nan}, {"n_problems": 1}, {"power": 1}, {"alpha": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            minimum_detectable_difference(**{"sd": sd, "n_problems": n, **bad})


# Majority vote


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["a", "b", "b"], 1),
        (["a", "b", "b", "a"], 0),
        ([None, "b", "a"], 1),
        ([None, None, "a"], 2),
        ([np.nan, pd.NA, None], None),
        ([" 7", "8", "7 "], 0),
        ([], None),
    ],
)
def test_majority(answers, winner):
    assert majority(answers) == winner


def test_maj_at_n_from_verdicts_or_references():
    answers = [["1", "2", "2"], ["5", None, "5"], [None, None, None]]
    verdicts = [[0, 1, 1], [0, 1, 0], [1, 1, 1]]  # a verdict without an answer does not count
    assert maj_at_n(answers, verdicts).value == pytest.approx(1 / 3)
    assert maj_at_n(answers, ["2", 5, "0"]).value == pytest.approx(2 / 3)
    assert maj_at_n(pd.DataFrame(answers), pd.Series(["2", "5", "0"])).value == pytest.approx(2 / 3)


def test_a_majority_of_one_sample_is_that_sample():
    v = simulate(np.random.default_rng(9), 30, 1, 0.5, 1)
    assert maj_at_n(np.where(v, "right", "wrong"), v) == avg_at_n(v)


def test_ties_are_broken_fairly_over_exchangeable_samples():
    rng = np.random.default_rng(10)
    right = np.array([rng.permutation([1, 1, 0, 0]) for _ in range(4000)])
    assert maj_at_n(right.astype(str), right).value == pytest.approx(0.5, abs=0.03)


def test_maj_at_n_refuses_mismatched_tables():
    with pytest.raises(InputError, match="2 reference answers for 1"):
        maj_at_n([["a", "b"]], ["a", "b"])
    with pytest.raises(InputError, match="must be equal"):
        maj_at_n([["a", "b"]], [[1]])
    with pytest.raises(InputError, match="problems, samples"):
        maj_at_n(["a", "b"], ["a", "b"])


# Bad tables


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ([1, 0], r"shape \(2,\)"),
        ([[1, 0], [1]], "same number of samples"),
        ([["yes"]], "not a table of numbers"),
        ([[]], "nothing to average"),
        (np.zeros((0, 4)), "nothing to average"),
        ([[0, 2]], "sample 1 is 2.0"),
        ([[0, np.nan]], "sample 1 is nan"),
    ],
)
def test_bad_tables_are_refused(verdicts, message):
    for score in (avg_at_n, lambda v: pass_at_k(v, 1), lambda v: paired_difference(v, v)):
        with pytest.raises(InputError, match=message):
            score(verdicts)


@pytest.mark.parametrize("k", [0, -1, 3, 1.5, "1"])
def test_pass_at_k_refuses_other_k(k):
    with pytest.raises(InputError, match="valid: 1 to 2"):
        pass_at_k([[0, 1]], k)


def test_pass_at_k_refuses_partial_credit():
    with pytest.raises(InputError, match="true or false"):
        pass_at_k([[0.5, 1]], 1)
    assert avg_at_n([[0.5, 1]]).value == 0.75


LOG = long_frame([[1, 0], [0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("df", "message"),
    [
        (LOG.drop(index=3), "'p1' has 1 samples where most have 2"),
        (pd.concat([LOG, LOG[2:3]]), "'p1' has sample 0 2 times"),
        (LOG.assign(sample=[0, 1, 0, 7, 0, 1]), "'p0' has no sample 7"),
        (LOG.assign(sample=[0, None, 0, 1, 0, 1]), "row 1 .* has no sample"),
        (LOG.assign(problem_id=["p0", "p0", "p1", None, "p2", "p2"]), "row 3 .* has no problem_id"),
        (LOG.assign(correct=[True, True, "maybe", True, True, True]), "'p1': correct = 'maybe'"),
        (LOG.assign(correct=[1, 1, 1, 1, 1, 3]), "'p2': correct = .*3"),
        (LOG.rename(columns={"correct": "corect"}), "no column 'correct'; did you mean 'corect'"),
        (LOG[:0], "empty"),
    ],
)
def test_a_log_with_holes_is_refused_by_name(df, message):
    with pytest.raises(InputError, match=message):
        verdict_matrix(df)


def test_verdict_matrix_without_sample_numbers():
    v = verdict_matrix(LOG.drop(columns="sample"))
    assert v.to_numpy().tolist() == [[1, 0], [0, 0], [1, 1]]
    assert v.index.tolist() == ["p0", "p1", "p2"]
    with pytest.raises(InputError, match="'p2' has 1 samples"):
        verdict_matrix(LOG.drop(columns="sample")[:-1])


@pytest.mark.parametrize("dtype", [bool, int, float, object, "boolean", "Int64", "bool[pyarrow]"])
def test_verdict_matrix_takes_every_kind_of_verdict(dtype):
    v = verdict_matrix(LOG.astype({"correct": dtype}))
    assert v.to_numpy().tolist() == [[1, 0], [0, 0], [1, 1]] and v.to_numpy().dtype == float


# Summary


def evaluation(n_problems=6, n_samples=5, seed=11):
    rng = np.random.default_rng(seed)
    df = long_frame(simulate(rng, n_problems, n_samples, 0.5, 1))
    cut = rng.random(len(df)) < 0.2
    df["correct"] &= ~cut
    df["finish_reason"] = np.where(cut, "length", "stop")
    wrong = [f"wrong{i}" for i in range(len(df))]
    answers = pd.Series(np.where(df["correct"], "right", wrong), dtype=object)
    df["extracted"] = answers.where(~cut, None)
    df["num_tokens"] = np.where(cut, 512, rng.integers(20, 500, len(df)))
    return df


def test_summarize():
    df = evaluation()
    s, v = summarize(df), verdict_matrix(df)
    scores = ["avg@5", "pass@1", "pass@2", "pass@4", "maj@5"]
    failures = ["truncated", "unparsable", "tokens_mean", "tokens_median"]
    assert list(s) == ["n_problems", "n_samples", *scores, *failures]
    assert (s["n_problems"], s["n_samples"]) == (6, 5)
    assert s["avg@5"] == avg_at_n(v) and s["pass@4"] == pass_at_k(v, 4)
    assert s["truncated"] == s["unparsable"] == (df["finish_reason"] == "length").mean() > 0
    assert s["tokens_mean"] == df["num_tokens"].mean()
    assert s["tokens_median"] == df["num_tokens"].median()
    # wrong answers all differ: two right ones win, and a single one if it comes first
    right = df[df["correct"]].groupby("problem_id").size().reindex(v.index, fill_value=0)
    answered = df.dropna(subset="extracted").groupby("problem_id")["correct"]
    first = answered.first().reindex(v.index, fill_value=False)
    assert s["maj@5"].value == ((right > 1) | ((right == 1) & first)).mean()


def test_summarize_survives_a_round_trip_through_a_file(tmp_path):
    df = evaluation()
    df.to_parquet(tmp_path / "samples.parquet")
    df.to_json(tmp_path / "samples.jsonl", orient="records", lines=True)
    assert summarize(pd.read_parquet(tmp_path / "samples.parquet")) == summarize(df)
    assert summarize(pd.read_json(tmp_path / "samples.jsonl", lines=True)) == summarize(df)


@pytest.mark.parametrize("n_samples", [1, 2, 8])
def test_summarize_has_pass_at_every_power_of_two(n_samples):
    keys = [k for k in summarize(evaluation(n_samples=n_samples)) if k.startswith("pass@")]
    assert keys == [f"pass@{k}" for k in (1, 2, 4, 8) if k <= n_samples]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finish_reason": "eos"}, "'p0', sample 0: finish_reason = 'eos'; valid: stop, length"),
        ({"num_tokens": None}, "'p0', sample 0: num_tokens = None"),
        ({"num_tokens": -1}, "num_tokens = .*-1"),
    ],
)
def test_summarize_refuses_values_it_does_not_know(change, message):
    with pytest.raises(InputError, match=message):
        summarize(evaluation().assign(**change))


@pytest.mark.parametrize(
    "column", ["problem_id", "sample", "correct", "finish_reason", "extracted", "num_tokens"]
)
def test_summarize_names_the_missing_column(column):
    with pytest.raises(InputError, match=f"no column '{column}'"):
        summarize(evaluation().drop(columns=column))


def test_the_module_does_not_load_torch():
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    code = f"import sys, r1nb.statistics; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert out.stdout.strip() == "[]"


# Beside a published score


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("shape", [(500, 1), (500, 4), (30, 64), (1, 1), (1, 8)])
def test_verdicts_without_spread_give_a_moderate_z(shape, same):
    "With one answer a problem, z is at most that of the published share's own binomial error."
    for verdicts, score in ((np.ones(shape), 0.97), (np.zeros(shape), 0.03)):
        r = against_reported(verdicts, score, 1, same)
        assert math.isfinite(r.z) and abs(r.z) <= 0.03 / math.sqrt(0.97 * 0.03 / shape[0])
        assert r.within_noise or shape[0] == 500
    for score in (0.0, 1.0):
        assert against_reported(np.full(shape, score), score, 1, same).z == 0
        opposite = against_reported(np.full(shape, 1 - score), score, 1, same)
        assert abs(opposite.z) <= 2 * math.sqrt(shape[0])


def test_a_few_wrong_samples_change_z_slowly():
    before = against_reported(np.ones((500, 4)), 0.97, 64).z
    for wrong in (1, 2, 3):
        x = np.ones((500, 4))
        x[:wrong, 0] = 0
        assert before / 2 < against_reported(x, 0.97, 64).z < 2 * before
        assert 3 < against_reported(x, 0.97, 64, same_problems=False).z < 12
    ones = [against_reported(np.arange(500)[:, None] >= k, 0.97).z for k in range(30)]
    assert all(0 <= a - b < 0.5 for a, b in itertools.pairwise(ones))  # smoothly, and never up


@light
@given(TABLES, st.floats(0, 1), st.integers(1, 64), st.booleans())
def test_z_is_finite_and_antisymmetric(x, score, samples, same):
    r = against_reported(x, score, samples, same)
    mirrored = against_reported(~x, 1 - score, samples, same)
    assert math.isfinite(r.z) and r.se > 0
    assert math.isclose(r.z, -mirrored.z, rel_tol=1e-6, abs_tol=1e-9)
    assert abs(r.z) <= 3 * math.sqrt(len(x) * x.shape[1] * samples)


def test_enough_spread_gives_the_plain_formula():
    rng = np.random.default_rng(0)
    x = simulate(rng, 300, 8, 0.6, 2.0)
    v = x.var(1, ddof=1).sum() / 300**2
    expected = (x.mean() - 0.55) / math.sqrt(v / 8 + v / 4 + 0.001**2 / 12)
    assert math.isclose(against_reported(x, 0.55, 4).z, expected, rel_tol=1e-9)
