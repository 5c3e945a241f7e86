#!/usr/bin/env bash
# Makes secrets/ for the compose file: an authority, one certificate for all services of this host, and a token.
# For a trial on one host; a fleet brings its own authority and one certificate a service.
set -euo pipefail
cd "$(dirname "$0")"
[ ! -e secrets ] || { echo "secrets/ is there already: nothing done"; exit 0; }
command -v openssl >/dev/null || { echo "the openssl command is not installed" >&2; exit 1; }
umask 077
# Under its own name only once all of it is there: the next run would take half of it for done.
made=$(mktemp -d secrets.XXXXXX)
trap 'rm -rf "$made"' EXIT
quietly() { "$@" 2>"$made/log" || { cat "$made/log" >&2; exit 1; }; }
quietly openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=tutelage authority" \
  -keyout "$made/ca.key" -out "$made/ca.pem"
quietly openssl req -newkey rsa:3072 -nodes -subj "/CN=tutelage" -keyout "$made/server.key" -out "$made/server.csr"
printf 'subjectAltName=%s' "DNS:teacher,DNS:student-ada,DNS:student-ben,DNS:orchestrator,DNS:localhost,IP:127.0.0.1" \
  >"$made/names"
quietly openssl x509 -req -in "$made/server.csr" -CA "$made/ca.pem" -CAkey "$made/ca.key" -CAcreateserial -days 825 \
  -extfile "$made/names" -out "$made/server.pem"
openssl rand -hex 32 >"$made/token"
rm "$made/server.csr" "$made/names" "$made/log"
mv "$made" secrets
# The services run as user 10001 of their image and read these.
chmod 644 secrets/ca.pem secrets/server.pem
chown 10001 secrets secrets/server.key secrets/token 2>/dev/null ||
  echo "make secrets/ readable for user 10001 of the containers (chown needs root)"
echo "wrote secrets/"
