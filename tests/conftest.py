from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_kept_features(monkeypatch):
    """No test reads features that another one, or the user, left behind."""
    monkeypatch.setenv("FEATURE_CACHE_GB", "0")
