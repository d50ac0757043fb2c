"""The version of this release, of all packages: what `--version` shows and a participant's hello states."""

VERSION = "0.1.0"
