"""How often a SuperNode asks for messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedml.flower import supernode
from fedml.flower.supernode import KEPT_BACK, WAIT_BUSY, PatientClient, ask_nap


@pytest.mark.parametrize(("quiet", "seconds"), [(0, 0.2), (4, 0.2), (20, 1.0), (60, 3.0), (86_400, 3.0)])
def test_a_site_without_messages_asks_less_often(quiet: float, seconds: float) -> None:
    assert ask_nap(quiet) == pytest.approx(seconds)


@pytest.mark.parametrize("quiet", [0, 60, 86_400])
def test_a_site_whose_request_was_kept_back_asks_again_at_once(quiet: float) -> None:
    assert ask_nap(quiet, took=float(WAIT_BUSY)) == 0
    assert ask_nap(quiet, took=0.01) == ask_nap(quiet) > 0, "of a centre that answers at once it asks less often"
    assert WAIT_BUSY > KEPT_BACK


CUT, WRONG = "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred", "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"


@pytest.mark.parametrize(("reached", "text", "ends"), [(True, CUT, False), (True, WRONG, True), (False, CUT, True), (False, WRONG, True)])
def test_a_cut_connection_is_not_taken_for_a_wrong_certificate(
    reached: bool, text: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's client gives up, and with it the SuperNode ends, when an error names TLS or a certificate."""
    monkeypatch.setattr(supernode, "_last", {**supernode._last, "reached": float(reached)})
    context = SimpleNamespace(rpc_method="/PushObject", request=SimpleNamespace(headers={}))

    def fail(_: Any) -> httpx.Response:
        raise httpx.ConnectError(text)

    with pytest.raises(httpx.ConnectError) as error:
        PatientClient.intercept(object.__new__(PatientClient), context, fail)
    assert any(word in str(error.value).lower() for word in ("ssl", "tls", "certificate")) is ends
