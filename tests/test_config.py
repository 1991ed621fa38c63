"""The configs refuse at construction what cannot work, and say what would; the guide's blocks are all valid."""

import copy
import dataclasses
import doctest
import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmwal import config as config_module
from mmwal.config import (
    DEFAULT_SEGMENT_SIZE,
    RecoveryConfig,
    RetentionPolicy,
    RotationPolicy,
    WalConfig,
)
from mmwal.errors import WalConfigError, WalError

KIB, MIB = 1 << 10, 1 << 20
TWO_SEGMENTS = 2 * DEFAULT_SEGMENT_SIZE


def refusal(build: Any, **fields: Any) -> WalConfigError:
    """Build a config that must be refused, and return the error."""
    with pytest.raises(WalConfigError) as caught:
        build(**fields)
    return caught.value


# ---- defaults


def test_config_without_arguments_has_the_defaults_of_the_guide() -> None:
    config = WalConfig()
    assert config.wal_dir == "/tmp/wal"
    assert config.max_wal_size == 1_000_000_000
    assert config.sync_interval_ms == 1000
    assert config.checkpoint_interval == 10_000
    assert config.enable_compression is False
    assert config.compression_threshold_age_hours == 24
    assert config.rotation_policy == RotationPolicy.SizeBased
    assert config.retention_policy == RetentionPolicy.KeepLast(7)
    assert config.enable_replication is False


def test_persisted_fields_that_are_not_given_are_none() -> None:
    config = WalConfig()
    assert (config.dimension, config.dtype, config.metric, config.segment_size) == (None, None, None, None)


def test_recovery_config_without_arguments_has_the_defaults_of_the_guide() -> None:
    config = RecoveryConfig()
    assert config.verify_checksums is True
    assert config.max_recovery_time_ms == 60_000
    assert config.skip_corrupted_entries is False
    assert config.strict is False
    assert (config.workers, config.target) == (None, None)


# ---- what a config is


@pytest.mark.parametrize("build", [WalConfig, RecoveryConfig])
def test_config_takes_keywords_only_and_refuses_unknown_ones(build: Any) -> None:
    with pytest.raises(TypeError):
        build("/var/wal")
    with pytest.raises(TypeError, match="sync_intervall"):
        build(sync_intervall=3)


@pytest.mark.parametrize("config", [WalConfig(), RecoveryConfig()])
def test_config_is_frozen_hashable_and_copyable(config: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.wal_dir = "elsewhere"
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))  # noqa: S301  # our own bytes
    assert hash(copy.copy(config)) == hash(config)


def test_replace_gives_a_changed_copy_and_checks_it() -> None:
    config = WalConfig.balanced()
    changed = dataclasses.replace(config, sync_interval_ms=0)
    assert (config.sync_interval_ms, changed.sync_interval_ms) == (100, 0)
    assert changed.checkpoint_interval == config.checkpoint_interval
    with pytest.raises(WalConfigError):
        dataclasses.replace(config, sync_interval_ms=-1)


def test_every_field_says_what_it_does() -> None:
    """The string below a field is where its unit, its cost and what a crash may cost are said."""
    source = Path(config_module.__file__).read_text("utf-8")
    for build in (WalConfig, RecoveryConfig):
        body = source.split(f"class {build.__name__}:")[1]
        for field in dataclasses.fields(build):
            declaration, _, below = body.partition(f"\n    {field.name}: ")[2].partition("\n")
            assert declaration, field.name
            assert below.startswith('    """'), field.name


# ---- what is refused

WAL_REFUSED = [
    ("sync_interval_ms", -1),
    ("sync_interval_ms", 3_600_001),
    ("sync_interval_ms", 10.0),
    ("sync_interval_ms", True),
    ("sync_interval_ms", "100"),
    ("sync_interval_ms", None),
    ("sync_interval_ms", np.int64(5)),
    ("checkpoint_interval", 0),
    ("checkpoint_interval", 1.5),
    ("checkpoint_interval", True),
    ("max_wal_size", 0),
    ("max_wal_size", -1),
    ("max_wal_size", 1e9),
    ("max_wal_size", 131_071),
    ("segment_size", 64 * KIB - 4096),
    ("segment_size", 64 * KIB + 1),
    ("segment_size", 1024 * MIB + 4096),
    ("segment_size", float(MIB)),
    ("dimension", 0),
    ("dimension", -3),
    ("dimension", True),
    ("dimension", 768.0),
    ("dimension", (1 << 20) + 1),
    ("dtype", "float64"),
    ("dtype", "f4"),
    ("dtype", np.float32),
    ("dtype", 1),
    ("metric", "ip"),
    ("metric", "euclidean"),
    ("metric", 2),
    ("append_timeout_ms", -1),
    ("append_timeout_ms", 0.5),
    ("append_timeout_ms", None),
    ("allow_nonfinite", 1),
    ("allow_nonfinite", None),
    ("enable_compression", "yes"),
    ("enable_replication", 0),
    ("compression_threshold_age_hours", -0.5),
    ("compression_threshold_age_hours", float("nan")),
    ("compression_threshold_age_hours", float("inf")),
    ("compression_threshold_age_hours", True),
    ("compression_threshold_age_hours", "24"),
    ("rotation_policy", "SizeBased"),
    ("rotation_policy", RotationPolicy.TimeBased),
    ("rotation_policy", RetentionPolicy.KeepAll),
    ("retention_policy", 7),
    ("retention_policy", RetentionPolicy.KeepLast),
    ("retention_policy", RotationPolicy.SizeBased),
    ("runway_segments", 0),
    ("runway_segments", 9),
    ("runway_segments", 2.0),
    ("kernel", "C"),
    ("kernel", "rust"),
    ("kernel", False),
    ("wal_dir", None),
    ("wal_dir", ""),
    ("wal_dir", b"/tmp/wal"),
    ("wal_dir", 3),
    ("wal_dir", "a\0b"),
    ("data_dir", ""),
    ("data_dir", b"data"),
    ("data_dir", 3),
]
RECOVERY_REFUSED = [
    ("wal_dir", None),
    ("data_dir", b"data"),
    ("verify_checksums", 1),
    ("skip_corrupted_entries", "yes"),
    ("strict", 1),
    ("max_recovery_time_ms", 0),
    ("max_recovery_time_ms", -1),
    ("max_recovery_time_ms", 1000.0),
    ("max_recovery_time_ms", True),
    ("workers", 0),
    ("workers", 1025),
    ("workers", True),
    ("workers", 2.0),
    ("target", -1),
    ("target", 1.5),
    ("target", True),
    ("target", ""),
    ("target", datetime(2026, 1, 1)),
]


@pytest.mark.parametrize(("field", "value"), WAL_REFUSED)
def test_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    error = refusal(WalConfig, **{field: value})
    assert (error.field, error.value is value) == (field, True)
    assert str(error).startswith(f"{field}={value!r}: ")


@pytest.mark.parametrize(("field", "value"), RECOVERY_REFUSED)
def test_wrong_value_of_a_recovery_is_refused_by_name(field: str, value: Any) -> None:
    error = refusal(RecoveryConfig, **{field: value})
    assert (error.field, error.value is value) == (field, True)
    assert str(error).startswith(f"{field}={value!r}: ")


@pytest.mark.parametrize(
    ("build", "field", "value"),
    [(WalConfig, *case) for case in WAL_REFUSED] + [(RecoveryConfig, *case) for case in RECOVERY_REFUSED],
)
def test_refusal_ends_with_what_to_do(build: Any, field: str, value: Any) -> None:
    advice = str(refusal(build, **{field: value})).rpartition("; ")[2]
    assert advice.split()[0] in {"give", "use", "pass", "name", "None", "a", "2", "24"}, advice


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(WalConfig)])
def test_every_field_is_checked(field: str) -> None:
    assert refusal(WalConfig, **{field: object()}).field == field


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RecoveryConfig)])
def test_every_field_of_a_recovery_is_checked(field: str) -> None:
    assert refusal(RecoveryConfig, **{field: object()}).field == field


def test_config_error_is_a_value_error_of_this_package() -> None:
    error = refusal(WalConfig, sync_interval_ms=-1)
    assert isinstance(error, ValueError)
    assert isinstance(error, WalError)


def test_unknown_metric_is_answered_with_the_known_ones() -> None:
    assert all(name in str(refusal(WalConfig, metric="ip")) for name in ("inner_product", "cosine", "l2"))


def test_budget_below_two_segments_is_told_to_pass_a_smaller_segment_size() -> None:
    problem = str(refusal(WalConfig, max_wal_size=100 * MIB, segment_size=64 * MIB))
    assert "pass segment_size=52428800 or less" in problem
    assert WalConfig(max_wal_size=100 * MIB).segment_size is None  # an existing log may have smaller ones
    assert WalConfig(max_wal_size=100 * MIB, segment_size=52_428_800).segment_size == 52_428_800


def test_budget_of_less_than_the_least_log_is_told_the_least() -> None:
    assert "use 131072 or more" in str(refusal(WalConfig, max_wal_size=100_000, segment_size=64 * KIB))
    assert WalConfig(max_wal_size=131_072, segment_size=64 * KIB).max_wal_size == 131_072


def test_vector_larger_than_a_segment_is_refused() -> None:
    small: dict[str, Any] = {"segment_size": 64 * KIB, "max_wal_size": MIB}
    assert "larger segment_size" in str(refusal(WalConfig, dimension=16_384, **small))
    assert WalConfig(dimension=16_384, dtype="int8", **small).dimension == 16_384
    assert WalConfig(dimension=1 << 20).dimension == 1 << 20


def test_log_and_data_may_not_share_a_directory() -> None:
    assert refusal(WalConfig, wal_dir="store", data_dir="./store/").field == "data_dir"
    assert refusal(RecoveryConfig, wal_dir=Path("store"), data_dir="store").field == "data_dir"


# ---- what is accepted


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("sync_interval_ms", [0, 1, 3_600_000]),
        ("checkpoint_interval", [1, 10**12, None]),
        ("max_wal_size", [TWO_SEGMENTS, 50_000_000_000]),
        ("segment_size", [64 * KIB, 64 * KIB + 4096, 256 * MIB, None]),
        ("dimension", [1, 768, 1 << 20, None]),
        ("dtype", ["float32", "float16", "int8", None]),
        ("metric", ["inner_product", "cosine", "l2", None]),
        ("append_timeout_ms", [0, 3_600_000]),
        ("runway_segments", [1, 8]),
        ("kernel", ["c", "py", None]),
        ("rotation_policy", [RotationPolicy.SizeBased, RotationPolicy.TimeBased(interval_hours=0.5)]),
        ("retention_policy", [RetentionPolicy.KeepAll, RetentionPolicy.KeepLast(1)]),
    ],
)
def test_bounds_themselves_are_accepted(field: str, values: list[Any]) -> None:
    assert [getattr(WalConfig(**{field: value}), field) for value in values] == values


def test_target_of_a_recovery_may_be_an_lsn_a_time_or_a_mark() -> None:
    for target in (0, 8192, "before-import", datetime.now(UTC), datetime.now(timezone(timedelta(hours=2)))):
        assert RecoveryConfig(target=target).target == target


def test_paths_are_held_as_str() -> None:
    config = WalConfig(wal_dir=Path("a") / "wal", data_dir=Path("a") / "data")
    assert (config.wal_dir, config.data_dir) == ("a/wal", "a/data")
    assert RecoveryConfig(data_dir=Path("data")).data_dir == "data"


def test_threshold_without_compression_warns() -> None:
    with pytest.warns(UserWarning, match="set enable_compression=True") as caught:
        WalConfig(compression_threshold_age_hours=1)
    assert caught[0].filename == __file__
    assert WalConfig(enable_compression=True, compression_threshold_age_hours=1.5)


# ---- policies


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), True, "24", None])
def test_rotation_needs_hours_above_zero(hours: Any) -> None:
    assert refusal(RotationPolicy.TimeBased, interval_hours=hours).field == "interval_hours"


@pytest.mark.parametrize("n", [0, -1, 1.0, True, None])
def test_retention_keeps_at_least_one_checkpoint(n: Any) -> None:
    assert refusal(RetentionPolicy.KeepLast, n=n).field == "n"


def test_policies_compare_print_and_match_by_name() -> None:
    def name_of(policy: object) -> str:
        match policy:
            case RotationPolicy.SizeBased:
                return "size"
            case RotationPolicy.TimeBased(interval_hours=hours):
                return f"each {hours} h"
            case RetentionPolicy.KeepAll:
                return "all"
            case RetentionPolicy.KeepLast(n):
                return f"last {n}"
        return "?"

    policies = [
        RotationPolicy.SizeBased,
        RotationPolicy.TimeBased(),
        RetentionPolicy.KeepAll,
        RetentionPolicy.KeepLast(7),
    ]
    assert [name_of(policy) for policy in policies] == ["size", "each 24 h", "all", "last 7"]
    assert [repr(policy) for policy in policies] == [
        "RotationPolicy.SizeBased",
        "RotationPolicy.TimeBased(interval_hours=24)",
        "RetentionPolicy.KeepAll",
        "RetentionPolicy.KeepLast(n=7)",
    ]
    assert pickle.loads(pickle.dumps(policies)) == policies  # noqa: S301  # our own bytes


# ---- the guide, block by block

GUIDE_BLOCKS: dict[str, dict[str, Any]] = {
    "basic": {
        "wal_dir": "/var/lib/oxirs/wal",
        "max_wal_size": 1_000_000_000,
        "sync_interval_ms": 1000,
        "checkpoint_interval": 10_000,
    },
    "production": {
        "wal_dir": "/mnt/ssd/oxirs/wal",
        "max_wal_size": 10_000_000_000,
        "sync_interval_ms": 100,
        "checkpoint_interval": 100_000,
        "enable_compression": True,
        "rotation_policy": RotationPolicy.SizeBased,
        "retention_policy": RetentionPolicy.KeepLast(7),
    },
    "maximum_durability": {"sync_interval_ms": 0, "checkpoint_interval": 1000},
    "balanced": {"sync_interval_ms": 100, "checkpoint_interval": 10_000},
    "performance": {"sync_interval_ms": 5000, "checkpoint_interval": 100_000},
    "high_throughput": {"sync_interval_ms": 1000, "checkpoint_interval": 100_000},
    "development": {
        "wal_dir": "/tmp/wal",
        "sync_interval_ms": 10_000,
        "checkpoint_interval": 100_000,
        "enable_compression": False,
    },
    "production_balanced": {
        "wal_dir": "/mnt/ssd/wal",
        "max_wal_size": 10_000_000_000,
        "sync_interval_ms": 100,
        "checkpoint_interval": 50_000,
        "enable_compression": True,
        "rotation_policy": RotationPolicy.SizeBased,
        "retention_policy": RetentionPolicy.KeepLast(7),
    },
    "production_maximum_durability": {
        "wal_dir": "/mnt/nvme/wal",
        "max_wal_size": 50_000_000_000,
        "sync_interval_ms": 0,
        "checkpoint_interval": 10_000,
        "enable_compression": True,
        "rotation_policy": RotationPolicy.SizeBased,
        "retention_policy": RetentionPolicy.KeepAll,
        "enable_replication": True,
    },
}


@pytest.mark.parametrize("name", GUIDE_BLOCKS)
def test_preset_equals_its_block_of_the_guide_field_by_field(name: str) -> None:
    preset = getattr(WalConfig, name)()
    assert preset == WalConfig(**GUIDE_BLOCKS[name])
    for field, value in GUIDE_BLOCKS[name].items():
        assert getattr(preset, field) == value


@pytest.mark.parametrize("name", GUIDE_BLOCKS)
def test_preset_takes_overrides(name: str) -> None:
    preset = getattr(WalConfig, name)(wal_dir="mine", sync_interval_ms=7, dimension=3)
    assert preset == WalConfig(**GUIDE_BLOCKS[name] | {"wal_dir": "mine", "sync_interval_ms": 7, "dimension": 3})
    with pytest.raises(TypeError):
        getattr(WalConfig, name)(unknown=1)


def test_strict_contradicts_leaving_damage_out() -> None:
    with pytest.raises(WalConfigError, match="contradicts skip_corrupted_entries"):
        RecoveryConfig(strict=True, skip_corrupted_entries=True)


def test_every_other_config_block_of_the_guide_is_valid() -> None:
    assert WalConfig(checkpoint_interval=100_000).checkpoint_interval == 100_000
    assert WalConfig(wal_dir="/mnt/nvme-ssd/wal").wal_dir == "/mnt/nvme-ssd/wal"
    assert WalConfig(max_wal_size=1_000_000_000, rotation_policy=RotationPolicy.SizeBased) == WalConfig()
    assert WalConfig(rotation_policy=RotationPolicy.TimeBased(interval_hours=24))
    assert WalConfig(enable_compression=True, compression_threshold_age_hours=24)
    assert RecoveryConfig(
        wal_dir="/var/lib/oxirs/wal",
        data_dir="/var/lib/oxirs/data",
        verify_checksums=True,
        max_recovery_time_ms=60_000,
    )
    assert RecoveryConfig(skip_corrupted_entries=True).skip_corrupted_entries is True


def test_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(config_module)
    assert (result.failed, result.attempted > 0) == (0, True)
