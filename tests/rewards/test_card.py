"""A saved suite brings its card, which says what was fitted and leaves nothing to fill in."""

import pytest
import yaml
from huggingface_hub import ModelCard

from cellfluxrl import CellFluxRLPipeline, RewardSuite
from cellfluxrl.hub.cards import PLACEHOLDER, load_card
from cellfluxrl.rewards.biological import REWARD_NAMES
from cellfluxrl.rewards.card import statistics_text, suite_card
from cellfluxrl.rewards.terms import Reward, register_reward


@pytest.fixture(scope="module")
def card(suite) -> ModelCard:
    return ModelCard(suite_card(suite))


def test_the_card_has_a_header_that_the_hub_reads(card):
    assert card.data.library_name == "diffusers"
    assert "cellfluxrl" in card.data.tags
    assert yaml.safe_load(card.content.split("---")[1])["tags"] == card.data.tags


def test_the_card_leaves_nothing_to_fill_in(card):
    assert not PLACEHOLDER.search(card.content)
    assert "None" not in card.text
    assert "\n\n\n" not in card.text


def test_the_card_names_every_reward_moa_and_setting(suite, card):
    for name in REWARD_NAMES:
        assert f"| `{name}` | {suite.weights[name]:.3f} |" in card.text
    for moa, count in zip(suite.moas, suite.count.tolist(), strict=True):
        values = " | ".join(statistics_text(suite, moa))
        assert f"\n| {moa}* | {count:,} | {values} |\n" in card.text, "the fixture has few images of each MoA"
    for name, value in suite.config.segmenter_settings.items():
        assert name == "channel_names" or f"`{name}` {value}" in card.text
    assert "in this order: dna, tubulin, actin; 16 x 16 pixels" in card.text
    assert f"fitted on {int(suite.count.sum()):,} real images" in card.text


def test_every_row_of_a_table_has_as_many_cells_as_its_header(card):
    tables = [[]]
    for line in card.text.splitlines():
        if line.startswith("|"):
            tables[-1].append(line.count("|"))
        elif tables[-1]:
            tables.append([])
    tables = [table for table in tables if table]
    assert len(tables) == 2
    assert all(len(set(table)) == 1 for table in tables)


def test_the_classifiers_log_odds_have_no_separability(suite, card):
    line = next(line for line in card.text.splitlines() if line.startswith("| *separability*"))
    cells = [cell.strip() for cell in line.strip("|").split("|")][2:]
    assert suite.statistic_names[-1] == "moa"
    assert cells[-1] == ""
    assert all(0 <= float(cell) <= 1 for cell in cells[:-1])


def test_the_card_tells_the_pixel_size(suite):
    config = dict(suite.config.classifier_config)
    with_size = suite_card(RewardSuite(config, image_size=[16, 24], pixel_size=0.32))
    assert "16 x 24 pixels of 0.32 um" in with_size
    assert "No pixel size other than 0.32 um fits" in with_size
    assert "No pixel size was recorded" in suite_card(suite)


def test_a_suite_that_was_not_fitted_says_so(suite):
    text = suite_card(RewardSuite(dict(suite.config.classifier_config)))
    assert "fitted on 0 real images" in text
    assert f"nothing can be scored against them: {', '.join(suite.moas)}" in text


def test_a_reward_of_ones_own_is_named(suite):
    register_reward(Reward("card_brightness", ["images"], statistic=lambda seen: seen.images.mean((1, 2, 3))))
    text = suite_card(RewardSuite(dict(suite.config.classifier_config), rewards=["moa", "card_brightness"]))
    assert "must be registered, or installed as a plug-in, before this suite is loaded: card_brightness" in text
    assert "| `card_brightness` |" in text


def test_saving_writes_the_card(suite, tmp_path):
    suite.save_pretrained(tmp_path / "suite")
    assert sorted(p.name for p in (tmp_path / "suite").iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert load_card(tmp_path / "suite" / "README.md", "model").content == suite_card(suite)


def test_only_the_main_process_writes_the_card(suite, tmp_path):
    suite.save_pretrained(tmp_path / "suite", is_main_process=False)
    assert not (tmp_path / "suite" / "README.md").exists()


def test_a_pipeline_saves_the_card_with_its_rewards(pipeline, suite, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert (tmp_path / "rewards" / "README.md").read_text() == suite_card(suite)
    names = {path.name for path in (tmp_path / "rewards").iterdir()}
    assert "diffusion_pytorch_model.fp16.safetensors" in names or any("fp16-00001-of" in name for name in names)
    loaded = CellFluxRLPipeline.from_pretrained(tmp_path, variant="fp16")
    assert loaded.rewards.weights == suite.weights
