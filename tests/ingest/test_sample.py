"""The sample's structure can be found again, and its bytes never change."""

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from storage.datasets import DATASETS, check_statistics
from storage.sample import MAX_LENGTH, MIN_LENGTH, generate_sample, write_sample


@pytest.fixture(scope="module")
def sample():
    return generate_sample()


def test_its_bytes_are_the_pinned_ones_in_another_process_too():
    code = "import hashlib as h, storage.sample as s; "
    code += "print(h.sha256(s.generate_sample().text().encode()).hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == DATASETS["sample"].sha256


def test_it_has_the_shape_that_the_catalogue_states(sample, tmp_path, run):
    lengths = [len(sequence) for sequence in sample.sequences]
    assert min(lengths) == MIN_LENGTH
    assert max(lengths) == MAX_LENGTH
    result = run(write_sample(tmp_path, sample)["interactions"], min_user_interactions=5, min_item_interactions=5)
    assert check_statistics("sample", result.counts) == []
    assert result.counts["n_interactions_dropped"] == 0
    assert result.counts["n_repeats"] == 0


def test_a_markov_chain_beats_popularity_clearly(sample):
    train = [sequence[:-2] for sequence in sample.sequences]
    popularity = Counter(int(item) for sequence in train for item in sequence)
    following = defaultdict(Counter)
    for sequence in train:
        for one, other in zip(sequence[:-1].tolist(), sequence[1:].tolist(), strict=True):
            following[one][other] += 1
    ranked = [item for item, _ in popularity.most_common()]
    hits = {"popularity": 0, "markov": 0}
    for sequence in sample.sequences:
        *history, target = sequence.tolist()
        seen = set(history)
        by_popularity = [item for item in ranked if item not in seen]
        chained = [item for item, _ in following[history[-1]].most_common() if item not in seen]
        hits["popularity"] += target in by_popularity[:10]
        hits["markov"] += target in (chained + by_popularity)[:10]
    assert hits["popularity"] / 900 < 0.10
    assert hits["markov"] / 900 > 0.40


def test_popularity_is_skewed(sample):
    counts = np.sort(np.bincount(np.concatenate(sample.sequences), minlength=480))[::-1]
    assert counts[:48].sum() > 1.8 * 48 * counts.mean()
    assert counts[-1] >= 5


def test_company_reveals_the_host_category_and_misplaced_items(sample):
    company = np.zeros((480, 12))
    for sequence in sample.sequences:
        around = np.bincount(sample.host[sequence], minlength=12)
        company[sequence] += around
        company[sequence, sample.host[sequence]] -= 1
    found = company.argmax(axis=1)
    assert (found == sample.host).mean() > 0.98
    assert sample.misplaced.sum() == round(0.04 * 480)
    assert (found[sample.misplaced] == sample.category[sample.misplaced]).mean() < 0.1


def test_taste_drifts_over_one_to_four_categories(sample):
    liked = (sample.taste > 0).sum(axis=1)
    assert set(liked.tolist()) == {1, 2, 3, 4}
    np.testing.assert_allclose(sample.taste_first.sum(axis=1), 1)
    np.testing.assert_allclose(sample.taste_last.sum(axis=1), 1)
    long = [u for u, s in enumerate(sample.sequences) if len(s) >= 20 and liked[u] > 1]
    gain = []
    for user in long:
        sequence = sample.host[sample.sequences[user]]
        half = len(sequence) // 2
        drift = sample.taste_last[user] - sample.taste_first[user]
        gain.append(drift[sequence[half:]].mean() - drift[sequence[:half]].mean())
    assert np.mean(gain) > 0.02


def test_other_arguments_draw_other_samples():
    small = generate_sample(n_users=30, n_items=40, n_categories=4, seed=1)
    assert len(small.sequences) == 30
    assert small.text() == generate_sample(n_users=30, n_items=40, n_categories=4, seed=1).text()
    assert small.text() != generate_sample(n_users=30, n_items=40, n_categories=4, seed=2).text()
    with pytest.raises(ValueError, match="5 items in each"):
        generate_sample(n_items=20, n_categories=12)


def test_the_truth_is_written_beside_it(sample, tmp_path):
    paths = write_sample(tmp_path / "new", sample)
    assert hashlib.sha256(paths["interactions"].read_bytes()).hexdigest() == DATASETS["sample"].sha256
    items = [line.split("\t") for line in paths["items"].read_text().splitlines()]
    assert items[0] == ["item_id", "title", "category", "company"]
    assert sum(own != host for _, _, own, host in items[1:]) == sample.misplaced.sum()
    users = [line.split("\t") for line in paths["users"].read_text().splitlines()]
    assert len(users) == 901
    assert sum(map(float, users[1][1:])) == pytest.approx(1, abs=1e-4)
