"""IPv6 literals: in a site's manifest, in the centre's commands, in certificates, and in a connection over ::1."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from fedml.clients.site.manifest import read_site
from fedml.errors import InputError
from fedml.experiments.federation.centre import make_centre, read_centre
from fedml.flower.address import is_loopback, join, proxy_for, split
from tests.command import quick as command
from tests.conftest import clinical_site
from tests.federated import centre_up, doctor, join_centre, service_up

SECTION = '[connection]\nsuperlink = "{}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n'


def has_ipv6() -> bool:
    """Whether this machine has ::1."""
    with suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("[::1]:9092", ("::1", 9092)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("[2001:0DB8:0::0:1]:443", ("2001:db8::1", 443)),
        ("[::ffff:192.0.2.1]:1", ("::ffff:c000:201", 1)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("federation.example.org:9092", ("federation.example.org", 9092)),
    ],
)
def test_addresses_that_are(address: str, expected: tuple[str, int], tmp_path: Path) -> None:
    manifest = clinical_site(tmp_path, "a", 30, 1)
    manifest.write_text(manifest.read_text() + SECTION.format(address))
    found = read_site(tmp_path).manifest.connection
    assert found is not None
    host, port = found.address
    assert port == expected[1]
    assert socket.inet_pton(socket.AF_INET6, host) == socket.inet_pton(socket.AF_INET6, expected[0]) if ":" in host else host == expected[0]
    assert split(join(host, port)) == (host, port)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("2001:db8::1:443", "must have brackets around the IPv6 address"),
        ("::1:9092", "must have brackets"),
        ("[::1]", "host:port"),
        ("[::1]:0", "port from 1 to 65535"),
        ("[::1]:65536", "port from 1 to 65535"),
        ("[::g]:1", "not an IPv6 address"),
        ("[fe80::1%eth0]:1", "not an IPv6 address"),
        ("[10.0.0.1]:1", "not an IPv6 address"),
        ("a_b c:1", "host:port"),
        ("-x:1", "host:port"),
        ("http://c.example:1", "must have brackets|host:port"),
        ("c.example", "host:port"),
        (":9092", "host:port"),
        ("c.example:９０９２", "host:port"),
        ("[::1]x:1", "must have brackets|host:port"),
    ],
)
def test_addresses_that_are_none(address: str, text: str, tmp_path: Path) -> None:
    manifest = clinical_site(tmp_path, "a", 30, 1)
    manifest.write_text(manifest.read_text() + SECTION.format(address))
    with pytest.raises(InputError, match=rf"\[connection\] superlink: .*({text})"):
        read_site(tmp_path)


def test_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST.")))
    assert not any(map(is_loopback, ("128.0.0.1", "::2", "localhost.example", "2001:db8::1", "192.0.2.1")))


def test_a_proxy_on_the_way_to_a_literal_is_refused() -> None:
    with pytest.raises(InputError, match="which needs a name"):
        proxy_for("2001:db8::1", 443, "http://p:1")
    assert proxy_for("2001:db8::1", 443, "") is None


@pytest.mark.parametrize("host", ["2001:db8::1", "[2001:db8::1]", "192.0.2.7"])
def test_a_centre_at_a_literal_has_a_certificate_for_it(host: str, tmp_path: Path) -> None:
    done = command("fedml", "federation", "init", "--home", "home", "--host", host, "--port", "443", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain = host.strip("[]")
    assert f"sites connect to {join(plain, 443)};" in done.stdout
    assert read_centre(tmp_path / "home").host == plain
    names = x509.load_pem_x509_certificate((tmp_path / "home" / "server.pem").read_bytes()).extensions
    given = names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.IPAddress)
    assert [str(address) for address in given] == [plain]
    checked = subprocess.run(
        ["openssl", "verify", "-CAfile", tmp_path / "home" / "ca.pem", "-verify_ip", plain, tmp_path / "home" / "server.pem"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("host", ["[2001:db8::g]", "a b", "http://c.example", "2001:db8::1]x"])
def test_a_host_that_is_none_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--host"):
        make_centre(tmp_path / "home", host)
    assert not (tmp_path / "home").exists()


@pytest.mark.long
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize("listen", ["::1", "[::]"])
def test_a_site_joins_over_ipv6(listen: str, tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 30, 1)
    with centre_up(tmp_path / "home", "::1", listen) as home:
        join_centre(tmp_path / "a", home, "::1", name="a")
        assert f'"[::1]:{read_centre(home).port}"' in (tmp_path / "a" / "site.toml").read_text()
        with service_up(tmp_path / "a"):
            done = doctor(tmp_path / "a", HTTPS_PROXY="http://127.0.0.1:1")
    assert done.returncode == 0, done.stdout
    assert f"TLS chain: [::1]:{read_centre(home).port}: verified" in done.stdout
    assert "fail" not in {line.split()[0] for line in done.stdout.splitlines()}
