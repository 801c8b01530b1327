#!/bin/sh
# Find a Chromium for the page tests; install one where this user may. Without one those tests skip and say so.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 && exit 0
fi
.venv/bin/python -m playwright install chromium && exit 0
echo "e2e: no Chromium: the tests of the chat page will be skipped. On Debian: apt-get install chromium" >&2
