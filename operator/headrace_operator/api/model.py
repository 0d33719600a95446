"""What is served: `spec.model`."""

from typing import Annotated, Literal

from pydantic import Field

from headrace_operator.api.types import Duration, Frozen, LocalRef, Name, list_map

Source = Annotated[str, Field(max_length=1024, pattern=r"^(hf|oci|s3|https|pvc|node)://[^\s]+$")]

ServedName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")]


class Manifest(Frozen):
    """Where the expected checksums are. Exactly one field."""

    config_map_ref: LocalRef | None = None
    """A ConfigMap with the key `SHA256SUMS`: lines as `sha256sum` writes them, paths relative to the model's folder."""


class Signature(Frozen):
    """An OpenSSF model-signing bundle, `model.sig`, that lies beside the weights: what `model_signing sign key` makes,
    with the SHA-256 of whole files."""

    public_key_secret_ref: LocalRef
    """The Secret with the signer's public key (P-256, P-384 or P-521) under the key `public.pem`."""


class Integrity(Frozen):
    """How the weights are checked before an engine may load them."""

    policy: Literal["Enforce", "Warn", "Off"] = "Enforce"
    """Enforce: an engine never loads files that do not match. Warn: it loads them and says so. "Off": no check.
    Write "Off" in quotes: YAML reads a bare Off as false."""
    manifest: Manifest | None = None
    """Expected SHA-256 of each file. Without it, the digest of the first load is pinned: later ones must match."""
    signature: Signature | None = None
    """A signature that the files must carry."""
    allow_pickle: bool = False
    """Files that run code when they are loaded (pickles: .bin, .pt, .pth, .ckpt, .pkl, and any file that is one) are
    refused. true: they are let in."""
    trust_unchanged: Literal["Never", "Boot"] = "Never"
    """Never: an agent reads every file before its engine starts. Boot: of a fetched model, it does not read again what
    the node's cache has kept untouched since it was fetched, as long as the node runs: faster starts, and whoever may
    write the cache, as every engine of the node, could forge it."""
    rescan: Duration | None = None
    """How long after one reading the files are read and compared again while they are served: slowly, and past the page
    cache. Where bytes differ, Enforce ends the engine after its streams, and none starts until the files are repaired;
    a fetched model is fetched again."""


class Adapter(Frozen):
    """A LoRA adapter, loaded and unloaded without a restart."""

    name: Name
    """The model name that requests use for this adapter."""
    source: Source
    """Where the adapter's files are, in the forms of `spec.model.source`; node:// and pvc:// below
    `spec.engine.lora.folder`."""


class Model(Frozen):
    """What is served and how its files are trusted."""

    source: Source
    """Where the weights are. Mounted: node:///absolute/path (a folder on every node that may run an engine) or
    pvc://claim/path. Fetched into a cache of the node, once for all its engines: hf://owner/name@commit,
    oci://registry/repository:tag (or @sha256:digest), s3://bucket/prefix, https://host/folder/ (the files that its
    SHA256SUMS lists) or https://host/file#sha256=digest (.tar and .tar.gz are unpacked)."""
    served_name: ServedName | None = None
    """The model name that requests use. Default: the InferenceDeployment's own name."""
    credentials_secret_ref: LocalRef | None = None
    """A Secret with the credentials that the source asks for: HF_TOKEN (hf), .dockerconfigjson or username and password
    (oci), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3), username and password or token (https)."""
    loader: Literal["Auto", "Safetensors", "Streamer", "FastSafetensors"] = "Auto"
    """How weights get into device memory. Auto lets the engine choose."""
    integrity: Integrity = Integrity()
    """How the weights are checked before an engine may load them."""
    adapters: tuple[Adapter, ...] = Field(default=(), max_length=64, json_schema_extra=list_map("name"))
    """LoRA adapters served beside the model, by their names. They come and go without a restart; the engines must keep
    room for them, `spec.engine.lora`."""
