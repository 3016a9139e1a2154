"""Four kinds of text, real and different; no file is in both parts, and batches follow from their seed."""

import pytest
import torch
from torch import nn

from moe_course.training import ByteTokenizer, Corpus, encode_domains, evaluate_domains, text_domains
from moe_course.training.domains import FILE_LIMIT, HELD_OUT, _domain


@pytest.fixture(scope="module")
def domains():
    return text_domains()


def test_domains_are_what_they_say(domains):
    assert list(domains) == ["prose", "python", "c++", "json"]
    signs = {"prose": "statement", "python": "def ", "c++": "#include", "json": '"type": '}
    for name, domain in domains.items():
        for text in (domain.train, domain.held_out):
            assert signs[name] in text
    others = [domain.train for name, domain in domains.items() if name != "c++"]
    assert all(text.count("#include") < 20 < domains["c++"].train.count("#include") for text in others)


def test_there_is_enough_to_train_and_to_measure(domains):
    for domain in domains.values():
        assert len(domain.train) > 100_000
        assert 0.06 < len(domain.held_out) / (len(domain.train) + len(domain.held_out)) < HELD_OUT + 0.01


def test_fewer_characters_if_asked():
    for domain in text_domains(50_000).values():
        assert 40_000 < len(domain.train) + len(domain.held_out) < 50_000 + FILE_LIMIT


def test_files_are_split_whole_and_the_same_way_every_time():
    files = {f"file {i}": chr(0x100 + i) * (100 + i) for i in range(60)}
    domain = _domain("", files, 10**6)
    parts = [set(domain.train) - {"\n"}, set(domain.held_out) - {"\n"}]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 60
    assert sum(map(len, files.values())) == len((domain.train + domain.held_out).replace("\n", ""))
    shuffled = dict(reversed(files.items()))
    assert _domain("", shuffled, 10**6) == domain


def test_every_machine_mixes_the_files_alike():
    """Python's own hash of a text would differ from one process to the next."""
    assert _domain("", {name: name for name in "abcdefgh"}, 100).train.replace("\n\n", "") == "gcbfhdae"


def test_a_long_file_is_cut():
    assert len(_domain("", {"one": "a" * 2 * FILE_LIMIT}, 10**6).train) == FILE_LIMIT


def corpus():
    """Two domains of which every id says where it stands: 0, 1, 2, … and 1000, 1001, …"""
    texts = {"low": torch.arange(300), "high": torch.arange(1000, 1100)}
    return Corpus(texts, {name: ids[:50] for name, ids in texts.items()})


def test_batches_are_runs_of_one_domain_from_anywhere_in_it():
    rows = torch.cat(list(corpus().batches(context=5, batch_size=40, steps=50, seed=0)))
    assert rows.shape == (2000, 6)
    assert (rows.diff(dim=1) == 1).all()
    high = rows[:, 0] >= 1000
    assert 0.45 < high.float().mean() < 0.55, "the longer domain comes as often as the shorter one"
    assert rows[~high].min() == 0 and rows[~high].max() == 299
    assert rows[high].min() == 1000 and rows[high].max() == 1099


def test_batches_follow_from_the_seed():
    first, again, other = (torch.cat(list(corpus().batches(5, 4, 3, seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_held_out_rows_cover_the_text():
    rows = corpus().held_out_rows(context=4, rows=10)
    assert {name: tuple(ids.shape) for name, ids in rows.items()} == {"low": (10, 5), "high": (10, 5)}
    assert rows["low"][0, 0] == 0 and rows["low"][-1, -1] == 49
    assert (rows["high"].diff(dim=1) == 1).all()


def test_encoded_domains_are_the_texts(domains):
    encoded = encode_domains({"json": domains["json"]}, ByteTokenizer())
    assert ByteTokenizer().decode(encoded.train["json"]) == domains["json"].train
    assert ByteTokenizer().decode(encoded.held_out["json"]) == domains["json"].held_out


class Always(nn.Module):
    """Knows nothing but that the next id is likely one more."""

    def forward(self, ids):
        self.was_training, self.had_grad = self.training, torch.is_grad_enabled()
        self.logits = 2.0 * nn.functional.one_hot(ids + 1, 64).float()
        return self


def test_evaluation_is_the_cross_entropy_of_each_domain():
    model = Always()
    rows = {"up": torch.arange(10).view(1, 10), "same": torch.full((3, 10), 7)}
    losses = evaluate_domains(model, rows)
    total = torch.tensor([2.0] + 63 * [0.0]).logsumexp(0).item()
    assert losses == {"up": pytest.approx(total - 2), "same": pytest.approx(total)}
    assert (model.was_training, model.had_grad, model.training) == (False, False, True)
