"""What is secret in an address, by the kinds of servers that sign them."""

from __future__ import annotations

import pytest

from builder.secrets import holds_secret, public, redact

PLAIN = [
    "https://drive.google.com/uc?export=download&confirm=t&id=1AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "https://drive.google.com/file/d/1x/view?usp=sharing&resourcekey=0-abc",
    "https://zenodo.org/records/7097538/files/a.tar?download=1",
    "https://huggingface.co/timm/x/resolve/refs%2Fpr%2F1/model.safetensors",
    "https://host:8080/get.php?file=net.pt&version=3&design=tokio",
    "https://host/a%20b.pt?x=1&x=2#top",
    "http://[::1]:80/w.pt",
]
SECRET = {
    "userinfo": ("https://alice:hunter2@host:81/w.pt", "https://host:81/w.pt"),
    "token as user": ("https://hunter2@host/w.pt?raw=1", "https://host/w.pt?raw=1"),
    "at sign in a password": ("https://a:hunter2@x@host/w.pt", "https://host/w.pt"),
    "S3": (
        "https://b.s3.amazonaws.com/w.pt?versionId=7&X-Amz-Algorithm=AWS4&X-Amz-Credential=hunter2"
        "&X-Amz-Expires=600&X-Amz-Signature=hunter2&x-amz-security-token=hunter2",
        "https://b.s3.amazonaws.com/w.pt?versionId=7",
    ),
    "S3, before": (
        "https://b.s3.amazonaws.com/w.pt?AWSAccessKeyId=hunter2&Signature=hunter2&Expires=1",
        "https://b.s3.amazonaws.com/w.pt",
    ),
    "Google": (
        "https://storage.googleapis.com/b/w.pt?X-Goog-Signature=hunter2&X-Goog-Date=1",
        "https://storage.googleapis.com/b/w.pt",
    ),
    "Azure": (
        "https://a.blob.core.windows.net/c/w.pt?sv=2022&st=1&se=2&sr=b&sp=r&sig=hunter2%3D",
        "https://a.blob.core.windows.net/c/w.pt",
    ),
    "CloudFront": (
        "https://d.cloudfront.net/w.pt?Policy=hunter2&Signature=hunter2&Key-Pair-Id=hunter2",
        "https://d.cloudfront.net/w.pt",
    ),
    "Dropbox": (
        "https://www.dropbox.com/scl/fi/x/w.pt?rlkey=hunter2&dl=1",
        "https://www.dropbox.com/scl/fi/x/w.pt?dl=1",
    ),
    "OneDrive": ("https://1drv.ms/d?resid=1&authkey=hunter2", "https://1drv.ms/d?resid=1"),
    "Tencent": ("https://c.cos/w.pt?q-ak=hunter2&q-signature=hunter2", "https://c.cos/w.pt"),
    "Discord": ("https://cdn/w.pt?ex=1&is=2&hm=hunter2&", "https://cdn/w.pt?"),
    "GitLab": ("https://gitlab/w.pt?private_token=hunter2", "https://gitlab/w.pt"),
    "Figshare": ("https://f/w?private_link=hunter2", "https://f/w"),
    "any spelling": ("https://h/w?accessToken=hunter2&API-KEY=hunter2", "https://h/w"),
    "escaped": ("https://h/w?X%2DAmz%2DSignature=hunter2&a=1", "https://h/w?a=1"),
    "semicolons": ("https://h/w?a=1;password=hunter2", "https://h/w?a=1"),
    "fragment": ("https://h/w#access_token=hunter2", "https://h/w"),
    "under a harmless name": ("https://h/w?a=hf_abcdefghijklabcdefghijkl&b=1", "https://h/w?b=1"),
    "no address": ("https://a:hunter2@[::1/w?sig=hunter2", "https://[::1/w"),
}


@pytest.mark.parametrize("url", PLAIN)
def test_an_address_without_secrets_stays_as_it_is(url: str) -> None:
    assert public(url) == url
    assert not holds_secret(url)


@pytest.mark.parametrize("kind", SECRET)
def test_a_password_or_signature_in_an_address_was_passed_on(kind: str) -> None:
    url, wanted = SECRET[kind]
    assert public(url).rstrip("?&") == wanted.rstrip("?&")
    assert "hunter2" not in redact(f"cannot fetch '{url}': no")
    assert holds_secret(f"it came from {url}.") or kind == "no address"


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "aB3" * 11,
        "ghp_" + "a1" * 18,
        "AKIA" + "A1" * 8,
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abc",
    ],
)
def test_a_token_is_known_by_its_form(token: str) -> None:
    assert holds_secret(f"use {token} here")
    assert token not in redact(f"use {token} here")
