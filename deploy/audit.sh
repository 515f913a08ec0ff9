#!/bin/sh
# `make audit`: scans for risky code and known vulnerabilities, and writes an SBOM to build/sbom.cdx.json (CycloneDX).
# Looks up vulnerabilities at PyPI, then at OSV. If neither can be reached, it says so and fails at the end.
set -u
cd "$(dirname "$0")/.."
bin=.venv/bin
lock=deploy/image/requirements.lock
mkdir -p build
status=0

echo "== bandit: risky code in src/ and deploy/"
$bin/bandit -q -c pyproject.toml -r src deploy || status=1

echo "== cyclonedx: SBOM of the image"
sh deploy/sbom.sh || status=1

echo "== pip-audit: known vulnerabilities of $lock"
answered=
for service in pypi osv; do
    $bin/pip-audit -r "$lock" --require-hashes --disable-pip --vulnerability-service "$service" \
        --progress-spinner off --timeout 15 >build/audit.txt 2>&1
    code=$?
    if grep -q "could not be audited\|ConnectionError\|ServiceError\|ould not connect\|Traceback" build/audit.txt; then
        echo "$service could not be reached: $(grep -m1 "audited\|Error\|connect" build/audit.txt | cut -c1-160)"
        continue
    fi
    answered=$service
    cat build/audit.txt
    [ "$code" = 0 ] || status=1
    break
done
if [ -z "$answered" ]; then
    echo "No service was reachable: vulnerabilities were not checked. Run this where pypi.org or osv.dev can be reached."
    status=1
fi
exit $status
