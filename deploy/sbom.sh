#!/bin/sh
# `make sbom`: writes a CycloneDX SBOM of the image's Python packages, with their hashes, to build/sbom.cdx.json. It comes from
# the lock file from which the image is built, so it needs neither Docker nor a network.
set -eu
cd "$(dirname "$0")/.."
mkdir -p build
.venv/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible \
    --output-format JSON --output-file build/sbom.cdx.json deploy/image/requirements.lock
echo "build/sbom.cdx.json: $(grep -c '"purl"' build/sbom.cdx.json) components"
