"""The card of a reward suite, filled in from what was fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from cellfluxrl.hub.cards import render_card
from cellfluxrl.rewards.biological import REWARD_NAMES
from cellfluxrl.rewards.statistics import FEW_IMAGES

if TYPE_CHECKING:
    from cellfluxrl.rewards.suite import RewardSuite


def suite_card(suite: RewardSuite) -> str:
    """Fill in `model_cards/rewards.md`; of a suite that is not fitted, it says that nothing can be scored."""
    counts = dict(zip(suite.moas, suite.count.tolist(), strict=True))
    known = [moa for moa, count in counts.items() if count]
    separability = separability_text(suite) if known else {}
    settings = {k: v for k, v in (suite.config.segmenter_settings or {}).items() if k != "channel_names"}
    return render_card(
        "rewards.md",
        metadata=ModelCardData(
            library_name="diffusers", tags=["biology", "microscopy", "single-cell", "reward-model", "cellfluxrl"]
        ).to_yaml(),
        total=f"{sum(counts.values()):,}",
        channels=suite.channel_names,
        image_size=suite.config.image_size,
        pixel_size=f"{suite.config.pixel_size:g}" if suite.config.pixel_size else None,
        example=(known or suite.moas)[-1],
        rewards=[
            {"name": reward.name, "weight": f"{suite.weights[reward.name]:.3f}", "meaning": reward.description}
            for reward in suite.rewards
        ],
        own_rewards=[reward.name for reward in suite.rewards if reward.name not in REWARD_NAMES],
        plugins=suite.config["plugins"] or [],
        units=[f"`{reward.name}`: {reward.unit}" for reward in suite.rewards if reward.unit],
        statistics=suite.statistic_names,
        moas=[
            {
                "name": moa.replace("|", "\\|"),
                "count": f"{counts[moa]:,}",
                "shrunk": counts[moa] < FEW_IMAGES,
                "statistics": statistics_text(suite, moa),
            }
            for moa in known
        ],
        separability=[separability.get(name, "") for name in suite.statistic_names],
        few_images=FEW_IMAGES,
        unknown=[moa for moa in suite.moas if not counts[moa]],
        segmenter=suite.config.segmenter,
        settings=", ".join(f"`{name}` {value}" for name, value in sorted(settings.items())),
        classes=suite.moas,
        temperature=f"{float(suite.classifier.temperature):.2f}",
    )


def statistics_text(suite: RewardSuite, moa: str) -> list[str]:
    """Mean ± standard deviation of each of the suite's statistics in real cells of a MoA."""
    k = suite.moas.index(moa)
    pairs = zip(suite.mean[k].tolist(), suite.std[k].tolist(), strict=True)
    return [f"{_three_digits(mean)} ± {_three_digits(std)}" for mean, std in pairs]


def separability_text(suite: RewardSuite) -> dict[str, str]:
    """Separability of the statistics that do not use an image's true MoA.

    The classifier's log-odds are those of the true MoA: the better it knows every MoA, the more alike they are.
    """
    uses_moa = {name for name, looks in suite.looks_at.items() if looks & {"classifier", "moa"}}
    return {name: f"{share:.2f}" for name, share in suite.separability().items() if name not in uses_moa}


def _three_digits(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
