#!/usr/bin/env bash
# Installs the programs that some tests drive: Chromium (looks at the pages) and PostgreSQL (the other database).
# Does nothing where they are there already. tests/conftest.py looks in the same places.
set -euo pipefail

has_chromium() {
  command -v chromium || command -v chromium-browser || command -v google-chrome
}

# Debian keeps the server's programs out of PATH.
has_postgresql() {
  command -v initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb'
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
has_chromium >/dev/null || missing+=(chromium fonts-liberation)  # without a font, pages have no letters
has_postgresql >/dev/null || missing+=(postgresql)
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "system-deps: not found: ${missing[*]}. Install by hand: this script knows only Debian's apt-get." >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
  echo "system-deps: not found: ${missing[*]}. Neither root nor sudo here: run 'apt-get install ${missing[*]}' as root." >&2
  exit 1
fi
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
